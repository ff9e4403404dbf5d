// at::parallel_for. Under the thread sanitizer, which does not know how OpenMP's threads wait for one another, threads
// of our own in its place (make sanitize-threads).
#pragma once

#include <cstdint>

#include <ATen/Parallel.h>

#if defined(XMEMK_STD_THREADS)
#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace xmemk::cpu {

template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
#if defined(XMEMK_STD_THREADS)
  const int64_t parts =
      std::min<int64_t>(at::get_num_threads(), (end - begin + grain - 1) / std::max<int64_t>(grain, 1));
  if (parts <= 1) {
    if (begin < end) f(begin, end);
    return;
  }
  std::exception_ptr failure;
  std::mutex failing;
  std::vector<std::thread> threads;
  const auto run = [&](int64_t part) {
    try {
      f(begin + part * (end - begin) / parts, begin + (part + 1) * (end - begin) / parts);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing);
      if (!failure) failure = std::current_exception();
    }
  };
  for (int64_t part = 1; part < parts; ++part) threads.emplace_back(run, part);
  run(0);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
#else
  at::parallel_for(begin, end, grain, f);
#endif
}

}  // namespace xmemk::cpu
