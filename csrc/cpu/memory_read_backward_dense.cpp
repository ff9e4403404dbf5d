// Backward through the read over all tokens; xmemk/plain/memory_read_backward.py has the formulas.
//
// Everything runs as [tokens, queries], so that no tile is ever transposed. A group of tokens at a time meets all
// queries: the tokens' own gradients are sums over queries, complete when it is done; those of the queries are sums
// over tokens, to which each group adds its part from the gradient of the scores, the one array that the two steps
// share. Which products add up to a number, and in which order, depends on the shapes alone and not on the number of
// threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "direct_form.h"
#include "key_bank.h"
#include "read_gradients.h"
#include "read_steps.h"
#include "token_group.h"
#include "value_tiles.h"
#include "vec.h"

namespace xmemk::cpu {
namespace {

constexpr int64_t kRows = TokenGroup::kRows, kQuad = TokenGroup::kQuad;
constexpr int64_t kPanel = 64;                // queries that lie side by side
constexpr int64_t kSpan = 4 * kPanel;         // queries that a tile meets at a time
constexpr int64_t kBlockBytes = 16 << 20;     // of queries that are packed together
constexpr int64_t kMostQueries = 16 * kSpan;  // of them
constexpr float kHeavy = 1.0f / 128;          // a weight from which on its gradient is summed by the direct form

class DenseBackward {
 public:
  DenseBackward(const ReadBackward& read, const at::Tensor& readout, const at::Tensor& softmax,
                const ReadGradients& out)
      : operands_(read.mk, read.ms, read.qk, read.qe),
        values_(read.mv, false),
        upstream_(read.d_readout ? at::TensorList(*read.d_readout) : at::TensorList(readout), false),
        kernels_(vec()),
        out_(out),
        readout_(readout.stride(2) == 1 ? readout : readout.permute({0, 3, 1, 2}).contiguous().permute({0, 2, 3, 1})),
        softmax_(softmax),
        d_usage_(read.d_usage),
        objects_(read.d_readout ? values_.objects() : 0),
        channels_(values_.channels()),
        row_(objects_ * channels_),
        width_(operands_.width()),
        keys_(operands_.channels()),
        queries_(operands_.queries()),
        of_values_(ReadGradients::any(out.mv) && row_ > 0),
        of_keys_(ReadGradients::any(out.mk) || ReadGradients::any(out.ms)),
        of_scores_(out.of_scores()),
        group_(operands_, read.mk, at::get_num_threads()) {
    if (d_usage_.defined() && of_scores_) mean_d_usage_ = average_dense(read.mk, read.ms, d_usage_, read.qk, read.qe);
    const int64_t floats = (upstream_.in_place() ? 1 : 2) * row_ + 2 * width_;
    const int64_t fit = kBlockBytes / (4 * floats) / kSpan * kSpan;
    block_ = std::min(ceil_div(queries_, kPanel) * kPanel, std::clamp(fit, kSpan, kMostQueries));
  }

  void run() {
    const int64_t blocks = ceil_div(queries_, block_), panels = ceil_div(queries_, kPanel);
    Memory memory(*this, panels);
    memory_ = &memory;
    delta_.resize(panels * kPanel);
    direct_.assign(ceil_div(block_, kPanel), DirectForm(operands_));
    for (b_ = 0; b_ < operands_.batch(); ++b_) {
      std::fill_n(memory.query_sum.get(), panels * width_ * kPanel, 0.0f);
      for (std::vector<float>& panel : memory.query_direct) panel.clear();
      for (int64_t first = 0; first < group_.tiles(); first += group_.room()) {
        group_.load(b_, first);
        std::fill(memory.key_direct.begin(), memory.key_direct.end(), 0.0f);
        std::fill(memory.shrinkage_direct.begin(), memory.shrinkage_direct.end(), 0.0);
        for (int64_t q = 0; q < queries_; q += block_) {
          first_query_ = q;
          if (blocks > 1 || first == 0) load_queries(first == 0);
          for_each_task(
              group_.count(), [&] { return Scratch(objects_ * channels_, keys_); },
              [&](int64_t tile, Scratch& scratch) { tokens_pass(tile, scratch); });
          if (!out_.of_query()) continue;
          for_each_task(count_panels(), [&](int64_t panel) { queries_pass(panel); });
        }
      }
      if (!out_.of_query()) continue;
      for_each_task(
          panels, [&] { return Buffer<float>(4 * kPanel * keys_); },
          [&](int64_t panel, const Buffer<float>& scratch) { finish_queries(panel, scratch.get()); });
    }
  }

 private:
  // What the tasks share.
  struct Memory {
    // Of the group of tiles: the sums over queries; the gradient of the scores [rows, block].
    Buffer<float> key_sum, value_sum, d_score;
    // Of a block of queries: operands as rows and, panel by panel, as columns [width, kPanel]; the same of d_readout,
    // [O, block, CV] unless it can be read where it is, and [O * CV, kPanel].
    Buffer<float> query, query_columns, d_out, d_out_columns;
    Buffer<float> query_sum;  // [panels of all queries, width, kPanel]
    // Gradients by the direct form: of the group's tokens, and of the panels of all queries [kPanel, 2 CK] that have
    // any.
    std::vector<float> key_direct;
    std::vector<double> shrinkage_direct;
    std::vector<std::vector<float>> query_direct;

    Memory(const DenseBackward& d, int64_t panels)
        : key_sum(d.group_.room() * kRows * d.width_),
          value_sum(d.sums_values_apart() ? d.group_.room() * kRows * d.row_ : 0),
          d_score(d.of_scores_ ? d.group_.room() * kRows * d.block_ : 0),
          query(d.block_ * d.width_),
          query_columns(d.block_ * d.width_),
          d_out(d.upstream_.in_place() ? 0 : d.block_ * d.row_),
          d_out_columns(d.block_ * d.row_),
          query_sum(panels * d.width_ * kPanel),
          key_direct(d.group_.room() * kRows * d.keys_),
          shrinkage_direct(d.group_.room() * kRows),
          query_direct(panels) {}
  };

  struct Scratch {
    Buffer<float> weight, value;
    Scratch(int64_t row, int64_t keys) : weight(kRows * kSpan), value(kRows * std::max(row, 3 * keys)) {}
  };

  int64_t count_queries() const { return std::min(block_, queries_ - first_query_); }
  int64_t count_panels() const { return ceil_div(count_queries(), kPanel); }
  // 16-bit gradients cannot take up sums as they are.
  bool sums_values_apart() const { return of_values_ && readout_type() != at::kFloat; }
  at::ScalarType readout_type() const {
    for (const at::Tensor& x : out_.mv) {
      if (x.defined()) return x.scalar_type();
    }
    return at::kFloat;
  }

  // The block's operands, and with `first` what is to be taken off each gradient of a weight.
  void load_queries(bool first) {
    for_each_task(
        count_panels(), [&] { return Buffer<float>(kPanel * std::max<int64_t>(channels_, 1)); },
        [&](int64_t panel, const Buffer<float>& scratch) {
          const int64_t at = panel * kPanel, count = std::min(kPanel, count_queries() - at);
          float* query = memory_->query.get() + at * width_;
          operands_.pack_queries(b_, first_query_ + at, count, query);
          std::fill(query + count * width_, query + kPanel * width_, 0.0f);
          direct_[panel].set_queries(b_, first_query_ + at, count, query);
          transpose<kPanel>(query, width_, width_, memory_->query_columns.get() + at * width_, kPanel);
          double sum[kPanel] = {};
          for (int64_t o = 0; o < objects_ && channels_ > 0; ++o) {
            float* copy = upstream_.in_place() ? scratch.get() : memory_->d_out.get() + (o * block_ + at) * channels_;
            const ValueTiles::Tile rows = upstream_.rows(b_, o, first_query_ + at, count, copy);
            float* columns = memory_->d_out_columns.get() + at * row_ + o * channels_ * kPanel;
            transpose<kPanel>(rows.data, rows.stride, channels_, columns, count);
            for (int64_t j = 0; first && j < count; ++j) {
              const float* read = readout(o, first_query_ + at + j);
              for (int64_t c = 0; c < channels_; ++c) sum[j] += double(read[c]) * rows.data[j * rows.stride + c];
            }
          }
          for (int64_t j = 0; first && j < kPanel; ++j) {
            const int64_t i = first_query_ + at + j;
            if (j < count && mean_d_usage_.defined())
              sum[j] += mean_d_usage_.const_data_ptr<float>()[b_ * queries_ + i];
            delta_[i] = static_cast<float>(sum[j]);
          }
        });
  }

  // Tile `at` of the group against the block of queries.
  void tokens_pass(int64_t at, Scratch& scratch) {
    const TokenGroup::Tile& tile = group_.tile(at);
    std::vector<ValueTiles::Tile> value(objects_);
    for (int64_t o = 0; of_scores_ && o < objects_ && channels_ > 0; ++o) {
      value[o] = values_.rows(b_, o, tile.token, tile.count, scratch.value.get() + o * kRows * channels_);
    }
    for (int64_t q = 0; q < count_queries(); q += kSpan) {
      check_interrupt();
      const bool add = first_query_ + q > 0;
      affinities(at, q, scratch.weight.get());
      if (of_scores_) score_gradients(at, q, scratch.weight.get(), value);
      if (of_values_ && out_.mv[tile.segment].defined()) add_values(at, q, scratch.weight.get(), add);
      if (of_keys_) sum_over_queries(at, q, add);
    }
    if (first_query_ + count_queries() == queries_) finish_tile(at, scratch.value.get());
  }

  // The part of queries q, q + 1, ... of the block in the gradients of a tile's keys.
  void sum_over_queries(int64_t at, int64_t q, bool add) const {
    const int64_t count = std::min(kSpan, count_queries() - q);
    float* sum = memory_->key_sum.get() + at * kRows * width_;
    Terms queries;
    for (int64_t p = 0; p < span(q); p += kPanel) queries.raise(direct_[(q + p) / kPanel].largest());
    if (!are_too_large(group_.largest_terms(at), queries)) {
      kernels_.product(kRows, width_, count, d_score(at, q), block_, memory_->query.get() + q * width_, width_, sum,
                       width_, add);
      return;
    }
    if (!add) std::fill_n(sum, kRows * width_, 0.0f);
    const TokenGroup::Tile& tile = group_.tile(at);
    add_key_gradients({operands_, b_, tile.token, tile.count, first_query_ + q, count, d_score(at, q), block_},
                      memory_->key_direct.data() + at * kRows * keys_, memory_->shrinkage_direct.data() + at * kRows);
  }

  float* d_score(int64_t at, int64_t q) const { return memory_->d_score.get() + at * kRows * block_ + q; }
  int64_t span(int64_t q) const { return std::min(kSpan, count_panels() * kPanel - q); }

  // weight[kRows, kSpan] of queries q, q + 1, ... of the block
  void affinities(int64_t at, int64_t q, float* weight) const {
    for (int64_t p = 0; p < span(q); p += kPanel) {
      kernels_.product(kRows, kPanel, width_, group_.rows(at), width_, memory_->query_columns.get() + (q + p) * width_,
                       kPanel, weight + p, kSpan, false);
      direct_[(q + p) / kPanel].correct(group_.largest_terms(at), group_.terms(at), group_.tile(at).token,
                                        group_.tile(at).count, weight + p, kSpan, 1);
    }
    const int64_t count = std::min(kSpan, count_queries() - q);
    const float* shift = softmax_.const_data_ptr<float>() + 2 * b_ * queries_ + first_query_ + q;
    for (int64_t r = 0; r < kRows; ++r) {
      float* row = weight + r * kSpan;
      if (group_.cannot_be_read(at, r)) std::fill_n(row, count, std::numeric_limits<float>::quiet_NaN());
      kernels_.affinities(row, shift, shift + queries_, count);
      std::fill(row + count, row + span(q), 0.0f);
    }
  }

  void score_gradients(int64_t at, int64_t q, const float* weight, const std::vector<ValueTiles::Tile>& value) const {
    const TokenGroup::Tile& tile = group_.tile(at);
    float* d = d_score(at, q);
    for (int64_t p = 0; p < span(q) && row_ > 0; p += kPanel) {
      for (int64_t o = 0; o < objects_; ++o) {
        kernels_.product(tile.count, kPanel, channels_, value[o].data, value[o].stride,
                         memory_->d_out_columns.get() + (q + p) * row_ + o * channels_ * kPanel, kPanel, d + p, block_,
                         o > 0);
      }
    }
    const float* more = d_usage_.defined() ? d_usage_.const_data_ptr<float>() + b_ * operands_.tokens() : nullptr;
    for (int64_t r = 0; r < kRows; ++r) {
      float* row = d + r * block_;
      if (r >= tile.count || row_ == 0) std::fill_n(row, span(q), 0.0f);
      if (r >= tile.count) continue;
      const float usage = more == nullptr ? 0.0f : more[tile.token + r];
      kernels_.score_gradients(row, weight + r * kSpan, usage, delta_.data() + first_query_ + q, span(q));
      if (row_ > 0) sum_direct_form(r, q, weight + r * kSpan, usage, value, row);
    }
  }

  // Where a token has much of a query's weight, the gradient of the weight and delta nearly cancel, and come from two
  // products whose roundings do not: there it is sum (v - readout) d_readout. At most 1 / kHeavy tokens a query.
  void sum_direct_form(int64_t r, int64_t q, const float* weight, float usage,
                       const std::vector<ValueTiles::Tile>& value, float* d) const {
    const int64_t count = std::min(kSpan, count_queries() - q);
    for (int64_t j = 0; j < count; ++j) {
      if (!(weight[j] > kHeavy)) continue;
      const int64_t i = first_query_ + q + j;
      float sum = usage;
      if (mean_d_usage_.defined()) sum -= mean_d_usage_.const_data_ptr<float>()[b_ * queries_ + i];
      for (int64_t o = 0; o < objects_; ++o) {
        const float* d_out = upstream_.in_place() ? upstream_.rows(b_, o, i, 1, nullptr).data
                                                  : memory_->d_out.get() + (o * block_ + q + j) * channels_;
        sum += kernels_.dot_of_difference(value[o].data + r * value[o].stride, readout(o, i), d_out, channels_);
      }
      d[j] = weight[j] * sum;
    }
  }

  void add_values(int64_t at, int64_t q, const float* weight, bool add) const {
    const TokenGroup::Tile& tile = group_.tile(at);
    const int64_t count = std::min(kSpan, count_queries() - q);
    float* sum = memory_->value_sum.get() + at * kRows * row_;
    if (!sums_values_apart()) sum = out_.mv[tile.segment].mutable_data_ptr<float>() + first_row(tile) * row_;
    for (int64_t o = 0; o < objects_; ++o) {
      const ValueTiles::Tile d_out =
          upstream_.in_place() ? upstream_.rows(b_, o, first_query_ + q, count, nullptr)
                               : ValueTiles::Tile{memory_->d_out.get() + (o * block_ + q) * channels_, channels_};
      kernels_.product(tile.count, channels_, count, weight, kSpan, d_out.data, d_out.stride, sum + o * channels_, row_,
                       add);
    }
  }

  const float* readout(int64_t o, int64_t query) const {
    return readout_.const_data_ptr<float>() + b_ * readout_.stride(0) + o * readout_.stride(1) +
           query * readout_.stride(3);
  }
  int64_t first_row(const TokenGroup::Tile& tile) const { return b_ * segment_tokens(tile.segment) + tile.first; }
  int64_t segment_tokens(size_t i) const {
    for (const auto* list : {&out_.mk, &out_.ms, &out_.mv}) {
      if (i < list->size() && (*list)[i].defined()) return (*list)[i].size(1);
    }
    return 0;
  }

  // The sums over all queries are complete.
  void finish_tile(int64_t at, float* scratch) const {
    const TokenGroup::Tile& tile = group_.tile(at);
    const int64_t first = first_row(tile);
    if (sums_values_apart()) {
      put(out_.mv[tile.segment], first * row_, tile.count * row_, memory_->value_sum.get() + at * kRows * row_);
    }
    if (!of_keys_) return;
    const float root = 1 / std::sqrt(static_cast<float>(keys_));
    for (int64_t r = 0; r < tile.count; ++r) {
      const float* k = group_.keys(at) + r * keys_;
      const float* sum = memory_->key_sum.get() + (at * kRows + r) * width_;
      const float s = group_.shrinkage(at)[r];
      const float* direct = memory_->key_direct.data() + (at * kRows + r) * keys_;
      double ds = memory_->shrinkage_direct[at * kRows + r] - double(sum[2 * keys_]);
      for (int64_t c = 0; c < keys_; ++c) {
        scratch[c] = 2 * s * (sum[2 * c + 1] - k[c] * sum[2 * c]) + direct[c];
        ds += double(k[c]) * (2 * double(sum[2 * c + 1]) - double(k[c]) * sum[2 * c]);
      }
      put(out_.mk[tile.segment], (first + r) * keys_, keys_, scratch);
      const float d_shrinkage = static_cast<float>(ds * root);
      if (!out_.ms.empty()) put(out_.ms[tile.segment], first + r, 1, &d_shrinkage);
    }
  }

  // Adds the group's part to the sums over tokens of a panel of the block.
  void queries_pass(int64_t panel) const {
    float* sum = memory_->query_sum.get() + (first_query_ / kPanel + panel) * width_ * kPanel;
    const int64_t tiles = ceil_div(group_.count(), kQuad) * kQuad;
    for (int64_t r = group_.count() * kRows; r < tiles * kRows; ++r) {
      std::fill_n(memory_->d_score.get() + r * block_ + panel * kPanel, kPanel, 0.0f);
    }
    for (int64_t at = 0; at < tiles; at += kQuad) {
      Terms tokens;
      for (int64_t i = at; i < at + kQuad; ++i) tokens.raise(group_.largest_terms(i));
      if (are_too_large(tokens, direct_[panel].largest())) {
        sum_over_tokens(at, panel);
        continue;
      }
      kernels_.product(width_, kPanel, kTileKeys, group_.columns(at), kTileKeys, d_score(at, panel * kPanel), block_,
                       sum, kPanel, true);
    }
  }

  // The part of four tiles in the gradients of a panel's queries, by the direct form.
  void sum_over_tokens(int64_t first, int64_t panel) const {
    std::vector<float>& sum = memory_->query_direct[first_query_ / kPanel + panel];
    if (sum.empty()) sum.assign(kPanel * 2 * keys_, 0.0f);
    const int64_t query = panel * kPanel, count = std::min(kPanel, count_queries() - query);
    for (int64_t at = first; at < std::min(first + kQuad, group_.count()); ++at) {
      const TokenGroup::Tile& tile = group_.tile(at);
      add_query_gradients(
          {operands_, b_, tile.token, tile.count, first_query_ + query, count, d_score(at, query), block_}, sum.data());
    }
  }

  void finish_queries(int64_t panel, float* scratch) const {
    const int64_t at = panel * kPanel, count = std::min(kPanel, queries_ - at);
    float *q = scratch, *e = q + kPanel * keys_, *dq = e + kPanel * keys_, *de = dq + kPanel * keys_;
    operands_.read_queries(b_, at, count, true, q, e);
    const float *sum = memory_->query_sum.get() + panel * width_ * kPanel, *last = sum + 2 * keys_ * kPanel;
    for (int64_t c = 0; c < keys_; ++c) {
      const float *square = sum + 2 * c * kPanel, *linear = square + kPanel;
      for (int64_t j = 0; j < count; ++j) {
        const int64_t i = j * keys_ + c;
        dq[i] = e[i] * (linear[j] + 2 * q[i] * last[j]);
        de[i] = square[j] + q[i] * (linear[j] + q[i] * last[j]);
      }
    }
    const std::vector<float>& direct = memory_->query_direct[panel];
    // Nothing but the direct form has a part in a query whose own terms overflow.
    const auto plus = [](float sum, float more) { return std::isfinite(sum) ? sum + more : more; };
    for (int64_t i = 0; !direct.empty() && i < count * keys_; ++i) {
      const float* more = direct.data() + i / keys_ * 2 * keys_ + i % keys_;
      dq[i] = plus(dq[i], more[0]);
      de[i] = plus(de[i], more[keys_]);
    }
    put(out_.qk, (b_ * queries_ + at) * keys_, count * keys_, dq);
    put(out_.qe, (b_ * queries_ + at) * keys_, count * keys_, de);
  }

  const Operands operands_;
  const ValueTiles values_, upstream_;
  const VecKernels& kernels_;
  const ReadGradients& out_;
  const at::Tensor readout_;  // channel stride 1
  const at::Tensor& softmax_;
  const at::Tensor d_usage_;
  at::Tensor mean_d_usage_;                                          // [B, Q]
  const int64_t objects_, channels_, row_, width_, keys_, queries_;  // objects_: 0 where d_readout is none
  const bool of_values_, of_keys_, of_scores_;
  TokenGroup group_;
  int64_t block_;  // queries that are under way together
  Memory* memory_ = nullptr;
  std::vector<float> delta_;
  std::vector<DirectForm> direct_;  // the panels of the block
  int64_t b_ = 0, first_query_ = 0;
};

}  // namespace

void backward_dense(const ReadBackward& read, const at::Tensor& readout, const at::Tensor& softmax,
                    const ReadGradients& out) {
  // Without queries, and where nothing reaches the values, they keep these zeros.
  for (const auto* list : {&out.mk, &out.ms, &out.mv}) {
    for (const at::Tensor& x : *list) {
      if (x.defined() && (read.qk.size(2) == 0 || (list == &out.mv && !read.d_readout))) x.zero_();
    }
  }
  if (read.qk.size(0) * read.qk.size(2) == 0) return;
  DenseBackward(read, readout, softmax, out).run();
}

}  // namespace xmemk::cpu
