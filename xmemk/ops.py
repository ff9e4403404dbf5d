"""The torch.library operators: schemas and fakes. Their kernels are registered by the extension, loaded on first use.

One operator is one boundary for torch.compile and autograd; what needs gradients wraps it (autograd.py), what is plain
PyTorch has no operator at all, so that the compiler sees through it.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from typing import Any

import torch
from torch import Tensor

from .inputs import MemoryInputs, QueryInputs

LIBRARY = torch.library.Library("xmemk", "DEF")  # autograd.py adds to it
_PURE = (torch.Tag.pt2_compliant_tag,)

LIBRARY.define("select_prototypes(Tensor usage, SymInt num_prototypes) -> Tensor", tags=_PURE)
LIBRARY.define("evict_lfu(Tensor usage, SymInt keep) -> Tensor", tags=_PURE)
# With the number of a row's tokens on the device: size is one number, or [B]. CUDA only.
LIBRARY.define("select_prototypes_sized(Tensor usage, SymInt num_prototypes, Tensor size) -> Tensor", tags=_PURE)
LIBRARY.define("evict_lfu_sized(Tensor usage, SymInt keep, Tensor size) -> Tensor", tags=_PURE)
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


@torch.library.register_fake("xmemk::select_prototypes_sized", lib=LIBRARY)
def _(usage: Tensor, num_prototypes: int, size: Tensor) -> Tensor:
    return usage.new_empty((usage.shape[0], num_prototypes), dtype=torch.int64)


@torch.library.register_fake("xmemk::evict_lfu_sized", lib=LIBRARY)
def _(usage: Tensor, keep: int, size: Tensor) -> Tensor:
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
    return token_major(mv[0], qk.shape[2]), fake_usage(mk, qk, return_usage)


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
    readout, usage = token_major(mv[0], q), fake_usage(mk, qk, return_usage)
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
    return fake_gradients((*mk, *ms, *mv, qk, qe), qk, wanted)


@torch.library.register_fake("xmemk::affinity_topk", lib=LIBRARY)
def _(
    mk: list[Tensor], ms: list[Tensor], qk: Tensor, qe: Tensor | None, top_k: int, return_usage: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (qk.shape[0], qk.shape[2], torch.sym_min(top_k, sum(k.shape[2] for k in mk)))
    weight = qk.new_empty(shape, dtype=torch.float32)
    return weight, qk.new_empty(shape, dtype=torch.int64), fake_usage(mk, qk, return_usage)


@torch.library.register_fake("xmemk::readout_topk", lib=LIBRARY)
def _(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    return token_major(mv[0], index.shape[1])


@torch.library.register_fake("xmemk::readout_topk_scaled", lib=LIBRARY)
def _(mv: list[Tensor], scale: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    b, o, cv, _ = mv[0].shape
    return weight.new_empty((b, index.shape[1], o, cv), dtype=torch.float32).permute(0, 2, 3, 1)


@torch.library.register_fake("xmemk::potentiate", lib=LIBRARY)
def _(mk: list[Tensor], ms: list[Tensor], mv: list[Tensor], pk: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor]:
    ps = pk.new_empty((pk.shape[0], 1, pk.shape[2]), dtype=torch.float32)
    return ps, token_major(mv[0], pk.shape[2])


def token_major(mv: Tensor, queries: int) -> Tensor:
    """A readout [B, O, CV, Q] without data."""
    b, o, cv, _ = mv.shape
    return mv.new_empty((b, queries, o, cv)).permute(0, 2, 3, 1)


def fake_usage(mk: list[Tensor], qk: Tensor, wanted: bool) -> Tensor:
    """A usage [B, N] without data, or an empty one."""
    shape = (qk.shape[0], sum(k.shape[2] for k in mk)) if wanted else (0,)
    return qk.new_empty(shape, dtype=torch.float32)


def fake_gradients(inputs: tuple[Tensor | None, ...], like: Tensor, wanted: list[bool]) -> list[Tensor]:
    """Rows of channels, one for each token; empty where none is wanted."""
    return [
        x.new_empty((x.shape[0], x.shape[-1], *x.shape[1:-1])).movedim(1, -1)
        if x is not None and want
        else like.new_empty((0,))
        for x, want in zip(inputs, wanted)
    ]


def kernels() -> Any:
    """The package of Triton kernels, itself imported on first use."""
    return importlib.import_module("xmemk.kernels")


# On CUDA these have Triton kernels.
def _memory_read_triton(
    mk: list[Tensor],
    ms: list[Tensor],
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor]:
    readout, usage = kernels().memory_read(MemoryInputs(mk, ms or None, mv), QueryInputs(qk, qe), top_k, return_usage)
    return readout, fake_usage(mk, qk, False) if usage is None else usage


def _affinity_topk_triton(
    mk: list[Tensor], ms: list[Tensor], qk: Tensor, qe: Tensor | None, top_k: int, return_usage: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weight, index, usage = kernels().affinity_topk(MemoryInputs(mk, ms or None, []), QueryInputs(qk, qe), top_k, return_usage)
    return weight, index, fake_usage(mk, qk, False) if usage is None else usage


def _potentiate_triton(
    mk: list[Tensor], ms: list[Tensor], mv: list[Tensor], pk: Tensor, pe: Tensor | None
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = kernels().potentiate(MemoryInputs(mk, ms or None, mv), QueryInputs(pk, pe))
    return result


@functools.cache
def _register_triton() -> None:
    """Done at the first look at a GPU."""
    LIBRARY.impl("memory_read", _memory_read_triton, "CUDA")
    LIBRARY.impl("affinity_topk", _affinity_topk_triton, "CUDA")
    LIBRARY.impl("readout_topk", kernels().readout_topk, "CUDA")
    LIBRARY.impl("potentiate", _potentiate_triton, "CUDA")


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


def cuda_error() -> str | None:
    """Why the extension's CUDA kernels cannot be used, in one line; None when they can."""
    error = native_error()
    if error is None and not _built_with_cuda():
        return "the C++ extension is built without CUDA"
    return error


@functools.cache
def _built_with_cuda() -> bool:
    return bool(importlib.import_module("xmemk._C").build_info()["cuda"])


def triton_error(device: str, index: int | None = None) -> str | None:
    """Why the Triton kernels cannot be used on this device, in one line; None when they can."""
    return _triton_error(device, index)


@functools.cache
def _triton_error(device: str, index: int | None) -> str | None:
    try:
        error: str | None = kernels().error(device, index)
    except ModuleNotFoundError:
        return "needs xmemk.kernels, which an installed xmemk has (pip install --no-build-isolation -e . in a checkout)"
    if device == "cuda" and error is None:
        _register_triton()
    return error


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors."""
    return _interpreted()


@functools.cache
def _interpreted() -> bool:
    if triton_error("cpu") is not None:
        return False
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton(like: Tensor) -> Any:
    """The functions of backend "triton" for tensors such as this: the operators, or for the interpreter the kernels
    themselves, since the operators' CPU kernels are others.
    """
    return sys.modules[__name__] if like.device.type == "cuda" else _Interpreted()


class _Interpreted:
    """Until the operators take structs."""

    def memory_read(self, mk, ms, mv, qk, qe, top_k, return_usage):  # type: ignore[no-untyped-def]
        return kernels().memory_read(MemoryInputs(mk, ms, mv), QueryInputs(qk, qe), top_k, return_usage)

    def affinity_topk(self, mk, ms, qk, qe, top_k, return_usage):  # type: ignore[no-untyped-def]
        return kernels().affinity_topk(MemoryInputs(mk, ms, []), QueryInputs(qk, qe), top_k, return_usage)

    def readout_topk(self, mv, weight, index):  # type: ignore[no-untyped-def]
        return kernels().readout_topk(mv, weight, index)

    def potentiate(self, mk, ms, mv, pk, pe):  # type: ignore[no-untyped-def]
        return kernels().potentiate(MemoryInputs(mk, ms, mv), QueryInputs(pk, pe))


def sized() -> Any:
    """The Triton kernels' read of a memory whose size is on the device (kernels/sized.py)."""
    return importlib.import_module("xmemk.kernels.sized")


# What torch.compiler.assume_constant_result does, but that loads the whole compiler, and Triton with it.
for _constant in (native_error, cuda_error, triton_error, interpreted):
    setattr(_constant, "_dynamo_marked_constant", True)  # noqa: B010


def select_prototypes(usage: Tensor, num_prototypes: int, size: Tensor | None = None) -> Tensor:
    """usage [B, N] -> index [B, P] int64.

    ``size``, on CUDA only, int32 or int64 on the device, one number or [B]: how many of the N tokens of each row there
    are. Places without a token are -1. Nothing waits for the device.
    """
    if size is None:
        result: Tensor = torch.ops.xmemk.select_prototypes(usage, num_prototypes)
    else:
        result = torch.ops.xmemk.select_prototypes_sized(usage, num_prototypes, size)
    return result


def evict_lfu(usage: Tensor, keep: int, size: Tensor | None = None) -> Tensor:
    """usage [B, N] -> index [B, keep] int64, ascending; ``size`` as in :func:`select_prototypes`."""
    if size is None:
        result: Tensor = torch.ops.xmemk.evict_lfu(usage, keep)
    else:
        result = torch.ops.xmemk.evict_lfu_sized(usage, keep, size)
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
