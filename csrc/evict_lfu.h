// evict_lfu(Tensor usage, SymInt keep) -> Tensor: what every device's kernel may rely on.
#pragma once

#include <ATen/core/Tensor.h>

#include "checks.h"

namespace xmemk {

inline void check_evict_lfu(const at::Tensor& usage, int64_t keep) {
  check_usage("evict_lfu", usage);
  check_count("evict_lfu", "keep", keep, usage);
}

}  // namespace xmemk
