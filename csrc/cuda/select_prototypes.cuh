// The P most used tokens of each row, most used first, of equals the oldest: the selected tokens
// are collected in ascending order, then ordered by usage, in a way that keeps the order of equals.
#pragma once

#include "usage_rows.cuh"

namespace xmemk::cuda {

// Few candidates: each counts those before it. keys and tokens [count], rank [count] zero; out
// [count].
template <typename Key, int kThreads>
__device__ void order_by_counting(const Key* keys, const int64_t* tokens, unsigned* rank, int count, int64_t* out) {
  const int slices = count < kThreads ? kThreads / count : 1;
  for (int i = threadIdx.x; i < slices * count; i += kThreads) {
    const int candidate = i % count, slice = i / count;
    const Key key = keys[candidate];
    unsigned before = 0;
    for (int j = slice * count / slices; j < (slice + 1) * count / slices; ++j) {
      before += keys[j] < key || (keys[j] == key && j < candidate);
    }
    atomicAdd(&rank[candidate], before);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) out[rank[i]] = tokens[i];
}

constexpr int kSortBins = 256;

// Positions of (bin, warp); a bin's warps are consecutive, padded so that a warp's counters lie in
// different banks.
template <int kThreads>
struct SortCounters {
  static constexpr int kWarps = kThreads / 32;
  unsigned at[kSortBins * (kWarps + 1)];

  __device__ unsigned& operator()(int bin, int warp) { return at[bin * (kWarps + 1) + warp]; }
};

// Many candidates: a stable radix sort by one block. keys and tokens [2, count], ordered in the
// first half.
template <typename Key, int kThreads>
__device__ void order_by_sorting(Key* keys, int64_t* tokens, int64_t count, SortCounters<kThreads>& counters,
                                 Exchange<kThreads>& shared) {
  constexpr int kWarps = kThreads / 32;
  constexpr int kPerThread = kSortBins * kWarps / kThreads;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t per_warp = ((count + kWarps - 1) / kWarps + 31) / 32 * 32;
  const int64_t begin = warp * per_warp, end = begin + per_warp < count ? begin + per_warp : count;
  int64_t from = 0, to = count;
#pragma unroll 1
  for (int shift = 0; shift < int(8 * sizeof(Key)); shift += 8) {  // an even number of passes
    for (int i = threadIdx.x; i < kSortBins * (kWarps + 1); i += kThreads) counters.at[i] = 0;
    __syncthreads();
    for (int64_t i = begin + lane; i < end; i += 32) {
      atomicAdd(&counters(int(__ldcg(&keys[from + i]) >> shift) & (kSortBins - 1), warp), 1u);
    }
    __syncthreads();
    long long sum = 0;
    for (int i = kPerThread * threadIdx.x; i < int(kPerThread * (threadIdx.x + 1)); ++i) {
      sum += counters(i / kWarps, i % kWarps);
    }
    sum = block_sum_before(sum, shared);
    for (int i = kPerThread * threadIdx.x; i < int(kPerThread * (threadIdx.x + 1)); ++i) {
      unsigned& counter = counters(i / kWarps, i % kWarps);
      const unsigned here = counter;
      counter = static_cast<unsigned>(sum);
      sum += here;
    }
    __syncthreads();
    for (int64_t first = begin; first < end; first += 32) {
      const int64_t i = first + lane;
      const bool is_candidate = i < end;
      const Key key = is_candidate ? __ldcg(&keys[from + i]) : Key(0);
      const int bin = is_candidate ? int(key >> shift) & (kSortBins - 1) : kSortBins;
      const unsigned same = __match_any_sync(kAllLanes, bin);
      const int earlier = __popc(same & ((1u << lane) - 1));
      if (is_candidate) {
        const int64_t position = to + counters(bin, warp) + earlier;
        keys[position] = key;
        tokens[position] = __ldcg(&tokens[from + i]);
      }
      __syncwarp();
      if (is_candidate && earlier == 0) counters(bin, warp) += __popc(same);
      __syncwarp();
    }
    __syncthreads();
    const int64_t swapped = from;
    from = to;
    to = swapped;
  }
}

// What a block needs one after the other.
template <typename Key, int kThreads>
union SelectionStages {
  unsigned histogram[kBins];
  struct {
    Key keys[kRankedInShared];
    int64_t tokens[kRankedInShared];
    unsigned rank[kRankedInShared];
  } few;
  SortCounters<kThreads> many;
};

// index [rows, count]. `parts` blocks per row.
template <typename F, int kThreads>
__global__ void __launch_bounds__(kThreads)
    select_prototypes_kernel(UsageRows rows, int parts, int64_t count, Workspace workspace, int64_t* index) {
  using Key = typename F::Key;
  __shared__ SelectionStages<Key, kThreads> stages;
  __shared__ Exchange<kThreads> shared;
  Part<F, kThreads> part(rows, parts, workspace);
  int64_t* out = index + part.row * count;
  const int64_t selected = count < part.size ? count : part.size;
  if (part.number == 0) fill_without_token<kThreads>(out, selected, count);
  if (selected == 0) return;
  const auto border = find_border(part, selected, stages.histogram, shared);

  const bool few = count <= kRankedInShared, alone = parts == 1 && few;
  const int64_t room = workspace.candidates_per_row;
  Key* keys = alone ? stages.few.keys : static_cast<Key*>(workspace.keys) + part.row * room;
  int64_t* tokens = alone ? stages.few.tokens : workspace.tokens + part.row * room;
  for_each_selected<true>(part, border, shared, [&](int64_t position, Key key, int64_t token) {
    keys[position] = key;
    tokens[position] = token;
  });
  part.row_barrier();
  if (part.number != 0) return;

  if (few) {
    for (int i = threadIdx.x; i < selected; i += kThreads) {
      stages.few.rank[i] = 0;
      if (alone) continue;
      stages.few.keys[i] = __ldcg(&keys[i]);
      stages.few.tokens[i] = __ldcg(&tokens[i]);
    }
    __syncthreads();
    order_by_counting<Key, kThreads>(stages.few.keys, stages.few.tokens, stages.few.rank, int(selected), out);
  } else {
    order_by_sorting<Key, kThreads>(keys, tokens, selected, stages.many, shared);
    for (int64_t i = threadIdx.x; i < selected; i += kThreads) out[i] = tokens[i];
  }
}

}  // namespace xmemk::cuda
