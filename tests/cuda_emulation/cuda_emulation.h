// Enough of CUDA to run a kernel's own source on the CPU: every thread of a block is a fiber, switched at barriers and
// warp operations only, in a chosen order, so that a run is deterministic and a result that depends on the order shows.
// Blocks run one after the other, or, where they wait for each other, each on a thread of its own.
#pragma once

#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static thread_local
#define __launch_bounds__(...)

namespace emulation {

struct Index {
  unsigned x = 0;
};

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::abort();
}

struct Collective {
  unsigned arrived = 0, generation = 0;
  unsigned ended = 0;  // threads that will never arrive again
};

struct Warp {
  Collective all;
  // Of the operation in progress and the one before it, which slower lanes may still read.
  uint64_t given[2][32];
  uint32_t votes[2] = {0, 0};
};

struct Fiber {
  ucontext_t start;
  jmp_buf state;
  bool started = false, ended = false;
  std::unique_ptr<char[]> stack;
};

constexpr size_t kStack = 64 * 1024;

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Collective barrier;
  unsigned current = 0;
  jmp_buf scheduler;
  void (*call)(void*) = nullptr;
  void* kernel = nullptr;
};

inline thread_local Block* block = nullptr;

}  // namespace emulation

inline thread_local emulation::Index threadIdx, blockIdx, gridDim, blockDim;

namespace emulation {

// setjmp and longjmp leave the signal mask alone, so that a switch is no system call.
inline void yield() {
  Block* b = block;
  if (_setjmp(b->fibers[b->current].state) == 0) _longjmp(b->scheduler, 1);
}

inline void arrive(Collective& collective, unsigned expected) {
  const unsigned generation = collective.generation;
  if (++collective.arrived == expected) {
    collective.arrived = 0;
    ++collective.generation;
    return;
  }
  while (collective.generation == generation) {
    if (collective.ended > 0) fail("a thread has ended while others wait for it");
    yield();
  }
}

inline Warp& warp() {
  return block->warps[threadIdx.x / 32];
}

inline void entry() {
  block->call(block->kernel);
  block->fibers[block->current].ended = true;
  ++block->barrier.ended;
  ++warp().all.ended;
  _longjmp(block->scheduler, 1);
}

// schedule 0: threads in order; 1: in reverse; others: in an order drawn with that seed.
template <typename Kernel>
void run_block(Block& b, unsigned index, unsigned blocks, unsigned threads, unsigned schedule, Kernel& kernel) {
  b.fibers.resize(threads);
  b.warps.assign(threads / 32, Warp{});
  b.barrier = {};
  b.kernel = &kernel;
  b.call = [](void* k) { (*static_cast<Kernel*>(k))(); };
  block = &b;
  blockIdx.x = index;
  gridDim.x = blocks;
  blockDim.x = threads;
  for (Fiber& fiber : b.fibers) {
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.started = fiber.ended = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, entry, 0);
  }
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  if (schedule == 1) std::reverse(order.begin(), order.end());
  if (schedule > 1) std::shuffle(order.begin(), order.end(), std::mt19937(schedule + index));
  while (b.barrier.ended < threads) {
    for (const unsigned thread : order) {
      Fiber& fiber = b.fibers[thread];
      if (fiber.ended) continue;
      b.current = thread;
      threadIdx.x = thread;
      if (_setjmp(b.scheduler) != 0) continue;
      if (fiber.started) _longjmp(fiber.state, 1);
      fiber.started = true;
      setcontext(&fiber.start);
    }
  }
}

template <typename Kernel>
void launch(unsigned blocks, unsigned threads, bool together, unsigned schedule, Kernel kernel) {
  if (!together) {
    static thread_local Block b;
    for (unsigned index = 0; index < blocks; ++index) run_block(b, index, blocks, threads, schedule, kernel);
    return;
  }
  std::vector<std::thread> running;
  for (unsigned index = 0; index < blocks; ++index) {
    running.emplace_back([=] {
      Block b;
      Kernel own = kernel;
      run_block(b, index, blocks, threads, schedule, own);
    });
  }
  for (std::thread& one : running) one.join();
}

// Every lane's value, for all lanes to look at.
template <typename T>
const uint64_t* exchange(unsigned mask, T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a register or two");
  if (mask != 0xffffffffu) fail("a warp operation of some lanes only is not emulated");
  Warp& w = warp();
  uint64_t* given = w.given[w.all.generation % 2];
  std::memcpy(&given[threadIdx.x % 32], &value, sizeof(T));
  arrive(w.all, 32);
  return given;
}

template <typename T>
T given(const uint64_t* all, unsigned lane) {
  T value;
  std::memcpy(&value, &all[lane], sizeof(T));
  return value;
}

}  // namespace emulation

inline void __syncthreads() {
  emulation::arrive(emulation::block->barrier, blockDim.x);
}
inline void __syncwarp() {
  emulation::arrive(emulation::warp().all, 32);
}
inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __nanosleep(unsigned) {
  std::this_thread::yield();
  emulation::yield();
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *static_cast<const volatile T*>(p);
}
template <typename T>
T atomicAdd(T* p, T value) {
  return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}

inline unsigned __ballot_sync(unsigned mask, bool vote) {
  if (mask != 0xffffffffu) emulation::fail("a warp operation of some lanes only is not emulated");
  emulation::Warp& w = emulation::warp();
  const unsigned now = w.all.generation % 2;
  if (w.all.arrived == 0) w.votes[now] = 0;
  w.votes[now] |= unsigned(vote) << (threadIdx.x % 32);
  emulation::arrive(w.all, 32);
  return w.votes[now];
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int other) {
  return emulation::given<T>(emulation::exchange(mask, value), threadIdx.x % 32 ^ other);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned offset) {
  const unsigned lane = threadIdx.x % 32;
  return emulation::given<T>(emulation::exchange(mask, value), lane >= offset ? lane - offset : lane);
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t* all = emulation::exchange(mask, value);
  unsigned same = 0;
  for (unsigned lane = 0; lane < 32; ++lane) same |= unsigned(emulation::given<T>(all, lane) == value) << lane;
  return same;
}
