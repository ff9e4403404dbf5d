"""The structs that kernels take, and how the host makes them of MemoryInputs and QueryInputs.

A kernel is launched with whole structs and names what it reads of them. What a struct has is known when a kernel is
compiled: ``len(memory.mk)`` segments, shrinkage where ``len(memory.ms) > 0``, selection where ``queries.qe is not
None``.

Triton compiles a kernel anew for an integer of a struct that is 1 or that 16 divides. Integers that grow with a memory
are therefore encoded (:func:`encode`), or are parameters of their own that ``do_not_specialize`` lists.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from . import configs

MOST_SEGMENTS = 4  # the most that a kernel takes; the host joins the rest
MOST_BATCHES = 65535  # a dimension of CUDA's grids
TILE = 64  # queries that share a certificate (split_operands.py)
LEAST_CHANNELS = 16  # of a matrix product

Pointer = Any  # a Tensor on the host, a pointer in a kernel
Place = Any  # a token's number: encoded, or in an int64 tensor on the device (sized.py)


class MemoryArgs(NamedTuple):
    """Keys [B, CK, N_i] and shrinkage [B, 1, N_i]; of every field a tuple with one element for each segment.

    Tokens are numbered through all segments. ``starts`` and ``ends`` are the segments' first numbers and those behind
    their last; ``tiles.bound`` and ``tiles.origin`` read them. Strides are of batch, channel and token (b, c, n).
    Where shrinkage is 1 there is none, and its three tuples are empty.
    """

    mk: tuple[Pointer, ...]
    starts: tuple[Place, ...]
    ends: tuple[Place, ...]
    mk_sb: tuple[int, ...]
    mk_sc: tuple[int, ...]
    mk_sn: tuple[int, ...]
    ms: tuple[Pointer, ...] = ()
    ms_sb: tuple[int, ...] = ()
    ms_sn: tuple[int, ...] = ()


class ValueArgs(NamedTuple):
    """Values [B, O, CV, N_i], numbered as the keys; strides are of batch, object, channel and token."""

    mv: tuple[Pointer, ...]
    starts: tuple[Place, ...]
    ends: tuple[Place, ...]
    sb: tuple[int, ...]
    so: tuple[int, ...]
    sc: tuple[int, ...]
    sn: tuple[int, ...]


class QueryArgs(NamedTuple):
    """Queries and selection [B, CK, Q]; strides are of batch, channel and query. Where selection is 1 it is None."""

    qk: Pointer
    qe: Pointer | None
    qk_sb: int
    qk_sc: int
    qk_sq: int
    qe_sb: int | None = None
    qe_sc: int | None = None
    qe_sq: int | None = None


class SplitOperands(NamedTuple):
    """Operands of the similarity for matrix units, made and explained by split_operands.py."""

    keys: Pointer  # [B, NP, 4, CKP] float16: k^2 hi, k hi, k^2 lo, k lo
    scale: Pointer  # [B, NP]: -s / sqrt(CK); -inf for a token that is not readable, and beyond N
    queries: Pointer  # [B, QP, 4, CKP] float16: e hi, -2 e q hi, -2 e q lo, e lo
    offset: Pointer  # [B, QP]: sum_c e q^2
    unscale: Pointer  # [B, QP]: the factor that brings D back to the keys' own scale
    fallback_memory: Pointer  # [B] int32: not 0 where the memory is not certified
    fallback_queries: Pointer  # [B, QP / TILE] int32: not 0 where a tile of queries is not
    center: Pointer  # [B, CKP]: the median key
    NP: int  # N, padded
    QP: int  # Q, padded


class Segments(NamedTuple):
    """A memory on the host, in at most MOST_SEGMENTS segments, none of them empty."""

    args: MemoryArgs
    tokens: int  # N, or the most there may be (sized.py)
    extent: int  # numbers from the first token to the last, with those between aligned segments
    compact: tuple[tuple[Place, ...], tuple[Place, ...]]  # starts and ends of the same segments without gaps


class Requested(NamedTuple):
    """Which gradients a backward pass computes: of keys, shrinkage, values, queries, selection."""

    mk: bool = True
    ms: bool = True
    mv: bool = True
    qk: bool = True
    qe: bool = True

    def of_inputs(self, memory: MemoryInputs, queries: QueryInputs) -> Requested:
        """Without those of a shrinkage or selection that is None."""
        return self._replace(ms=self.ms and memory.ms is not None, qe=self.qe and queries.qe is not None)

    @property
    def of_tokens(self) -> bool:
        """Whether any input of scores that belongs to tokens is among them."""
        return self.mk or self.ms

    @property
    def of_queries(self) -> bool:
        """Whether any input of scores that belongs to queries is among them."""
        return self.qk or self.qe

    @property
    def of_scores(self) -> bool:
        return self.of_tokens or self.of_queries


def segments(memory: MemoryInputs, align: int = 1) -> Segments:
    """The segments that are not empty, each numbered from a multiple of ``align``."""
    check_batch("mk", memory.mk[0])
    used = [i for i, k in enumerate(memory.mk) if k.shape[2] > 0]
    mk = joined([memory.mk[i] for i in used])
    ms = () if memory.ms is None else joined([memory.ms[i] for i in used])
    extent = 0
    for k in mk:
        extent = align_up(extent, align) + k.shape[2]
    args = memory_args(mk, ms, *numbered(mk, align))
    return Segments(args, sum(k.shape[2] for k in mk), extent, numbered(mk))


def memory_args(
    mk: tuple[Tensor, ...], ms: tuple[Tensor, ...], starts: tuple[Place, ...], ends: tuple[Place, ...]
) -> MemoryArgs:
    args = MemoryArgs(mk, starts, ends, *strides(mk))
    if not ms:
        return args
    batch, _, token = strides(ms)
    return args._replace(ms=ms, ms_sb=batch, ms_sn=token)


def value_args(mv: list[Tensor], align: int = 1) -> ValueArgs:
    """The segments that are not empty, numbered as :func:`segments` does."""
    check_batch("mv", mv[0])
    values = joined([v for v in mv if v.shape[3] > 0])
    return ValueArgs(values, *numbered(values, align), *strides(values))


def query_args(queries: QueryInputs) -> QueryArgs:
    qk, qe = queries
    return QueryArgs(qk, qe, *qk.stride(), *(() if qe is None else qe.stride()))


def encode(number: int) -> int:
    """A number as kernels take it: neither 1 nor a multiple of 16, so that a memory that grows keeps its kernels.

    ``tiles.number`` is the inverse.
    """
    return 16 * number + 2


def numbered(segments: tuple[Tensor, ...], align: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Starts and ends, encoded, of segments [B, ..., N_i] that each start at a multiple of ``align``."""
    starts: list[int] = []
    ends: list[int] = []
    last = 0
    for segment in segments:
        first = align_up(last, align)
        last = first + segment.shape[-1]
        starts.append(encode(first))
        ends.append(encode(last))
    return tuple(starts), tuple(ends)


def joined(segments: list[Tensor]) -> tuple[Tensor, ...]:
    """Segments [B, ..., N_i] as at most MOST_SEGMENTS of them, the last one of all the rest."""
    if len(segments) <= MOST_SEGMENTS:
        return tuple(segments)
    rest = torch.cat(segments[MOST_SEGMENTS - 1 :], segments[0].dim() - 1)
    return (*segments[: MOST_SEGMENTS - 1], rest)


def strides(tensors: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    """Strides of [B, ..., N_i] tensors, one tuple for each dimension. The batch's is 0 where B is 1.

    That of a batch of one may be anything, and changes with N.
    """
    one = tensors[0].shape[0] <= 1
    batch, *others = zip(*[t.stride() for t in tensors])
    return (0,) * len(tensors) if one else batch, *others


def check_batch(name: str, like: Tensor) -> None:
    """ValueError where [B, ...] has more batch elements than a grid."""
    if like.shape[0] > MOST_BATCHES:
        raise ValueError(f"{name}: wanted B <= {MOST_BATCHES} for the Triton kernels, got B = {like.shape[0]}")


def align_up(number: int, align: int) -> int:
    return -(-number // align) * align


def padded_channels(channels: int) -> int:
    return max(LEAST_CHANNELS, configs.power_of_2_from(channels))
