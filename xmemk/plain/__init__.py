"""Backend "torch": plain PyTorch for every op, device and dtype, traceable by torch.compile.

Eager reads go through the memory in blocks of queries, so that the N x Q similarity never exists as a whole.
Arithmetic is float32 for float16 and bfloat16 input, and the input's own dtype otherwise.
"""

from .read import affinity_topk, memory_read, readout_topk, similarity, usage_topk
from .scaled import readout_topk_scaled
from .upkeep import consolidate, evict_lfu, gather_from, gather_tokens, select_prototypes

__all__ = [
    "affinity_topk",
    "consolidate",
    "evict_lfu",
    "gather_from",
    "gather_tokens",
    "memory_read",
    "readout_topk",
    "readout_topk_scaled",
    "select_prototypes",
    "similarity",
    "usage_topk",
]
