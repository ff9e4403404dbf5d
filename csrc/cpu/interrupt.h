// A way out of a long operation: while it lasts, its own thread asks now and then whether it is to go on, and all
// threads that work for it stop with it.
#pragma once

#include <atomic>

namespace xmemk::cpu {

// What decides: raises an exception where the operation is to end. `concerns_this_thread` says whether to ask on the
// calling thread at all. The Python module sets them (xmemk.cpp); without, nothing is ever asked.
struct InterruptHooks {
  bool (*concerns_this_thread)();
  void (*raise_if_wanted)();
};
void set_interrupt_hooks(const InterruptHooks& hooks);

// While it lives, check_interrupt on this thread asks every 50 ms: a shorter operation never does. For operations that
// may be given up anywhere, since what they write is nobody's yet.
class Interruptible {
 public:
  Interruptible();
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

 private:
  bool outermost_ = false;
};

// What ends the work of a thread whose operation has failed on another; for_each_task catches it.
struct Stopped {};

// While it lives, check_interrupt on this thread throws Stopped once `stopped` is set.
class StopsWith {
 public:
  explicit StopsWith(const std::atomic<bool>& stopped);
  ~StopsWith();
  StopsWith(const StopsWith&) = delete;
  StopsWith& operator=(const StopsWith&) = delete;

 private:
  const std::atomic<bool>* before_;
};

// To be called between pieces of work of a millisecond or less.
void check_interrupt();

}  // namespace xmemk::cpu
