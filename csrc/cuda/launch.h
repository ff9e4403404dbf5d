// What the CUDA sources offer to the C++ that binds them: launches on a stream, none of which waits
// for the device.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "arguments.h"

namespace xmemk::cuda {

// index [rows, count], survivors [rows, keep]; the workspace as arguments.h sizes it for `parts`.
cudaError_t launch_select_prototypes(UsageType type, const UsageRows& rows, int parts, int64_t count,
                                     const Workspace& workspace, int64_t* index, cudaStream_t stream);
cudaError_t launch_evict_lfu(UsageType type, const UsageRows& rows, int parts, int64_t keep, const Workspace& workspace,
                             int64_t* survivors, cudaStream_t stream);
// Elements of 2, 4 or 8 bytes.
cudaError_t launch_gather_tokens(int element_bytes, const GatherTokens& arguments, cudaStream_t stream);

}  // namespace xmemk::cuda
