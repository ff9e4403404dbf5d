"""The torch.library operators: schemas and fakes. Their kernels are registered by the extension, loaded on first use.

One operator is one boundary for torch.compile and autograd; what needs gradients wraps it (autograd.py), what is plain
PyTorch has no operator at all, so that the compiler sees through it.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

LIBRARY = torch.library.Library("xmemk", "DEF")  # autograd.py adds to it
_PURE = (torch.Tag.pt2_compliant_tag,)

LIBRARY.define("select_prototypes(Tensor usage, SymInt num_prototypes) -> Tensor", tags=_PURE)
LIBRARY.define("evict_lfu(Tensor usage, SymInt keep) -> Tensor", tags=_PURE)
LIBRARY.define("gather_tokens(Tensor x, Tensor index) -> Tensor", tags=_PURE)
# The memory as equally long lists of segments; ms is empty for none, usage is empty unless it is wanted.
LIBRARY.define(
    "memory_read(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, SymInt? top_k, bool return_usage)"
    " -> (Tensor, Tensor)",
    tags=_PURE,
)
# A read that is to be differentiated; top_k is none for all tokens and else less than N. Beside readout (float32 where
# all are read) and usage it returns what the backward pass needs: weight and index [B, Q, k] of the selected tokens, or
# where all are read shift and scale of each query's exponentials [B, 2, Q], and an index with k = 0.
LIBRARY.define(
    "memory_read_saving(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, SymInt? top_k, bool return_usage)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_PURE,
)
# One bool in `wanted` and one gradient for each of mk.., ms.., mv.., qk, qe; those that are not wanted are empty.
LIBRARY.define(
    "memory_read_backward(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, Tensor readout, Tensor weight,"
    " Tensor index, Tensor? d_readout, Tensor? d_usage, bool[] wanted) -> Tensor[]",
    tags=_PURE,
)
LIBRARY.define(
    "affinity_topk(Tensor[] mk, Tensor[] ms, Tensor qk, Tensor? qe, SymInt top_k, bool return_usage)"
    " -> (Tensor, Tensor, Tensor)",
    tags=_PURE,
)
LIBRARY.define("readout_topk(Tensor[] mv, Tensor weight, Tensor index) -> Tensor", tags=_PURE)
LIBRARY.define("readout_topk_scaled(Tensor[] mv, Tensor[] scale, Tensor weight, Tensor index) -> Tensor", tags=_PURE)
LIBRARY.define(
    "potentiate(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor pk, Tensor? pe) -> (Tensor, Tensor)", tags=_PURE
)


@torch.library.register_fake("xmemk::select_prototypes", lib=LIBRARY)
def _(usage: Tensor, num_prototypes: int) -> Tensor:
    return usage.new_empty((usage.shape[0], num_prototypes), dtype=torch.int64)


@torch.library.register_fake("xmemk::evict_lfu", lib=LIBRARY)
def _(usage: Tensor, keep: int) -> Tensor:
    return usage.new_empty((usage.shape[0], keep), dtype=torch.int64)


@torch.library.register_fake("xmemk::gather_tokens", lib=LIBRARY)
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], index.shape[1]))


@torch.library.register_fake("xmemk::memory_read", lib=LIBRARY)
def _(
    mk: list[Tensor],
    ms: list[Tensor],
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor]:
    return _token_major(mv[0], qk.shape[2]), _fake_usage(mk, qk, return_usage)


@torch.library.register_fake("xmemk::memory_read_saving", lib=LIBRARY)
def _(
    mk: list[Tensor],
    ms: list[Tensor],
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, _, q = qk.shape
    readout, usage = _token_major(mv[0], q), _fake_usage(mk, qk, return_usage)
    if top_k is None:
        softmax = qk.new_empty((b, 2, q), dtype=torch.float32)
        return readout.to(torch.float32), usage, softmax, qk.new_empty((b, q, 0), dtype=torch.int64)
    weight = qk.new_empty((b, q, top_k), dtype=torch.float32)
    return readout, usage, weight, qk.new_empty((b, q, top_k), dtype=torch.int64)


@torch.library.register_fake("xmemk::memory_read_backward", lib=LIBRARY)
def _(
    mk: list[Tensor],
    ms: list[Tensor],
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    readout: Tensor,
    weight: Tensor,
    index: Tensor,
    d_readout: Tensor | None,
    d_usage: Tensor | None,
    wanted: list[bool],
) -> list[Tensor]:
    # As rows of channels, one for each token.
    return [
        x.new_empty((x.shape[0], x.shape[-1], *x.shape[1:-1])).movedim(1, -1)
        if x is not None and want
        else qk.new_empty((0,))
        for x, want in zip((*mk, *ms, *mv, qk, qe), wanted)
    ]


@torch.library.register_fake("xmemk::affinity_topk", lib=LIBRARY)
def _(
    mk: list[Tensor], ms: list[Tensor], qk: Tensor, qe: Tensor | None, top_k: int, return_usage: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (qk.shape[0], qk.shape[2], torch.sym_min(top_k, sum(k.shape[2] for k in mk)))
    weight = qk.new_empty(shape, dtype=torch.float32)
    return weight, qk.new_empty(shape, dtype=torch.int64), _fake_usage(mk, qk, return_usage)


@torch.library.register_fake("xmemk::readout_topk", lib=LIBRARY)
def _(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    return _token_major(mv[0], index.shape[1])


@torch.library.register_fake("xmemk::readout_topk_scaled", lib=LIBRARY)
def _(mv: list[Tensor], scale: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    b, o, cv, _ = mv[0].shape
    return weight.new_empty((b, index.shape[1], o, cv), dtype=torch.float32).permute(0, 2, 3, 1)


@torch.library.register_fake("xmemk::potentiate", lib=LIBRARY)
def _(mk: list[Tensor], ms: list[Tensor], mv: list[Tensor], pk: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor]:
    ps = pk.new_empty((pk.shape[0], 1, pk.shape[2]), dtype=torch.float32)
    return ps, _token_major(mv[0], pk.shape[2])


def _token_major(mv: Tensor, queries: int) -> Tensor:
    b, o, cv, _ = mv.shape
    return mv.new_empty((b, queries, o, cv)).permute(0, 2, 3, 1)


def _fake_usage(mk: list[Tensor], qk: Tensor, wanted: bool) -> Tensor:
    shape = (qk.shape[0], sum(k.shape[2] for k in mk)) if wanted else (0,)
    return qk.new_empty(shape, dtype=torch.float32)


_native_error: str | None = ""  # "" until the first look


def native_error() -> str | None:
    """Why the compiled extension cannot be used, in one line; None when it can. Loads it on the first call."""
    global _native_error
    if _native_error == "":
        try:
            importlib.import_module("xmemk._C")
            _native_error = None
        except ModuleNotFoundError as error:
            missing = error.name == "xmemk._C"
            _native_error = "the C++ extension is not built" if missing else f"the C++ extension does not load: {error}"
        except (ImportError, OSError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            _native_error = f"the C++ extension does not load: {line}"
    return _native_error


# What torch.compiler.assume_constant_result does, but that loads the whole compiler, and Triton with it.
native_error._dynamo_marked_constant = True  # type: ignore[attr-defined]


def select_prototypes(usage: Tensor, num_prototypes: int) -> Tensor:
    """usage [B, N] -> index [B, P] int64."""
    result: Tensor = torch.ops.xmemk.select_prototypes(usage, num_prototypes)
    return result


def evict_lfu(usage: Tensor, keep: int) -> Tensor:
    """usage [B, N] -> index [B, keep] int64, ascending."""
    result: Tensor = torch.ops.xmemk.evict_lfu(usage, keep)
    return result


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """x [B, ..., N], index [B, P] int64 -> [B, ..., P]."""
    result: Tensor = torch.ops.xmemk.gather_tokens(x, index)
    return result


def memory_read(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q], usage [B, N] or None."""
    readout, usage = torch.ops.xmemk.memory_read(mk, ms or [], mv, qk, qe, top_k, return_usage)
    return readout, usage if return_usage else None


def memory_read_saving(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor | None]:
    """memory_read with gradients (autograd.py) for mk, ms, mv, qk and qe."""
    if top_k is not None and top_k >= sum(k.shape[2] for k in mk):
        top_k = None
    readout, usage, _, _ = torch.ops.xmemk.memory_read_saving(mk, ms or [], mv, qk, qe, top_k, return_usage)
    return readout.to(mv[0].dtype), usage if return_usage else None


def affinity_topk(
    mk: list[Tensor], ms: list[Tensor] | None, qk: Tensor, qe: Tensor | None, top_k: int, return_usage: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> weight [B, Q, k], index [B, Q, k] with k = min(top_k, N), usage [B, N] or empty."""
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.xmemk.affinity_topk(mk, ms or [], qk, qe, top_k, return_usage)
    return result


def readout_topk(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """-> readout [B, O, CV, Q]."""
    result: Tensor = torch.ops.xmemk.readout_topk(mv, weight, index)
    return result


def readout_topk_scaled(mv: list[Tensor], scale: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """-> readout [B, O, CV, Q] float32."""
    result: Tensor = torch.ops.xmemk.readout_topk_scaled(mv, scale, weight, index)
    return result


def potentiate(
    mk: list[Tensor], ms: list[Tensor] | None, mv: list[Tensor], pk: Tensor, pe: Tensor | None
) -> tuple[Tensor, Tensor]:
    """-> ps [B, 1, P] float32, pv [B, O, CV, P]."""
    result: tuple[Tensor, Tensor] = torch.ops.xmemk.potentiate(mk, ms or [], mv, pk, pe)
    return result
