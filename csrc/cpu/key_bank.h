// The operands of the similarity as one matrix product (see xmemk/plain/operands.py): keys and queries, translated by a
// median key, as rows and columns of 2 CK + 1 numbers, packed tile by tile for VecKernels::product. Channel by channel,
// the large term last: in this order the running sum stays small, and with it the rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "vec_look.h"
#include "work.h"

namespace xmemk::cpu {

constexpr int64_t kTileKeys = 256;
constexpr int64_t kTileQueries = 64;

// The largest of the numbers that stand for a token or a query in the product: of (s k^2, 2 s k, s) or (e, e q,
// sum e q^2). What is not finite counts as infinity.
struct Terms {
  float square = 0, linear = 0, constant = 0;

  bool are_finite() const { return std::isfinite(square) && std::isfinite(linear) && std::isfinite(constant); }
  void raise(const Terms& other) {
    square = std::max(square, other.square);
    linear = std::max(linear, other.linear);
    constant = std::max(constant, other.constant);
  }
};

class Operands {
 public:
  // `centre` [B, CK] float32: the middle key, where it is given and not found here.
  Operands(at::TensorList mk, at::TensorList ms, const at::Tensor& qk, const std::optional<at::Tensor>& qe,
           const std::optional<at::Tensor>& centre = std::nullopt);

  int64_t batch() const { return batch_; }
  int64_t tokens() const { return tokens_; }
  int64_t queries() const { return queries_; }
  int64_t channels() const { return channels_; }
  int64_t width() const { return 2 * channels_ + 1; }
  int64_t tile_size() const { return width() * kTileKeys; }
  const float* centre(int64_t b) const { return center_.data() + b * channels_; }

  // The segments that are not empty: their first token, and how many.
  int64_t segments() const { return static_cast<int64_t>(segments_.size()); }
  int64_t segment_start(int64_t i) const { return segments_[i].start; }
  int64_t segment_tokens(int64_t i) const { return segments_[i].key.size(2); }

  // out[width, columns] = (-s k^2, 2 s k of each channel, then -s) of tokens first, first + step, ...; the columns
  // beyond `count` are 0.
  void pack_keys(int64_t b, int64_t first, int64_t count, int64_t step, float* out, int64_t columns = kTileKeys) const;

  // Of tokens [first, first + count), packed as columns [width, stride], one by one -> the largest of all. A token that
  // is not finite itself has none.
  Terms terms_of_keys(int64_t b, int64_t first, int64_t count, const float* columns, int64_t stride, Terms* out) const;

  // out[count, width] = (e, e q of each channel, then sum e q^2)
  void pack_queries(int64_t b, int64_t first, int64_t count, float* out) const;

  bool is_finite_key(int64_t b, int64_t token) const;  // and its shrinkage
  bool is_finite_query(int64_t b, int64_t query) const;

  // Rows of numbers as Eq. 2 has them: keys k[count, CK] with s[count] = shrinkage / sqrt(CK), queries q, e[count, CK].
  // `translated`: by the median key.
  void read_keys(int64_t b, int64_t first, int64_t count, bool translated, float* k, float* s) const;
  void read_queries(int64_t b, int64_t first, int64_t count, bool translated, float* q, float* e) const;

  // score[j] of query and token[j] by Eq. 2 as it stands, without the cancellation of the product; a score that
  // overflows is left as it is. `scratch` has 3 CK floats.
  void rescore(int64_t b, int64_t query, const uint32_t* token, int64_t count, float* score, float* scratch) const;

  // score[j] of `query`, a row of pack_queries, and token[j], to the last bit what VecKernels::product makes of it.
  // Up to 15 more scores are overwritten; `scratch` has 16 CK floats.
  void score_as_product(const LookKernels& kernels, int64_t b, const float* query, const uint32_t* token, int64_t count,
                        float* score, float* scratch) const;

 private:
  // A segment that is not empty; its strides and addresses are read once, since asking a tensor for them takes as long
  // as reading a key.
  struct Segment {
    Segment(const at::Tensor& keys, const at::Tensor& shrinkages, int64_t first_token);

    template <typename scalar_t>
    const scalar_t* row(int64_t b, int64_t token) const {
      return static_cast<const scalar_t*>(keys) + b * batch_stride + (token - start) * token_stride;
    }
    float shrinkage_of(int64_t b, int64_t token) const {
      if (shrinkages == nullptr) return 1;
      return shrinkages[b * shrinkage_strides[0] + (token - start) * shrinkage_strides[1]];
    }

    at::Tensor key, shrinkage;
    int64_t start;
    const void* keys;
    const float* shrinkages;  // none: 1
    int64_t batch_stride, channel_stride, token_stride, shrinkage_strides[2];
  };

  void find_center();
  void subtract_center(int64_t b, float* row) const;
  const Segment& segment_of(int64_t token) const;

  std::vector<Segment> segments_;
  at::Tensor qk_, qe_;
  int64_t batch_, channels_, queries_, tokens_ = 0;
  std::vector<float> center_;  // [B, CK]
};

// Some tiles of the memory, packed side by side. At most kBytes of it exist at a time, whatever N is.
class KeyBank {
 public:
  explicit KeyBank(const Operands& operands);

  int64_t tiles() const { return tiles_; }
  int64_t chunk_tiles() const { return chunk_tiles_; }
  bool whole() const { return chunk_tiles_ == tiles_; }

  // Makes tiles [first, first + chunk_tiles) of batch element b available; nothing is done where they are already.
  void load(int64_t b, int64_t first);
  const float* tile(int64_t t) const { return data_.get() + (t - first_) * operands_.tile_size(); }
  const Terms* terms(int64_t t) const { return terms_.data() + (t - first_) * kTileKeys; }
  const Terms& largest_terms(int64_t t) const { return largest_[t - first_]; }
  int64_t tile_keys(int64_t t) const { return std::min(kTileKeys, operands_.tokens() - t * kTileKeys); }

 private:
  static constexpr int64_t kBytes = 64 << 20;

  const Operands& operands_;
  int64_t tiles_, chunk_tiles_;
  int64_t b_ = -1, first_ = -1;
  Buffer<float> data_;
  std::vector<Terms> terms_, largest_;  // of each token and of each tile
};

}  // namespace xmemk::cpu
