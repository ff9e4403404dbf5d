// gather_tokens(Tensor x, Tensor index) -> Tensor: what every device's kernel may rely on.
// The values of index are not looked at here; a kernel checks each before it reads.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "checks.h"

namespace xmemk {

inline void check_gather_tokens(const at::Tensor& x, const at::Tensor& index) {
  TORCH_CHECK_VALUE(x.dim() == 3 || x.dim() == 4, "gather_tokens: x: wanted [B, C, N] or [B, O, C, N], got ",
                    x.sizes());
  TORCH_CHECK_TYPE(is_supported_float(x.scalar_type()),
                   "gather_tokens: x: wanted float32, float16, bfloat16 or float64, got ", x.scalar_type());
  TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "gather_tokens: index: wanted int64, got ", index.scalar_type());
  TORCH_CHECK_VALUE(index.dim() == 2 && index.size(0) == x.size(0), "gather_tokens: index: wanted [B = ", x.size(0),
                    ", P] to go with x ", x.sizes(), ", got ", index.sizes());
  TORCH_CHECK_VALUE(index.device() == x.device(), "gather_tokens: index: wanted device ", x.device(), " as x, got ",
                    index.device());
}

}  // namespace xmemk
