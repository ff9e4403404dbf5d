"""One memory sharded by tokens over the ranks of a ``torch.distributed`` group.

Every rank holds a part of the tokens, and every rank is given the same queries. A top-k read merges
k candidates per query and rank; a dense read merges the sums of its softmax. Usage stays with the
tokens. Prototype selection, potentiation and eviction run over the tokens of all ranks. The tokens
that are selected do not depend on the number of ranks, and readouts do so by rounding alone.

    torchrun --nproc-per-node 4 follow.py

    torch.distributed.init_process_group("gloo")
    memory = xmemk.distributed.Memory(config, group=torch.distributed.group.WORLD)

From there on, ``memory`` is used as :class:`xmemk.Memory`: every rank makes the same calls with the
same frames. :func:`memory_read` is the stateless read, differentiable, for training.
"""

from .memory import Memory
from .read import affinity_topk, memory_read, readout_topk
from .shards import Placement, Shards
from .upkeep import consolidate, evict_lfu, select_prototypes

__all__ = [
    "Memory",
    "Placement",
    "Shards",
    "affinity_topk",
    "consolidate",
    "evict_lfu",
    "memory_read",
    "readout_topk",
    "select_prototypes",
]
