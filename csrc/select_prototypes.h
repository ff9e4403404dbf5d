// select_prototypes(Tensor usage, SymInt num_prototypes) -> Tensor: what every device's kernel may rely on.
#pragma once

#include <ATen/core/Tensor.h>

#include "checks.h"

namespace xmemk {

inline void check_select_prototypes(const at::Tensor& usage, int64_t num_prototypes) {
  check_usage("select_prototypes", usage);
  check_count("select_prototypes", "num_prototypes", num_prototypes, usage);
}

}  // namespace xmemk
