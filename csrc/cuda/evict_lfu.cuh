// The tokens that survive least-frequently-used eviction, in ascending order, of equals the newest.
#pragma once

#include "usage_rows.cuh"

namespace xmemk::cuda {

// survivors [rows, keep]. `parts` blocks per row.
template <typename F, int kThreads>
__global__ void __launch_bounds__(kThreads)
    evict_lfu_kernel(UsageRows rows, int parts, int64_t keep, Workspace workspace, int64_t* survivors) {
  __shared__ unsigned histogram[kBins];
  __shared__ Exchange<kThreads> shared;
  Part<F, kThreads> part(rows, parts, workspace);
  int64_t* out = survivors + part.row * keep;
  const int64_t selected = keep < part.size ? keep : part.size;
  if (part.number == 0) fill_without_token<kThreads>(out, selected, keep);
  if (selected == 0) return;
  const auto border = find_border(part, selected, histogram, shared);
  for_each_selected<false>(part, border, shared,
                           [&](int64_t position, typename F::Key, int64_t token) { out[position] = token; });
}

}  // namespace xmemk::cuda
