// The operator potentiate: the dense read of prototypes, with the shrinkage as one more channel.
#include "../potentiate.h"

#include <vector>

#include <ATen/ops/ones.h>
#include <torch/library.h>

#include "interrupt.h"
#include "read_steps.h"

namespace xmemk::cpu {
namespace {

std::tuple<at::Tensor, at::Tensor> potentiate(at::TensorList mk, at::TensorList ms, at::TensorList mv,
                                              const at::Tensor& pk, const std::optional<at::Tensor>& pe) {
  check_potentiate(mk, ms, mv, pk, pe);
  const Interruptible interruptible;
  std::vector<at::Tensor> shrinkage;
  for (size_t i = 0; i < mk.size(); ++i) {
    shrinkage.push_back(ms.empty() ? at::ones({mk[i].size(0), 1, mk[i].size(2)}, mk[i].options().dtype(at::kFloat))
                                   : ms[i].to(at::kFloat));
  }
  return read_potentiated(mk, shrinkage, mv, pk, pe);
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("potentiate", &potentiate);
}

}  // namespace xmemk::cpu
