// The k most similar tokens of each query and their weights, in one pass over the memory: a tile of scores is computed,
// compared with each query's bar, and forgotten. Per query only its candidates are kept. Where the processor multiplies
// bytes, a first look in 8 bits leaves few tokens to score (first_look.h); the float32 pass is for the query tiles that
// it leaves too many.
//
// One result for any number of threads: a score depends on its token and query alone, and the k best by (score, index)
// are one set however the memory is cut.
#include "../affinity_topk.h"

#include <atomic>
#include <cmath>
#include <optional>
#include <vector>

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "direct_form.h"
#include "first_look.h"
#include "key_bank.h"
#include "quantised_bank.h"
#include "read_steps.h"
#include "topk_select.h"

namespace xmemk::cpu {
namespace {

constexpr int64_t kCandidateBytes = 8 << 20;  // of queries that are under way together, unless threads would go idle
constexpr int64_t kSummed = 32;               // weights that add up to one number in float32, the sums in double
constexpr int64_t kSampleTiles = 8;           // at most, and an eighth of the memory

class TopkRead {
 public:
  TopkRead(const Operands& operands, int64_t k, const std::optional<at::Tensor>& hint,
           const std::vector<at::Tensor>& packed, at::Tensor& weight, at::Tensor& index)
      : operands_(operands),
        bank_(operands),
        k_(k),
        room_(Candidates::room(k)),
        capacity_(Candidates::capacity(k)),
        weight_(weight.mutable_data_ptr<float>()),
        index_(index.mutable_data_ptr<int64_t>()) {
    const int64_t threads = at::get_num_threads(), tiles = ceil_div(operands.queries(), kTileQueries);
    const int64_t together = kCandidateBytes / (capacity_ * 8 * kTileQueries);
    block_tiles_ = std::min(tiles, std::max<int64_t>(together, 4 * threads));
    splits_ = std::clamp<int64_t>(2 * threads / block_tiles_, 1, std::min<int64_t>(bank_.chunk_tiles(), 64));
    if (threads == 1) splits_ = 1;
    if (FirstLook::pays(operands, k)) look_.emplace(operands, packed, k, hint);
    // Of 4 k evenly spaced tokens the k-th best bars three quarters of the memory, in whatever order it comes.
    const int64_t sample = ceil_div(4 * k, kTileKeys);
    sample_tiles_ = sample <= kSampleTiles && 8 * sample <= bank_.tiles() ? sample : 0;
  }

  void run() {
    const int64_t queries = operands_.queries(), block = block_tiles_ * kTileQueries;
    Buffer<float> values(splits_ * std::min(block, queries) * capacity_);
    Buffer<uint32_t> indices(splits_ * std::min(block, queries) * capacity_);
    for (int64_t b = 0; b < operands_.batch(); ++b) {
      sampled_ = false;
      for (int64_t first = 0; first < queries; first += block) {
        block_ = {b, first, std::min(block, queries - first)};
        candidates_.clear();
        for (int64_t i = 0; i < splits_ * block_.count; ++i) {
          candidates_.push_back({values.get() + i * capacity_, indices.get() + i * capacity_});
        }
        pending_.assign(ceil_div(block_.count, kTileQueries), true);
        if (look_) look();
        std::vector<int64_t> tiles;
        for (int64_t i = 0; i < static_cast<int64_t>(pending_.size()); ++i) {
          if (pending_[i]) tiles.push_back(i);
        }
        if (!tiles.empty()) {
          take_sample(b);
          for (int64_t tile = 0; tile < bank_.tiles(); tile += bank_.chunk_tiles()) {
            bank_.load(b, tile);
            collect(tiles, tile);
          }
        }
        for_each_task(
            block_.count, [&] { return std::pair{Buffer<int32_t>(capacity_), Buffer<float>(3 * operands_.width())}; },
            [&](int64_t i, auto& scratch) { finish(i, scratch.first.get(), scratch.second.get()); });
      }
    }
  }

 private:
  struct Scratch {
    Buffer<float> query, score, sample;
    Buffer<uint32_t> sample_index;
    Buffer<int32_t> spare;
    DirectForm direct;
  };

  struct QueryBlock {
    int64_t b, first, count;  // queries under way
  };

  // Every query tile against all blocks of the 8-bit bank; those that give up stay pending.
  void look() {
    QuantisedBank& bank = look_->bank();
    const int64_t tiles = static_cast<int64_t>(pending_.size()), width = operands_.width();
    std::vector<std::atomic<bool>> given_up(tiles);
    for (int64_t block = 0; block < bank.blocks(); block += bank.chunk_blocks()) {
      if (!bank.load(block_.b, block)) return;
      const int64_t blocks = std::min(bank.chunk_blocks(), bank.blocks() - block);
      const auto make = [&] {
        return std::pair{Buffer<float>(kTileQueries * width), FirstLook::Scratch(operands_, k_)};
      };
      for_each_task(tiles * splits_, make, [&](int64_t task, auto& scratch) {
        const int64_t tile = task / splits_, split = task % splits_, at = tile * kTileQueries;
        const int64_t rows = std::min(kTileQueries, block_.count - at);
        const int64_t from = block + split * blocks / splits_, to = block + (split + 1) * blocks / splits_;
        if (given_up[tile].load(std::memory_order_relaxed)) return;
        operands_.pack_queries(block_.b, block_.first + at, rows, scratch.first.get());
        if (!look_->collect(block_.b, block_.first + at, rows, scratch.first.get(), from, to,
                            candidates_.data() + split * block_.count + at, scratch.second)) {
          given_up[tile] = true;
        }
      });
    }
    for (int64_t tile = 0; tile < tiles; ++tile) pending_[tile] = given_up[tile];
  }

  void take_sample(int64_t b) {
    if (sample_tiles_ == 0 || sampled_) return;
    sampled_ = true;
    sample_.resize(sample_tiles_ * operands_.tile_size());
    const int64_t step = operands_.tokens() / (sample_tiles_ * kTileKeys);
    for (int64_t t = 0; t < sample_tiles_; ++t) {
      operands_.pack_keys(b, t * kTileKeys * step, kTileKeys, step, sample_.data() + t * operands_.tile_size());
    }
    sample_largest_ = 0;
    for (const float x : sample_) sample_largest_ = std::abs(x) > sample_largest_ ? std::abs(x) : sample_largest_;
  }

  // The query tiles against the loaded tiles of the bank, of which each split takes a part.
  void collect(const std::vector<int64_t>& query_tiles, int64_t first_tile) {
    const int64_t tiles = std::min(bank_.chunk_tiles(), bank_.tiles() - first_tile), width = operands_.width();
    const int64_t samples = std::max<int64_t>(1, sample_tiles_);
    const VecKernels& kernels = vec();
    const auto make = [&] {
      return Scratch{Buffer<float>(kTileQueries * width),
                     Buffer<float>(kTileQueries * kTileKeys * samples),
                     Buffer<float>(samples * kTileKeys + 2 * kScanSlack),
                     Buffer<uint32_t>(samples * kTileKeys + 2 * kScanSlack),
                     Buffer<int32_t>(capacity_),
                     DirectForm(operands_)};
    };
    const int64_t tasks = static_cast<int64_t>(query_tiles.size()) * splits_;
    for_each_task(tasks, make, [&](int64_t task, Scratch& scratch) {
      const int64_t split = task % splits_, at = query_tiles[task / splits_] * kTileQueries;
      const int64_t rows = std::min(kTileQueries, block_.count - at);
      Candidates* of_row = candidates_.data() + split * block_.count + at;
      operands_.pack_queries(block_.b, block_.first + at, rows, scratch.query.get());
      scratch.direct.set_queries(block_.b, block_.first + at, rows, scratch.query.get());
      if (first_tile == 0) reset(kernels, rows, of_row, scratch);
      const int64_t from = first_tile + split * tiles / splits_, to = first_tile + (split + 1) * tiles / splits_;
      for (int64_t t = from; t < to; ++t) {
        check_interrupt();
        const int64_t keys = bank_.tile_keys(t);
        multiply(kernels, rows, scratch.query.get(), bank_.tile(t), scratch.score.get());
        scratch.direct.correct(bank_.largest_terms(t), bank_.terms(t), t * kTileKeys, keys, scratch.score.get(), 1,
                               kTileKeys);
        for (int64_t r = 0; r < rows; ++r) {
          of_row[r].add(kernels, scratch.score.get() + r * kTileKeys, keys, static_cast<uint32_t>(t * kTileKeys), k_,
                        scratch.spare.get());
        }
      }
    });
  }

  // score[rows, kTileKeys], to the last bit what the first look makes of a token by itself
  void multiply(const VecKernels& kernels, int64_t rows, const float* query, const float* tile, float* score) const {
    const int64_t width = operands_.width();
    kernels.product(rows, kTileKeys, width, query, width, tile, kTileKeys, score, kTileKeys, false);
  }

  void reset(const VecKernels& kernels, int64_t rows, Candidates* of_row, Scratch& scratch) const {
    for (int64_t r = 0; r < rows; ++r) of_row[r] = {of_row[r].value, of_row[r].index};
    if (sample_tiles_ > 0) set_bars(kernels, rows, of_row, scratch);
  }

  void set_bars(const VecKernels& kernels, int64_t rows, Candidates* of_row, Scratch& scratch) const {
    const int64_t width = operands_.width(), n = sample_tiles_ * kTileKeys;
    for (int64_t t = 0; t < sample_tiles_; ++t) {
      multiply(kernels, rows, scratch.query.get(), sample_.data() + t * operands_.tile_size(),
               scratch.score.get() + t * kTileQueries * kTileKeys);
    }
    std::vector<float> of_query(n);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < sample_tiles_; ++t) {
        const float* score = scratch.score.get() + (t * kTileQueries + r) * kTileKeys;
        std::copy_n(score, kTileKeys, of_query.data() + t * kTileKeys);
      }
      // A sum of `width` products, in whatever order, is off by at most width * 2^-24 of what it adds up.
      float sum = 0;
      for (int64_t c = 0; c < width; ++c) sum += std::abs(scratch.query[r * width + c]);
      const float slack = 4 * static_cast<float>(width) * 0x1p-24f * sum * sample_largest_;
      of_row[r].bar =
          bar_of_sample(kernels, of_query.data(), n, k_, slack, scratch.sample.get(), scratch.sample_index.get());
    }
  }

  // Query i of the block: the best k of all splits, sorted; softmax.
  void finish(int64_t i, int32_t* spare, float* scratch) {
    const VecKernels& kernels = vec();
    Candidates& best = candidates_[i];
    if (splits_ > 1) {
      best.keep_best(kernels, k_, k_, spare);
      for (int64_t split = 1; split < splits_; ++split) {  // in order, so that indices keep ascending
        Candidates& more = candidates_[split * block_.count + i];
        more.keep_best(kernels, k_, k_, spare);
        for (int64_t j = 0; j < more.count; ++j) {
          if (best.count == room_) best.keep_best(kernels, k_, k_, spare);
          best.value[best.count] = more.value[j];
          best.index[best.count++] = more.index[j];
        }
      }
    }
    best.keep_best(kernels, k_, k_, spare);
    operands_.rescore(block_.b, block_.first + i, best.index, best.count, best.value, scratch);
    const int64_t row = block_.b * operands_.queries() + block_.first + i;
    write(best, weight_ + row * k_, index_ + row * k_);
  }

  void write(const Candidates& best, float* weight, int64_t* index) const {
    std::vector<std::pair<float, uint32_t>> sorted(best.count);
    for (int64_t j = 0; j < best.count; ++j) sorted[j] = {-best.value[j], best.index[j]};
    std::sort(sorted.begin(), sorted.end());
    double sum = 0;
    for (int64_t first = 0; first < best.count; first += kSummed) {
      float part = 0;
      for (int64_t j = first; j < std::min(first + kSummed, best.count); ++j) {
        weight[j] = std::exp(sorted[0].first - sorted[j].first);
        index[j] = sorted[j].second;
        part += weight[j];
      }
      sum += part;
    }
    const float whole = static_cast<float>(sum);
    for (int64_t j = 0; j < best.count; ++j) weight[j] /= whole;
    // A slot left over repeats the best token with weight 0; without any token, the weights are NaN.
    for (int64_t j = best.count; j < k_; ++j) {
      weight[j] = best.count > 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
      index[j] = best.count > 0 ? index[0] : 0;
    }
  }

  const Operands& operands_;
  KeyBank bank_;
  const int64_t k_, room_, capacity_;
  float* const weight_;
  int64_t* const index_;
  int64_t block_tiles_, splits_, sample_tiles_;
  std::vector<Candidates> candidates_;  // [splits, queries of the block]
  std::vector<float> sample_;
  float sample_largest_ = 0;
  bool sampled_ = false;
  std::optional<FirstLook> look_;
  QueryBlock block_{};
  std::vector<bool> pending_;  // query tiles of the block that the float32 pass has to do
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> select_topk(at::TensorList mk, at::TensorList ms, const at::Tensor& qk,
                                               const std::optional<at::Tensor>& qe, int64_t top_k,
                                               const LookInputs& look) {
  const Operands operands(mk, ms, qk, qe, look.centre);
  std::vector<at::Tensor> packed;
  for (size_t i = 0; i < look.packed.size(); ++i) {
    if (mk[i].size(2) > 0) packed.push_back(look.packed[i]);
  }
  const int64_t k = std::min(top_k, operands.tokens());
  at::Tensor weight = at::empty({operands.batch(), operands.queries(), k}, qk.options().dtype(at::kFloat));
  at::Tensor index = at::empty(weight.sizes(), qk.options().dtype(at::kLong));
  if (weight.numel() > 0) TopkRead(operands, k, look.hint, packed, weight, index).run();
  return {weight, index};
}

LookInputs look_inputs(const char* op, at::TensorList mk, const at::Tensor& qk, const std::optional<at::Tensor>& hint,
                       const std::optional<std::vector<at::Tensor>>& packed, const std::optional<at::Tensor>& centre) {
  check_hint(op, hint, qk, tokens_of(mk));
  check_centre(op, centre, qk);
  if (!packed) return {hint, {}, centre};
  TORCH_CHECK_VALUE(packed->size() == mk.size() && centre, op, ": packed: wanted one for each mk, and a centre, got ",
                    packed->size(), " for ", mk.size());
  for (size_t i = 0; i < mk.size(); ++i) check_packed_keys(op, (*packed)[i], mk[i], mk[i].size(2));
  return {hint, *packed, centre};
}

at::Tensor usage_of(const at::Tensor& weight, const at::Tensor& index, int64_t tokens) {
  constexpr int64_t kTokens = 1 << 20;  // whose sums are under way together
  const int64_t batch = weight.size(0), entries = weight.size(1) * weight.size(2);
  at::Tensor usage = at::empty({batch, tokens}, weight.options());
  float* out = usage.mutable_data_ptr<float>();
  const float* w = weight.const_data_ptr<float>();
  const int64_t* i = index.const_data_ptr<int64_t>();
  // In double, since a token may be read by 100,000 queries; in the order of the queries and on one thread: so few
  // additions that sharing them would not pay.
  std::vector<double> sums(std::min(tokens, kTokens));
  for (int64_t b = 0; b < batch; ++b, out += tokens, w += entries, i += entries) {
    for (int64_t first = 0; first < tokens; first += kTokens) {
      const int64_t count = std::min(kTokens, tokens - first);
      std::fill_n(sums.begin(), count, 0.0);
      for (int64_t j = 0; j < entries; ++j) {
        if (j % kTokens == 0) check_interrupt();
        const int64_t token = i[j] - first;  // a query that reads NaN adds nothing
        if (token >= 0 && token < count && w[j] > 0) sums[token] += w[j];
      }
      for (int64_t j = 0; j < count; ++j) out[first + j] = static_cast<float>(sums[j]);
    }
  }
  return usage;
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> affinity_topk(at::TensorList mk, at::TensorList ms, const at::Tensor& qk,
                                                             const std::optional<at::Tensor>& qe, int64_t top_k,
                                                             bool return_usage, const std::optional<at::Tensor>& hint,
                                                             std::optional<std::vector<at::Tensor>> packed,
                                                             const std::optional<at::Tensor>& centre) {
  check_affinity_topk(mk, ms, qk, qe, top_k);
  const Interruptible interruptible;
  const LookInputs look = look_inputs("affinity_topk", mk, qk, hint, packed, centre);
  auto [weight, index] = select_topk(mk, ms, qk, qe, top_k, look);
  at::Tensor usage = return_usage ? usage_of(weight, index, tokens_of(mk)) : at::empty({0}, weight.options());
  return {weight, index, usage};
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("affinity_topk", &affinity_topk);
}

}  // namespace xmemk::cpu
