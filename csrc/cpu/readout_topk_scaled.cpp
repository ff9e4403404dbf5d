// The readout of selected tokens from values of 8 bits: a weighted sum of k rows of codes, each group of channels of
// which has a scale. A row is widened as it is added up, so that no more of the bank than the rows read is touched.
//   mv[i] [B, O, CV, N_i] int8 or float8_e4m3fn  scale[i] [B, O, G, N_i] float32  -> [B, O, CV, Q] float32
// Channel c belongs to group c / ceil(CV / G).
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include <ATen/ops/empty.h>
#include <c10/util/Float8_e4m3fn.h>
#include <torch/library.h>

#include "../readout_topk.h"
#include "vec.h"
#include "work.h"

namespace xmemk::cpu {
namespace {

constexpr int64_t kAhead = 6;     // tokens to fetch ahead
constexpr int64_t kQueries = 16;  // that are worth a task
constexpr int64_t kSummed = 64;   // values that add up to a sum in float32, the sums in double

struct Segment {
  const uint8_t* code;
  const float* scale;
  int64_t start;
  std::array<int64_t, 4> code_stride, scale_stride;  // of batch, object, channel or group, token
};

// What each of the 256 codes stands for.
std::array<float, 256> table_of(at::ScalarType dtype) {
  std::array<float, 256> table;
  for (int i = 0; i < 256; ++i) {
    const auto bits = static_cast<uint8_t>(i);
    table[i] = dtype == at::kChar ? static_cast<float>(static_cast<int8_t>(bits))
                                  : static_cast<float>(c10::Float8_e4m3fn(bits, c10::Float8_e4m3fn::from_bits()));
  }
  return table;
}

class ScaledReadout {
 public:
  ScaledReadout(at::TensorList mv, at::TensorList scale)
      : objects_(mv[0].size(1)),
        channels_(mv[0].size(2)),
        groups_(scale[0].size(2)),
        group_(ceil_div(channels_, groups_)),
        table_(table_of(mv[0].scalar_type())) {
    for (size_t i = 0; i < mv.size(); ++i) {
      if (mv[i].size(3) == 0) continue;
      Segment s{static_cast<const uint8_t*>(mv[i].const_data_ptr()), scale[i].const_data_ptr<float>(), tokens_, {}, {}};
      for (int64_t d = 0; d < 4; ++d) {
        s.code_stride[d] = mv[i].stride(d);
        s.scale_stride[d] = scale[i].stride(d);
      }
      segments_.push_back(s);
      tokens_ += mv[i].size(3);
    }
  }

  int64_t tokens() const { return tokens_; }

  // out[channels] of one object and one query
  void read(int64_t b, int64_t o, int64_t k, const float* weight, const int64_t* index, float* wide, double* total,
            float* out) const {
    const VecKernels& kernels = vec();
    std::fill_n(out, channels_, 0.0f);
    for (int64_t j = 0; j < k; ++j) {
      if (j > 0 && j % kSummed == 0) {
        for (int64_t c = 0; c < channels_; ++c) {
          total[c] = (j == kSummed ? 0 : total[c]) + out[c];
          out[c] = 0;
        }
      }
      if (j + kAhead < k) {
        const Segment& next = of(index[j + kAhead]);
        if (next.code_stride[2] == 1) prefetch(code(next, b, o, index[j + kAhead]), channels_);
      }
      const Segment& from = of(index[j]);
      const uint8_t* in = code(from, b, o, index[j]);
      const float* scale = from.scale + b * from.scale_stride[0] + o * from.scale_stride[1] +
                           (index[j] - from.start) * from.scale_stride[3];
      const int64_t stride = from.code_stride[2];
      for (int64_t c = 0; c < channels_; ++c) wide[c] = table_[in[c * stride]];
      for (int64_t g = 0, c = 0; c < channels_; ++g, c += group_) {
        const float a = weight[j] * scale[g * from.scale_stride[2]];
        kernels.add_scaled(out + c, wide + c, a, std::min(group_, channels_ - c));
      }
    }
    if (k > kSummed) {
      for (int64_t c = 0; c < channels_; ++c) out[c] = static_cast<float>(total[c] + out[c]);
    }
  }

 private:
  const Segment& of(int64_t token) const {
    size_t i = segments_.size() - 1;
    while (segments_[i].start > token) --i;
    return segments_[i];
  }

  const uint8_t* code(const Segment& s, int64_t b, int64_t o, int64_t token) const {
    return s.code + b * s.code_stride[0] + o * s.code_stride[1] + (token - s.start) * s.code_stride[3];
  }

  int64_t objects_, channels_, groups_, group_, tokens_ = 0;
  std::array<float, 256> table_;
  std::vector<Segment> segments_;
};

at::Tensor readout_topk_scaled(at::TensorList mv, at::TensorList scale, const at::Tensor& weight,
                               const at::Tensor& index) {
  check_readout_topk_scaled(mv, scale, weight, index);
  const int64_t batch = weight.size(0), queries = weight.size(1), k = weight.size(2);
  const int64_t objects = mv[0].size(1), channels = mv[0].size(2);
  const ScaledReadout values(mv, scale);
  const at::Tensor chosen = index.contiguous(), weights = weight.to(at::kFloat).contiguous();
  const int64_t* i = chosen.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < chosen.numel(); ++j) {
    TORCH_CHECK_INDEX(0 <= i[j] && i[j] < values.tokens(), "index: wanted 0 to ", values.tokens() - 1,
                      " (N = ", values.tokens(), " tokens), got ", i[j]);
  }
  const float* w = weights.const_data_ptr<float>();
  at::Tensor out = at::empty({batch, queries, objects, channels}, weights.options());
  float* result = out.mutable_data_ptr<float>();
  const Interruptible interruptible;
  for_each_task(
      ceil_div(batch * queries, kQueries), [&] { return std::pair{Buffer<float>(channels), Buffer<double>(channels)}; },
      [&](int64_t task, auto& scratch) {
        for (int64_t q = task * kQueries; q < std::min((task + 1) * kQueries, batch * queries); ++q) {
          for (int64_t o = 0; o < objects; ++o) {
            values.read(q / queries, o, k, w + q * k, i + q * k, scratch.first.get(), scratch.second.get(),
                        result + (q * objects + o) * channels);
          }
        }
      });
  return out.permute({0, 2, 3, 1});
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("readout_topk_scaled", &readout_topk_scaled);
}

}  // namespace xmemk::cpu
