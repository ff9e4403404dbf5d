// affinity_topk(Tensor[] mk, Tensor[] ms, Tensor qk, Tensor? qe, SymInt top_k, bool return_usage)
//   -> (Tensor weight, Tensor index, Tensor usage): what every device's kernel may rely on.
#pragma once

#include <optional>

#include "read_checks.h"

namespace xmemk {

inline void check_affinity_topk(at::TensorList mk, at::TensorList ms, const at::Tensor& qk,
                                const std::optional<at::Tensor>& qe, int64_t top_k) {
  check_keys("affinity_topk", mk, ms, qk, qe);
  check_top_k("affinity_topk", top_k);
}

}  // namespace xmemk
