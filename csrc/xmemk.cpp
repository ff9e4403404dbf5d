// The module xmemk._C. Importing it registers the kernels of csrc/cpu and csrc/cuda with the dispatcher; the schemas
// are defined in Python (xmemk/operators/).
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "cpu/first_look.h"
#include "cpu/interrupt.h"
#include "cpu/vec.h"

namespace {

#if defined(_MSC_VER)
constexpr long kStandard = _MSVC_LANG;
#else
constexpr long kStandard = __cplusplus;
#endif

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = compiler();
  info["cxx_standard"] = kStandard;
#if defined(XMEMK_WITH_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cpu_ops"] = std::vector<std::string>{
      "affinity_topk", "empty_packed_keys",    "evict_lfu",          "gather_tokens", "key_centre",
      "memory_read",   "memory_read_backward", "memory_read_saving", "potentiate",    "quantise_keys",
      "readout_topk",  "readout_topk_scaled",  "select_prototypes"};
#if defined(XMEMK_WITH_CUDA)
  info["cuda_ops"] = std::vector<std::string>{"evict_lfu", "gather_tokens", "select_prototypes"};
#else
  info["cuda_ops"] = std::vector<std::string>{};
#endif
  return info;
}

unsigned long main_thread = 0;

// Python runs signal handlers on its main thread, when that asks for it; a KeyboardInterrupt is one that raises.
const xmemk::cpu::InterruptHooks kSignals = {
    [] { return PyThread_get_thread_ident() == main_thread; },
    [] {
      const pybind11::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    },
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  main_thread = pybind11::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  xmemk::cpu::set_interrupt_hooks(kSignals);
  m.doc() = "C++ and CUDA kernels of xmemk.";
  m.def("build_info", &build_info, "What this module was built with, and the operators it has kernels for.");
  m.def("_vector_sets", &xmemk::cpu::vec_names, "The vector instruction sets this processor can run, best first.");
  m.def("_first_look_counts", &xmemk::cpu::first_look_counts,
        "Parts of top-k reads that the first look has served, and those it has given up.");
  m.def("_pin_vector_set", &xmemk::cpu::pin_vec, "For tests: use this set from now on; '' gives the choice back.");
}
