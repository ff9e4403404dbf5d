// memory_read and memory_read_saving: what every device's kernel may rely on.
//   (Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, SymInt? top_k, bool return_usage)
#pragma once

#include <optional>

#include "read_checks.h"

namespace xmemk {

inline void check_memory_read(const char* op, at::TensorList mk, at::TensorList ms, at::TensorList mv,
                              const at::Tensor& qk, const std::optional<at::Tensor>& qe, std::optional<int64_t> top_k) {
  check_keys(op, mk, ms, qk, qe);
  check_values_of_keys(op, mv, mk);
  if (top_k) check_top_k(op, *top_k);
}

}  // namespace xmemk
