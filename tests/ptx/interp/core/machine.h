// What all parts of the interpreter share: a decoded program, a warp's registers, findings, and the CTA they belong to.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

constexpr int kLanes = 32;
using Mask = uint32_t;
constexpr Mask kAll = 0xffffffffu;

// Memory that nothing has written holds this, repeated: no kernel computes it (as a float of any width it is a NaN).
constexpr uint16_t kPoison16 = 0xffc7;
constexpr uint32_t kPoison32 = 0xffc7ffc7u;
constexpr uint64_t kPoison64 = 0xffc7ffc7ffc7ffc7ull;

// The layouts of Instruction, Constant, Program, Launch and Finding are repeated in machine.py.
struct Instruction {
  int32_t opcode;                    // of the table of handlers
  int32_t guard;                     // register of the predicate in front, or -1
  int32_t negated;                   // whether that predicate is negated
  int32_t operands, first, results;  // operands: registers [first, first + operands) of the pool; results come first
  int32_t numbers[4];                // what the handler makes of them: offsets, sizes, labels
};

struct Constant {
  int32_t reg;
  int32_t kind;  // 0: value; 1: tid.x; 2 to 4: ctaid; 5 to 7: nctaid; 8: laneid; 9: ntid.x; 16 + n: parameter n
  uint64_t value;
};

struct Program {
  const Instruction* code;
  const int32_t* pool;
  const int32_t* widths;  // bits of each register: 1, 16, 32 or 64; constants come first
  const Constant* constants;
  int32_t instructions, operands, registers, constant_count;
  int32_t shared_granule, global_granule;  // log2 of the bytes that the smallest access takes
};

struct Launch {
  const uint64_t* parameters;
  const uint64_t* bases;  // allocations, ascending
  const uint64_t* sizes;
  int32_t allocations, warps, shared;
  int32_t grid[3];
  uint64_t seed;   // of what changes from launch to launch: turns of warps, order of CTAs
  uint64_t gpu;    // seed of what a GPU does always alike: rounding of approximate and matrix instructions
  uint64_t limit;  // instructions of a warp after which a CTA is taken not to end
};

struct Finding {
  int32_t instruction;
  uint32_t count;
  char kind[28];
  char detail[164];
};

struct Fatal {};  // thrown where a launch cannot go on

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 0x1234567) {}
  uint32_t next() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return uint32_t(state_ * 0x2545f4914f6cdd1dull >> 32);
  }
  uint32_t below(uint32_t n) { return uint32_t(uint64_t(next()) * n >> 32); }

 private:
  uint64_t state_;
};

struct Copy {  // a cp.async of one warp that has not arrived
  Mask lanes;
  uint32_t bytes;
  uint32_t to[kLanes];
  const uint8_t* from[kLanes];
  uint8_t read[kLanes];  // bytes that come from there; the others become 0
};

struct Product {  // a wgmma of one warp that has not ended: what it reads and what it writes
  std::vector<uint32_t> chunks;
  std::vector<int32_t> registers;
};

struct Cta;

struct Warp {
  Cta* cta = nullptr;
  int id = 0;
  std::vector<uint8_t> file;      // registers, one after the other, 32 lanes each; predicates are one Mask
  std::vector<Mask> undefined;    // per register: lanes whose value depends on nothing that was ever written
  std::vector<uint64_t> written;  // per register: when it was written last
  std::vector<uint8_t> pending;   // per register: how many unfinished wgmma write it
  uint64_t now = 0;               // instructions executed

  int pc = 0;
  int lane_pc[kLanes] = {};
  bool diverged = false;
  Mask live = kAll, active = kAll;
  int waits_at = -1;  // instruction of the barrier that it waits at, or -1

  // Vector clocks. A warp's own clock grows at every barrier, warp barrier and proxy fence.
  uint32_t clock = 1;
  uint32_t lanes_synced = 1;     // accesses of other lanes of the warp before this clock are ordered
  std::vector<uint32_t> seen;    // accesses of other warps up to this clock are ordered
  std::vector<uint32_t> fenced;  // and writes of warps up to this clock are visible to the asynchronous proxy

  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copies;
  std::vector<Product> open_products;
  std::deque<std::vector<Product>> products;
  uint64_t products_fenced = 0;  // when wgmma.fence was executed last

  template <class T>
  T* at(int32_t reg);
  template <class T>
  T* operand(const Instruction& i, int n);
};

class SharedMemory;
class GlobalMemory;

struct Machine {
  const Program& program;
  const Launch& launch;
  std::vector<size_t> offsets;  // of registers in a warp's file
  size_t file_size = 0;
  Random random;
  std::map<std::pair<int, std::string>, Finding> findings;
  std::vector<uint64_t> executed;  // per instruction, by warps
  GlobalMemory* global = nullptr;

  Machine(const Program& p, const Launch& l);
  void report(int instruction, const char* kind, const char* format, ...) __attribute__((format(printf, 4, 5)));
};

struct Cta {
  Machine* machine;
  uint32_t number;
  uint32_t at[3];
  std::vector<Warp> warps;
  SharedMemory* shared = nullptr;
  uint32_t generation = 1;  // grows when all warps pass a barrier together
  int current = 0;          // instruction being executed, for reports
};

using Handler = void (*)(Warp&, const Instruction&, Mask);

// Handlers by the name of an instruction. Those of control flow have none and are known to the scheduler.
class Handlers {
 public:
  static Handlers& all() {
    static Handlers handlers;
    return handlers;
  }
  void add(const std::string& name, Handler handler) {
    numbers_[name] = int(list_.size());
    list_.push_back(handler);
  }
  int number(const std::string& name) const {
    auto found = numbers_.find(name);
    return found == numbers_.end() ? -1 : found->second;
  }
  Handler operator[](int number) const { return list_[size_t(number)]; }

 private:
  std::unordered_map<std::string, int> numbers_;
  std::vector<Handler> list_;
};

inline int32_t register_of(const Warp& w, const Instruction& i, int n) {
  return w.cta->machine->program.pool[i.first + n];
}

template <class T>
T* Warp::at(int32_t reg) {
  return reinterpret_cast<T*>(file.data() + cta->machine->offsets[size_t(reg)]);
}

template <class T>
T* Warp::operand(const Instruction& i, int n) {
  return at<T>(register_of(*this, i, n));
}

inline int width_of(const Warp& w, int32_t reg) {
  return w.cta->machine->program.widths[reg];
}

// Lanes in which one of the operands [first, last) is undefined.
inline Mask undefined_in(const Warp& w, const Instruction& i, int first, int last) {
  Mask u = 0;
  for (int n = first; n < last; n++) u |= w.undefined[size_t(register_of(w, i, n))];
  return u;
}

inline void set_undefined(Warp& w, int32_t reg, Mask m, Mask undefined) {
  Mask& u = w.undefined[size_t(reg)];
  u = (u & ~m) | (undefined & m);
}

// What most instructions do: a result is undefined where an operand is.
inline void spread_undefined(Warp& w, const Instruction& i, Mask m) {
  Mask u = undefined_in(w, i, i.results, i.operands);
  for (int n = 0; n < i.results; n++) set_undefined(w, register_of(w, i, n), m, u);
}

template <class T>
void write_lanes(T* to, const T* from, Mask m) {
  if (m == kAll) {
    memcpy(to, from, sizeof(T) * kLanes);
  } else {
    for (int l = 0; l < kLanes; l++)
      if (m >> l & 1) to[l] = from[l];
  }
}

inline void write_predicate(Warp& w, int32_t reg, Mask m, Mask value) {
  Mask* p = w.at<Mask>(reg);
  *p = (*p & ~m) | (value & m);
}

// All lanes must be here for instructions that a warp executes as one.
inline void need_whole_warp(Warp& w, Mask m, const char* what) {
  if (m == kAll) return;
  w.cta->machine->report(w.cta->current, "divergence", "%s by a part of warp %d, lanes %08x", what, w.id, m);
  throw Fatal{};
}

// An address or a predicate that decides what happens must be defined.
inline void need_defined(Warp& w, int32_t reg, Mask m, const char* what) {
  Mask u = w.undefined[size_t(reg)] & m;
  if (u) w.cta->machine->report(w.cta->current, "undefined value", "as %s, warp %d, lanes %08x", what, w.id, u);
}
