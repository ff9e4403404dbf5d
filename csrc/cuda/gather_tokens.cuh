// The chosen tokens of keys [B, C, N] or values [B, O, C, N]: tiles of 32 channels by 32 tokens,
// read along whichever lies together in memory and written along the tokens.
#pragma once

#include <cstdint>

#include "arguments.h"

#undef NDEBUG  // the check of the index is no debugging aid: without it a wrong index would read foreign memory
#include <cassert>

namespace xmemk::cuda {

constexpr int kGatherTile = 32, kGatherRows = 8;

inline int64_t gather_tiles(const GatherTokens& a) {
  const auto tiles = [](int64_t n) { return (n + kGatherTile - 1) / kGatherTile; };
  return a.batch * a.objects * tiles(a.channels) * tiles(a.chosen);
}

// Blocks of 32 x 8 threads, any number of them.
template <typename Element>
__global__ void __launch_bounds__(kGatherTile* kGatherRows) gather_tokens_kernel(GatherTokens a, int64_t tiles) {
  __shared__ Element tile[kGatherTile][kGatherTile + 1];  // [token][channel]
  __shared__ int64_t token[kGatherTile];
  const int x = threadIdx.x % kGatherTile, y = threadIdx.x / kGatherTile;
  const bool token_major = a.channel_stride < a.token_stride;
  const int64_t channel_tiles = (a.channels + kGatherTile - 1) / kGatherTile;
  const int64_t token_tiles = (a.chosen + kGatherTile - 1) / kGatherTile;
  for (int64_t at = blockIdx.x; at < tiles; at += gridDim.x) {
    const int64_t first = at % token_tiles * kGatherTile;
    const int64_t channel = at / token_tiles % channel_tiles * kGatherTile;
    const int64_t bo = at / token_tiles / channel_tiles, b = bo / a.objects, o = bo % a.objects;
    const Element* from = static_cast<const Element*>(a.x) + b * a.batch_stride + o * a.object_stride;
    if (y == 0 && first + x < a.chosen) {
      token[x] = a.index[b * a.index_batch_stride + (first + x) * a.index_stride];
      assert(0 <= token[x] && token[x] < a.tokens && "gather_tokens: index: wanted 0 to N - 1");
    }
    __syncthreads();
    for (int row = y; row < kGatherTile; row += kGatherRows) {
      const int c = token_major ? x : row, t = token_major ? row : x;
      if (first + t < a.chosen && channel + c < a.channels) {
        tile[t][c] = from[token[t] * a.token_stride + (channel + c) * a.channel_stride];
      }
    }
    __syncthreads();
    Element* out = static_cast<Element*>(a.out) + bo * a.channels * a.chosen;
    // Of the next round, `tile` is written after a barrier that all reach with this done, `token`
    // is not read here.
    for (int row = y; row < kGatherTile; row += kGatherRows) {
      if (first + x < a.chosen && channel + row < a.channels) {
        out[(channel + row) * a.chosen + first + x] = tile[x][row];
      }
    }
  }
}

}  // namespace xmemk::cuda
