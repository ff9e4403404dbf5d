// The scheduler: CTAs in random order, warps in random turns, branches, barriers; and the functions that Python calls.
#include "machine.h"

#include <algorithm>
#include <numeric>

#include "arithmetic.h"
#include "exchange.h"
#include "matrix.h"
#include "memory.h"

namespace {

// Control flow is not a handler's: these numbers come first.
enum Control { kBranch, kReturn, kBarrier, kTrap, kNothing, kControls };

void add_control(Handlers& h) {
  for (const char* name : {"bra", "ret", "bar.sync", "trap", "nop"}) h.add(name, nullptr);
}

const Handlers& handlers() {
  static const Handlers& all = [&]() -> const Handlers& {
    Handlers& h = Handlers::all();
    add_control(h);
    add_arithmetic(h);
    add_memory(h);
    add_exchange(h);
    add_matrix(h);
    return h;
  }();
  return all;
}

struct Barrier {
  uint64_t arrived = 0;
  int wanted = 0;
};

class Scheduler {
 public:
  explicit Scheduler(Machine& machine) : machine_(machine), program_(machine.program), shared_(machine) {
    cta_.machine = &machine;
    cta_.shared = &shared_;
    int warps = machine.launch.warps;
    cta_.warps.resize(size_t(warps));
    for (int n = 0; n < warps; n++) {
      Warp& w = cta_.warps[size_t(n)];
      w.cta = &cta_;
      w.id = n;
      w.file.resize(machine.file_size);
    }
    for (int n = 0; n < program_.instructions; n++) touches_memory_.push_back(is_memory(program_.code[n].opcode));
  }

  void run_all() {
    const int32_t* grid = machine_.launch.grid;
    std::vector<uint32_t> order(size_t(grid[0]) * size_t(grid[1]) * size_t(grid[2]));
    std::iota(order.begin(), order.end(), 0u);
    for (size_t n = order.size(); n > 1; n--) std::swap(order[n - 1], order[machine_.random.below(uint32_t(n))]);
    for (uint32_t number : order) {
      uint32_t x = uint32_t(grid[0]), y = uint32_t(grid[1]);
      start(number, number % x, number / x % y, number / x / y);
      run_cta();
    }
  }

 private:
  Machine& machine_;
  const Program& program_;
  SharedMemory shared_;
  Cta cta_{};
  Barrier barriers_[16];
  std::vector<bool> touches_memory_;

  static bool is_memory(int opcode) {
    static const std::vector<int> numbers = [] {
      std::vector<int> v;
      for (const char* name : {"ld.shared", "st.shared", "ld.global", "st.global", "cp.async", "cp.async.wait_group",
                               "wgmma.wait_group", "bar.warp.sync", "atom.max.s32", "red.add.u64"})
        v.push_back(handlers().number(name));
      return v;
    }();
    return std::find(numbers.begin(), numbers.end(), opcode) != numbers.end();
  }

  void start(uint32_t number, uint32_t x, uint32_t y, uint32_t z) {
    cta_.number = number;
    cta_.generation = 1;
    cta_.at[0] = x, cta_.at[1] = y, cta_.at[2] = z;
    shared_.clear();
    for (Barrier& b : barriers_) b = Barrier();
    size_t warps = cta_.warps.size(), registers = size_t(program_.registers);
    for (Warp& w : cta_.warps) {
      w.undefined.assign(registers, kAll);
      w.written.assign(registers, 0);
      w.pending.assign(registers, 0);
      w.now = 1, w.products_fenced = 0;
      w.pc = 0, w.diverged = false, w.live = w.active = kAll, w.waits_at = -1;
      w.clock = 1, w.lanes_synced = 1;
      w.seen.assign(warps, 0);
      w.fenced.assign(warps, 0);
      w.open_copies.clear(), w.copies.clear(), w.open_products.clear(), w.products.clear();
      for (int n = 0; n < program_.constant_count; n++) set_constant(w, program_.constants[n]);
    }
  }

  void set_constant(Warp& w, const Constant& c) {
    uint64_t v[kLanes];
    for (int l = 0; l < kLanes; l++) {
      v[l] = c.kind == 0   ? c.value
             : c.kind == 1 ? uint64_t(w.id * kLanes + l)
             : c.kind < 5  ? cta_.at[c.kind - 2]
             : c.kind < 8  ? uint64_t(machine_.launch.grid[c.kind - 5])
             : c.kind == 8 ? uint64_t(l)
             : c.kind == 9 ? uint64_t(machine_.launch.warps * kLanes)
                           : machine_.launch.parameters[c.kind - 16];
    }
    w.undefined[size_t(c.reg)] = 0;
    int width = program_.widths[c.reg];
    if (width == 1) *w.at<Mask>(c.reg) = v[0] ? kAll : 0;
    for (int l = 0; l < kLanes && width > 1; l++) put(w, c.reg, l, reinterpret_cast<uint8_t*>(&v[l]), 8);
  }

  void run_cta() {
    std::vector<Warp*> ready;
    // How often a warp yields: never, rarely or often, by CTA.
    static const uint32_t chances[] = {0, 0x04000000, 0x20000000};
    uint32_t chance = chances[machine_.random.below(3)];
    for (;;) {
      ready.clear();
      for (Warp& w : cta_.warps)
        if (w.live && w.waits_at < 0) ready.push_back(&w);
      if (ready.empty()) break;
      run_warp(*ready[machine_.random.below(uint32_t(ready.size()))], chance);
    }
    for (Warp& w : cta_.warps) {
      if (w.live) {
        machine_.report(w.waits_at, "deadlock", "warp %d waits here, and no other warp can go on", w.id);
        throw Fatal{};
      }
    }
  }

  // Until the warp waits, ends or yields.
  void run_warp(Warp& w, uint32_t chance) {
    for (;;) {
      if (w.diverged) {
        // The lanes that are furthest behind go first, so that the others wait for them where they meet again.
        int least = INT32_MAX;
        for (int l = 0; l < kLanes; l++)
          if (w.live >> l & 1) least = std::min(least, w.lane_pc[l]);
        w.pc = least;
        w.active = 0;
        for (int l = 0; l < kLanes; l++)
          if ((w.live >> l & 1) && w.lane_pc[l] == least) w.active |= Mask(1) << l;
        if (w.active == w.live) w.diverged = false;
      } else {
        w.active = w.live;
      }
      if (w.pc >= program_.instructions) {
        machine_.report(program_.instructions - 1, "no end", "warp %d runs past the last instruction", w.id);
        throw Fatal{};
      }
      const Instruction& i = program_.code[w.pc];
      cta_.current = w.pc;
      machine_.executed[size_t(w.pc)]++;
      if (++w.now > machine_.launch.limit) {
        machine_.report(w.pc, "no end", "warp %d has executed %llu instructions", w.id, (unsigned long long)w.now);
        throw Fatal{};
      }
      if (!w.products.empty() || !w.open_products.empty()) check_pending(w, i);
      Mask m = w.active, unsure = 0;
      if (i.guard >= 0) {
        Mask p = *w.at<Mask>(i.guard);
        unsure = w.undefined[size_t(i.guard)] & w.active;
        m &= i.negated ? ~p : p;
      }
      bool waits = false;
      if (i.opcode < kControls) {
        if (unsure) need_defined(w, i.guard, w.active, "a predicate of control flow");
        waits = control(w, i, m);
      } else {
        advance(w, w.pc + 1);
        if (m) handlers()[i.opcode](w, i, m);
        for (int n = 0; n < i.results; n++) {
          int32_t reg = register_of(w, i, n);
          w.written[size_t(reg)] = w.now;
          if (unsure) w.undefined[size_t(reg)] |= unsure;
        }
        if (unsure && (i.results == 0 || touches_memory_[size_t(cta_.current)]))
          need_defined(w, i.guard, w.active, "a predicate");
        if (chance && touches_memory_[size_t(cta_.current)]) waits = machine_.random.next() < chance;
      }
      if (waits || !w.live) return;
    }
  }

  void advance(Warp& w, int pc) {
    if (!w.diverged) {
      w.pc = pc;
    } else {
      for (int l = 0; l < kLanes; l++)
        if (w.active >> l & 1) w.lane_pc[l] = pc;
    }
  }

  bool control(Warp& w, const Instruction& i, Mask m) {
    int here = w.pc;
    switch (i.opcode) {
      case kBranch:
        if (m != 0 && m != w.active && !w.diverged) {
          for (int l = 0; l < kLanes; l++) w.lane_pc[l] = here;
          w.diverged = true;
        }
        if (!w.diverged) {
          w.pc = m ? i.numbers[0] : here + 1;
        } else {
          for (int l = 0; l < kLanes; l++)
            if (w.active >> l & 1) w.lane_pc[l] = m >> l & 1 ? i.numbers[0] : here + 1;
        }
        return false;
      case kReturn:
        advance(w, here + 1);
        w.live &= ~m;
        if (w.live == 0) leave(w);
        return w.live == 0;
      case kBarrier:
        advance(w, here + 1);
        if (m) return wait_at(w, i, m, here);
        return false;
      case kTrap:
        advance(w, here + 1);
        if (m) {
          machine_.report(here, "trap", "reached by warp %d", w.id);
          throw Fatal{};
        }
        return false;
      default:
        advance(w, here + 1);
        return false;
    }
  }

  void leave(Warp& w) {
    bool copies = !w.open_copies.empty(), products = !w.open_products.empty();
    for (const auto& group : w.copies) copies |= !group.empty();
    for (const auto& group : w.products) products |= !group.empty();
    if (copies) machine_.report(cta_.current, "unfinished copy", "warp %d ends before it was waited for", w.id);
    if (products) machine_.report(cta_.current, "unfinished wgmma", "warp %d ends before it was waited for", w.id);
  }

  // bar.sync id{, threads}: numbers are both, 0 threads for all of the CTA.
  bool wait_at(Warp& w, const Instruction& i, Mask m, int here) {
    need_whole_warp(w, m, "bar.sync");
    Barrier& barrier = barriers_[i.numbers[0]];
    int all = int(cta_.warps.size()), wanted = i.numbers[1] ? i.numbers[1] / kLanes : all;
    if (barrier.arrived && barrier.wanted != wanted) {
      machine_.report(here, "deadlock", "warps wait at barrier %d for different numbers of threads", i.numbers[0]);
      throw Fatal{};
    }
    barrier.wanted = wanted;
    barrier.arrived |= uint64_t(1) << w.id;
    w.waits_at = here;
    if (__builtin_popcountll(barrier.arrived) < wanted) return true;
    std::vector<uint32_t> seen(cta_.warps.size()), fenced(cta_.warps.size());
    for (Warp& v : cta_.warps) {
      if (!(barrier.arrived >> v.id & 1)) continue;
      for (size_t n = 0; n < seen.size(); n++) {
        seen[n] = std::max(seen[n], int(n) == v.id ? v.clock : v.seen[n]);
        fenced[n] = std::max(fenced[n], v.fenced[n]);
      }
    }
    if (wanted == all) cta_.generation++;
    for (Warp& v : cta_.warps) {
      if (!(barrier.arrived >> v.id & 1)) continue;
      v.seen = seen;
      v.fenced = fenced;
      v.lanes_synced = ++v.clock;
      v.waits_at = -1;
    }
    barrier = Barrier();
    return true;
  }

  // Registers of an unfinished wgmma may be touched by another wgmma alone.
  void check_pending(Warp& w, const Instruction& i) {
    static const int accumulating[] = {handlers().number("wgmma.mma_async.f16"),
                                       handlers().number("wgmma.mma_async.bf16")};
    if (i.opcode == accumulating[0] || i.opcode == accumulating[1]) return;
    for (int n = 0; n < i.operands; n++) {
      if (!w.pending[size_t(register_of(w, i, n))]) continue;
      machine_.report(w.pc, "unfinished wgmma", "operand %d belongs to one that warp %d has not waited for", n, w.id);
      return;
    }
  }
};

}  // namespace

Machine::Machine(const Program& p, const Launch& l)
    : program(p), launch(l), random(l.seed), executed(size_t(p.instructions)) {
  for (int n = 0; n < p.registers; n++) {
    offsets.push_back(file_size);
    file_size += p.widths[n] == 1 ? 8 : size_t(p.widths[n]) / 8 * kLanes;
  }
}

void Machine::report(int instruction, const char* kind, const char* format, ...) {
  Finding& f = findings[{instruction, kind}];
  if (f.count++ == 0) {
    f.instruction = instruction;
    snprintf(f.kind, sizeof f.kind, "%s", kind);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(f.detail, sizeof f.detail, format, arguments);
    va_end(arguments);
  }
}

extern "C" {

int32_t ptx_opcode(const char* name) {
  return handlers().number(name);
}

// Runs a launch -> how many findings there are, of which at most `room` are written.
int32_t ptx_run(const Program* program, const Launch* launch, Finding* findings, int32_t room, uint64_t* executed) {
  Machine machine(*program, *launch);
  GlobalMemory global(machine);
  machine.global = &global;
  try {
    Scheduler(machine).run_all();
  } catch (const Fatal&) {
  }
  int32_t n = 0;
  for (const auto& entry : machine.findings) {
    if (n < room) findings[n] = entry.second;
    n++;
  }
  memcpy(executed, machine.executed.data(), machine.executed.size() * sizeof(uint64_t));
  return n;
}
}
