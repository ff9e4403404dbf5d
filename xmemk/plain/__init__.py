"""Backend "torch": plain PyTorch for every op, device and dtype, traceable by torch.compile.

One file per op. Eager reads go through the memory in blocks of queries, so that the N x Q
similarity never exists as a whole. Arithmetic is float32 for float16 and bfloat16 input, and the
input's own dtype otherwise.
"""

from .affinity_topk import affinity_topk
from .consolidate import consolidate
from .derivatives import gradients
from .evict_lfu import evict_lfu
from .gather_tokens import gather_tokens
from .memory_read import memory_read, read_selected
from .memory_read_backward import memory_read_backward
from .memory_read_saving import memory_read_saving
from .potentiate import potentiate
from .read_tensors import ReadTensors
from .readout_topk import readout_topk
from .readout_topk_scaled import readout_topk_scaled
from .select_prototypes import select_prototypes
from .similarity import similarity

__all__ = [
    "ReadTensors",
    "affinity_topk",
    "consolidate",
    "evict_lfu",
    "gather_tokens",
    "gradients",
    "memory_read",
    "memory_read_backward",
    "memory_read_saving",
    "potentiate",
    "read_selected",
    "readout_topk",
    "readout_topk_scaled",
    "select_prototypes",
    "similarity",
]
