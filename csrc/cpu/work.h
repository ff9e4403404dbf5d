// Scratch memory and the sharing of work among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include <ATen/Parallel.h>

#include "interrupt.h"
#include "parallel.h"

namespace xmemk::cpu {

// Uninitialised memory on a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(
            ::operator new(static_cast<size_t>(size > 0 ? size : 1) * sizeof(T), std::align_val_t{64}))) {}
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

// f(task, scratch) for tasks [0, count), each taken by the next thread that is free; scratch = make() once per thread.
// Which thread does which task must not show in a result.
template <typename Make, typename F>
void for_each_task(int64_t count, const Make& make, const F& f) {
  if (count == 0) return;
  std::atomic<int64_t> next{0};
  std::atomic<bool> stopped{false};
  parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    const StopsWith stops(stopped);
    try {
      int64_t task = next.fetch_add(1);
      if (task >= count) return;
      auto scratch = make();
      for (; task < count; task = next.fetch_add(1)) {
        check_interrupt();
        f(task, scratch);
      }
    } catch (const Stopped&) {  // another thread's exception is the one to be seen
    } catch (...) {
      stopped = true;
      throw;
    }
  });
}

template <typename F>
void for_each_task(int64_t count, const F& f) {
  for_each_task(count, [] { return 0; }, [&](int64_t task, int) { f(task); });
}

// Asks for n numbers that will be needed soon.
template <typename T>
inline void prefetch(const T* p, int64_t n) {
#if defined(__GNUC__)
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + i);
#else
  (void)p, (void)n;
#endif
}

// out[channel, kColumns] of x[count, channel], 0 behind the last row
template <int64_t kColumns>
inline void transpose(const float* x, int64_t stride, int64_t channels, float* out, int64_t count) {
  constexpr int64_t kBlock = 16;
  for (int64_t c0 = 0; c0 < channels; c0 += kBlock) {
    const int64_t c1 = std::min(c0 + kBlock, channels);
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t c = c0; c < c1; ++c) out[c * kColumns + j] = x[j * stride + c];
    }
    for (int64_t c = c0; c < c1; ++c) std::fill(out + c * kColumns + count, out + (c + 1) * kColumns, 0.0f);
  }
}

inline bool are_finite(const float* x, int64_t count) {
  return std::all_of(x, x + count, [](float v) { return std::isfinite(v); });
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace xmemk::cpu
