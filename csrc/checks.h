// Checks that the operators have in common.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace xmemk {

inline bool is_supported_float(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16;
}

inline void check_usage(const char* op, const at::Tensor& usage) {
  TORCH_CHECK_VALUE(usage.dim() == 2, op, ": usage: wanted [B, N], got ", usage.sizes());
  TORCH_CHECK_TYPE(is_supported_float(usage.scalar_type()), op,
                   ": usage: wanted float32, float16, bfloat16 or float64, got ", usage.scalar_type());
}

inline void check_count(const char* op, const char* name, int64_t count, const at::Tensor& usage) {
  TORCH_CHECK_VALUE(0 <= count && count <= usage.size(1), op, ": ", name, ": wanted 0 to N = ", usage.size(1),
                    " (usage is ", usage.sizes(), "), got ", count);
}

}  // namespace xmemk
