#include "evict_lfu.cuh"
#include "launch_rows.cuh"

namespace xmemk::cuda {

cudaError_t launch_evict_lfu(UsageType type, const UsageRows& rows, int parts, int64_t keep, const Workspace& workspace,
                             int64_t* survivors, cudaStream_t stream) {
  const auto launch = [&](RowKernel kernel) {
    return launch_rows(kernel, rows, parts, keep, workspace, survivors, stream);
  };
  switch (type) {
    case UsageType::kFloat32:
      return launch(evict_lfu_kernel<Float32, kRowThreads>);
    case UsageType::kFloat64:
      return launch(evict_lfu_kernel<Float64, kRowThreads>);
    case UsageType::kFloat16:
      return launch(evict_lfu_kernel<Float16, kRowThreads>);
    case UsageType::kBFloat16:
      return launch(evict_lfu_kernel<BFloat16, kRowThreads>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace xmemk::cuda
