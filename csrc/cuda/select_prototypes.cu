#include "launch_rows.cuh"
#include "select_prototypes.cuh"

namespace xmemk::cuda {

cudaError_t launch_select_prototypes(UsageType type, const UsageRows& rows, int parts, int64_t count,
                                     const Workspace& workspace, int64_t* index, cudaStream_t stream) {
  const auto launch = [&](RowKernel kernel) {
    return launch_rows(kernel, rows, parts, count, workspace, index, stream);
  };
  switch (type) {
    case UsageType::kFloat32:
      return launch(select_prototypes_kernel<Float32, kRowThreads>);
    case UsageType::kFloat64:
      return launch(select_prototypes_kernel<Float64, kRowThreads>);
    case UsageType::kFloat16:
      return launch(select_prototypes_kernel<Float16, kRowThreads>);
    case UsageType::kBFloat16:
      return launch(select_prototypes_kernel<BFloat16, kRowThreads>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace xmemk::cuda
