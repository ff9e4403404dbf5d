// The kernels' arguments: plain data, no torch and no CUDA. What goes where is decided here, on the
// host, from shapes alone, so that nothing waits for the device.
#pragma once

#include <algorithm>
#include <cstdint>

namespace xmemk::cuda {

enum class UsageType { kFloat32, kFloat64, kFloat16, kBFloat16 };

// usage [rows, capacity], any strides (in elements).
struct UsageRows {
  const void* usage;
  int64_t row_stride, token_stride;
  int64_t rows, capacity;
  // How many of a row's tokens there are, read by the kernel: int64 or int32 on the device, clamped
  // to 0 .. capacity. Null: capacity.
  const void* size = nullptr;
  int64_t size_stride = 0;  // 0: one size for all rows
  bool size_is_64 = true;
};

// One block works on a row of up to this many tokens by itself; a longer row is shared by several.
constexpr int64_t kTokensPerBlock = 65536;
// Up to this many prototypes are ordered in shared memory, more in the workspace.
constexpr int64_t kRankedInShared = 1024;

constexpr int kDigitBits = 11;  // three passes over float32, and a histogram of 8 KiB
constexpr int kBins = 1 << kDigitBits;

inline int digits(int key_bits) {
  return (key_bits + kDigitBits - 1) / kDigitBits;
}

// Blocks that share a row. They wait for each other, so all of them must be resident: never more
// than there are multiprocessors.
inline int parts(int64_t rows, int64_t capacity, int multiprocessors) {
  if (capacity <= kTokensPerBlock) return 1;
  const int64_t useful = (2 * capacity + kTokensPerBlock - 1) / kTokensPerBlock;
  return static_cast<int>(std::max<int64_t>(1, std::min(useful, multiprocessors / rows)));
}

// What the blocks of a row share, in global memory.
struct Workspace {
  // Arrivals at a barrier, tokens before the border and at it per part, a histogram per digit: zero
  // before every launch.
  unsigned long long* counters = nullptr;  // [rows, counters_per_row]
  int64_t counters_per_row = 0;
  // Candidates before they are ordered; twice, for sorting there and back.
  void* keys = nullptr;       // [rows, candidates_per_row] of the width of usage
  int64_t* tokens = nullptr;  // [rows, candidates_per_row]
  int64_t candidates_per_row = 0;
};

// A block that has a row to itself needs no counters, and for few prototypes no candidates: then
// there is no workspace.
inline int64_t counters_per_row(int parts, int key_bits) {
  return parts == 1 ? 0 : 1 + 2 * parts + int64_t(digits(key_bits)) * kBins;
}
inline int64_t candidates_per_row(int parts, int64_t count) {
  return parts == 1 && count <= kRankedInShared ? 0 : 2 * count;
}

// x [batch, objects, channels, tokens] and index [batch, chosen], any strides (in elements); out
// contiguous.
struct GatherTokens {
  const void* x;
  int64_t batch_stride, object_stride, channel_stride, token_stride;
  int64_t batch, objects, channels, tokens;
  const int64_t* index;
  int64_t index_batch_stride, index_stride;
  int64_t chosen;
  void* out;
};

}  // namespace xmemk::cuda
