"""The paper's baselines as memories of one tracker: what is kept of a video, and how it is read.

A policy is a :class:`xmemk.video.tracker.FeatureMemory`. Except for XMem's own, policies are the
oracle's stores (:class:`xmemk.reference.Memory`) on other stateless functions, so that a baseline
differs from XMem only in what it is named for. The network is always XMem's, so the figures of
other networks are not reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import api
from ..memory import Memory
from ..reference import Memory as Stores
from ..reference.config import MemoryConfig
from ..video.tracker import FeatureMemory
from .thinned import ThinnedMemory

Segments = Tensor | Sequence[Tensor]
READ_BYTES = 64 << 20  # of a block of dot products, at most
SEED = 14159265  # of random prototypes, and of the first centres of k-means
ROUNDS = 10  # of Lloyd's algorithm, at most


@dataclass(frozen=True)
class _Ops:
    """The functions that the stores call, by default XMem's."""

    memory_read: Callable[..., Any] = api.memory_read
    consolidate: Callable[..., Any] = api.consolidate
    select_prototypes: Callable[..., Any] = api.select_prototypes
    evict_lfu: Callable[..., Any] = api.evict_lfu


def read_by_l2(
    mk: Segments,
    ms: object,
    mv: Segments,
    qk: Tensor,
    qe: object,
    *,
    top_k: int | None = None,
    return_usage: bool = False,
) -> Any:
    """Eq. 1 with STCN's similarity, the negative squared L2 distance of Sec. 2.2.

    Shrinkage and selection are ignored.
    """
    if return_usage:
        return api.memory_read(mk, None, mv, qk, None, top_k=top_k, return_usage=True)
    return api.memory_read(mk, None, mv, qk, None, top_k=top_k)


def read_by_dot_product(
    mk: Segments,
    ms: object,
    mv: Segments,
    qk: Tensor,
    qe: object,
    *,
    top_k: int | None = None,
    return_usage: bool = False,
) -> Any:
    """Eq. 1 with STM's similarity k . q / sqrt(CK), over the ``top_k`` largest or all tokens.

    Returns the readout [B, O, CV, Q], with ``return_usage`` also the usage [B, N]. Queries are
    processed in blocks.
    """
    keys, values = _joined(mk), _joined(mv)
    queries = max(1, READ_BYTES // (4 * keys.shape[0] * keys.shape[2]))
    readouts, usage = [], keys.new_zeros(keys.shape[0], keys.shape[2], dtype=torch.float32)
    for block in qk.split(queries, 2):
        score = (keys.float().transpose(1, 2) @ block.float()) / math.sqrt(keys.shape[1])  # [B, N, Q]
        if top_k is not None and top_k < score.shape[1]:
            best = score.topk(top_k, 1)
            score = torch.full_like(score, -math.inf).scatter(1, best.indices, best.values)
        affinity = score.softmax(1)
        usage += affinity.sum(2)
        readouts.append(values @ affinity[:, None].to(values.dtype))
    readout = torch.cat(readouts, 3)
    return (readout, usage) if return_usage else readout


def _consolidation(select: Callable[[Tensor, Tensor, int], Tensor], potentiate: bool) -> Callable[..., Any]:
    """A consolidation whose prototypes are candidates, potentiated by Eq. 3 or as they are.

    select: (mk, usage, P) -> the indices [B, P] of the candidates.
    """

    def consolidate(
        mk: Tensor, ms: Tensor, me: Tensor | None, mv: Tensor, usage: Tensor, num_prototypes: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        index = select(mk, usage, num_prototypes)
        pk = _picked(mk, index)
        if potentiate:
            return pk, *_potentiated(mk, ms, mv, pk, None if me is None else _picked(me, index))
        return pk, _picked(ms, index), _picked(mv, index)

    return consolidate


def _k_means_consolidation(potentiate: bool) -> Callable[..., Any]:
    """A consolidation whose prototypes are centres of k-means over the candidates' keys.

    With potentiation, a centre is a query of Eq. 3 with the mean selection of its cluster. Without,
    its value and shrinkage are the means of its cluster.
    """

    def consolidate(
        mk: Tensor, ms: Tensor, me: Tensor | None, mv: Tensor, usage: Tensor, num_prototypes: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        pk, cluster = k_means(mk, num_prototypes)
        if potentiate:
            return pk, *_potentiated(mk, ms, mv, pk, None if me is None else _mean(me, cluster, num_prototypes))
        return pk, _mean(ms, cluster, num_prototypes), _mean(mv, cluster, num_prototypes)

    return consolidate


def _potentiated(mk: Tensor, ms: Tensor, mv: Tensor, pk: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eq. 3: shrinkage and values of prototypes with keys pk, read from all candidates."""
    ps = api.memory_read(mk, ms, ms[:, None].to(mk.dtype), pk, pe)
    assert isinstance(ps, Tensor)
    return ps[:, 0].to(ms.dtype), api.memory_read(mk, ms, mv, pk, pe)


def by_usage(mk: Tensor, usage: Tensor, count: int) -> Tensor:
    """The indices [B, count] of the most used candidates, as XMem selects them."""
    return api.select_prototypes(usage, count)


def at_random(mk: Tensor, usage: Tensor | None, count: int) -> Tensor:
    """The indices [B, count] of random candidates of mk [B, CK, N], ascending.

    All sets are equally probable. The choice depends on N alone, so that a run can be repeated.
    """
    generator = torch.Generator().manual_seed(SEED)
    chosen = [torch.randperm(mk.shape[2], generator=generator)[:count].sort().values for _ in range(mk.shape[0])]
    return torch.stack(chosen).to(mk.device)


def k_means(mk: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm, started from random candidates of mk [B, CK, N].

    Returns the centres [B, CK, count] in the type of the keys, and the cluster [B, N] of each
    candidate. A cluster that becomes empty takes the candidate that is farthest from its centre.
    """
    keys = mk.float().transpose(1, 2)  # [B, N, CK]
    centres = _picked(mk.float(), at_random(mk, None, count)).transpose(1, 2)
    cluster = _nearest(keys, centres)
    for _ in range(ROUNDS):
        centres = _mean(keys.transpose(1, 2), cluster, count).transpose(1, 2)
        before, cluster = cluster, _nearest(keys, centres)
        if torch.equal(before, cluster):
            break
    return _mean(keys.transpose(1, 2), cluster, count).to(mk.dtype), cluster


def _nearest(keys: Tensor, centres: Tensor) -> Tensor:
    """keys [B, N, CK], centres [B, P, CK] -> the cluster [B, N] of each key, none of them empty."""
    distance = torch.cdist(keys, centres)
    own, cluster = distance.min(2)
    for b in range(len(cluster)):
        size = cluster[b].bincount(minlength=centres.shape[1])
        for empty in (size == 0).nonzero().flatten():
            spare = size[cluster[b]] > 1
            farthest = own[b].masked_fill(~spare, -1).argmax()
            size[cluster[b, farthest]] -= 1
            cluster[b, farthest] = empty
            size[empty], own[b, farthest] = 1, 0
    return cluster


def _mean(x: Tensor, cluster: Tensor, count: int) -> Tensor:
    """The means [B, ..., count] of x [B, ..., N] over the clusters [B, N], none of them empty."""
    flat = x.flatten(1, -2).float()
    into = cluster[:, None].expand(-1, flat.shape[1], -1)
    total = flat.new_zeros(*flat.shape[:2], count).scatter_add(2, into, flat)
    size = flat.new_zeros(flat.shape[0], 1, count).scatter_add(2, cluster[:, None], torch.ones_like(flat[:, :1]))
    return (total / size).to(x.dtype).view(*x.shape[:-1], count)


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """The tokens ``index`` [B, n] of x [B, ..., N]."""
    between = (1,) * (x.dim() - 2)
    return x.gather(-1, index.view(index.shape[0], *between, -1).expand(*x.shape[:-1], -1))


def _joined(segments: Segments) -> Tensor:
    return segments if isinstance(segments, Tensor) else torch.cat(list(segments), -1)


def _unbounded(config: MemoryConfig, **changes: Any) -> MemoryConfig:
    return replace(config, enable_long_term=False, groups="exact", **changes)


def xmem(config: MemoryConfig) -> FeatureMemory:
    """XMem: "XMem (Ours)" in Table 1 and Fig. 5."""
    return Memory(config)


def no_long_term(config: MemoryConfig) -> FeatureMemory:
    """XMem with a growing working memory in place of long-term memory, as in STCN."""
    # The oracle's stores grow frame by frame, as is to be measured; xmemk.Memory grows in blocks.
    return Stores(_unbounded(config), ops=_Ops())


def stcn(config: MemoryConfig) -> FeatureMemory:
    """STCN: keeps every r-th frame and reads by L2 similarity.

    With an r for which all frames fit the GPU it is the curve "STCN" in Fig. 5.
    """
    return Stores(_unbounded(config), ops=_Ops(memory_read=read_by_l2))


def stcn_subsampled(config: MemoryConfig) -> FeatureMemory:
    """STCN with at most 50 frames: the first, the last, and an even choice between them.

    It is the row "STCN" in Table 1, which limits how often frames are inserted (Sec. 3.1).
    """
    return ThinnedMemory(_unbounded(config), read_by_l2)


def stm(config: MemoryConfig) -> FeatureMemory:
    """STM: at most 50 frames, as for STCN, with all tokens read by the softmax of dot products.

    It is the row "STM" in Table 1.
    """
    return ThinnedMemory(_unbounded(config, top_k=None), read_by_dot_product)


def xmem_plain(config: MemoryConfig) -> FeatureMemory:
    """XMem without potentiation: prototypes are the most used candidates as they are."""
    return Stores(config, ops=_Ops(consolidate=_consolidation(by_usage, False)))


def random_prototypes(config: MemoryConfig) -> FeatureMemory:
    """XMem with random candidates as prototypes, potentiated by Eq. 3."""
    return Stores(config, ops=_Ops(consolidate=_consolidation(at_random, True)))


def random_plain(config: MemoryConfig) -> FeatureMemory:
    """XMem with random candidates as prototypes, without potentiation."""
    return Stores(config, ops=_Ops(consolidate=_consolidation(at_random, False)))


def k_means_prototypes(config: MemoryConfig) -> FeatureMemory:
    """XMem with the centres of k-means as prototypes, potentiated by Eq. 3."""
    return Stores(config, ops=_Ops(consolidate=_k_means_consolidation(True)))


def k_means_plain(config: MemoryConfig) -> FeatureMemory:
    """XMem with the centres and mean values of k-means as prototypes, without potentiation."""
    return Stores(config, ops=_Ops(consolidate=_k_means_consolidation(False)))


POLICIES: dict[str, Callable[[MemoryConfig], FeatureMemory]] = {
    "xmem": xmem,
    "xmem-plain": xmem_plain,
    "no-long-term": no_long_term,
    "stcn": stcn,
    "stcn-subsampled": stcn_subsampled,
    "stm": stm,
    "random": random_prototypes,
    "random-plain": random_plain,
    "kmeans": k_means_prototypes,
    "kmeans-plain": k_means_plain,
}


def make_memory(policy: str, config: MemoryConfig) -> FeatureMemory:
    """An empty memory of a policy. Raises ValueError for a name that is not in POLICIES."""
    if policy not in POLICIES:
        raise ValueError(f"policy: wanted one of {', '.join(POLICIES)}, got {policy!r}")
    return POLICIES[policy](config)
