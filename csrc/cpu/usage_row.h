// One row of usage as the selecting operators see it: unsigned keys in usage's order, read a block at a time, so that
// dtype and strides end here and no copy of the row is ever made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <ATen/core/Tensor.h>
#include <c10/util/bit_cast.h>

#include "parallel.h"

namespace xmemk::cpu {

// Tokens that are worth a thread: some 0.2 ms of work. Fewer would gain less than a busy machine takes to start one.
constexpr int64_t kGrain = 1 << 18;

template <typename scalar_t>
using UsageKey =
    std::conditional_t<sizeof(scalar_t) == 2, uint16_t, std::conditional_t<sizeof(scalar_t) == 4, uint32_t, uint64_t>>;

// Ascending like usage, equal where usage is equal (-0.0 and 0.0 too), NaN as 0, below the key of -inf. Integer
// arithmetic only: flushing denormals to zero must not change an order.
template <typename scalar_t>
inline UsageKey<scalar_t> usage_key(scalar_t value) {
  using Key = UsageKey<scalar_t>;
  constexpr Key sign = Key(Key(1) << (8 * sizeof(Key) - 1));
  const Key infinity = c10::bit_cast<Key>(std::numeric_limits<scalar_t>::infinity());
  const Key bits = c10::bit_cast<Key>(value);
  const Key magnitude = bits & Key(~sign);
  if (magnitude > infinity) return 0;
  return Key((bits & sign) ? sign - magnitude : sign + magnitude);
}

template <typename scalar_t>
struct UsageRow {
  using Key = UsageKey<scalar_t>;
  static constexpr int64_t kBlock = 512;
  static constexpr int64_t kGroup = 32;

  const scalar_t* data;
  int64_t stride;
  int64_t size;

  UsageRow(const at::Tensor& usage, int64_t b)
      : data(usage.const_data_ptr<scalar_t>() + b * usage.stride(0)), stride(usage.stride(1)), size(usage.size(1)) {}

  Key key(int64_t i) const { return usage_key(data[i * stride]); }

  // f(keys, count, first) for tokens [begin, end) in ascending order, at most kBlock at a time.
  template <typename F>
  void for_each_block(int64_t begin, int64_t end, const F& f) const {
    Key keys[kBlock];
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t count = std::min(kBlock, end - first);
      const scalar_t* from = data + first * stride;
      if (stride == 1) {
        for (int64_t j = 0; j < count; ++j) keys[j] = usage_key(from[j]);
      } else {
        for (int64_t j = 0; j < count; ++j) keys[j] = usage_key(from[j * stride]);
      }
      f(static_cast<const Key*>(keys), count, first);
    }
  }

  // f(key, index) for those of tokens [begin, end) whose key passes. Few do, as a rule: a group without any is passed
  // over by vector code.
  template <typename Pass, typename F>
  void for_each_passing(int64_t begin, int64_t end, const Pass& passes, const F& f) const {
    for_each_block(begin, end, [&](const Key* keys, int64_t count, int64_t first) {
      for (int64_t start = 0; start < count; start += kGroup) {
        const int64_t stop = std::min(start + kGroup, count);
        if (!any(keys + start, stop - start, passes)) continue;
        for (int64_t j = start; j < stop; ++j) {
          if (passes(keys[j])) f(keys[j], first + j);
        }
      }
    });
  }

  template <typename Pass>
  static bool any(const Key* keys, int64_t count, const Pass& passes) {
    Key found = 0;
    for (int64_t j = 0; j < count; ++j) found |= Key(passes(keys[j]));
    return found != 0;
  }
};

// f(b) for every row: rows shared among the threads where there are enough of them, else one after the other, each of
// them cut into parts.
template <typename F>
void for_each_row(const at::Tensor& usage, const F& f) {
  const int64_t rows = usage.size(0);
  if (rows < at::get_num_threads()) {
    for (int64_t b = 0; b < rows; ++b) f(b);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, usage.size(1)));
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) f(b);
  });
}

// A row cut for the threads at hand. Where the cuts lie never shows in a result: what is computed per part is exact
// (counts, or the best of a strict order).
struct Parts {
  int64_t size;
  int64_t count = 1;

  explicit Parts(int64_t size) : size(size) {
    if (at::in_parallel_region()) return;
    const int64_t useful = size / kGrain;
    count = std::clamp<int64_t>(useful, 1, at::get_num_threads());
  }

  // f(part, begin, end) for the first `how_many` parts.
  template <typename F>
  void for_each(int64_t how_many, const F& f) const {
    parallel_for(0, how_many, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) f(part, part * size / count, (part + 1) * size / count);
    });
  }
};

}  // namespace xmemk::cpu
