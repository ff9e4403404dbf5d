// One launch of a kernel over rows of usage, for the dtype at hand.
#pragma once

#include "launch.h"
#include "usage_rows.cuh"

namespace xmemk::cuda {

constexpr int kRowThreads = 1024;

using RowKernel = void (*)(UsageRows, int, int64_t, Workspace, int64_t*);

inline cudaError_t launch_rows(RowKernel kernel, const UsageRows& rows, int parts, int64_t count,
                               const Workspace& workspace, int64_t* out, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(rows.rows * parts));
  config.blockDim = dim3(kRowThreads);
  config.stream = stream;
  // Parts of a row wait for each other, which needs all of them on the device at once.
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  if (parts > 1) {
    config.attrs = &cooperative;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, rows, parts, count, workspace, out);
}

}  // namespace xmemk::cuda
