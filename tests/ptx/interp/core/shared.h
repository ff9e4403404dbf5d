// Shared memory of a CTA, byte by byte: what was written, by whom, and whether each access is ordered after it.
#pragma once

#include <algorithm>

#include "machine.h"

class SharedMemory {
 public:
  SharedMemory(const Machine& machine)
      : granule_(machine.program.shared_granule),
        size_(uint32_t(machine.launch.shared)),
        warps_(machine.launch.warps),
        bytes(size_ + 16),
        writer_((size_ >> granule_) + 16),
        readers_((size_ >> granule_) * size_t(warps_) + 16),
        matrix_readers_((size_ / 16 + 1) * size_t(warps_)),
        state_((size_ >> granule_) + 16),
        stores_((size_ >> granule_) + 16) {}

  void clear() {
    std::fill(writer_.begin(), writer_.end(), 0);
    std::fill(readers_.begin(), readers_.end(), 0);
    std::fill(matrix_readers_.begin(), matrix_readers_.end(), 0);
    std::fill(state_.begin(), state_.end(), kUndefined);
    for (size_t n = 0; n + 2 <= bytes.size(); n += 2) memcpy(&bytes[n], &kPoison16, 2);
  }

  // Before anything else is done with [address, address + n).
  void check_place(Warp& w, int lane, uint64_t address, uint32_t n) {
    if (address + n > size_) fail(w, "out of bounds", lane, address, n);
    if (address % n) fail(w, "misaligned", lane, address, n);
  }

  // A read by a lane; whether any of it is undefined.
  bool read(Warp& w, int lane, uint32_t address, uint32_t n) {
    uint32_t first = address >> granule_, last = (address + n - 1) >> granule_;
    uint8_t undefined = 0;
    for (uint32_t c = first; c <= last; c++) {
      undefined |= state_[c];
      if (!ordered(w, lane, writer_[c])) report(w, "race", lane, c, "read after an unordered write", writer_[c]);
      uint32_t& r = readers_[size_t(c) * size_t(warps_) + size_t(w.id)];
      uint32_t mine = stamp(w.clock, lane);
      // Lanes that read since the last warp barrier are remembered as many: no lane's write is ordered after them.
      r = r && r != mine && r >> 6 >= w.lanes_synced ? stamp(w.clock, kMany) : mine;
    }
    if (undefined & kPending)
      report(w, "unfinished copy", lane, first, "read before the copy was waited for", writer_[first]);
    return undefined & (kUndefined | kPending);
  }

  void write(Warp& w, int lane, uint32_t address, const void* data, uint32_t n, bool undefined) {
    check_write(w, lane, address, n, data);
    memcpy(&bytes[address], data, n);
    settle(w, lane, address, n, undefined ? kUndefined : 0);
  }

  // Every store instruction of a warp says first that it is another one.
  void begin_store() { store_++; }

  // Threads that write the same bytes at the same time do no harm. Of lanes that write different ones by one
  // instruction PTX promises that one is kept, and which is up to chance here: Triton's reductions do so where copies
  // of a sum differ in their rounding, since a product was fused into it in some lanes and not in others.
  void check_write(Warp& w, int lane, uint32_t address, uint32_t n, const void* data = nullptr) {
    bool same = data != nullptr && memcmp(&bytes[address], data, n) == 0;
    uint32_t first = address >> granule_, last = (address + n - 1) >> granule_;
    for (uint32_t c = first; c <= last; c++) {
      if (state_[c] & kPending) report(w, "unfinished copy", lane, c, "written before it was waited for", writer_[c]);
      if (!same && stores_[c] != store_ && !ordered(w, lane, writer_[c]))
        report(w, "race", lane, c, "write after an unordered write", writer_[c]);
      const uint32_t* r = &readers_[size_t(c) * size_t(warps_)];
      for (int v = 0; v < warps_; v++)
        if (r[v] && !ordered(w, lane, v, r[v])) report(w, "race", lane, c, "write after an unordered read", r[v], v);
    }
    for (uint32_t c = address / 16; c <= (address + n - 1) / 16; c++) {
      const uint32_t* r = &matrix_readers_[size_t(c) * size_t(warps_)];
      for (int v = 0; v < warps_; v++) {
        if (r[v] == kUnfinished)
          report(w, "unfinished wgmma", lane, c * 16 >> granule_, "its source is written before it was waited for", 0,
                 v);
        else if (r[v] && (v == w.id ? r[v] >= w.lanes_synced : r[v] > w.seen[size_t(v)]))
          report(w, "race", lane, c * 16 >> granule_, "write after an unordered matrix read", r[v] << 6, v);
      }
    }
  }

  // cp.async: from its issue to its end nobody may touch the destination.
  void begin_copy(Warp& w, int lane, uint32_t address, uint32_t n) {
    check_write(w, lane, address, n);
    for (uint32_t a = 0; a + 2 <= n; a += 2) memcpy(&bytes[address + a], &kPoison16, 2);
    settle(w, lane, address, n, kPending);
  }
  void end_copy(Warp& w, int lane, uint32_t address, const uint8_t* from, uint32_t read, uint32_t n) {
    memset(&bytes[address], 0, n);
    memcpy(&bytes[address], from, read);
    settle(w, lane, address, n, kCopied);
    for (uint32_t a = 0; a + 4 <= n; a += 4) {
      uint32_t word;
      memcpy(&word, &bytes[address + a], 4);
      if (word == kPoison32) settle(w, lane, address + a, 4, kCopied | kUndefined);
    }
  }

  // A read of 16 bytes by a matrix instruction of a whole warp; asynchronous ones last until end_matrix_read.
  bool matrix_read(Warp& w, uint32_t address, bool asynchronous) {
    uint32_t first = address >> granule_, last = (address + 15) >> granule_;
    uint8_t state = 0;
    uint32_t before = 0;
    for (uint32_t c = first; c <= last; c++) {
      state |= state_[c];
      if (writer_[c] == before) continue;
      before = writer_[c];
      if (!ordered(w, kMany, before))
        report(w, "race", 0, c, "matrix read after an unordered write", before);
      else if (asynchronous && !(state_[c] & kCopied) && clock_of(before) > w.fenced[size_t(before >> 27)])
        report(w, "proxy fence", 0, c, "wgmma reads what was written without fence.proxy.async", before);
    }
    if (state & kPending)
      report(w, "unfinished copy", 0, first, "matrix read before it was waited for", writer_[first]);
    matrix_readers_[size_t(address / 16) * size_t(warps_) + size_t(w.id)] = asynchronous ? kUnfinished : w.clock;
    return state & (kUndefined | kPending);
  }
  void end_matrix_read(Warp& w, uint32_t address, bool still_read) {
    matrix_readers_[size_t(address / 16) * size_t(warps_) + size_t(w.id)] = still_read ? kUnfinished : w.clock;
  }

 private:
  static constexpr uint8_t kUndefined = 1, kPending = 2;
  // What cp.async brought needs no proxy fence before wgmma: CUTLASS and Triton up to 3.6 do without.
  static constexpr uint8_t kCopied = 4;
  static constexpr int kMany = 63;  // for a lane: several, or all as one
  static constexpr uint32_t kUnfinished = 0xffffffffu;

  uint32_t granule_, size_;
  int warps_;

 public:
  std::vector<uint8_t> bytes;

 private:
  std::vector<uint32_t> writer_;          // warp (5 bits), lane (5), clock (22) of the last write; 0 for none
  std::vector<uint32_t> readers_;         // per warp: clock (26), lane (6) of the last read
  std::vector<uint32_t> matrix_readers_;  // per warp, of 16 bytes: clock of the last read by a matrix instruction
  std::vector<uint8_t> state_;
  std::vector<uint64_t> stores_;  // which store instruction wrote last
  uint64_t store_ = 0;

  static uint32_t stamp(uint32_t clock, int lane) { return clock << 6 | uint32_t(lane); }
  static uint32_t clock_of(uint32_t writer) { return writer & 0x3fffff; }

  static bool ordered(const Warp& w, int lane, uint32_t writer) {
    int v = int(writer >> 27);
    uint32_t clock = clock_of(writer);
    if (v != w.id) return clock <= w.seen[size_t(v)];
    return int(writer >> 22 & 31) == lane || clock < w.lanes_synced;
  }
  static bool ordered(const Warp& w, int lane, int v, uint32_t reader) {
    uint32_t clock = reader >> 6;
    if (v != w.id) return clock <= w.seen[size_t(v)];
    return int(reader & 63) == lane || clock < w.lanes_synced;
  }

  void settle(Warp& w, int lane, uint32_t address, uint32_t n, uint8_t state) {
    uint32_t by = uint32_t(w.id) << 27 | uint32_t(lane) << 22 | w.clock;
    for (uint32_t c = address >> granule_; c <= (address + n - 1) >> granule_; c++)
      writer_[c] = by, state_[c] = state, stores_[c] = store_;
  }

  void report(Warp& w, const char* kind, int lane, uint32_t cell, const char* what, uint32_t other, int reader = -1) {
    int warp = reader >= 0 ? reader : int(other >> 27),
        its_lane = reader >= 0 ? int(other & 63) : int(other >> 22 & 31);
    w.cta->machine->report(w.cta->current, kind, "shared byte %u: %s; warp %d lane %d, the other was warp %d lane %d",
                           cell << granule_, what, w.id, lane, warp, its_lane);
  }
  void fail(Warp& w, const char* kind, int lane, uint64_t address, uint32_t n) {
    w.cta->machine->report(w.cta->current, kind, "shared address %llu of %u, %u bytes, warp %d lane %d",
                           (unsigned long long)address, size_, n, w.id, lane);
    throw Fatal{};
  }
};
