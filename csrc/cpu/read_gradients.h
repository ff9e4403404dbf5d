// What the two ways of going backward through a memory read share.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

namespace xmemk::cpu {

// The memory and the query of a read, and the gradients that came for its results.
struct ReadBackward {
  at::TensorList mk, ms, mv;
  const at::Tensor& qk;
  const std::optional<at::Tensor>& qe;
  const std::optional<at::Tensor>& d_readout;  // [B, O, CV, Q]
  at::Tensor d_usage;                          // [B, N] float32, contiguous; undefined for none
};

// One gradient per input as contiguous rows [B, N, channels], undefined where none is wanted.
struct ReadGradients {
  std::vector<at::Tensor> mk, ms, mv;
  at::Tensor qk, qe;

  static bool any(const std::vector<at::Tensor>& list) {
    return std::any_of(list.begin(), list.end(), [](const at::Tensor& x) { return x.defined(); });
  }
  bool of_scores() const { return any(mk) || any(ms) || of_query(); }
  bool of_query() const { return qk.defined() || qe.defined(); }
};

// Numbers [first, first + count) of a gradient that is wanted; of another nothing is done.
inline void put(const at::Tensor& gradient, int64_t first, int64_t count, const float* from) {
  if (!gradient.defined()) return;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, gradient.scalar_type(), "put", [&] {
    scalar_t* out = gradient.mutable_data_ptr<scalar_t>() + first;
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<scalar_t>(from[i]);
  });
}

// readout [B, O, CV, Q] float32 and softmax [B, 2, Q] as read_dense gave them
void backward_dense(const ReadBackward& read, const at::Tensor& readout, const at::Tensor& softmax,
                    const ReadGradients& out);

// weight and index [B, Q, k], contiguous
void backward_topk(const ReadBackward& read, const at::Tensor& weight, const at::Tensor& index,
                   const ReadGradients& out);

}  // namespace xmemk::cpu
