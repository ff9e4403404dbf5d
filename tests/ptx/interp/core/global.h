// Global memory: the allocations that a launch was given, and who touched which bytes during the launch.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "machine.h"

class GlobalMemory {
 public:
  explicit GlobalMemory(const Machine& machine) : granule_(machine.program.global_granule) {
    for (int n = 0; n < machine.launch.allocations; n++) {
      uint64_t base = machine.launch.bases[n], size = machine.launch.sizes[n];
      // Zeros that the system makes when they are first touched.
      auto* cells = static_cast<Cell*>(calloc((size >> granule_) + 2, sizeof(Cell)));
      regions_.push_back({base, base + size, std::unique_ptr<Cell, decltype(&free)>(cells, &free)});
    }
  }

  void check_place(Warp& w, int lane, uint64_t address, uint32_t n) {
    Region* region = find(address, n);
    if (region == nullptr) fail(w, "out of bounds", lane, address, n);
    if (address % n) fail(w, "misaligned", lane, address, n);
    last_ = region;
  }

  // After check_place, of the same bytes.
  void read(Warp& w, int lane, uint64_t address, uint32_t n) {
    uint64_t mine = stamp(w, lane);
    Cell* cells = last_->cells.get();
    for (uint64_t c = first(address); c <= first(address + n - 1); c++) {
      Cell& cell = cells[c];
      if (cell.writer && !ordered(w, lane, cell.writer))
        report(w, lane, address, "read after an unordered write", cell.writer);
      if (cell.reader == mine) continue;
      cell.reader = merged(w, cell.reader, mine);
    }
  }

  void write(Warp& w, int lane, uint64_t address, uint32_t n, bool atomic) {
    uint64_t mine = stamp(w, atomic ? kAtomic : lane);
    Cell* cells = last_->cells.get();
    for (uint64_t c = first(address); c <= first(address + n - 1); c++) {
      Cell& cell = cells[c];
      bool both_atomic = atomic && cell.writer && (cell.writer >> 28 & 63) == kAtomic;
      if (cell.writer && !both_atomic && !ordered(w, lane, cell.writer))
        report(w, lane, address, "write after an unordered write", cell.writer);
      if (cell.reader && !ordered(w, lane, cell.reader))
        report(w, lane, address, "write after an unordered read", cell.reader);
      cell.writer = both_atomic && cell.writer >> 40 != mine >> 40 ? mine | kManyCtas << 40 : mine;
    }
  }

 private:
  // CTA + 1 (24 bits), warp (6), lane (6), clock (28).
  struct Cell {
    uint64_t writer, reader;
  };
  struct Region {
    uint64_t begin, end;
    std::unique_ptr<Cell, decltype(&free)> cells;
  };
  static constexpr uint64_t kManyCtas = 0xffffff, kMany = 63, kAtomic = 62;

  int granule_;
  std::vector<Region> regions_;
  Region* last_ = nullptr;

  uint64_t first(uint64_t address) const { return (address - last_->begin) >> granule_; }

  static uint64_t stamp(const Warp& w, int lane) {
    return uint64_t(w.cta->number + 1) << 40 | uint64_t(w.id) << 34 | uint64_t(lane) << 28 | w.clock;
  }

  static bool ordered(const Warp& w, int lane, uint64_t other) {
    if (other >> 40 != w.cta->number + 1) return false;
    uint64_t warp = other >> 34 & 63, clock = other & 0xfffffff;
    if (warp == kMany) return clock < w.cta->generation;
    if (int(warp) != w.id) return clock <= w.seen[warp];
    return int(other >> 28 & 63) == lane || clock < w.lanes_synced;
  }

  // Of several readers since the last barrier of the whole CTA no single one can be remembered.
  static uint64_t merged(const Warp& w, uint64_t before, uint64_t mine) {
    if (before == 0) return mine;
    if (before >> 40 != mine >> 40) return mine | kManyCtas << 40;
    if (before >> 34 == mine >> 34) return (before & 0xfffffff) < w.lanes_synced ? mine : mine | kMany << 28;
    return (mine >> 40) << 40 | kMany << 34 | kMany << 28 | w.cta->generation;
  }

  Region* find(uint64_t address, uint32_t n) {
    if (last_ && address >= last_->begin && address + n <= last_->end) return last_;
    for (Region& region : regions_)
      if (address >= region.begin && address + n <= region.end) return &region;
    return nullptr;
  }

  void report(Warp& w, int lane, uint64_t address, const char* what, uint64_t other) {
    w.cta->machine->report(w.cta->current, "race",
                           "global +%llu: %s; CTA %u warp %d lane %d, the other CTA %lld warp %d",
                           (unsigned long long)(address - last_->begin), what, w.cta->number, w.id, lane,
                           (long long)(other >> 40) - 1, int(other >> 34 & 63));
  }
  void fail(Warp& w, const char* kind, int lane, uint64_t address, uint32_t n) {
    const Region* near = nullptr;
    for (const Region& region : regions_)
      if (region.begin <= address) near = &region;
    long long offset = near ? (long long)(address - near->begin) : -1,
              size = near ? (long long)(near->end - near->begin) : 0;
    w.cta->machine->report(w.cta->current, kind,
                           "global address %#llx, %u bytes; byte %lld of an allocation of %lld; CTA %u warp %d lane %d",
                           (unsigned long long)address, n, offset, size, w.cta->number, w.id, lane);
    throw Fatal{};
  }
};
