// Instructions that touch memory: loads, stores, asynchronous copies, atomics.
#pragma once

#include "global.h"
#include "shared.h"

// numbers: the offset added to the address, bytes of an element, elements.
inline uint64_t address_of(Warp& w, int32_t reg, int lane, int64_t offset) {
  if (width_of(w, reg) == 64) return w.at<uint64_t>(reg)[lane] + uint64_t(offset);
  return uint32_t(w.at<uint32_t>(reg)[lane] + uint32_t(offset));
}

inline bool poisoned(const uint8_t* data, int bytes) {
  uint64_t v = 0;
  memcpy(&v, data, size_t(bytes));
  return bytes == 2 ? v == kPoison16 : bytes == 4 ? v == kPoison32 : bytes == 8 && v == kPoison64;
}

inline void put(Warp& w, int32_t reg, int lane, const uint8_t* data, int bytes) {
  uint64_t v = 0;
  memcpy(&v, data, size_t(bytes));
  switch (width_of(w, reg)) {
    case 16:
      w.at<uint16_t>(reg)[lane] = uint16_t(v);
      break;
    case 32:
      w.at<uint32_t>(reg)[lane] = uint32_t(v);
      break;
    default:
      w.at<uint64_t>(reg)[lane] = v;
  }
}

inline uint64_t get(Warp& w, int32_t reg, int lane) {
  switch (width_of(w, reg)) {
    case 16:
      return w.at<uint16_t>(reg)[lane];
    case 32:
      return w.at<uint32_t>(reg)[lane];
    default:
      return w.at<uint64_t>(reg)[lane];
  }
}

template <bool shared>
void load(Warp& w, const Instruction& i, Mask m) {
  int32_t from = register_of(w, i, i.operands - 1);
  int bytes = i.numbers[1], count = i.numbers[2];
  Mask undefined[8] = {};
  need_defined(w, from, m, "an address");
  for (int l = 0; l < kLanes; l++) {
    if (!(m >> l & 1)) continue;
    uint64_t address = address_of(w, from, l, i.numbers[0]);
    const uint8_t* data;
    if constexpr (shared) {
      w.cta->shared->check_place(w, l, address, uint32_t(bytes * count));
      for (int n = 0; n < count; n++)
        undefined[n] |= Mask(w.cta->shared->read(w, l, uint32_t(address) + uint32_t(bytes * n), uint32_t(bytes))) << l;
      data = &w.cta->shared->bytes[address];
    } else {
      GlobalMemory& global = *w.cta->machine->global;
      global.check_place(w, l, address, uint32_t(bytes * count));
      global.read(w, l, address, uint32_t(bytes * count));
      data = reinterpret_cast<const uint8_t*>(address);
      for (int n = 0; n < count; n++) undefined[n] |= Mask(poisoned(data + bytes * n, bytes)) << l;
    }
    for (int n = 0; n < count; n++) put(w, register_of(w, i, n), l, data + bytes * n, bytes);
  }
  for (int n = 0; n < count; n++) set_undefined(w, register_of(w, i, n), m, undefined[n]);
}

template <bool shared>
void store(Warp& w, const Instruction& i, Mask m) {
  int32_t to = register_of(w, i, 0);
  int bytes = i.numbers[1], count = i.numbers[2];
  need_defined(w, to, m, "an address");
  if (shared) w.cta->shared->begin_store();
  int turn = int(w.cta->machine->random.below(kLanes));  // of lanes that write to one place any may be the last
  for (int lane = 0; lane < kLanes; lane++) {
    int l = lane ^ turn;
    if (!(m >> l & 1)) continue;
    uint64_t address = address_of(w, to, l, i.numbers[0]);
    if constexpr (shared)
      w.cta->shared->check_place(w, l, address, uint32_t(bytes * count));
    else
      w.cta->machine->global->check_place(w, l, address, uint32_t(bytes * count));
    for (int n = 0; n < count; n++, address += uint64_t(bytes)) {
      int32_t from = register_of(w, i, 1 + n);
      bool undefined = w.undefined[size_t(from)] >> l & 1;
      uint64_t v = undefined ? kPoison64 : get(w, from, l);
      if constexpr (shared) {
        w.cta->shared->write(w, l, uint32_t(address), &v, uint32_t(bytes), undefined);
      } else {
        w.cta->machine->global->write(w, l, address, uint32_t(bytes), false);
        memcpy(reinterpret_cast<void*>(address), &v, size_t(bytes));
      }
    }
  }
}

// cp.async [to], [from], bytes{, bytes read}: numbers are both offsets and the bytes.
inline void cp_async(Warp& w, const Instruction& i, Mask m) {
  int32_t to = register_of(w, i, 0), from = register_of(w, i, 1);
  uint32_t bytes = uint32_t(i.numbers[2]);
  w.cta->shared->begin_store();
  Copy copy{m, bytes, {}, {}, {}};
  need_defined(w, to, m, "an address");
  if (i.operands > 2) need_defined(w, register_of(w, i, 2), m, "a size");
  for (int l = 0; l < kLanes; l++) {
    if (!(m >> l & 1)) continue;
    uint32_t read = i.operands > 2 ? w.operand<uint32_t>(i, 2)[l] : bytes;
    uint64_t source = address_of(w, from, l, i.numbers[1]), target = address_of(w, to, l, i.numbers[0]);
    if (read > bytes) read = bytes;
    if (read) {
      need_defined(w, from, Mask(1) << l, "an address");
      w.cta->machine->global->check_place(w, l, source, bytes);
      w.cta->machine->global->read(w, l, source, read);
    }
    w.cta->shared->check_place(w, l, target, bytes);
    w.cta->shared->begin_copy(w, l, uint32_t(target), bytes);
    copy.to[l] = uint32_t(target);
    copy.from[l] = reinterpret_cast<const uint8_t*>(source);
    copy.read[l] = uint8_t(read);
  }
  w.open_copies.push_back(copy);
}

inline void commit_copies(Warp& w, const Instruction&, Mask m) {
  need_whole_warp(w, m, "cp.async.commit_group");
  w.copies.push_back(std::move(w.open_copies));
  w.open_copies.clear();
}

inline void wait_copies(Warp& w, const Instruction& i, Mask m) {
  need_whole_warp(w, m, "cp.async.wait_group");
  while (w.copies.size() > size_t(i.numbers[0])) {
    for (const Copy& copy : w.copies.front())
      for (int l = 0; l < kLanes; l++)
        if (copy.lanes >> l & 1) w.cta->shared->end_copy(w, l, copy.to[l], copy.from[l], copy.read[l], copy.bytes);
    w.copies.pop_front();
  }
}

// atom and red on global memory; lanes in random order, since none is promised.
template <class T, T (*f)(T, T), bool returns>
void atomic(Warp& w, const Instruction& i, Mask m) {
  int32_t to = register_of(w, i, returns ? 1 : 0), from = register_of(w, i, returns ? 2 : 1);
  int turn = int(w.cta->machine->random.below(kLanes));
  need_defined(w, to, m, "an address");
  need_defined(w, from, m, "an operand of an atomic");
  for (int n = 0; n < kLanes; n++) {
    int l = n ^ turn;
    if (!(m >> l & 1)) continue;
    uint64_t address = address_of(w, to, l, i.numbers[0]);
    w.cta->machine->global->check_place(w, l, address, sizeof(T));
    w.cta->machine->global->write(w, l, address, sizeof(T), true);
    T before;
    memcpy(&before, reinterpret_cast<void*>(address), sizeof(T));
    if (poisoned(reinterpret_cast<const uint8_t*>(&before), int(sizeof(T))))
      w.cta->machine->report(w.cta->current, "undefined value", "in memory, of an atomic, warp %d lane %d", w.id, l);
    T after = f(before, w.at<T>(from)[l]);
    memcpy(reinterpret_cast<void*>(address), &after, sizeof(T));
    if constexpr (returns) w.operand<T>(i, 0)[l] = before;
  }
  if constexpr (returns) set_undefined(w, register_of(w, i, 0), m, 0);
}

inline void add_memory(Handlers& h) {
  h.add("ld.shared", load<true>);
  h.add("ld.global", load<false>);
  h.add("st.shared", store<true>);
  h.add("st.global", store<false>);
  h.add("cp.async", cp_async);
  h.add("cp.async.commit_group", commit_copies);
  h.add("cp.async.wait_group", wait_copies);
#define XMEMK_ATOMIC(name, T, f)              \
  h.add("atom." name, atomic<T, f<T>, true>); \
  h.add("red." name, atomic<T, f<T>, false>);
  XMEMK_ATOMIC("add.u32", uint32_t, add)
  XMEMK_ATOMIC("add.s32", int32_t, add)
  XMEMK_ATOMIC("add.u64", uint64_t, add)
  XMEMK_ATOMIC("add.f32", float, add)
  XMEMK_ATOMIC("max.s32", int32_t, greatest)
}
