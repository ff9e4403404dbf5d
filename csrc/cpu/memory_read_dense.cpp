#include <ATen/ops/empty.h>

#include "memory_read_cpu.h"

namespace xmemk::cpu {

std::tuple<at::Tensor, at::Tensor> read_dense(at::TensorList, at::TensorList, at::TensorList mv, const at::Tensor& qk,
                                              const std::optional<at::Tensor>&, bool) {
  TORCH_CHECK(false, "not yet");
}

}  // namespace xmemk::cpu
