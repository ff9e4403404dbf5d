// Matrix instructions: ldmatrix, stmatrix, mma.sync, and wgmma with its descriptors and its groups.
#pragma once

#include <cfenv>

#include "arithmetic.h"
#include "memory.h"

// 16-bit elements as floats, and which of them are undefined.
struct Tile {
  int rows, columns;
  std::vector<float> values;
  std::vector<uint8_t> row_undefined;  // a result is undefined where its row of A or of B^T is

  Tile(int r, int c) : rows(r), columns(c), values(size_t(r) * size_t(c)), row_undefined(size_t(r)) {}
  float& at(int r, int c) { return values[size_t(r) * size_t(columns) + size_t(c)]; }
};

template <bool bfloat>
float element(uint16_t bits) {
  if constexpr (bfloat)
    return to_float(Bfloat{bits});
  else
    return to_float(Half{bits});
}

// d [16, n] += a [16, 16] b [16, n], b by rows of k; one way all over a GPU:
// - float32 sums in a random order, or
// - as measurements of tensor cores found: the products of a block and the sum so far are cut off, towards zero, at
//   `extra` bits below the last bit of the largest, added exactly, and the total is cut off to float32.
inline void add_in_order(Random& random, float* d, const float* a, const float* b, int n) {
  int order[16];
  for (int k = 0; k < 16; k++) order[k] = k;
  for (int k = 15; k > 0; k--) std::swap(order[k], order[random.below(uint32_t(k) + 1)]);
  bool last = random.next() & 1;
  std::vector<float> total(static_cast<size_t>(n));
  for (int r = 0; r < 16; r++) {
    float* row = d + r * n;
    for (int c = 0; c < n; c++) total[size_t(c)] = last ? 0.0f : row[c];
    for (int k : order)
      for (int c = 0; c < n; c++) total[size_t(c)] += a[r * 16 + k] * b[k * n + c];  // such products are exact
    for (int c = 0; c < n; c++) row[c] = last ? total[size_t(c)] + row[c] : total[size_t(c)];
  }
}

__attribute__((noinline, optimize("rounding-math"))) inline void add_cut_off(float* d, const float* a, const float* b,
                                                                             int n, int block, int extra) {
  std::vector<float> unit_of(static_cast<size_t>(n)), inverse_of(static_cast<size_t>(n));
  std::vector<int32_t> total_of(static_cast<size_t>(n));
  float *unit = unit_of.data(), *inverse = inverse_of.data();
  int32_t* total = total_of.data();
  fesetround(FE_TOWARDZERO);
  for (int r = 0; r < 16; r++) {
    float* row = d + r * n;
    for (int first = 0; first < 16; first += block) {
      for (int c = 0; c < n; c++) unit[c] = std::fabs(row[c]);
      for (int k = first; k < first + block; k++)
        for (int c = 0; c < n; c++) {
          float p = std::fabs(a[r * 16 + k] * b[k * n + c]);
          unit[c] = p > unit[c] || p != p ? p : unit[c];
        }
      bool finite = true;
      for (int c = 0; c < n; c++) {
        uint32_t exponent = bits_as<uint32_t>(unit[c]) & 0x7f800000u;
        finite &= exponent != 0x7f800000u;
        exponent = std::max(exponent, 27u << 23) - (uint32_t(23 + extra) << 23);
        unit[c] = bits_as<float>(exponent);
        inverse[c] = bits_as<float>((254u << 23) - exponent);
      }
      if (!finite) {
        for (int k = first; k < first + block; k++)
          for (int c = 0; c < n; c++) row[c] += a[r * 16 + k] * b[k * n + c];
        continue;
      }
      for (int c = 0; c < n; c++) total[c] = int32_t(row[c] * inverse[c]);
      for (int k = first; k < first + block; k++)
        for (int c = 0; c < n; c++) total[c] += int32_t(a[r * 16 + k] * b[k * n + c] * inverse[c]);
      for (int c = 0; c < n; c++) row[c] = float(total[c]) * unit[c];
    }
  }
  fesetround(FE_TONEAREST);
}

inline void multiply_add(uint64_t seed, float* d, const float* a, const float* b, int n, int block, int extra) {
  Random random(seed);
  if (random.next() & 1)
    add_in_order(random, d, a, b, n);
  else
    add_cut_off(d, a, b, n, block, extra);
}

// numbers[0]: matrices.
template <bool transposed>
void ldmatrix(Warp& w, const Instruction& i, Mask m) {
  need_whole_warp(w, m, "ldmatrix");
  int count = i.numbers[0];
  int32_t from = register_of(w, i, i.operands - 1);
  need_defined(w, from, count == 4 ? kAll : (Mask(1) << (8 * count)) - 1, "an address");
  for (int n = 0; n < count; n++) {
    uint16_t part[8][8];
    bool undefined[8];
    for (int row = 0; row < 8; row++) {
      uint64_t address = address_of(w, from, 8 * n + row, i.numbers[1]);
      w.cta->shared->check_place(w, 8 * n + row, address, 16);
      undefined[row] = w.cta->shared->matrix_read(w, uint32_t(address), false);
      memcpy(part[row], &w.cta->shared->bytes[address], 16);
    }
    int32_t to = register_of(w, i, n);
    Mask u = 0;
    for (int l = 0; l < kLanes; l++) {
      int row = l / 4, column = l % 4 * 2;
      uint32_t low = transposed ? part[column][row] : part[row][column];
      uint32_t high = transposed ? part[column + 1][row] : part[row][column + 1];
      w.at<uint32_t>(to)[l] = low | high << 16;
      u |= Mask(transposed ? undefined[column] || undefined[column + 1] : undefined[row]) << l;
    }
    set_undefined(w, to, m, u);
  }
}

template <bool transposed>
void stmatrix(Warp& w, const Instruction& i, Mask m) {
  need_whole_warp(w, m, "stmatrix");
  w.cta->shared->begin_store();
  int count = i.numbers[0];
  int32_t to = register_of(w, i, 0);
  need_defined(w, to, count == 4 ? kAll : (Mask(1) << (8 * count)) - 1, "an address");
  for (int n = 0; n < count; n++) {
    int32_t from = register_of(w, i, 1 + n);
    const uint32_t* v = w.at<uint32_t>(from);
    uint16_t part[8][8];
    bool undefined[8] = {};
    for (int l = 0; l < kLanes; l++) {
      for (int half = 0; half < 2; half++) {
        int row = l / 4, column = l % 4 * 2 + half;
        if (transposed) std::swap(row, column);
        part[row][column] = uint16_t(v[l] >> (16 * half));
        undefined[row] |= w.undefined[size_t(from)] >> l & 1;
      }
    }
    for (int row = 0; row < 8; row++) {
      uint64_t address = address_of(w, to, 8 * n + row, i.numbers[1]);
      w.cta->shared->check_place(w, 8 * n + row, address, 16);
      w.cta->shared->write(w, 8 * n + row, uint32_t(address), part[row], 16, undefined[row]);
    }
  }
}

// The fragment of A [16, 16] that four registers of each lane hold.
template <bool bfloat>
void fragment_a(Warp& w, const Instruction& i, int first, Tile& a) {
  for (int n = 0; n < 4; n++) {
    const uint32_t* v = w.operand<uint32_t>(i, first + n);
    Mask u = undefined_in(w, i, first + n, first + n + 1);
    for (int l = 0; l < kLanes; l++) {
      int row = l / 4 + 8 * (n % 2), column = l % 4 * 2 + 8 * (n / 2);
      a.at(row, column) = element<bfloat>(uint16_t(v[l]));
      a.at(row, column + 1) = element<bfloat>(uint16_t(v[l] >> 16));
      a.row_undefined[size_t(row)] |= u >> l & 1;
    }
  }
}

// Accumulators [16, n]: register 4 j + q of a lane is in columns 8 j to 8 j + 7.
inline void accumulate(Warp& w, const Instruction& i, int to, int from, Tile& a, Tile& b, int n, bool use, int block,
                       int extra) {
  std::vector<float> d(size_t(16 * n));
  for (int r = 0; r < n / 2; r++) {
    const float* c = w.operand<float>(i, from + r);
    for (int l = 0; l < kLanes; l++)
      d[size_t((l / 4 + r % 4 / 2 * 8) * n + r / 4 * 8 + l % 4 * 2 + r % 2)] = use ? c[l] : 0.0f;
  }
  multiply_add(w.cta->machine->launch.gpu, d.data(), a.values.data(), b.values.data(), n, block, extra);
  for (int r = 0; r < n / 2; r++) {
    float* c = w.operand<float>(i, to + r);
    Mask u = use ? undefined_in(w, i, from + r, from + r + 1) : 0;
    for (int l = 0; l < kLanes; l++) {
      int row = l / 4 + r % 4 / 2 * 8, column = r / 4 * 8 + l % 4 * 2 + r % 2;
      c[l] = d[size_t(row * n + column)];
      u |= Mask(a.row_undefined[size_t(row)] || b.row_undefined[size_t(column)]) << l;
    }
    set_undefined(w, register_of(w, i, to + r), kAll, u);
  }
}

// mma.sync.m16n8k16, float32 accumulators: 4 registers of D, 4 of A, 2 of B, 4 of C.
template <bool bfloat>
void mma(Warp& w, const Instruction& i, Mask m) {
  need_whole_warp(w, m, "mma.sync");
  Tile a(16, 16), b(16, 8);
  fragment_a<bfloat>(w, i, 4, a);
  b.row_undefined.assign(8, 0);
  for (int n = 0; n < 2; n++) {
    const uint32_t* v = w.operand<uint32_t>(i, 8 + n);
    Mask u = undefined_in(w, i, 8 + n, 9 + n);
    for (int l = 0; l < kLanes; l++) {
      b.at(l % 4 * 2 + 8 * n, l / 4) = element<bfloat>(uint16_t(v[l]));
      b.at(l % 4 * 2 + 8 * n + 1, l / 4) = element<bfloat>(uint16_t(v[l] >> 16));
      b.row_undefined[size_t(l / 4)] |= u >> l & 1;
    }
  }
  accumulate(w, i, 0, 10, a, b, 8, true, 8, 1);
}

// Rows of 16 elements of k, of an operand in shared memory: `first` to `first + rows`. `all_rows` are read by hardware
// as a whole, so they count as read. The tile is [16, rows] where by_k, else [rows, 16].
template <bool bfloat>
void described_tile(Warp& w, uint64_t descriptor, bool transposed, int first, int rows, int all_rows, bool by_k,
                    Tile& tile, Product& product) {
  static const uint32_t swizzles[] = {16, 128, 64, 32};
  uint32_t base = uint32_t(descriptor & 0x3fff) << 4, leading = uint32_t(descriptor >> 16 & 0x3fff) << 4;
  uint32_t stride = uint32_t(descriptor >> 32 & 0x3fff) << 4, span = swizzles[descriptor >> 62];
  if ((descriptor >> 49 & 7) || (transposed && span == 16)) {
    w.cta->machine->report(w.cta->current, "not modelled", "a wgmma descriptor of %#llx",
                           (unsigned long long)descriptor);
    throw Fatal{};
  }
  // Chunks of 16 bytes: 8 elements along k, or, transposed, along the rows.
  for (int outer = 0; outer < (transposed ? 16 : all_rows); outer++) {
    for (int inner = 0; inner < (transposed ? all_rows : 16); inner += 8) {
      int row = transposed ? inner : outer, k = transposed ? outer : inner;
      uint32_t address = base;
      if (transposed)
        address += uint32_t(row) / (span / 2) * leading + uint32_t(k / 8) * stride + uint32_t(k % 8) * span +
                   uint32_t(row) % (span / 2) * 2;
      else if (span == 16)
        address += uint32_t(row / 8) * stride + uint32_t(row % 8) * 16 + uint32_t(k / 8) * leading;
      else
        address += uint32_t(row / 8) * stride + uint32_t(row % 8) * span + uint32_t(k) * 2;
      address ^= (address >> 7 & (span / 16 - 1)) << 4;
      w.cta->shared->check_place(w, 0, address, 16);
      bool undefined = w.cta->shared->matrix_read(w, address, true);
      product.chunks.push_back(address);
      for (int e = 0; e < 8; e++) {
        int r = row + (transposed ? e : 0) - first, c = k + (transposed ? 0 : e);
        if (r < 0 || r >= rows) continue;
        uint16_t bits;
        memcpy(&bits, &w.cta->shared->bytes[address + uint32_t(2 * e)], 2);
        tile.values[by_k ? size_t(c * rows + r) : size_t(r * 16 + c)] = element<bfloat>(bits);
        tile.row_undefined[size_t(r)] |= undefined;
      }
    }
  }
}

// wgmma.mma_async.m64nNk16: N / 2 accumulators, A as a descriptor or 4 registers, B's descriptor, scale-d.
// numbers: N, whether A lies in registers, whether A and B are transposed.
template <bool bfloat>
void wgmma(Warp& w, const Instruction& i, Mask m) {
  need_whole_warp(w, m, "wgmma.mma_async");
  int n = i.numbers[0], at = n / 2;
  Product product;
  Tile a(16, 16), b(16, n);
  b.row_undefined.assign(size_t(n), 0);
  bool in_registers = i.numbers[1];
  for (int r = 0; r < at + (in_registers ? 4 : 0); r++) {
    int32_t reg = register_of(w, i, r);
    if (w.written[size_t(reg)] >= w.products_fenced)
      w.cta->machine->report(w.cta->current, "wgmma.fence",
                             "register %d of the operands was written after the last fence", r);
    product.registers.push_back(reg);
    w.pending[size_t(reg)]++;
  }
  if (in_registers) fragment_a<bfloat>(w, i, at, a);
  int descriptor = at + (in_registers ? 4 : 1);
  for (int o = at; o <= descriptor; o++)
    if (o == descriptor || !in_registers) {
      int32_t reg = register_of(w, i, o);
      need_defined(w, reg, kAll, "a descriptor");
      for (int l = 1; l < kLanes; l++)
        if (w.at<uint64_t>(reg)[l] != w.at<uint64_t>(reg)[0])
          w.cta->machine->report(w.cta->current, "divergence", "lanes of warp %d give different descriptors", w.id);
    }
  if (!in_registers)
    described_tile<bfloat>(w, w.operand<uint64_t>(i, at)[0], i.numbers[2], w.id % 4 * 16, 16, 64, false, a, product);
  described_tile<bfloat>(w, w.operand<uint64_t>(i, descriptor)[0], i.numbers[3], 0, n, n, true, b, product);
  need_defined(w, register_of(w, i, descriptor + 1), kAll, "scale-d");
  bool use = *w.operand<Mask>(i, descriptor + 1) & 1;
  accumulate(w, i, 0, 0, a, b, n, use, 16, 2);
  w.open_products.push_back(std::move(product));
}

inline void wgmma_fence(Warp& w, const Instruction&, Mask m) {
  need_whole_warp(w, m, "wgmma.fence");
  w.products_fenced = w.now;
}

inline void commit_products(Warp& w, const Instruction&, Mask m) {
  need_whole_warp(w, m, "wgmma.commit_group");
  w.products.push_back(std::move(w.open_products));
  w.open_products.clear();
}

inline void wait_products(Warp& w, const Instruction& i, Mask m) {
  need_whole_warp(w, m, "wgmma.wait_group");
  bool any = false;
  while (w.products.size() > size_t(i.numbers[0])) {
    for (const Product& product : w.products.front()) {
      for (uint32_t chunk : product.chunks) w.cta->shared->end_matrix_read(w, chunk, false);
      for (int32_t reg : product.registers) w.pending[size_t(reg)]--;
    }
    w.products.pop_front();
    any = true;
  }
  if (!any) return;
  // What was read by one that ended may still be read by another.
  auto mark = [&](const std::vector<Product>& group) {
    for (const Product& product : group)
      for (uint32_t chunk : product.chunks) w.cta->shared->end_matrix_read(w, chunk, true);
  };
  for (const auto& group : w.products) mark(group);
  mark(w.open_products);
}

inline void proxy_fence(Warp& w, const Instruction&, Mask m) {
  need_whole_warp(w, m, "fence.proxy.async");
  for (size_t v = 0; v < w.fenced.size(); v++)
    w.fenced[v] = std::max(w.fenced[v], int(v) == w.id ? w.clock : w.seen[v]);
  w.clock++;
}

inline void add_matrix(Handlers& h) {
  h.add("ldmatrix", ldmatrix<false>);
  h.add("ldmatrix.trans", ldmatrix<true>);
  h.add("stmatrix", stmatrix<false>);
  h.add("stmatrix.trans", stmatrix<true>);
  h.add("mma.f16", mma<false>);
  h.add("mma.bf16", mma<true>);
  h.add("wgmma.mma_async.f16", wgmma<false>);
  h.add("wgmma.mma_async.bf16", wgmma<true>);
  h.add("wgmma.fence", wgmma_fence);
  h.add("wgmma.commit_group", commit_products);
  h.add("wgmma.wait_group", wait_products);
  h.add("fence.proxy.async", proxy_fence);
}
