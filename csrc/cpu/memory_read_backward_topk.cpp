// Backward through a top-k read; xmemk/plain/memory_read_backward.py has the formulas. Three passes over the selected
// pairs:
//
// 1. token by token: the pair's value times the query's gradient, and the values' own gradients;
// 2. query by query: the gradients of the scores, and with them those of the query;
// 3. token by token: the gradients of the keys.
//
// A pass by tokens goes through the pairs in the order of a stable counting sort, so each token has one owner and adds
// up its queries in ascending order, for any number of threads. What is selected nowhere is written as 0 in passing.
#include <algorithm>
#include <cmath>
#include <vector>

#include "key_bank.h"
#include "read_gradients.h"
#include "value_tiles.h"
#include "vec.h"

namespace xmemk::cpu {
namespace {

constexpr int64_t kTokens = 64;   // that are worth a task, all of one segment
constexpr int64_t kQueries = 16;  // that are worth a task
constexpr int64_t kAhead = 4;     // pairs to fetch ahead

// Rows of keys and queries are read in no order, so a token's channels are to lie together.
at::Tensor token_major(const at::Tensor& x) {
  return x.stride(1) == 1 ? x : x.transpose(1, 2).contiguous().transpose(1, 2);
}

std::vector<at::Tensor> token_major(at::TensorList list) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& x : list) result.push_back(token_major(x));
  return result;
}

std::optional<at::Tensor> token_major(const std::optional<at::Tensor>& x) {
  return x ? std::optional(token_major(*x)) : std::nullopt;
}

class TopkBackward {
 public:
  TopkBackward(const ReadBackward& read, const at::Tensor& weight, const at::Tensor& index, const ReadGradients& out)
      : operands_(token_major(read.mk), read.ms, token_major(read.qk), token_major(read.qe)),
        values_(read.mv, false),
        upstream_(read.d_readout ? at::TensorList(*read.d_readout) : read.mv, false),
        kernels_(vec()),
        out_(out),
        d_usage_(read.d_usage),
        objects_(read.d_readout ? values_.objects() : 0),
        channels_(values_.channels()),
        keys_(operands_.channels()),
        queries_(index.size(1)),
        k_(index.size(2)),
        weight_(weight.const_data_ptr<float>()),
        index_(index.const_data_ptr<int64_t>()) {
    int64_t token = 0;
    for (size_t i = 0; i < read.mk.size(); ++i) {
      const int64_t n = read.mk[i].size(2);
      for (int64_t first = 0; first < n; first += kTokens) {
        blocks_.push_back({i, n, first, token + first, std::min(kTokens, n - first)});
      }
      token += n;
    }
  }

  void run() {
    const bool of_keys = ReadGradients::any(out_.mk) || ReadGradients::any(out_.ms);
    const bool in_place = upstream_.in_place();
    const Buffer<float> d_score(queries_ * k_), copy(in_place || objects_ == 0 ? 0 : queries_ * channels_);
    d_score_ = d_score.get();
    for (b_ = 0; b_ < operands_.batch(); ++b_) {
      sort_pairs();
      std::fill_n(d_score_, queries_ * k_, 0.0f);
      for (int64_t o = 0; o < objects_ && channels_ > 0; ++o) {
        if (!in_place) {
          for_each_task(ceil_div(queries_, kTokens), [&](int64_t task) {
            const int64_t first = task * kTokens, count = std::min(kTokens, queries_ - first);
            upstream_.rows(b_, o, first, count, copy.get() + first * channels_);
          });
        }
        const ValueTiles::Tile d_out =
            in_place ? upstream_.rows(b_, o, 0, queries_, nullptr) : ValueTiles::Tile{copy.get(), channels_};
        for_each_task(
            blocks_.size(), [&] { return Buffer<float>((kTokens + 1) * channels_); },
            [&](int64_t block, const Buffer<float>& scratch) { values_pass(blocks_[block], o, d_out, scratch.get()); });
      }
      if (out_.of_scores()) {
        for_each_task(
            ceil_div(queries_, kQueries), [&] { return Buffer<float>(5 * keys_); },
            [&](int64_t task, const Buffer<float>& scratch) {
              for (int64_t q = task * kQueries; q < std::min((task + 1) * kQueries, queries_); ++q) {
                query_pass(q, scratch.get());
              }
            });
      }
      if (!of_keys) continue;
      for_each_task(
          blocks_.size(), [&] { return Buffer<float>(4 * keys_); },
          [&](int64_t block, const Buffer<float>& scratch) { keys_pass(blocks_[block], scratch.get()); });
    }
  }

 private:
  struct Block {
    size_t segment;
    int64_t segment_tokens, first, token, count;  // first token within the segment and of all, and how many
  };

  // pairs_[first_[n], first_[n + 1]) are the positions q * k + j that selected token n with a weight other than 0.
  void sort_pairs() {
    const int64_t tokens = operands_.tokens(), pairs = queries_ * k_;
    const float* weight = weight_ + b_ * pairs;
    const int64_t* index = index_ + b_ * pairs;
    first_.assign(tokens + 1, 0);
    for (int64_t i = 0; i < pairs; ++i) {
      TORCH_CHECK_INDEX(0 <= index[i] && index[i] < tokens, "memory_read_backward: index: wanted 0 to ", tokens - 1,
                        " (N = ", tokens, " tokens), got ", index[i]);
      first_[index[i] + 1] += weight[i] != 0;
    }
    for (int64_t n = 0; n < tokens; ++n) first_[n + 1] += first_[n];
    pairs_.resize(first_[tokens]);
    for (int64_t i = 0; i < pairs; ++i) {
      if (weight[i] != 0) pairs_[first_[index[i]]++] = i;
    }
    for (int64_t n = tokens; n > 0; --n) first_[n] = first_[n - 1];
    first_[0] = 0;
  }

  // Object o: adds value times d_readout to d_score, and gives the values their gradients.
  void values_pass(const Block& block, int64_t o, const ValueTiles::Tile& d_out, float* scratch) const {
    const at::Tensor& gradient = out_.mv[block.segment];
    const bool of_scores = out_.of_scores();
    if (!gradient.defined() && !of_scores) return;
    const float* weight = weight_ + b_ * queries_ * k_;
    float *spare = scratch, *copied = scratch + channels_;
    const int64_t selected = first_[block.token + block.count] - first_[block.token];
    ValueTiles::Tile value{};
    if (of_scores && selected > 0) value = values_.rows(b_, o, block.token, block.count, copied);
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t begin = first_[block.token + i], end = first_[block.token + i + 1];
      const int64_t at = (b_ * block.segment_tokens + block.first + i) * values_.objects() + o;
      const bool in_place = gradient.defined() && gradient.scalar_type() == at::kFloat;
      float* sum = in_place ? gradient.mutable_data_ptr<float>() + at * channels_ : spare;
      std::fill_n(sum, channels_, 0.0f);
      for (int64_t p = begin; p < end; ++p) {
        if (p + kAhead < end) prefetch(d_out.data + pairs_[p + kAhead] / k_ * d_out.stride, channels_);
        const float* d = d_out.data + pairs_[p] / k_ * d_out.stride;
        if (of_scores) {
          d_score_[pairs_[p]] +=
              kernels_.dot_add_scaled(sum, d, weight[pairs_[p]], value.data + i * value.stride, channels_);
        } else {
          kernels_.add_scaled(sum, d, weight[pairs_[p]], channels_);
        }
      }
      if (!in_place) put(gradient, at * channels_, channels_, sum);
    }
  }

  // d_score[q] from gradients of weights to gradients of scores; the query's own gradients.
  void query_pass(int64_t query, float* scratch) const {
    const int64_t* index = index_ + (b_ * queries_ + query) * k_;
    const float* weight = weight_ + (b_ * queries_ + query) * k_;
    float* d = d_score_ + query * k_;
    if (d_usage_.defined()) {
      const float* more = d_usage_.const_data_ptr<float>() + b_ * operands_.tokens();
      for (int64_t j = 0; j < k_; ++j) d[j] += more[index[j]];
    }
    double sum = 0;
    for (int64_t j = 0; j < k_; ++j) sum += weight[j] == 0 ? 0.0 : double(weight[j]) * d[j];
    for (int64_t j = 0; j < k_; ++j) d[j] = weight[j] == 0 ? 0.0f : static_cast<float>(weight[j] * (d[j] - sum));
    if (!out_.of_query()) return;
    float *q = scratch, *e = q + keys_, *dq = e + keys_, *de = dq + keys_, *k = de + keys_;
    operands_.read_queries(b_, query, 1, false, q, e);
    std::fill_n(dq, 2 * keys_, 0.0f);
    for (int64_t j = 0; j < k_; ++j) {
      if (d[j] == 0) continue;
      float s;
      operands_.read_keys(b_, index[j], 1, false, k, &s);
      const float h = s * d[j];
      for (int64_t c = 0; c < keys_; ++c) {
        const float difference = k[c] - q[c];
        dq[c] += h * difference;
        de[c] -= h * difference * difference;
      }
    }
    for (int64_t c = 0; c < keys_; ++c) dq[c] *= 2 * e[c];
    put(out_.qk, (b_ * queries_ + query) * keys_, keys_, dq);
    put(out_.qe, (b_ * queries_ + query) * keys_, keys_, de);
  }

  void keys_pass(const Block& block, float* scratch) const {
    const at::Tensor *dk = &out_.mk[block.segment], *ds = out_.ms.empty() ? nullptr : &out_.ms[block.segment];
    const float root = 1 / std::sqrt(static_cast<float>(keys_));
    float *k = scratch, *q = k + keys_, *e = q + keys_, *sum = e + keys_;
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t begin = first_[block.token + i], end = first_[block.token + i + 1];
      std::fill_n(sum, keys_, 0.0f);
      double distance = 0;
      float s;
      if (begin < end) operands_.read_keys(b_, block.token + i, 1, false, k, &s);
      for (int64_t p = begin; p < end; ++p) {
        const float d = d_score_[pairs_[p]];
        operands_.read_queries(b_, pairs_[p] / k_, 1, false, q, e);
        const float h = 2 * s * d;
        for (int64_t c = 0; c < keys_; ++c) sum[c] += h * e[c] * (q[c] - k[c]);
        distance += double(d) * kernels_.distance(k, q, e, keys_);
      }
      const int64_t at = b_ * block.segment_tokens + block.first + i;
      const float d_shrinkage = static_cast<float>(-distance * root);
      put(*dk, at * keys_, keys_, sum);
      if (ds != nullptr) put(*ds, at, 1, &d_shrinkage);
    }
  }

  const Operands operands_;
  const ValueTiles values_, upstream_;
  const VecKernels& kernels_;
  const ReadGradients& out_;
  const at::Tensor d_usage_;
  const int64_t objects_, channels_, keys_, queries_, k_;  // objects_: 0 where d_readout is none
  const float* const weight_;
  const int64_t* const index_;
  std::vector<Block> blocks_;
  std::vector<int64_t> first_, pairs_;
  float* d_score_ = nullptr;  // [Q, k]: gradients of the weights, then of the scores
  int64_t b_ = 0;
};

}  // namespace

void backward_topk(const ReadBackward& read, const at::Tensor& weight, const at::Tensor& index,
                   const ReadGradients& out) {
  for (const at::Tensor& x : out.mv) {
    if (x.defined() && !read.d_readout) x.zero_();
  }
  TopkBackward(read, weight, index, out).run();
}

}  // namespace xmemk::cpu
