"""The operators of torch.ops.xmemk: one file each, with its schema, its fake, its gradient and its
kernel in Triton. The kernels in C++ are registered by the extension (csrc/), which is loaded on
first use.
"""

from .affinity_topk import affinity_topk
from .consolidate import consolidate_cpu, consolidate_cuda, consolidate_triton
from .evict_lfu import evict_lfu
from .gather_tokens import gather_tokens
from .memory_read import memory_read
from .memory_read_saving import memory_read_saving
from .native import cuda_error, native_error, sized, triton_error
from .packed_keys import empty_packed_keys, key_centre, quantise_keys
from .potentiate import potentiate
from .readout_topk import readout_topk, readout_topk_scaled
from .select_prototypes import select_prototypes

__all__ = [
    "affinity_topk",
    "consolidate_cpu",
    "consolidate_cuda",
    "consolidate_triton",
    "cuda_error",
    "empty_packed_keys",
    "evict_lfu",
    "gather_tokens",
    "key_centre",
    "memory_read",
    "memory_read_saving",
    "native_error",
    "potentiate",
    "quantise_keys",
    "readout_topk",
    "readout_topk_scaled",
    "select_prototypes",
    "sized",
    "triton_error",
]
