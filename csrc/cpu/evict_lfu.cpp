// The tokens that survive least-frequently-used eviction, in ascending order: a radix select of the usage at the
// border, then one stable pass. Beyond the result it needs one histogram of 16 KiB per thread.
#include "../evict_lfu.h"

#include <algorithm>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "usage_row.h"

namespace xmemk::cpu {
namespace {

constexpr int kDigitBits = 11;  // three passes over float32, and the histogram stays in the first-level cache
constexpr int64_t kBins = int64_t(1) << kDigitBits;

template <typename Key>
struct Border {
  Key key;        // of the least used survivor
  int64_t below;  // tokens with a smaller key
};

// The key of rank `rank` (from 0, ascending), one digit a pass from the top, counting only keys that share the digits
// found before.
template <typename scalar_t>
Border<UsageKey<scalar_t>> find_border(const UsageRow<scalar_t>& row, const Parts& parts, int64_t rank) {
  using Key = UsageKey<scalar_t>;
  Border<Key> border{0, 0};
  Key known = 0;
  std::vector<int64_t> counts(parts.count * kBins);
  for (int unknown = 8 * sizeof(Key); unknown > 0;) {
    const int bits = std::min(unknown, kDigitBits);
    unknown -= bits;
    const int shift = unknown;
    const Key mask = Key((Key(1) << bits) - 1);
    std::fill(counts.begin(), counts.end(), 0);
    parts.for_each(parts.count, [&](int64_t part, int64_t begin, int64_t end) {
      int64_t* count = counts.data() + part * kBins;
      const auto shares_digits = [=, wanted = border.key](Key key) { return (key & known) == wanted; };
      row.for_each_passing(begin, end, shares_digits, [&](Key key, int64_t) { ++count[(key >> shift) & mask]; });
    });
    for (Key digit = 0;; ++digit) {
      int64_t here = 0;
      for (int64_t part = 0; part < parts.count; ++part) here += counts[part * kBins + digit];
      if (border.below + here > rank) {
        border.key |= Key(digit << shift);
        break;
      }
      border.below += here;
    }
    known |= Key(mask << shift);
  }
  return border;
}

template <typename scalar_t>
void survivors(const UsageRow<scalar_t>& row, int64_t keep, int64_t* out) {
  using Row = UsageRow<scalar_t>;
  using Key = typename Row::Key;
  const Parts parts(row.size);
  const int64_t evicted = row.size - keep;
  const Border<Key> border = find_border(row, parts, evicted);
  const int64_t equal_evicted = evicted - border.below;  // the first ones: of equal usage the older go

  // Tokens above and at the border per part, to know where each part's survivors start.
  std::vector<int64_t> above(parts.count), equal(parts.count);
  parts.for_each(parts.count - 1, [&](int64_t part, int64_t begin, int64_t end) {
    int64_t part_above = 0, part_equal = 0;
    row.for_each_block(begin, end, [&](const Key* keys, int64_t n, int64_t) {
      int32_t block_above = 0, block_equal = 0;  // narrow, for vector code
      for (int64_t j = 0; j < n; ++j) {
        block_above += keys[j] > border.key;
        block_equal += keys[j] == border.key;
      }
      part_above += block_above;
      part_equal += block_equal;
    });
    above[part] = part_above;
    equal[part] = part_equal;
  });

  parts.for_each(parts.count, [&](int64_t part, int64_t begin, int64_t end) {
    int64_t above_before = 0, equal_before = 0;
    for (int64_t p = 0; p < part; ++p) above_before += above[p], equal_before += equal[p];
    int64_t* next = out + above_before + std::max<int64_t>(0, equal_before - equal_evicted);
    row.for_each_block(begin, end, [&](const Key* keys, int64_t n, int64_t first) {
      // Written without a branch, so past the last survivor too: not into `out`, where another part's start may be.
      int64_t kept[Row::kBlock];
      int64_t count = 0;
      for (int64_t start = 0; start < n; start += Row::kGroup) {
        const int64_t stop = std::min(start + Row::kGroup, n);
        if (!Row::any(keys + start, stop - start, [&](Key key) { return key <= border.key; })) {
          for (int64_t j = start; j < stop; ++j) kept[count++] = first + j;
          continue;
        }
        for (int64_t j = start; j < stop; ++j) {
          const bool is_equal = keys[j] == border.key;
          kept[count] = first + j;
          count += (keys[j] > border.key) | (is_equal & (equal_before >= equal_evicted));
          equal_before += is_equal;
        }
      }
      next = std::copy_n(kept, count, next);
    });
  });
}

at::Tensor evict_lfu(const at::Tensor& usage, int64_t keep) {
  check_evict_lfu(usage, keep);
  at::Tensor index = at::empty({usage.size(0), keep}, usage.options().dtype(at::kLong));
  if (index.numel() == 0) return index;
  int64_t* out = index.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, usage.scalar_type(), "evict_lfu", [&] {
    for_each_row(usage, [&](int64_t b) { survivors(UsageRow<scalar_t>(usage, b), keep, out + b * keep); });
  });
  return index;
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("evict_lfu", &evict_lfu);
}

}  // namespace xmemk::cpu
