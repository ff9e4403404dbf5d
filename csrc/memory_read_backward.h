// memory_read_backward(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, Tensor readout, Tensor weight,
//   Tensor index, Tensor? d_readout, Tensor? d_usage, bool[] wanted) -> Tensor[]:
// what every device's kernel may rely on, beside check_keys and check_values_of_keys.
#pragma once

#include <optional>
#include <vector>

#include "read_checks.h"

namespace xmemk {

// What a read saved, and the gradients that came for its results. Dense: weight is [B, 2, Q], index has k = 0.
inline void check_saved(const char* op, at::TensorList mv, const at::Tensor& qk, const at::Tensor& readout,
                        const at::Tensor& weight, const at::Tensor& index, const std::optional<at::Tensor>& d_readout,
                        const std::optional<at::Tensor>& d_usage, int64_t tokens) {
  const int64_t batch = qk.size(0), queries = qk.size(2);
  const std::vector<int64_t> shape{batch, mv[0].size(1), mv[0].size(2), queries};
  TORCH_CHECK_VALUE(index.dim() == 3 && index.size(0) == batch && index.size(1) == queries &&
                        index.scalar_type() == at::kLong && index.device() == qk.device(),
                    op, ": index: wanted [B = ", batch, ", Q = ", queries, ", k] int64, got ", index.sizes(), " ",
                    index.scalar_type());
  const bool dense = index.size(2) == 0;
  TORCH_CHECK_VALUE(
      (dense ? weight.sizes() == at::IntArrayRef({batch, 2, queries}) : weight.sizes() == index.sizes()) &&
          weight.scalar_type() == at::kFloat && weight.device() == qk.device(),
      op, ": weight: wanted float32 to go with index ", index.sizes(), ", got ", weight.sizes(), " ",
      weight.scalar_type());
  TORCH_CHECK_VALUE(!dense || (readout.sizes() == shape && readout.scalar_type() == at::kFloat), op,
                    ": readout: wanted ", shape, " float32, got ", readout.sizes(), " ", readout.scalar_type());
  TORCH_CHECK_VALUE(!d_readout || (d_readout->sizes() == shape && is_float32_or_16_bit(d_readout->scalar_type()) &&
                                   d_readout->device() == qk.device()),
                    op, ": d_readout: wanted ", shape, " float32, float16 or bfloat16");
  TORCH_CHECK_VALUE(!d_usage || (d_usage->sizes() == at::IntArrayRef({batch, tokens}) &&
                                 is_float32_or_16_bit(d_usage->scalar_type()) && d_usage->device() == qk.device()),
                    op, ": d_usage: wanted [B = ", batch, ", N = ", tokens, "] float32");
}

}  // namespace xmemk
