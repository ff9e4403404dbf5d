"""The stores of the feature memory: tokens, how often each was read, and the rules that move them.

A store is never changed in place. Every step returns a new one, so a call that raises has changed
nothing. Shapes: B batch, O objects, CK key channels, CV value channels, N tokens, Q query tokens,
HW tokens per frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .config import MemoryConfig

LIFE_OF_A_NEW_TOKEN = 1e-7  # not 0: a token that was never read has usage 0 / 1e-7 = 0


class Ops(Protocol):
    """The stateless functions of the stores, with the signatures of :mod:`xmemk.reference.ops`."""

    @property
    def memory_read(self) -> Callable[..., Any]: ...
    @property
    def select_prototypes(self) -> Callable[..., Any]: ...
    @property
    def consolidate(self) -> Callable[..., Any]: ...
    @property
    def evict_lfu(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Store:
    """The tokens of one store, oldest first, without values, which each group of objects keeps."""

    key: Tensor  # [B, CK, N]
    shrinkage: Tensor  # [B, 1, N]
    selection: Tensor | None  # [B, CK, N]; working memory only, for potentiation
    use: Tensor | None  # [B, N] mass received so far; None where usage is not counted
    life: Tensor | None  # [B, N] number of reads since the token's birth

    @classmethod
    def new(cls, key: Tensor, shrinkage: Tensor, selection: Tensor | None, *, count_usage: bool) -> Store:
        """Tokens before their first read.

        Shrinkage is float32, or float64 with float64 keys. Counters are float64, because float32
        would lose the mass of a read once millions of reads are summed.
        """
        number = torch.promote_types(key.dtype, torch.float32)
        use = life = None
        if count_usage:
            use = torch.zeros(key.shape[0], key.shape[2], dtype=torch.float64, device=key.device)
            life = torch.full_like(use, LIFE_OF_A_NEW_TOKEN)
        return cls(key, shrinkage.to(number), selection, use, life)

    @property
    def size(self) -> int:
        """N."""
        return self.key.shape[-1]

    @property
    def usage(self) -> Tensor:
        """[B, N] mass per read: use "normalized by the duration" in memory (Sec. 2.3).

        RuntimeError where usage is not counted.
        """
        if self.use is None or self.life is None:
            raise RuntimeError(
                "long-term memory is full and usage was not counted, so nothing can be evicted: "
                "set enable_long_term_count_usage=True or a larger max_long_term_elements"
            )
        return (self.use / self.life).to(self.shrinkage.dtype)

    def read_once(self, usage: Tensor) -> Store:
        """The store after a read in which its tokens received the mass ``usage`` [B, N]."""
        if self.use is None or self.life is None:
            return self
        return replace(self, use=self.use + usage.to(self.use.dtype), life=self.life + 1)

    def followed_by(self, other: Store) -> Store:
        """The tokens of this store, then those of ``other``."""
        ours, theirs = self._fields(), other._fields()
        return Store(*(None if a is None else torch.cat([a, b], -1) for a, b in zip(ours, theirs)))  # type: ignore

    def each(self, choose: Callable[[Tensor], Tensor]) -> Store:
        """The tokens that ``choose`` picks of every [B, ..., N]."""
        return Store(*(None if x is None else choose(x) for x in self._fields()))  # type: ignore[arg-type]

    def _fields(self) -> tuple[Tensor | None, ...]:
        return self.key, self.shrinkage, self.selection, self.use, self.life


@dataclass(frozen=True)
class Rules:
    """When the stores change, counted in tokens."""

    config: MemoryConfig
    ops: Ops
    frame: int  # HW, tokens per frame

    def is_full(self, working: Store) -> bool:
        """Whether working memory has reached T_max frames."""
        return self.config.enable_long_term and working.size >= self.config.max_mid_term_frames * self.frame

    def candidates(self, size: int) -> tuple[int, int]:
        """Where the candidates start and stop among ``size`` tokens in working memory.

        "The first frame (with user-provided ground-truth) and the most recent T_min - 1 memory
        frames will be kept" (Sec. 2.3), so that T_min frames remain.
        """
        return self.frame, size - (self.config.min_mid_term_frames - 1) * self.frame

    def prototypes(self, candidates: int) -> int:
        """P, or the number of candidates where that is smaller."""
        return min(self.config.num_prototypes, candidates)

    @property
    def long_term_before_prototypes(self) -> int:
        """The most long-term tokens there may be before P prototypes are appended."""
        return self.config.max_long_term_elements - self.config.num_prototypes

    def new_prototypes(self, key: Tensor, shrinkage: Tensor) -> Store:
        """Prototypes as new long-term tokens, without selection, before their first read."""
        return Store.new(key, shrinkage, None, count_usage=self.config.enable_long_term_count_usage)

    def read(
        self, stores: Sequence[Store], values: Sequence[Tensor], qk: Tensor, qe: Tensor | None, *, count_usage: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Eq. 1 over several stores as one memory.

        values: [B, O, CV, V] per store, which belong to the last V tokens of that store. Returns
        the readout [B, O, CV, Q] and the usage [B, sum of V], or None where it is not counted.
        """
        mk = [last(store.key, value.shape[-1]) for store, value in zip(stores, values)]
        ms = [last(store.shrinkage, value.shape[-1]) for store, value in zip(stores, values)]
        top_k = self.config.top_k
        if not count_usage:
            return self.ops.memory_read(mk, ms, list(values), qk, qe, top_k=top_k), None
        readout, usage = self.ops.memory_read(mk, ms, list(values), qk, qe, top_k=top_k, return_usage=True)
        return readout, usage.detach()


def record(stores: Sequence[Store], usage: Tensor | None) -> list[Store]:
    """The stores after a read with this usage [B, sum of N], or None where usage is not counted."""
    if usage is None:
        return list(stores)
    parts = usage.split([store.size for store in stores], dim=1)
    return [store.read_once(part) for store, part in zip(stores, parts)]


def last(x: Tensor, n: int) -> Tensor:
    """The last n tokens of [B, ..., N], as a view.

    ``x[..., -n:]`` would be all tokens for n = 0.
    """
    return x[..., x.shape[-1] - n :]


def outside(x: Tensor, start: int, stop: int) -> Tensor:
    """The tokens of [B, ..., N] before ``start`` and from ``stop`` on."""
    return torch.cat([x[..., :start], x[..., stop:]], -1)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """The tokens ``index`` [B, n] of [B, ..., N], per batch element."""
    between = (1,) * (x.dim() - 2)
    return x.gather(-1, index.reshape(index.shape[0], *between, -1).expand(*x.shape[:-1], -1))
