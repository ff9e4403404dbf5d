// The readout of selected tokens: a weighted sum of k rows of values per query.
#include "../readout_topk.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "read_steps.h"
#include "vec.h"
#include "work.h"

namespace xmemk::cpu {
namespace {

constexpr int64_t kAhead = 6;           // tokens to fetch ahead
constexpr int64_t kChannels = 16;       // of channel-major values at a time: a cache line of the result
constexpr int64_t kSummed = 64;         // values that add up to a sum in float32, the sums in double
constexpr int64_t kRowChannels = 4096;  // of a token-major row at a time, so that the sum stays in the first cache

template <typename scalar_t>
struct Values {
  struct Segment {
    const scalar_t* data;
    int64_t start, batch, object, channel, token;  // first token, and strides
  };
  std::vector<Segment> segments;
  int64_t objects, channels;

  explicit Values(at::TensorList mv) : objects(mv[0].size(1)), channels(mv[0].size(2)) {
    int64_t start = 0;
    for (const at::Tensor& v : mv) {
      if (v.size(3) == 0) continue;
      segments.push_back({v.const_data_ptr<scalar_t>(), start, v.stride(0), v.stride(1), v.stride(2), v.stride(3)});
      start += v.size(3);
    }
  }

  const Segment& of(int64_t token) const {
    size_t i = segments.size() - 1;
    while (segments[i].start > token) --i;
    return segments[i];
  }

  bool token_major() const {
    return std::all_of(segments.begin(), segments.end(), [](const Segment& s) { return s.channel == 1; });
  }
};

// out[channels] of one object and one query; values with channel stride 1.
template <typename scalar_t>
void read_rows(const VecKernels& kernels, const Values<scalar_t>& values, int64_t b, int64_t o, int64_t k,
               const float* weight, const int64_t* index, float* sum, float* wide, double* total, scalar_t* out) {
  const auto row = [&](int64_t j) {
    const auto& from = values.of(index[j]);
    return from.data + b * from.batch + o * from.object + (index[j] - from.start) * from.token;
  };
  for (int64_t first = 0; first < values.channels; first += kRowChannels) {
    const int64_t n = std::min(kRowChannels, values.channels - first);
    for (int64_t j = 0; j < std::min(kAhead, k); ++j) prefetch(row(j) + first, n);
    std::fill_n(sum, n, 0.0f);
    for (int64_t j = 0; j < k; ++j) {
      if (j + kAhead < k) prefetch(row(j + kAhead) + first, n);
      if (j > 0 && j % kSummed == 0) {
        for (int64_t c = 0; c < n; ++c) {
          total[c] = (j == kSummed ? 0 : total[c]) + sum[c];
          sum[c] = 0;
        }
      }
      const scalar_t* v = row(j) + first;
      if constexpr (std::is_same_v<scalar_t, float>) {
        kernels.add_scaled(sum, v, weight[j], n);
      } else {
        widen(kernels, v, n, wide);
        kernels.add_scaled(sum, wide, weight[j], n);
      }
    }
    if (k > kSummed) {
      for (int64_t c = 0; c < n; ++c) sum[c] = static_cast<float>(total[c] + sum[c]);
    }
    for (int64_t c = 0; c < n; ++c) out[first + c] = static_cast<scalar_t>(sum[c]);
  }
}

// out[channels first, first + n) of one object and one query; any strides. The rows of a few channels stay in a cache.
template <typename scalar_t>
void read_channels(const Values<scalar_t>& values, int64_t b, int64_t o, int64_t first, int64_t n, int64_t k,
                   const float* weight, const int64_t* index, scalar_t* out) {
  float sum[kChannels] = {};
  double total[kChannels] = {};
  for (int64_t j = 0; j < k; ++j) {
    for (int64_t c = 0; j > 0 && j % kSummed == 0 && c < n; ++c) {
      total[c] += sum[c];
      sum[c] = 0;
    }
    const auto& from = values.of(index[j]);
    const scalar_t* v =
        from.data + b * from.batch + o * from.object + first * from.channel + (index[j] - from.start) * from.token;
    for (int64_t c = 0; c < n; ++c) sum[c] += weight[j] * static_cast<float>(v[c * from.channel]);
  }
  for (int64_t c = 0; c < n; ++c) out[c] = static_cast<scalar_t>(total[c] + sum[c]);
}

}  // namespace

at::Tensor read_topk(at::TensorList mv, const at::Tensor& weight, const at::Tensor& index) {
  const int64_t batch = weight.size(0), queries = weight.size(1), k = weight.size(2);
  const int64_t objects = mv[0].size(1), channels = mv[0].size(2);
  at::Tensor out = at::empty({batch, queries, objects, channels}, mv[0].options());
  const float* w = weight.const_data_ptr<float>();
  const int64_t* chosen = index.const_data_ptr<int64_t>();
  const VecKernels& kernels = vec();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, mv[0].scalar_type(), "readout_topk", [&] {
    const Values<scalar_t> values(mv);
    scalar_t* result = out.mutable_data_ptr<scalar_t>();
    if (values.token_major()) {
      constexpr int64_t kQueries = 16;  // that are worth a task
      for_each_task(
          ceil_div(batch * queries, kQueries),
          [] { return std::pair{Buffer<float>(2 * kRowChannels), Buffer<double>(kRowChannels)}; },
          [&](int64_t task, auto& scratch) {
            for (int64_t i = task * kQueries; i < std::min((task + 1) * kQueries, batch * queries); ++i) {
              for (int64_t o = 0; o < objects; ++o) {
                read_rows(kernels, values, i / queries, o, k, w + i * k, chosen + i * k, scratch.first.get(),
                          scratch.first.get() + kRowChannels, scratch.second.get(),
                          result + (i * objects + o) * channels);
              }
            }
          });
    } else {
      const int64_t blocks = ceil_div(channels, kChannels);
      for_each_task(batch * objects * blocks, [&](int64_t task) {
        const int64_t b = task / (objects * blocks), o = task / blocks % objects, c = task % blocks * kChannels;
        for (int64_t i = b * queries; i < (b + 1) * queries; ++i) {
          read_channels(values, b, o, c, std::min(kChannels, channels - c), k, w + i * k, chosen + i * k,
                        result + (i * objects + o) * channels + c);
        }
      });
    }
  });
  return out.permute({0, 2, 3, 1});
}

namespace {

at::Tensor readout_topk(at::TensorList mv, const at::Tensor& weight, const at::Tensor& index) {
  check_readout_topk(mv, weight, index);
  const Interruptible interruptible;
  const at::Tensor chosen = index.contiguous();
  const int64_t tokens = tokens_of(mv);
  const int64_t* i = chosen.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < chosen.numel(); ++j) {
    TORCH_CHECK_INDEX(0 <= i[j] && i[j] < tokens, "index: wanted 0 to ", tokens - 1, " (N = ", tokens, " tokens), got ",
                      i[j]);
  }
  return read_topk(mv, weight.to(at::kFloat).contiguous(), chosen);
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("readout_topk", &readout_topk);
}

}  // namespace xmemk::cpu
