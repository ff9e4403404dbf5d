"""What is kept of a video in each method, behind one interface:
:class:`xmemk.video.tracker.FeatureMemory`.

``METHODS[name].make(config)`` is an empty memory that a Tracker, or a loop of ``add`` and ``read``,
can run on. The original's and STCN's have their own formulation of the read: concatenation, N x Q
matrices, a dense affinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from xmemk.benchmarks.peers.formulations import original_similarity

import xmemk
from xmemk.demo import original
from xmemk.evaluation import policies
from xmemk.reference import Memory as Stores
from xmemk.reference import MemoryConfig
from xmemk.video.tracker import FeatureMemory

STCN_TOP_K = 20  # of STCN's released evaluation; XMem's is 30

Segments = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Method:
    """ours: a row to be emphasised. bounded: whether its size has a limit.

    counts: whether what it keeps depends on what was read, so that no read may be left out.
    """

    name: str
    what: str
    make: Callable[[MemoryConfig], FeatureMemory]
    ours: bool = False
    bounded: bool = True
    counts: bool = False


class OriginalFunctions:
    """The stateless functions as the released XMem formulates them, for the oracle's stores with
    groups="xmem".

    Those grow by concatenation as the released ones do. ``hurried``: reads run on xmemk's kernels,
    equal to rounding, for the stretches of a video that nobody times.
    """

    def __init__(self) -> None:
        self.hurried = False

    def memory_read(
        self, mk: Segments, ms: Segments, mv: Segments, qk: Tensor, qe: Tensor, *, top_k: int | None = None,
        return_usage: bool = False,
    ) -> Any:  # fmt: skip
        """:func:`xmemk.memory_read` with shrinkage and selection always there."""
        if self.hurried:
            read: Any = xmemk.memory_read
            return read(mk, ms, mv, qk, qe, top_k=top_k, return_usage=return_usage)
        if top_k is not None:
            readout, usage = original.memory_read(_listed(mk), _listed(ms), _listed(mv), qk, qe, top_k=top_k)
        else:  # potentiation
            affinity = original_similarity(_joined(mk), _joined(ms), qk, qe).softmax(1)
            readout, usage = _joined(mv) @ affinity[:, None], affinity.sum(2)
        return (readout, usage) if return_usage else readout

    def select_prototypes(self, usage: Tensor, num_prototypes: int) -> Tensor:
        """:func:`xmemk.select_prototypes`; which of equals, torch.topk leaves open."""
        return usage.topk(num_prototypes, dim=1).indices


def read_as_stcn(
    mk: Segments, ms: object, mv: Segments, qk: Tensor, qe: object, *, top_k: int | None = None,
    return_usage: bool = False,
) -> Any:  # fmt: skip
    """Eq. 1 with STCN's similarity in one product, (2 k . q - |k|^2) / sqrt(CK).

    That is plain L2 less what is the same for all tokens of a query. The k weights are scattered
    into a dense N x Q affinity.
    """
    key, value = _joined(mk), _joined(mv)
    score = 2 * (key.transpose(1, 2) @ qk) - key.pow(2).sum(1)[..., None]
    score /= math.sqrt(key.shape[1])
    best, index = score.topk(min(top_k or score.shape[1], score.shape[1]), dim=1)
    affinity = torch.zeros_like(score).scatter_(1, index, best.softmax(1))
    readout = value @ affinity[:, None]
    return (readout, affinity.sum(2)) if return_usage else readout


def original_memory(config: MemoryConfig) -> FeatureMemory:
    """The released XMem's: bookkeeping of objects and evictions, formulation, concatenation."""
    return Stores(replace(config, groups="xmem"), ops=OriginalFunctions())  # type: ignore[arg-type]


def stcn_memory(config: MemoryConfig) -> FeatureMemory:
    """STCN's: every r-th frame is kept and nothing leaves."""
    config = replace(config, enable_long_term=False, groups="exact", top_k=STCN_TOP_K)
    return Stores(config, ops=SimpleNamespace(memory_read=read_as_stcn))


METHODS = {
    m.name: m
    for m in (
        Method("xmemk", "xmemk.Memory", policies.xmem, ours=True, counts=True),
        Method("original", "the released XMem's memory and formulation", original_memory, counts=True),
        Method("STCN", "every r-th frame, plain L2 similarity, k = 20", stcn_memory, bounded=False),
    )
}


def hurry(memory: FeatureMemory, hurried: bool) -> None:
    """Whether the reads of a memory that can be hurried are; the others go on as they do."""
    functions = getattr(memory, "ops", None)
    if isinstance(functions, OriginalFunctions):
        functions.hurried = hurried


def held_bytes(memory: FeatureMemory) -> int:
    """Bytes of the tensors that a feature memory holds, without its sensory state."""
    nbytes = getattr(memory, "nbytes", None)
    if nbytes is not None:
        return int(nbytes)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(memory.groups)}  # type: ignore[attr-defined]
    return sum(storages.values())


def held_tokens(memory: FeatureMemory) -> int:
    """N: tokens that a read of the memory goes over."""
    return int(memory.working_size + memory.long_term_size)  # type: ignore[attr-defined]


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (list, tuple)):
        for one in x:
            yield from _tensors(one)
    elif is_dataclass(x):
        for field in fields(x):
            yield from _tensors(getattr(x, field.name))


def _listed(segments: Segments) -> list[Tensor]:
    return [segments] if isinstance(segments, Tensor) else list(segments)


def _joined(segments: Segments) -> Tensor:
    listed = _listed(segments)
    return listed[0] if len(listed) == 1 else torch.cat(listed, -1)
