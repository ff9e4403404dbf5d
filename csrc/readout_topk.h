// readout_topk(Tensor[] mv, Tensor weight, Tensor index) -> Tensor, and
// readout_topk_scaled(Tensor[] mv, Tensor[] scale, Tensor weight, Tensor index) -> Tensor:
// what every device's kernel may rely on. The numbers in index are not read here.
#pragma once

#include "read_checks.h"

namespace xmemk {

inline void check_readout_topk(at::TensorList mv, const at::Tensor& weight, const at::Tensor& index) {
  check_affinity("readout_topk", weight, index);
  check_values("readout_topk", mv, weight.size(0), weight.device());
}

inline void check_readout_topk_scaled(at::TensorList mv, at::TensorList scale, const at::Tensor& weight,
                                      const at::Tensor& index) {
  const char* op = "readout_topk_scaled";
  check_affinity(op, weight, index);
  TORCH_CHECK_VALUE(!mv.empty() && mv.size() == scale.size(), op, ": wanted as many scale as mv, at least one, got ",
                    scale.size(), " and ", mv.size());
  for (size_t i = 0; i < mv.size(); ++i) {
    const at::Tensor &v = mv[i], &s = scale[i];
    TORCH_CHECK_TYPE((v.scalar_type() == at::kChar || v.scalar_type() == at::kFloat8_e4m3fn) &&
                         v.scalar_type() == mv[0].scalar_type() && s.scalar_type() == at::kFloat,
                     op, ": mv[", i, "]: wanted int8 or float8_e4m3fn with float32 scale, got ", v.scalar_type(),
                     " and ", s.scalar_type());
    TORCH_CHECK_VALUE(v.dim() == 4 && v.size(0) == weight.size(0) && v.size(1) == mv[0].size(1) &&
                          v.size(2) == mv[0].size(2) && v.device() == weight.device(),
                      op, ": mv[", i, "]: wanted [B, O, CV, N], got ", v.sizes());
    TORCH_CHECK_VALUE(s.dim() == 4 && s.size(0) == v.size(0) && s.size(1) == v.size(1) && s.size(3) == v.size(3) &&
                          s.size(2) >= 1 && s.size(2) == scale[0].size(2) && s.device() == weight.device(),
                      op, ": scale[", i, "]: wanted [B, O, G, N] to go with mv ", v.sizes(), ", got ", s.sizes());
  }
}

}  // namespace xmemk
