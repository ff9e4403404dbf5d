// potentiate(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor pk, Tensor? pe) -> (Tensor shrinkage, Tensor values):
// what every device's kernel may rely on.
#pragma once

#include <optional>

#include "read_checks.h"

namespace xmemk {

inline void check_potentiate(at::TensorList mk, at::TensorList ms, at::TensorList mv, const at::Tensor& pk,
                             const std::optional<at::Tensor>& pe) {
  check_keys("potentiate", mk, ms, pk, pe);
  check_values_of_keys("potentiate", mv, mk);
}

}  // namespace xmemk
