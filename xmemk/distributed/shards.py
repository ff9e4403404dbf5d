"""The ranks that hold the tokens of one memory, and what they send each other."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")
_SHOWN = 16  # numbers that an error can show


class Shards:
    """A ``torch.distributed`` group whose ranks each hold a part of the tokens.

    group: the process group, or None for this process alone. Collectives are called in the same
    order on every rank.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group: wanted a torch.distributed process group or None, got {type(group).__name__}")
        self.group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()

    def slices_of(self, tokens: int) -> list[slice]:
        """The part of each rank of so many tokens."""
        return slices(tokens, self.size)

    def slice_of(self, tokens: int) -> slice:
        """The part of this rank of so many tokens."""
        return slices(tokens, self.size)[self.rank]

    def sizes_of(self, tokens: int) -> list[int]:
        """How many of so many tokens each rank holds."""
        return [part.stop - part.start for part in slices(tokens, self.size)]

    def gather(self, x: Tensor) -> list[Tensor]:
        """``x`` of every rank, equally shaped."""
        if self.size == 1:
            return [x]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        self._run("all_gather", lambda: dist.all_gather(parts, x, group=self.group))
        return parts

    def gather_last(self, x: Tensor, sizes: Sequence[int], fill: float) -> Tensor:
        """``x`` [..., n] of every rank one after the other, where rank r has n = sizes[r]."""
        if self.size == 1:
            return x
        padded = torch.nn.functional.pad(x, (0, max(sizes) - x.shape[-1]), value=fill)
        return torch.cat([part[..., :n] for part, n in zip(self.gather(padded), sizes)], -1)

    def exchange(self, parts: Sequence[Tensor], shape: Sequence[int]) -> list[Tensor]:
        """Sends parts[r] to rank r; returns what every rank sent here, each of ``shape``."""
        if self.size == 1:
            return list(parts)
        sent = torch.cat([part.flatten() for part in parts])
        count = math.prod(shape)
        received = sent.new_empty(self.size * count)
        self._run(
            "all_to_all",
            lambda: dist.all_to_all_single(
                received, sent, [count] * self.size, [part.numel() for part in parts], group=self.group
            ),
        )
        return [part.view(*shape) for part in received.split(count)] if count else [sent.new_empty(shape)] * self.size

    def total(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over ranks, the same bits on every rank.

        Sums of 16-bit tensors are made in float32 and stay so.
        """
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.size == 1:
            return x
        x = x.contiguous() if not x.is_contiguous() else x.clone()
        self._run("all_reduce", lambda: dist.all_reduce(x, group=self.group))
        return x

    def largest(self, x: Tensor) -> Tensor:
        """The element-wise maximum of ``x`` over ranks."""
        if self.size > 1:
            x = x.contiguous().clone()
            self._run("all_reduce", lambda: dist.all_reduce(x, dist.ReduceOp.MAX, group=self.group))
        return x

    def numbers(self, mine: Sequence[int], device: torch.device) -> list[list[int]]:
        """The numbers ``mine`` of every rank, of the same length on every rank."""
        if self.size == 1:
            return [list(mine)]
        return [part.tolist() for part in self.gather(torch.tensor(mine, dtype=torch.int64, device=device))]

    def expect_equal(self, what: str, mine: Sequence[int], device: torch.device) -> None:
        """ValueError, on every rank, where the ranks do not have the same numbers.

        Ranks compare a message of fixed length, since a collective of different lengths would kill
        the process: the first numbers, how many there are, and a checksum of all.
        """
        shown = [*mine[:_SHOWN], *[0] * (_SHOWN - len(mine)), len(mine), zlib.crc32(repr(list(mine)).encode())]
        every = self.numbers(shown, device)
        for rank, other in enumerate(every):
            if other != every[0]:
                here, there = (list(x[: min(_SHOWN, x[_SHOWN])]) for x in (every[0], other))
                raise ValueError(
                    f"{what}: wanted the same on every rank, got {here} on rank 0 and {there} on rank {rank}"
                )

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.size > 1:
            self._run("barrier", lambda: dist.barrier(group=self.group))

    def _run(self, what: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except RuntimeError as error:
            raise RuntimeError(
                f"{what} on rank {self.rank} of {self.size} failed: another rank has died, raised or called something "
                f"else. The memory of this rank is unchanged. torch.distributed says: {str(error).splitlines()[0]}"
            ) from error


def slices(tokens: int, ranks: int) -> list[slice]:
    """So many tokens in a part for each rank; sizes differ by one at most."""
    return [slice(r * tokens // ranks, (r + 1) * tokens // ranks) for r in range(ranks)]


@dataclass(frozen=True)
class Placement:
    """The tokens of a memory: how many each rank holds, and where this rank's stand among all.

    place: [N] int64, ascending.
    """

    place: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, tokens: int, place: Tensor | None, shards: Shards, device: torch.device) -> Placement:
        """Asks every rank. place: as above, or None for rank after rank."""
        sizes = tuple(size[0] for size in shards.numbers([tokens], device))
        if place is None:
            first = sum(sizes[: shards.rank])
            place = torch.arange(first, first + tokens, device=device)
        if place.dtype != torch.int64 or place.shape != (tokens,):
            raise ValueError(f"place: wanted int64 [{tokens}], got {place.dtype} {list(place.shape)}")
        return cls(place, sizes)

    @property
    def most(self) -> int:
        """The most tokens that a rank holds."""
        return max(self.sizes)


class _Total(torch.autograd.Function):
    """The sum over ranks of parts that each rank computes; everything after it is replicated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: Shards) -> Tensor:
        ctx.dtype = x.dtype
        return shards.total(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


class _Replicated(torch.autograd.Function):
    """A replicated tensor that every rank uses for its own tokens: gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.shards.total(gradients[0]).to(gradients[0].dtype), None


def total(x: Tensor, shards: Shards) -> Tensor:
    """:meth:`Shards.total`, differentiable; what follows is computed alike on every rank."""
    return _Total.apply(x, shards)


def replicated(x: Tensor, shards: Shards) -> Tensor:
    """``x`` itself; its gradient is the sum of what the ranks contribute."""
    return _Replicated.apply(x, shards)
