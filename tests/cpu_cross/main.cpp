// The C++ operators without Python, for machines that are emulated: tools/arm64.sh builds and runs this. Each operator
// is called through the dispatcher and held to Eq. 1 to 3 in float64.
#include <cmath>
#include <cstdio>
#include <optional>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "cpu/vec.h"

using at::Tensor;
using Segments = std::vector<Tensor>;

// The schemas of xmemk/operators/, as tools/arm64.sh finds them there.
TORCH_LIBRARY(xmemk, m) {
#define SCHEMA(text) m.def(text);
#include "schemas.inc"
}

namespace {

int failures = 0;

void check(const char* what, const Tensor& got, const Tensor& wanted, double allowed) {
  const double error = (got.to(at::kDouble) - wanted.to(at::kDouble)).abs().max().item<double>();
  const bool passed = got.sizes() == wanted.sizes() && error <= allowed;
  failures += !passed;
  std::printf("%s %s: error %.2g\n", passed ? "passed" : "FAILED", what, error);
}

template <class Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct Case {
  Tensor mk, ms, mv, qk, qe;
  Segments segments(const Tensor& x) const { return {x.narrow(-1, 0, 100), x.narrow(-1, 100, x.size(-1) - 100)}; }
};

Tensor affinity(const Case& c, std::optional<int64_t> top_k) {
  const Tensor k = c.mk.to(at::kDouble), q = c.qk.to(at::kDouble), e = c.qe.to(at::kDouble);
  const Tensor distance = (e.unsqueeze(2) * (k.unsqueeze(3) - q.unsqueeze(2)).square()).sum(1);
  Tensor score = -distance * c.ms.to(at::kDouble).transpose(1, 2) / std::sqrt(double(k.size(1)));
  if (top_k) {
    const Tensor last = std::get<0>(score.topk(*top_k, 1)).slice(1, *top_k - 1);
    score = score.masked_fill(score < last, -INFINITY);
  }
  return score.softmax(1);
}

void read(const Case& c, std::optional<int64_t> top_k, const char* what) {
  using Read =
      std::tuple<Tensor, Tensor>(at::TensorList, at::TensorList, at::TensorList, const Tensor&,
                                 const std::optional<Tensor>&, std::optional<int64_t>, bool,
                                 const std::optional<Tensor>&, std::optional<Segments>, const std::optional<Tensor>&);
  const Segments mk = c.segments(c.mk), ms = c.segments(c.ms), mv = c.segments(c.mv);
  auto [readout, usage] = op<Read>("xmemk::memory_read")
                              .call(mk, ms, mv, c.qk, c.qe, top_k, true, std::nullopt, std::nullopt, std::nullopt);
  const Tensor weight = affinity(c, top_k);
  check(what, readout, at::matmul(c.mv.to(at::kDouble), weight.unsqueeze(1)), 2e-5);
  check("  its usage", usage, weight.sum(2), 2e-4);
}

// Gradients of keys, values and query keys, beside those that autograd finds in float64.
void backward(const Case& c, std::optional<int64_t> top_k, const char* what) {
  using Saving =
      std::tuple<Tensor, Tensor, Tensor, Tensor>(at::TensorList, at::TensorList, at::TensorList, const Tensor&,
                                                 const std::optional<Tensor>&, std::optional<int64_t>, bool);
  using Backward = Segments(at::TensorList, at::TensorList, at::TensorList, const Tensor&, const std::optional<Tensor>&,
                            const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                            const std::optional<Tensor>&, c10::List<bool>);
  const Segments mk = {c.mk}, ms = {c.ms}, mv = {c.mv};
  auto [readout, usage, weight, index] =
      op<Saving>("xmemk::memory_read_saving").call(mk, ms, mv, c.qk, c.qe, top_k, false);
  const Tensor upstream = at::randn(readout.sizes());
  const Segments gradients = op<Backward>("xmemk::memory_read_backward")
                                 .call(mk, ms, mv, c.qk, c.qe, readout, weight, index, upstream, std::nullopt,
                                       c10::List<bool>({true, true, true, true, true}));
  Case exact{c.mk.to(at::kDouble), c.ms, c.mv.to(at::kDouble), c.qk.to(at::kDouble), c.qe};
  for (Tensor* x : {&exact.mk, &exact.mv, &exact.qk}) x->requires_grad_();
  at::matmul(exact.mv, affinity(exact, top_k).unsqueeze(1)).backward(upstream.to(at::kDouble));
  std::printf("%s\n", what);
  check("  of mk", gradients[0], exact.mk.grad(), 2e-3);
  check("  of mv", gradients[2], exact.mv.grad(), 2e-4);
  check("  of qk", gradients[3], exact.qk.grad(), 2e-3);
}

}  // namespace

int main() {
  at::manual_seed(0);
  const int64_t n = 700, q = 130, ck = 64, cv = 96, o = 2;
  // Tokens first in memory, as xmemk.Memory keeps them.
  const Tensor mk = at::randn({1, n, ck}).transpose(1, 2), mv = at::randn({1, n, o, cv}).permute({0, 2, 3, 1});
  const Case c{mk, 1 + at::rand({1, 1, n}), mv, at::randn({1, ck, q}) * 0.5 + mk.narrow(2, 0, q), at::rand({1, ck, q})};
  for (const auto& name : xmemk::cpu::vec_names()) {
    xmemk::cpu::pin_vec(name);
    std::printf("vector set %s, %d threads\n", name.c_str(), at::get_num_threads());
    read(c, 30, "memory_read, top-k");
    read(c, std::nullopt, "memory_read, all tokens");
    backward(c, 30, "gradients, top-k");
    backward(c, std::nullopt, "gradients, all tokens");
    const Tensor usage = at::rand({3, 5000});
    const Tensor best = op<Tensor(const Tensor&, int64_t)>("xmemk::select_prototypes").call(usage, 128);
    check("select_prototypes", best,
          std::get<1>(at::sort(-usage, /*stable=*/std::optional<bool>(true), 1)).narrow(1, 0, 128), 0);
    const Tensor stay = op<Tensor(const Tensor&, int64_t)>("xmemk::evict_lfu").call(usage, 4000);
    check("evict_lfu", stay, std::get<0>(std::get<1>(usage.topk(4000, 1)).sort(1)), 0);
    const Tensor gathered =
        op<Tensor(const Tensor&, const Tensor&)>("xmemk::gather_tokens").call(c.mk, best.narrow(0, 0, 1) % n);
    check("gather_tokens", gathered, c.mk.index_select(2, best[0] % n), 0);
    using Potentiate = std::tuple<Tensor, Tensor>(at::TensorList, at::TensorList, at::TensorList, const Tensor&,
                                                  const std::optional<Tensor>&);
    auto [ps, pv] = op<Potentiate>("xmemk::potentiate").call({c.mk}, {c.ms}, {c.mv}, c.qk, c.qe);
    const Tensor weight = affinity(c, std::nullopt);
    check("potentiate, values", pv, at::matmul(c.mv.to(at::kDouble), weight.unsqueeze(1)), 2e-5);
    check("potentiate, shrinkage", ps, at::matmul(c.ms.to(at::kDouble), weight), 2e-5);
  }
  std::printf(failures ? "%d failed\n" : "all passed\n", failures);
  return failures != 0;
}
