// Values as the second matrix product of a dense read takes them: [kTileKeys, CV] float32 rows, tile by tile.
#pragma once

#include <algorithm>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include "key_bank.h"
#include "vec.h"

namespace xmemk::cpu {

class ValueTiles {
 public:
  struct Tile {
    const float* data;
    int64_t stride;
  };

  // `convert`: to copy all of a small memory once, where it does not lie as it is wanted.
  explicit ValueTiles(at::TensorList mv, bool convert = true) : objects_(mv[0].size(1)), channels_(mv[0].size(2)) {
    for (const at::Tensor& v : mv) {
      if (v.size(3) == 0) continue;
      segments_.push_back({v, tokens_});
      tokens_ += v.size(3);
    }
    // Converted once if that takes little, else a tile at a time, again for each tile of queries.
    if (!convert || mv[0].size(0) * objects_ * channels_ * tokens_ * 4 > kConvertedBytes) return;
    for (Segment& s : segments_) {
      if (!in_place(s.value)) s.value = s.value.permute({0, 1, 3, 2}).to(at::kFloat).contiguous().permute({0, 1, 3, 2});
    }
  }

  int64_t objects() const { return objects_; }
  int64_t channels() const { return channels_; }

  // Whether nothing has to be copied, but where segments meet.
  bool in_place() const {
    return std::all_of(segments_.begin(), segments_.end(), [this](const Segment& s) { return in_place(s.value); });
  }

  // Tile t of object o, kTileKeys rows.
  Tile get(int64_t b, int64_t o, int64_t t, float* scratch) const {
    return rows(b, o, t * kTileKeys, kTileKeys, scratch);
  }

  // Tokens [first, first + count) of object o: in place where they lie there as they are wanted, else copied to
  // `scratch` [count, CV], with rows of 0 behind the last token.
  Tile rows(int64_t b, int64_t o, int64_t first, int64_t count, float* scratch) const {
    const int64_t last = std::min(first + count, tokens_);
    for (const Segment& s : segments_) {
      const at::Tensor& v = s.value;
      if (s.start <= first && first + count <= s.start + v.size(3) && in_place(v)) {
        const float* data = v.const_data_ptr<float>() + b * v.stride(0) + o * v.stride(1);
        return {data + (first - s.start) * v.stride(3), v.stride(3)};
      }
    }
    for (const Segment& s : segments_) {
      const int64_t from = std::max(first, s.start), to = std::min(last, s.start + s.value.size(3));
      if (from < to) copy(s.value, b, o, from - s.start, to - from, scratch + (from - first) * channels_);
    }
    std::fill(scratch + (last - first) * channels_, scratch + count * channels_, 0.0f);
    return {scratch, channels_};
  }

 private:
  static constexpr int64_t kConvertedBytes = 64 << 20;

  struct Segment {
    at::Tensor value;
    int64_t start;
  };

  // Token-major float32: what the matrix product takes as it lies.
  bool in_place(const at::Tensor& v) const {
    return v.scalar_type() == at::kFloat && (v.stride(2) == 1 || channels_ == 1) && v.stride(3) >= channels_;
  }

  void copy(const at::Tensor& v, int64_t b, int64_t o, int64_t first, int64_t count, float* out) const {
    constexpr int64_t kBlock = 16;  // tokens and channels: what is read or written out of order stays in the cache
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, v.scalar_type(), "value_tiles", [&] {
      const int64_t channel = v.stride(2), token = v.stride(3);
      const scalar_t* in = v.const_data_ptr<scalar_t>() + b * v.stride(0) + o * v.stride(1) + first * token;
      if (channel == 1) {
        for (int64_t i = 0; i < count; ++i) widen(vec(), in + i * token, channels_, out + i * channels_);
        return;
      }
      for (int64_t i0 = 0; i0 < count; i0 += kBlock) {
        const int64_t i1 = std::min(i0 + kBlock, count);
        for (int64_t c = 0; c < channels_; ++c) {
          for (int64_t i = i0; i < i1; ++i) out[i * channels_ + c] = static_cast<float>(in[i * token + c * channel]);
        }
      }
    });
  }

  std::vector<Segment> segments_;
  int64_t objects_, channels_, tokens_ = 0;
};

}  // namespace xmemk::cpu
