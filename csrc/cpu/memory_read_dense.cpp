// The read over all tokens: softmax of a tile of scores at a time, then its product with the values of every object.
//
// Where the scores of a tile of queries fit a core's share of the cache, they are kept until the largest is known. Else
// the memory goes by in parts, whose sums are relative to the largest score so far; usage then takes a second pass,
// with the softmax that is known by then. Sums are taken in an order that depends on N and Q alone, so the result is
// the same for any number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include "direct_form.h"
#include "key_bank.h"
#include "read_steps.h"
#include "value_tiles.h"
#include "vec.h"

namespace xmemk::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kKeptBytes = 8 << 20;    // of scores per thread
constexpr int64_t kBlockBytes = 32 << 20;  // of sums of queries that are under way together
constexpr int64_t kThreadBytes = 4 << 20;  // where there are so many threads that this is more
constexpr int64_t kParts = 16;             // queries' tiles times parts of the memory, where there are few queries
constexpr int64_t kTogether = 4;           // tiles of a part whose scores are relative to one number
constexpr float kLargestTermOfAPrototype = 0x1p8f;  // a score is off by 2^-16 or so

struct Softmax {
  float largest = -kInfinity;
  double sum = 0;  // of exp(score - largest)

  void add(const Softmax& other) {
    if (other.largest == -kInfinity) return;
    const float together = std::max(largest, other.largest);
    sum = sum * std::exp(double(largest) - together) + other.sum * std::exp(double(other.largest) - together);
    largest = together;
  }
  // What sums relative to the largest are to be multiplied by, to be relative to another; those of no score at all are
  // 0.
  float relative_to(float other) const { return largest == -kInfinity ? 0 : std::exp(largest - other); }
  float shift() const { return largest == -kInfinity ? 0 : largest; }
  float scale() const { return sum > 0 ? static_cast<float>(1 / sum) : 0; }  // of a query that reads NaN: 0
};

class DenseRead {
 public:
  // `more`: one more channel to average, or none. `largest_term`: beyond it, scores come from the direct form.
  DenseRead(const Operands& operands, const ValueTiles& values, const ValueTiles* more, float* usage,
            float largest_term = kLargestTerm)
      : operands_(operands),
        values_(values),
        more_(more),
        largest_term_(largest_term),
        bank_(operands),
        kernels_(vec()),
        read_(values.objects() * values.channels()),
        row_(read_ + (more != nullptr)),
        chain_(operands.tokens() < 1024 ? 32 : 64),
        usage_(usage) {
    const int64_t tiles = ceil_div(operands.queries(), kTileQueries), threads = at::get_num_threads();
    const int64_t sums = kTileQueries * row_ * 4, used = usage == nullptr ? 0 : operands.tokens() * 4;
    // Splits decide the order of sums, so they are the same for any number of threads.
    const int64_t least =
        std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(sums + used, 1), 1, std::max<int64_t>(tiles, 1));
    splits_ = std::clamp<int64_t>(kParts / least, 1, bank_.chunk_tiles());
    const int64_t bytes = std::max<int64_t>(splits_ * sums + used, 1);
    block_tiles_ = std::min(tiles, std::max<int64_t>(std::max(kBlockBytes, threads * kThreadBytes) / bytes, 1));
    kept_ = splits_ == 1 && bank_.whole() && bank_.tiles() * kScores * 4 <= kKeptBytes;
  }

  // out [B, Q, O * CV]; more_out [B, Q] of the additional channel; softmax_out [B, 2, Q]: what a score is to be less,
  // and what its exponential is to be multiplied by
  template <typename scalar_t>
  void run(scalar_t* out, float* more_out, float* softmax_out = nullptr) {
    const int64_t queries = operands_.queries(), tokens = operands_.tokens(), block = block_tiles_ * kTileQueries;
    Buffer<float> sums(splits_ * block * row_), used(usage_ == nullptr ? 0 : block_tiles_ * tokens);
    sums_ = sums.get();
    used_ = usage_ == nullptr ? nullptr : used.get();
    for (int64_t b = 0; b < operands_.batch(); ++b) {
      for (int64_t first = 0; first < queries; first += block) {
        b_ = b;
        first_ = first;
        count_ = std::min(block, queries - first);
        softmax_.assign(count_, {});
        if (kept_) {
          bank_.load(b, 0);
          for_each_task(
              ceil_div(count_, kTileQueries), [&] { return scratch(bank_.tiles()); },
              [&](int64_t task, Scratch& scratch) { read_kept(task * kTileQueries, scratch); });
        } else {
          read_in_parts();
          if (used_ != nullptr) use_in_parts();
        }
        for_each_task(count_, [&](int64_t i) {
          const int64_t query = b * queries + first + i;
          finish(i, out + query * read_, more_out + query);
          if (softmax_out == nullptr) return;
          softmax_out[2 * b * queries + first + i] = softmax_[i].shift();
          softmax_out[(2 * b + 1) * queries + first + i] = scale_or_nan(i);
        });
        add_usage(usage_ + b * tokens, first == 0);
      }
    }
  }

 private:
  static constexpr int64_t kScores = kTileQueries * kTileKeys;

  struct Scratch {
    Buffer<float> query, score, value;
    DirectForm direct;
    Scratch(const Operands& operands, int64_t channels, int64_t tiles, float largest_term)
        : query(kTileQueries * operands.width()),
          score(tiles * kScores),
          value(kTileKeys * std::max<int64_t>(channels, 1)),
          direct(operands, largest_term) {}
  };

  Scratch scratch(int64_t tiles) const { return {operands_, values_.channels(), tiles, largest_term_}; }

  int64_t rows_at(int64_t at) const { return std::min(kTileQueries, count_ - at); }

  void set_queries(int64_t at, Scratch& scratch) const {
    operands_.pack_queries(b_, first_ + at, rows_at(at), scratch.query.get());
    scratch.direct.set_queries(b_, first_ + at, rows_at(at), scratch.query.get());
  }

  void scores(int64_t rows, int64_t t, Scratch& scratch, float* out) const {
    check_interrupt();
    const int64_t width = operands_.width();
    const float* query = scratch.query.get();
    kernels_.product(rows, kTileKeys, width, query, width, bank_.tile(t), kTileKeys, out, kTileKeys, false);
    scratch.direct.correct(bank_.largest_terms(t), bank_.terms(t), t * kTileKeys, bank_.tile_keys(t), out, 1,
                           kTileKeys);
  }

  // Queries [at, at + rows) of the block; their scores are kept from the first look to the last.
  void read_kept(int64_t at, Scratch& scratch) {
    const int64_t rows = rows_at(at), tiles = bank_.tiles();
    Softmax softmax[kTileQueries];
    set_queries(at, scratch);
    for (int64_t t = 0; t < tiles; ++t) {
      float* score = scratch.score.get() + t * kScores;
      scores(rows, t, scratch, score);
      for (int64_t r = 0; r < rows; ++r) {
        const float largest = kernels_.largest(score + r * kTileKeys, bank_.tile_keys(t));
        softmax[r].largest = std::max(softmax[r].largest, largest);
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      float* score = scratch.score.get() + t * kScores;
      for (int64_t r = 0; r < rows; ++r) softmax[r].sum += exponentials(t, score + r * kTileKeys, softmax[r].shift());
      multiply(rows, t, score, sums_ + at * row_, t > 0, scratch.value.get());
    }
    std::copy_n(softmax, rows, softmax_at(at));
    if (used_ == nullptr) return;
    for (int64_t t = 0; t < tiles; ++t) use(at, rows, t, scratch.score.get() + t * kScores);
  }

  // Sums of each query of the block, in parts that are put together in order.
  void read_in_parts() {
    parts_.assign(splits_ * count_, {});
    std::fill_n(sums_, splits_ * count_ * row_, 0.0f);
    for_each_chunk(kTogether, [&](int64_t at, int64_t split, int64_t from, int64_t to, Scratch& scratch) {
      set_queries(at, scratch);
      for (int64_t t = from; t < to; t += kTogether) {
        add_to_part(at, split, t, std::min(t + kTogether, to), scratch);
      }
    });
    for (int64_t i = 0; i < splits_ * count_; ++i) softmax_[i % count_].add(parts_[i]);
  }

  // Tiles [from, to) to the sums of queries [at, at + rows) of a split.
  void add_to_part(int64_t at, int64_t split, int64_t from, int64_t to, Scratch& scratch) {
    const int64_t rows = rows_at(at);
    Softmax* part = parts_.data() + split * count_ + at;
    float* sums = sums_ + (split * count_ + at) * row_;
    Softmax now[kTileQueries];
    for (int64_t t = from; t < to; ++t) {
      float* score = scratch.score.get() + (t - from) * kScores;
      scores(rows, t, scratch, score);
      for (int64_t r = 0; r < rows; ++r) {
        const float largest = kernels_.largest(score + r * kTileKeys, bank_.tile_keys(t));
        now[r].largest = std::max(now[r].largest, largest);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      now[r].largest = std::max(now[r].largest, part[r].largest);
      if (part[r].largest < now[r].largest) scale(sums + r * row_, part[r].relative_to(now[r].largest));
      part[r].add(now[r]);
    }
    for (int64_t t = from; t < to; ++t) {
      float* score = scratch.score.get() + (t - from) * kScores;
      for (int64_t r = 0; r < rows; ++r) part[r].sum += exponentials(t, score + r * kTileKeys, part[r].shift());
      multiply(rows, t, score, sums, true, scratch.value.get());
    }
  }

  void scale(float* sum, float by) const {
    for (int64_t c = 0; c < row_; ++c) sum[c] *= by;
  }

  void use_in_parts() {
    for_each_chunk(1, [&](int64_t at, int64_t, int64_t from, int64_t to, Scratch& scratch) {
      const int64_t rows = rows_at(at);
      set_queries(at, scratch);
      for (int64_t t = from; t < to; ++t) {
        float* score = scratch.score.get();
        scores(rows, t, scratch, score);
        for (int64_t r = 0; r < rows; ++r) exponentials(t, score + r * kTileKeys, softmax_at(at)[r].shift());
        use(at, rows, t, score);
      }
    });
  }

  // f(first query, split, first tile, last tile, scratch) over all of the memory, chunk after chunk of the bank.
  template <typename F>
  void for_each_chunk(int64_t tiles_together, const F& f) {
    for (int64_t first = 0; first < bank_.tiles(); first += bank_.chunk_tiles()) {
      bank_.load(b_, first);
      const int64_t tiles = std::min(bank_.chunk_tiles(), bank_.tiles() - first);
      for_each_task(
          ceil_div(count_, kTileQueries) * splits_, [&] { return scratch(tiles_together); },
          [&](int64_t task, Scratch& scratch) {
            const int64_t split = task % splits_, at = task / splits_ * kTileQueries;
            f(at, split, first + split * tiles / splits_, first + (split + 1) * tiles / splits_, scratch);
          });
    }
  }

  // Scores of one query to exp(score - shift), 0 behind the last token.
  float exponentials(int64_t t, float* score, float shift) const {
    const int64_t keys = bank_.tile_keys(t);
    std::fill(score + keys, score + kTileKeys, 0.0f);
    return kernels_.exponentials(score, keys, shift);
  }

  void multiply(int64_t rows, int64_t t, const float* weight, float* sums, bool add, float* scratch) const {
    const auto sum = [&](const ValueTiles::Tile& value, int64_t channels, float* to) {
      for (int64_t i = 0; i < kTileKeys; i += chain_) {
        kernels_.product(rows, channels, chain_, weight + i, kTileKeys, value.data + i * value.stride, value.stride, to,
                         row_, add || i > 0);
      }
    };
    for (int64_t o = 0; o < values_.objects() && values_.channels() > 0; ++o) {
      sum(values_.get(b_, o, t, scratch), values_.channels(), sums + o * values_.channels());
    }
    if (more_ != nullptr) sum(more_->get(b_, 0, t, scratch), 1, sums + read_);
  }

  // What tile t receives from queries [at, at + rows).
  void use(int64_t at, int64_t rows, int64_t t, const float* weight) {
    float* used = used_ + at / kTileQueries * operands_.tokens() + t * kTileKeys;
    const int64_t keys = bank_.tile_keys(t);
    std::fill_n(used, keys, 0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      kernels_.add_scaled(used, weight + r * kTileKeys, softmax_at(at)[r].scale(), keys);
    }
  }

  Softmax* softmax_at(int64_t at) { return softmax_.data() + at; }

  float scale_or_nan(int64_t i) const {
    return softmax_[i].sum > 0 ? softmax_[i].scale() : std::numeric_limits<float>::quiet_NaN();
  }

  template <typename scalar_t>
  void finish(int64_t i, scalar_t* out, float* more_out) const {
    float* sum = sums_ + i * row_;
    if (splits_ > 1) scale(sum, parts_[i].relative_to(softmax_[i].largest));
    for (int64_t split = 1; split < splits_; ++split) {
      const float by = parts_[split * count_ + i].relative_to(softmax_[i].largest);
      kernels_.add_scaled(sum, sums_ + (split * count_ + i) * row_, by, row_);
    }
    const float scale = scale_or_nan(i);
    for (int64_t c = 0; c < read_; ++c) out[c] = static_cast<scalar_t>(sum[c] * scale);
    if (more_ != nullptr) *more_out = sum[read_] * scale;
  }

  void add_usage(float* usage, bool first) const {
    if (used_ == nullptr) return;
    constexpr int64_t kTokens = 4096;  // that are worth a task
    const int64_t tokens = operands_.tokens();
    for_each_task(ceil_div(tokens, kTokens), [&](int64_t task) {
      const int64_t from = task * kTokens, count = std::min(kTokens, tokens - from);
      if (first) std::fill_n(usage + from, count, 0.0f);
      for (int64_t tile = 0; tile < ceil_div(count_, kTileQueries); ++tile) {
        kernels_.add_scaled(usage + from, used_ + tile * tokens + from, 1.0f, count);
      }
    });
  }

  const Operands& operands_;
  const ValueTiles& values_;
  const ValueTiles* const more_;
  const float largest_term_;
  KeyBank bank_;
  const VecKernels& kernels_;
  const int64_t read_, row_;  // channels of a query's readout, and of its sums
  const int64_t chain_;  // some sqrt(N) values are added one after the other, since a large one swallows small ones
  float* const usage_;
  int64_t splits_, block_tiles_;
  bool kept_;
  // The block of queries under way: queries [first_, first_ + count_) of batch element b_.
  int64_t b_ = 0, first_ = 0, count_ = 0;
  std::vector<Softmax> softmax_, parts_;  // of each query; of each split and query
  float* sums_ = nullptr;                 // [splits, count, O * CV]
  float* used_ = nullptr;                 // [tiles of queries, N]
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> read_dense(at::TensorList mk, at::TensorList ms, at::TensorList mv,
                                              const at::Tensor& qk, const std::optional<at::Tensor>& qe,
                                              bool return_usage, at::Tensor* softmax) {
  const Operands operands(mk, ms, qk, qe);
  const ValueTiles values(mv);
  const auto numbers = qk.options().dtype(at::kFloat);
  at::Tensor out = at::empty({operands.batch(), operands.queries(), values.objects(), values.channels()},
                             softmax == nullptr ? mv[0].options() : numbers);
  if (softmax != nullptr) *softmax = at::empty({operands.batch(), 2, operands.queries()}, numbers);
  const int64_t used = return_usage ? operands.batch() * operands.tokens() : 0;
  at::Tensor usage = at::empty({used}, numbers);
  float* usage_data = return_usage ? usage.mutable_data_ptr<float>() : nullptr;
  std::fill_n(usage.mutable_data_ptr<float>(), used, 0.0f);
  if (operands.batch() * operands.queries() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "memory_read", [&] {
      DenseRead(operands, values, nullptr, usage_data)
          .run(out.mutable_data_ptr<scalar_t>(), nullptr,
               softmax == nullptr ? nullptr : softmax->mutable_data_ptr<float>());
    });
  }
  if (return_usage) usage = usage.view({operands.batch(), operands.tokens()});
  return {out.permute({0, 2, 3, 1}), usage};
}

at::Tensor average_dense(at::TensorList mk, at::TensorList ms, const at::Tensor& x, const at::Tensor& qk,
                         const std::optional<at::Tensor>& qe) {
  const Operands operands(mk, ms, qk, qe);
  const at::Tensor channel = x.view({operands.batch(), 1, 1, operands.tokens()});
  const ValueTiles none(channel.narrow(1, 0, 0)), more(channel);
  at::Tensor out = at::empty({operands.batch(), operands.queries()}, x.options());
  if (out.numel() > 0) {
    DenseRead(operands, none, &more, nullptr).run(static_cast<float*>(nullptr), out.mutable_data_ptr<float>());
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor> read_potentiated(at::TensorList mk, at::TensorList ms, at::TensorList mv,
                                                    const at::Tensor& pk, const std::optional<at::Tensor>& pe) {
  const Operands operands(mk, ms, pk, pe);
  std::vector<at::Tensor> channel;
  for (const at::Tensor& s : ms) channel.push_back(s.unsqueeze(1));
  const ValueTiles values(mv), shrinkage(channel);
  at::Tensor pv =
      at::empty({operands.batch(), operands.queries(), values.objects(), values.channels()}, mv[0].options());
  at::Tensor ps = at::empty({operands.batch(), 1, operands.queries()}, pk.options().dtype(at::kFloat));
  if (ps.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, pv.scalar_type(), "potentiate", [&] {
      // A prototype is a candidate itself, so the terms of its best score cancel to nothing.
      DenseRead(operands, values, &shrinkage, nullptr, kLargestTermOfAPrototype)
          .run(pv.mutable_data_ptr<scalar_t>(), ps.mutable_data_ptr<float>());
    });
  }
  return {ps, pv.permute({0, 2, 3, 1})};
}

}  // namespace xmemk::cpu
