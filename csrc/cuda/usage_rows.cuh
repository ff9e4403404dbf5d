// The best tokens of a row of usage: the search for the usage at the border, then the selected
// tokens in ascending order. Both exact, in integers, so the order is that of csrc/cpu/usage_row.h
// and no result depends on how threads run.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace xmemk::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// A floating point type by its bits, so that no header of it is needed.
template <typename Bits, Bits kInfinity>
struct Format {
  using Key = Bits;
  static constexpr Key infinity = kInfinity;
};
using Float16 = Format<uint16_t, 0x7c00>;
using BFloat16 = Format<uint16_t, 0x7f80>;
using Float32 = Format<uint32_t, 0x7f800000u>;
using Float64 = Format<uint64_t, 0x7ff0000000000000ull>;

// Descending like usage (the most used token has the smallest key), equal where usage is equal
// (-0.0 and 0.0 too), NaN after -inf.
template <typename F>
__device__ inline typename F::Key usage_key(typename F::Key bits) {
  using Key = typename F::Key;
  constexpr Key sign = Key(Key(1) << (8 * sizeof(Key) - 1));
  const Key magnitude = Key(bits & Key(~sign));
  if (magnitude > F::infinity) return Key(~Key(0));
  return Key(~Key((bits & sign) ? sign - magnitude : sign + magnitude));
}

template <typename T>
__device__ inline T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// What the threads of a block tell each other.
template <int kThreads>
struct Exchange {
  static constexpr int kWarps = kThreads / 32;
  long long scanned[kWarps];
  long long before[kWarps], equal[kWarps];
  long long digit_before, digit_equal;
  int digit;
};

// The sum over all threads before this one. Every thread of the block takes part.
template <int kThreads>
__device__ inline long long block_sum_before(long long mine, Exchange<kThreads>& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  long long inclusive = mine;
  for (int offset = 1; offset < 32; offset *= 2) {
    const long long other = __shfl_up_sync(kAllLanes, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == 31) shared.scanned[warp] = inclusive;
  __syncthreads();
  return warp_sum(lane < warp ? shared.scanned[lane] : 0) + inclusive - mine;
}

// The tokens of one row that this block looks at: all of them, or one part of several. Each warp
// has a run of consecutive tokens.
template <typename F, int kThreads>
struct Part {
  using Key = typename F::Key;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kLoads = 4;  // in flight per thread

  const Key* data;
  int64_t stride;
  int64_t row, size;  // tokens in the whole row
  int number, parts;
  int64_t warp_begin, warp_end;
  unsigned long long* counters;
  int barriers = 0;

  __device__ Part(const UsageRows& rows, int parts, const Workspace& workspace) : parts(parts) {
    row = blockIdx.x / parts;
    number = blockIdx.x % parts;
    data = static_cast<const Key*>(rows.usage) + row * rows.row_stride;
    stride = rows.token_stride;
    size = rows.capacity;
    if (rows.size != nullptr) {
      const int64_t at = row * rows.size_stride;
      const int64_t given_size =
          rows.size_is_64 ? static_cast<const int64_t*>(rows.size)[at] : static_cast<const int32_t*>(rows.size)[at];
      size = given_size < 0 ? 0 : given_size < size ? given_size : size;
    }
    counters = workspace.counters + row * workspace.counters_per_row;
    // Divided before multiplied: exact for any size of 64 bits.
    const int64_t per_part = (size + parts - 1) / parts;
    const int64_t begin = least(number * per_part, size), end = least(begin + per_part, size);
    const int64_t per_warp = ((end - begin + kWarps - 1) / kWarps + 31) / 32 * 32;
    warp_begin = least(begin + threadIdx.x / 32 * per_warp, end);
    warp_end = least(warp_begin + per_warp, end);
  }

  // f(is_token, key, token) for this warp's tokens, in ascending order over calls and lanes. All
  // lanes call together.
  template <typename Function>
  __device__ void for_each(const Function& f) const {
    const int lane = threadIdx.x % 32;
    for (int64_t first = warp_begin; first < warp_end; first += 32 * kLoads) {
      Key bits[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int64_t token = first + 32 * j + lane;
        bits[j] = token < warp_end ? __ldg(&data[token * stride]) : Key(0);
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int64_t token = first + 32 * j + lane;
        f(token < warp_end, usage_key<F>(bits[j]), token);
      }
    }
  }

  // All threads of all parts of the row, and what they wrote is seen.
  __device__ void row_barrier() {
    __syncthreads();
    if (parts == 1) return;
    if (threadIdx.x == 0) {
      const unsigned long long all = static_cast<unsigned long long>(parts) * ++barriers;
      __threadfence();
      atomicAdd(counters, 1ull);
      while (*static_cast<volatile unsigned long long*>(counters) < all) __nanosleep(32);
      __threadfence();
    }
    __syncthreads();
  }

  __device__ unsigned long long* part_counts(int part) const { return counters + 1 + 2 * part; }
  __device__ unsigned long long* histogram(int digit) const {
    return counters + 1 + 2 * parts + int64_t(digit) * kBins;
  }

 private:
  __device__ static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};

// Selected are the tokens whose known bits come before the border's, and `selected` of the `equal`
// ones that share them.
template <typename Key>
struct Border {
  Key bits, known;
  long long selected, equal;

  __device__ bool before(Key key) const { return Key(key & known) < bits; }
  __device__ bool at(Key key) const { return Key(key & known) == bits; }
};

// Radix select of the key of rank `selected`, a digit a pass from the top, counting only keys that
// share the digits found before; it ends as soon as all that share them are selected. 0 < selected
// <= part.size.
template <typename F, int kThreads>
__device__ Border<typename F::Key> find_border(Part<F, kThreads>& part, long long selected,
                                               unsigned (&histogram)[kBins], Exchange<kThreads>& shared) {
  using Key = typename F::Key;
  constexpr int kPerThread = kBins / kThreads;
  static_assert(kBins % kThreads == 0 && kThreads % 32 == 0 && kThreads <= 1024, "bins are shared out evenly");
  Border<Key> border{0, 0, selected, part.size};
  int unknown = 8 * sizeof(Key);
#pragma unroll 1
  for (int digit = 0; unknown > 0 && border.selected < border.equal; ++digit) {
    const int bits = unknown < kDigitBits ? unknown : kDigitBits;
    const int shift = unknown - bits;
    const Key mask = Key((Key(1) << bits) - 1);
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) histogram[bin] = 0;
    __syncthreads();
    part.for_each([&](bool is_token, Key key, int64_t) {
      if (is_token && border.at(key)) atomicAdd(&histogram[Key(key >> shift) & mask], 1u);
    });
    __syncthreads();

    unsigned long long* total = part.parts > 1 ? part.histogram(digit) : nullptr;
    if (total != nullptr) {
      for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
        if (histogram[bin] != 0) atomicAdd(&total[bin], static_cast<unsigned long long>(histogram[bin]));
      }
      part.row_barrier();
    }
    // Past the first-level cache, which does not see what other blocks count.
    const auto count = [&](int bin) { return static_cast<long long>(total ? __ldcg(&total[bin]) : histogram[bin]); };
    const int first = threadIdx.x * kPerThread;
    long long mine = 0;
    for (int bin = first; bin < first + kPerThread; ++bin) mine += count(bin);
    long long before = block_sum_before(mine, shared);
    if (before < border.selected && border.selected <= before + mine) {  // true for one thread
      int bin = first;
      for (; before + count(bin) < border.selected; ++bin) before += count(bin);
      shared.digit = bin;
      shared.digit_before = before;
      shared.digit_equal = count(bin);
    }
    __syncthreads();
    border.bits = Key(border.bits | Key(Key(shared.digit) << shift));
    border.known = Key(border.known | Key(mask << shift));
    border.selected -= shared.digit_before;
    border.equal = shared.digit_equal;
    unknown = shift;
  }
  return border;
}

// f(position, key, token) once for each selected token, in any order; position counts the selected
// tokens before it in the row. Of equals the oldest are selected, or the newest.
template <bool kOldest, typename F, int kThreads, typename Function>
__device__ void for_each_selected(Part<F, kThreads>& part, const Border<typename F::Key>& border,
                                  Exchange<kThreads>& shared, const Function& f) {
  using Key = typename F::Key;
  constexpr int kWarps = kThreads / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  long long before = 0, equal = 0;
  part.for_each([&](bool is_token, Key key, int64_t) {
    before += __popc(__ballot_sync(kAllLanes, is_token && border.before(key)));
    equal += __popc(__ballot_sync(kAllLanes, is_token && border.at(key)));
  });
  if (lane == 0) {
    shared.before[warp] = before;
    shared.equal[warp] = equal;
  }
  __syncthreads();
  before = lane < warp ? shared.before[lane] : 0;
  equal = lane < warp ? shared.equal[lane] : 0;
  if (part.parts > 1) {
    if (warp == 0) {
      const long long part_before = warp_sum(lane < kWarps ? shared.before[lane] : 0);
      const long long part_equal = warp_sum(lane < kWarps ? shared.equal[lane] : 0);
      if (lane == 0) {
        part.part_counts(part.number)[0] = part_before;
        part.part_counts(part.number)[1] = part_equal;
      }
    }
    part.row_barrier();
    for (int p = lane; p < part.number; p += 32) {
      before += __ldcg(&part.part_counts(p)[0]);
      equal += __ldcg(&part.part_counts(p)[1]);
    }
  }
  before = warp_sum(before);
  equal = warp_sum(equal);

  const long long first = kOldest ? 0 : border.equal - border.selected, last = first + border.selected;
  const unsigned lower = (1u << lane) - 1;
  part.for_each([&](bool is_token, Key key, int64_t token) {
    const bool is_before = is_token && border.before(key), is_equal = is_token && border.at(key);
    const unsigned lanes_before = __ballot_sync(kAllLanes, is_before);
    const unsigned lanes_equal = __ballot_sync(kAllLanes, is_equal);
    const long long equals = equal + __popc(lanes_equal & lower);  // earlier in the row
    const long long taken = equals < first ? 0 : (equals < last ? equals : last) - first;
    if (is_before || (is_equal && first <= equals && equals < last)) {
      f(before + __popc(lanes_before & lower) + taken, key, token);
    }
    before += __popc(lanes_before);
    equal += __popc(lanes_equal);
  });
}

// Places that a device-side size smaller than the count leaves without a token.
template <int kThreads>
__device__ inline void fill_without_token(int64_t* out, int64_t begin, int64_t end) {
  for (int64_t j = begin + threadIdx.x; j < end; j += kThreads) out[j] = -1;
}

}  // namespace xmemk::cuda
