#include <algorithm>

#include "gather_tokens.cuh"
#include "launch.h"

namespace xmemk::cuda {

cudaError_t launch_gather_tokens(int element_bytes, const GatherTokens& arguments, cudaStream_t stream) {
  using Kernel = void (*)(GatherTokens, int64_t);
  const Kernel kernel = element_bytes == 2   ? gather_tokens_kernel<uint16_t>
                        : element_bytes == 4 ? gather_tokens_kernel<uint32_t>
                        : element_bytes == 8 ? gather_tokens_kernel<uint64_t>
                                             : nullptr;
  if (kernel == nullptr) return cudaErrorInvalidValue;
  const int64_t tiles = gather_tiles(arguments);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, 1 << 30));
  kernel<<<blocks, kGatherTile * kGatherRows, 0, stream>>>(arguments, tiles);
  return cudaGetLastError();
}

}  // namespace xmemk::cuda
