#include "vec.h"

#include <atomic>

#include <c10/util/Exception.h>

#include "vec_look.h"

namespace xmemk::cpu {
namespace {

std::vector<const VecKernels*> runnable() {
  std::vector<const VecKernels*> sets;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (__builtin_cpu_supports("avx512vnni")) {
      static const VecKernels vnni = [] {
        VecKernels set = kVecAvx512;
        set.name = "avx512vnni";
        set.look = &kLookAvx512Vnni;
        return set;
      }();
      sets.push_back(&vnni);
    }
    sets.push_back(&kVecAvx512);
  }
  if (avx2) sets.push_back(&kVecAvx2);
#endif
  sets.push_back(&kVecPortable);
  return sets;
}

std::atomic<const VecKernels*> pinned{nullptr};

}  // namespace

const VecKernels& vec() {
  static const VecKernels* const best = runnable().front();
  const VecKernels* chosen = pinned.load(std::memory_order_relaxed);
  return chosen != nullptr ? *chosen : *best;
}

std::vector<std::string> vec_names() {
  std::vector<std::string> names;
  for (const VecKernels* set : runnable()) names.emplace_back(set->name);
  return names;
}

void pin_vec(const std::string& name) {
  const VecKernels* found = nullptr;
  for (const VecKernels* set : runnable()) {
    if (name == set->name) found = set;
  }
  TORCH_CHECK_VALUE(found != nullptr || name.empty(), "pin_vec: this processor has no ", name);
  pinned = found;
}

}  // namespace xmemk::cpu
