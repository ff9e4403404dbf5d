#include "key_bank.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <ATen/Dispatch.h>

#include "vec.h"

namespace xmemk::cpu {
namespace {

// Per channel the median of some keys, evenly from all segments: neither keys that are not finite nor a few enormous
// ones move it away from the rest, and it lies where most of the memory does.
constexpr int64_t kCenterSamples = 64;

constexpr int64_t kAhead = 8;  // keys to fetch ahead

float lower_median(std::vector<float>& values) {
  values.erase(std::remove_if(values.begin(), values.end(), [](float v) { return std::isnan(v); }), values.end());
  if (values.empty()) return 0;
  const auto median = values.begin() + (values.size() - 1) / 2;
  std::nth_element(values.begin(), median, values.end());
  return std::isfinite(*median) ? *median : 0;
}

}  // namespace

Operands::Segment::Segment(const at::Tensor& keys, const at::Tensor& shrinkages, int64_t first_token)
    : key(keys),
      shrinkage(shrinkages),
      start(first_token),
      keys(key.const_data_ptr()),
      shrinkages(shrinkage.defined() ? shrinkage.const_data_ptr<float>() : nullptr),
      batch_stride(key.stride(0)),
      channel_stride(key.stride(1)),
      token_stride(key.stride(2)),
      shrinkage_strides{} {
  if (shrinkage.defined()) {
    shrinkage_strides[0] = shrinkage.stride(0);
    shrinkage_strides[1] = shrinkage.stride(2);
  }
}

Operands::Operands(at::TensorList mk, at::TensorList ms, const at::Tensor& qk, const std::optional<at::Tensor>& qe,
                   const std::optional<at::Tensor>& centre)
    : qk_(qk), qe_(qe.value_or(at::Tensor())), batch_(qk.size(0)), channels_(qk.size(1)), queries_(qk.size(2)) {
  for (size_t i = 0; i < mk.size(); ++i) {
    if (mk[i].size(2) == 0) continue;
    segments_.emplace_back(mk[i], ms.empty() ? at::Tensor() : ms[i].to(at::kFloat), tokens_);
    tokens_ += mk[i].size(2);
  }
  if (centre) {
    const at::Tensor given = centre->contiguous();
    center_.assign(given.const_data_ptr<float>(), given.const_data_ptr<float>() + given.numel());
  } else {
    find_center();
  }
}

void Operands::find_center() {
  center_.resize(batch_ * channels_);
  if (tokens_ == 0) return;
  std::vector<float> values;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, qk_.scalar_type(), "center_key", [&] {
    for (int64_t i = 0; i < batch_ * channels_; ++i) {
      values.clear();
      for (int64_t j = 0; j < kCenterSamples; ++j) {
        const int64_t token = j * tokens_ / kCenterSamples;
        const Segment& from = segment_of(token);
        const scalar_t* key = from.row<scalar_t>(i / channels_, token);
        values.push_back(static_cast<float>(key[i % channels_ * from.channel_stride]));
      }
      center_[i] = lower_median(values);
    }
  });
}

const Operands::Segment& Operands::segment_of(int64_t token) const {
  size_t i = segments_.size() - 1;
  while (segments_[i].start > token) --i;
  return segments_[i];
}

void Operands::pack_keys(int64_t b, int64_t first, int64_t count, int64_t step, float* out, int64_t columns) const {
  constexpr int64_t kGroup = 16;  // tokens at a time: a cache line of each row of `out`, and few lines of the keys
  const float* center = center_.data() + b * channels_;
  const float scale = 1 / std::sqrt(static_cast<float>(channels_));
  if (count < columns) std::fill_n(out, width() * columns, 0.0f);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, qk_.scalar_type(), "pack_keys", [&] {
    float k[kGroup][kGroup] = {};  // [channel, token]
    for (int64_t j = 0; j < count; j += kGroup) {
      const int64_t group = std::min(kGroup, count - j);
      const scalar_t* key[kGroup] = {};
      int64_t stride[kGroup] = {};
      float s[kGroup] = {};
      for (int64_t i = 0; i < group; ++i) {
        const int64_t token = first + (j + i) * step;
        const Segment& from = segment_of(token);
        key[i] = from.row<scalar_t>(b, token);
        stride[i] = from.channel_stride;
        s[i] = scale * from.shrinkage_of(b, token);
        out[2 * channels_ * columns + j + i] = -s[i];
      }
      for (int64_t c0 = 0; c0 < channels_; c0 += kGroup) {
        const int64_t n = std::min(kGroup, channels_ - c0);
        for (int64_t i = 0; i < group; ++i) {
          for (int64_t c = 0; c < n; ++c) k[c][i] = static_cast<float>(key[i][(c0 + c) * stride[i]]);
        }
        for (int64_t c = 0; c < n; ++c) {
          float* square = out + 2 * (c0 + c) * columns + j;
          float* linear = square + columns;
          const auto pack = [&](int64_t tokens) {
            for (int64_t i = 0; i < tokens; ++i) {
              const float d = k[c][i] - center[c0 + c];
              square[i] = -(s[i] * d) * d;
              linear[i] = 2 * (s[i] * d);
            }
          };
          if (group == kGroup) {
            pack(kGroup);
          } else {
            pack(group);
          }
        }
      }
    }
  });
}

Terms Operands::terms_of_keys(int64_t b, int64_t first, int64_t count, const float* columns, int64_t stride,
                              Terms* out) const {
  const VecKernels& kernels = vec();
  float square[kTileKeys], linear[kTileKeys], constant[kTileKeys];
  kernels.largest_magnitudes(columns, channels_, 2 * stride, count, square);
  kernels.largest_magnitudes(columns + stride, channels_, 2 * stride, count, linear);
  kernels.largest_magnitudes(columns + 2 * channels_ * stride, 1, stride, count, constant);
  Terms largest;
  for (int64_t j = 0; j < count; ++j) {
    out[j] = {square[j], linear[j], constant[j]};
    if (!out[j].are_finite() && !is_finite_key(b, first + j)) out[j] = {};
    largest.raise(out[j]);
  }
  return largest;
}

void Operands::pack_queries(int64_t b, int64_t first, int64_t count, float* out) const {
  const float* center = center_.data() + b * channels_;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, qk_.scalar_type(), "pack_queries", [&] {
    for (int64_t j = 0; j < count; ++j) {
      const scalar_t* query = qk_.const_data_ptr<scalar_t>() + b * qk_.stride(0) + (first + j) * qk_.stride(2);
      const scalar_t* selection = nullptr;
      if (qe_.defined()) {
        selection = qe_.const_data_ptr<scalar_t>() + b * qe_.stride(0) + (first + j) * qe_.stride(2);
      }
      float* row = out + j * width();
      double sum = 0;
      for (int64_t c = 0; c < channels_; ++c) {
        const float q = static_cast<float>(query[c * qk_.stride(1)]) - center[c];
        const float e = selection == nullptr ? 1.0f : static_cast<float>(selection[c * qe_.stride(1)]);
        row[2 * c] = e;
        row[2 * c + 1] = e * q;
        sum += double(e) * q * q;
      }
      row[2 * channels_] = static_cast<float>(sum);
    }
  });
}

void Operands::read_keys(int64_t b, int64_t first, int64_t count, bool translated, float* k, float* s) const {
  const float scale = 1 / std::sqrt(static_cast<float>(channels_));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, qk_.scalar_type(), "read_keys", [&] {
    for (int64_t j = 0; j < count; ++j, k += channels_) {
      const Segment& from = segment_of(first + j);
      const scalar_t* key = from.row<scalar_t>(b, first + j);
      for (int64_t c = 0; c < channels_; ++c) k[c] = static_cast<float>(key[c * from.channel_stride]);
      if (translated) subtract_center(b, k);
      s[j] = scale * from.shrinkage_of(b, first + j);
    }
  });
}

void Operands::read_queries(int64_t b, int64_t first, int64_t count, bool translated, float* q, float* e) const {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, qk_.scalar_type(), "read_queries", [&] {
    const auto read = [&](const at::Tensor& x, int64_t i, float* out) {
      const scalar_t* from = x.const_data_ptr<scalar_t>() + b * x.stride(0) + i * x.stride(2);
      for (int64_t c = 0; c < channels_; ++c) out[c] = static_cast<float>(from[c * x.stride(1)]);
    };
    for (int64_t j = 0; j < count; ++j, q += channels_, e += channels_) {
      read(qk_, first + j, q);
      if (translated) subtract_center(b, q);
      if (qe_.defined()) {
        read(qe_, first + j, e);
      } else {
        std::fill_n(e, channels_, 1.0f);
      }
    }
  });
}

bool Operands::is_finite_key(int64_t b, int64_t token) const {
  std::vector<float> k(channels_ + 1);
  read_keys(b, token, 1, false, k.data(), &k[channels_]);
  return are_finite(k.data(), channels_ + 1);
}

bool Operands::is_finite_query(int64_t b, int64_t query) const {
  std::vector<float> q(2 * channels_);
  read_queries(b, query, 1, false, q.data(), q.data() + channels_);
  return are_finite(q.data(), 2 * channels_);
}

void Operands::subtract_center(int64_t b, float* row) const {
  for (int64_t c = 0; c < channels_; ++c) row[c] -= center_[b * channels_ + c];
}

void Operands::rescore(int64_t b, int64_t query, const uint32_t* token, int64_t count, float* score,
                       float* scratch) const {
  const VecKernels& kernels = vec();
  const float scale = 1 / std::sqrt(static_cast<float>(channels_));
  float *q = scratch, *e = q + channels_, *k = e + channels_;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, qk_.scalar_type(), "rescore", [&] {
    const auto row = [&](const at::Tensor& x, int64_t i) {
      return x.const_data_ptr<scalar_t>() + b * x.stride(0) + i * x.stride(2);
    };
    for (int64_t c = 0; c < channels_; ++c) {
      q[c] = static_cast<float>(row(qk_, query)[c * qk_.stride(1)]);
      e[c] = qe_.defined() ? static_cast<float>(row(qe_, query)[c * qe_.stride(1)]) : 1.0f;
    }
    for (int64_t j = 0; j < count; ++j) {
      if (j + kAhead < count) {
        const Segment& next = segment_of(token[j + kAhead]);
        if (next.channel_stride == 1) prefetch(next.row<scalar_t>(b, token[j + kAhead]), channels_);
      }
      const Segment& from = segment_of(token[j]);
      const int64_t stride = from.channel_stride;
      const scalar_t* key = from.row<scalar_t>(b, token[j]);
      const float s = scale * from.shrinkage_of(b, token[j]);
      const float* channels = k;
      if (stride == 1 && std::is_same_v<scalar_t, float>) {
        channels = reinterpret_cast<const float*>(key);
      } else {
        for (int64_t c = 0; c < channels_; ++c) k[c] = static_cast<float>(key[c * stride]);
      }
      const float exact = -s * kernels.distance(channels, q, e, channels_);
      if (std::isfinite(exact)) score[j] = exact;
    }
  });
}

void Operands::score_as_product(const LookKernels& kernels, int64_t b, const float* query, const uint32_t* token,
                                int64_t count, float* score, float* scratch) const {
  constexpr int64_t kTogether = 16;
  const float scale = 1 / std::sqrt(static_cast<float>(channels_));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, qk_.scalar_type(), "score_as_product", [&] {
    for (int64_t j = 0; j < count; j += kTogether) {
      const float* key[kTogether];
      float s[kTogether];
      for (int64_t i = 0; i < kTogether; ++i) {
        const uint32_t which = token[std::min(j + i, count - 1)];
        const Segment& from = segment_of(which);
        const int64_t stride = from.channel_stride;
        const scalar_t* row = from.row<scalar_t>(b, which);
        s[i] = scale * from.shrinkage_of(b, which);
        if (stride == 1 && std::is_same_v<scalar_t, float>) {
          key[i] = reinterpret_cast<const float*>(row);
          prefetch(key[i], channels_);
        } else {
          float* wide = scratch + i * channels_;
          for (int64_t c = 0; c < channels_; ++c) wide[c] = static_cast<float>(row[c * stride]);
          key[i] = wide;
        }
      }
      kernels.score_tokens(key, s, centre(b), query, channels_, score + j);
    }
  });
}

KeyBank::KeyBank(const Operands& operands)
    : operands_(operands),
      tiles_(ceil_div(operands.tokens(), kTileKeys)),
      chunk_tiles_(std::min<int64_t>(tiles_, std::max<int64_t>(1, kBytes / (operands.tile_size() * 4)))),
      data_(chunk_tiles_ * operands.tile_size()),
      terms_(chunk_tiles_ * kTileKeys),
      largest_(chunk_tiles_) {}

void KeyBank::load(int64_t b, int64_t first) {
  if (b == b_ && first == first_) return;
  b_ = b;
  first_ = first;
  for_each_task(std::min(chunk_tiles_, tiles_ - first), [&](int64_t i) {
    const int64_t token = (first + i) * kTileKeys;
    float* tile = data_.get() + i * operands_.tile_size();
    operands_.pack_keys(b, token, tile_keys(first + i), 1, tile);
    largest_[i] =
        operands_.terms_of_keys(b, token, tile_keys(first + i), tile, kTileKeys, terms_.data() + i * kTileKeys);
  });
}

}  // namespace xmemk::cpu
