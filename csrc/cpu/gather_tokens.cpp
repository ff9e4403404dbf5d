// The chosen tokens of keys [B, C, N] or values [B, O, C, N], contiguous: [B, C, P] or [B, O, C, P]. No extra memory.
#include "../gather_tokens.h"

#include <algorithm>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "parallel.h"

namespace xmemk::cpu {
namespace {

constexpr int64_t kGrain = 32768;  // elements that are worth a thread
constexpr int64_t kChannels = 16;  // a cache line of float32 per token in token-major memory

void check_values(const at::Tensor& index, int64_t tokens) {
  const int64_t* value = index.const_data_ptr<int64_t>();
  const int64_t chosen = index.size(1);
  for (int64_t i = 0; i < index.numel(); ++i) {
    TORCH_CHECK_INDEX(0 <= value[i] && value[i] < tokens, "gather_tokens: index[", i / chosen, ", ", i % chosen,
                      "]: wanted 0 to N - 1 = ", tokens - 1, ", got ", value[i]);
  }
}

// x: the first of `channels` channels, out[channels, chosen].
template <typename scalar_t>
void gather_channels(const scalar_t* x, int64_t channels, int64_t channel_stride, int64_t token_stride,
                     const int64_t* index, int64_t chosen, scalar_t* out) {
  if (channel_stride < token_stride) {  // token-major: a token's channels lie together, so read them together
    for (int64_t p = 0; p < chosen; ++p) {
      const scalar_t* token = x + index[p] * token_stride;
      for (int64_t c = 0; c < channels; ++c) out[c * chosen + p] = token[c * channel_stride];
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      const scalar_t* channel = x + c * channel_stride;
      for (int64_t p = 0; p < chosen; ++p) out[c * chosen + p] = channel[index[p] * token_stride];
    }
  }
}

at::Tensor gather_tokens(const at::Tensor& x, const at::Tensor& index) {
  check_gather_tokens(x, index);
  const at::Tensor chosen = index.contiguous();
  check_values(chosen, x.size(-1));
  const int64_t p = chosen.size(1);
  auto shape = x.sizes().vec();
  shape.back() = p;
  at::Tensor result = at::empty(shape, x.options());
  if (result.numel() == 0) return result;

  const bool has_objects = x.dim() == 4;
  const int64_t b = x.size(0), o = has_objects ? x.size(1) : 1, c = x.size(-2);
  const int64_t batch_stride = x.stride(0), object_stride = has_objects ? x.stride(1) : 0;
  const int64_t channel_stride = x.stride(-2), token_stride = x.stride(-1);
  const int64_t blocks = (c + kChannels - 1) / kChannels;
  const int64_t grain = std::max<int64_t>(1, kGrain / (kChannels * p));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "gather_tokens", [&] {
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    const int64_t* rows = chosen.const_data_ptr<int64_t>();
    parallel_for(0, b * o * blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t bi = i / (o * blocks), oi = i / blocks % o, ci = i % blocks * kChannels;
        gather_channels(from + bi * batch_stride + oi * object_stride + ci * channel_stride,
                        std::min(kChannels, c - ci), channel_stride, token_stride, rows + bi * p, p,
                        out + ((bi * o + oi) * c + ci) * p);
      }
    });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("gather_tokens", &gather_tokens);
}

}  // namespace xmemk::cpu
