// Instructions by which the lanes of a warp exchange values: shuffles and reductions.
#pragma once

#include "memory.h"

// The lanes of a membermask must all be here: those that are elsewhere will not come.
inline void need_members(Warp& w, const Instruction& i, int operand, Mask m, const char* what) {
  int32_t reg = register_of(w, i, operand);
  need_defined(w, reg, m, "a member mask");
  for (int l = 0; l < kLanes; l++) {
    if (!(m >> l & 1)) continue;
    Mask members = w.at<uint32_t>(reg)[l];
    if (members == m) continue;
    w.cta->machine->report(w.cta->current, "divergence", "%s by lanes %08x of warp %d, its mask is %08x", what, m, w.id,
                           members);
    throw Fatal{};
  }
}

enum class Shuffle { up, down, bfly, idx };

// shfl.sync d{|p}, a, b, c, membermask. numbers[0]: whether there is a p.
template <Shuffle mode>
void shfl(Warp& w, const Instruction& i, Mask m) {
  int at = i.results;
  need_members(w, i, at + 3, m, "shfl.sync");
  const uint32_t *a = w.operand<uint32_t>(i, at), *b = w.operand<uint32_t>(i, at + 1),
                 *c = w.operand<uint32_t>(i, at + 2);
  Mask of_a = undefined_in(w, i, at, at + 1), u = undefined_in(w, i, at + 1, at + 3), inside = 0;
  uint32_t r[kLanes];
  for (int l = 0; l < kLanes; l++) {
    int by = int(b[l] & 31), segment = int(c[l] >> 8 & 31), clamp = int(c[l] & 31);
    int least_lane = l & segment, last = least_lane | (clamp & ~segment), from;
    bool ok;
    if constexpr (mode == Shuffle::up)
      from = l - by, ok = from >= last;
    else if constexpr (mode == Shuffle::down)
      from = l + by, ok = from <= last;
    else if constexpr (mode == Shuffle::bfly)
      from = l ^ by, ok = from <= last;
    else
      from = least_lane | (by & ~segment), ok = from <= last;
    if (!ok) from = l;
    r[l] = a[from];
    inside |= Mask(ok) << l;
    u |= Mask((of_a >> from & 1) || !(m >> from & 1)) << l;  // what an absent lane gives is undefined
  }
  write_lanes(w.operand<uint32_t>(i, 0), r, m);
  set_undefined(w, register_of(w, i, 0), m, u);
  if (i.results > 1) {
    write_predicate(w, register_of(w, i, 1), m, inside);
    set_undefined(w, register_of(w, i, 1), m, 0);
  }
}

template <class T, T (*f)(T, T)>
void redux(Warp& w, const Instruction& i, Mask m) {
  need_members(w, i, 2, m, "redux.sync");
  const T* a = w.operand<T>(i, 1);
  bool first = true;
  T total{};
  for (int l = 0; l < kLanes; l++)
    if (m >> l & 1) total = first ? a[l] : f(total, a[l]), first = false;
  T* d = w.operand<T>(i, 0);
  for (int l = 0; l < kLanes; l++)
    if (m >> l & 1) d[l] = total;
  set_undefined(w, register_of(w, i, 0), m, undefined_in(w, i, 1, 2) & m ? kAll : 0);
}

inline void warp_barrier(Warp& w, const Instruction& i, Mask m) {
  need_members(w, i, 0, m, "bar.warp.sync");
  w.clock++;
  if (m == w.live) w.lanes_synced = w.clock;
}

inline void add_exchange(Handlers& h) {
  h.add("shfl.sync.up.b32", shfl<Shuffle::up>);
  h.add("shfl.sync.down.b32", shfl<Shuffle::down>);
  h.add("shfl.sync.bfly.b32", shfl<Shuffle::bfly>);
  h.add("shfl.sync.idx.b32", shfl<Shuffle::idx>);
  h.add("redux.sync.add.s32", redux<int32_t, add<int32_t>>);
  h.add("redux.sync.add.u32", redux<uint32_t, add<uint32_t>>);
  h.add("redux.sync.max.s32", redux<int32_t, greatest<int32_t>>);
  h.add("redux.sync.max.u32", redux<uint32_t, greatest<uint32_t>>);
  h.add("bar.warp.sync", warp_barrier);
}
