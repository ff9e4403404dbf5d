"""Checks at the public border.

Their ValueError or TypeError names the argument, what was wanted and what came.
They read metadata only (types, shapes, dtypes, devices). So they cost microseconds, never wait for
a device, and are traced away by torch.compile. What they let through is safe for every backend.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .inputs import MemoryInputs, QueryInputs

Segments = Tensor | Sequence[Tensor]

_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SCALED = (torch.int8, torch.float8_e4m3fn)


def read(
    mk: Segments, ms: Segments | None, mv: Segments | None, qk: Tensor, qe: Tensor | None, *, with_values: bool = True
) -> tuple[MemoryInputs, QueryInputs]:
    """Keys, shrinkage and values of a read, and the queries they are read with.

    Raises TypeError for what is not a floating tensor or mixes dtypes, ValueError for shapes,
    devices and an empty memory.
    """
    keys = _segments("mk", mk)
    values = _segments("mv", mv) if with_values else []  # None is then no memory, and the error says so
    shrinkage = None if ms is None else _segments("ms", ms)
    _tensor("qk", qk, "[B, CK, Q]")
    b, ck, _ = qk.shape
    if ck == 0:
        raise ValueError(f"qk: wanted CK >= 1, got {_shape(qk)}")
    for i, k in enumerate(keys):
        name = _name("mk", mk, i)
        _tensor(name, k, "[B, CK, N]")
        if k.shape[0] != b or k.shape[1] != ck:
            raise ValueError(f"{name}: wanted [B={b}, CK={ck}, N] to go with qk {_shape(qk)}, got {_shape(k)}")
        _same(name, k, "qk", qk)
    for name, listed in (("ms", shrinkage), ("mv", values if with_values else None)):
        if listed is not None and len(listed) != len(keys):
            raise ValueError(f"{name}: wanted {len(keys)} segments as in mk, got {len(listed)}")
    for i, (s, k) in enumerate(zip(shrinkage or (), keys)):
        name = _name("ms", ms, i)
        _tensor(name, s, "[B, 1, N]")
        if s.shape[0] != b or s.shape[1] != 1 or s.shape[2] != k.shape[2]:
            raise ValueError(f"{name}: wanted [B={b}, 1, N={k.shape[2]}] as in mk, got {_shape(s)}")
        _device(name, s, "qk", qk)
    for i, (v, k) in enumerate(zip(values, keys)):
        name = _name("mv", mv, i)
        _tensor(name, v, "[B, O, CV, N]")
        if v.shape[0] != b or v.shape[3] != k.shape[2]:
            raise ValueError(f"{name}: wanted [B={b}, O, CV, N={k.shape[2]}] as in mk, got {_shape(v)}")
        if v.shape[1] != values[0].shape[1] or v.shape[2] != values[0].shape[2]:
            raise ValueError(f"{name}: wanted the O and CV of the first segment {_shape(values[0])}, got {_shape(v)}")
        _device(name, v, "qk", qk)
        _dtype_of_first(name, v, values[0])
    if qe is not None:
        _tensor("qe", qe, "[B, CK, Q]")
        if qe.shape != qk.shape:
            raise ValueError(f"qe: wanted {_shape(qk)} as qk, got {_shape(qe)}")
        _same("qe", qe, "qk", qk)
    memory = MemoryInputs(keys, shrinkage, values)
    if memory.tokens == 0:
        raise ValueError("mk: the memory is empty (N = 0); there is nothing to read")
    return memory, QueryInputs(qk, qe)


def hint(x: object, qk: Tensor, tokens: int) -> None:
    """Tokens that are likely to be among the best of a read, or None.

    The numbers are read on the CPU alone, and not while a compiler traces.
    """
    if x is None:
        return
    if not isinstance(x, Tensor) or x.dtype != torch.int64:
        raise TypeError(f"hint: wanted an int64 tensor [B, Q, k], got {_what(x)}")
    if x.dim() != 3 or x.shape[0] != qk.shape[0] or x.shape[1] != qk.shape[2]:
        raise ValueError(
            f"hint: wanted [B={qk.shape[0]}, Q={qk.shape[2]}, k] to go with qk {_shape(qk)}, got {_shape(x)}"
        )
    _device("hint", x, "qk", qk)
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() == 0:
        return
    least, largest = (int(end) for end in x.aminmax())
    if least < 0 or largest >= tokens:
        raise IndexError(f"hint: wanted 0 to {tokens - 1} (N = {tokens} tokens), got {least if least < 0 else largest}")


def affinity(mv: Segments, weight: Tensor, index: Tensor, dtypes: tuple[torch.dtype, ...] = _FLOATING) -> list[Tensor]:
    """Values and the sparse affinity they are read out with.

    The numbers in index are not read here.
    """
    values = _segments("mv", mv)
    _tensor("weight", weight, "[B, Q, k]")
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise TypeError(f"index: wanted an int64 tensor [B, Q, k], got {_what(index)}")
    if index.shape != weight.shape:
        raise ValueError(f"index: wanted {_shape(weight)} as weight, got {_shape(index)}")
    _device("index", index, "weight", weight)
    for i, v in enumerate(values):
        name = _name("mv", mv, i)
        _tensor(name, v, "[B, O, CV, N]", dtypes)
        if v.shape[0] != weight.shape[0] or v.shape[1:3] != values[0].shape[1:3]:
            sizes = [weight.shape[0], *values[0].shape[1:3]]
            raise ValueError(f"{name}: wanted [B, O, CV, N] with B, O, CV = {sizes}, got {_shape(v)}")
        _device(name, v, "weight", weight)
        _dtype_of_first(name, v, values[0])
    if sum(v.shape[3] for v in values) == 0:
        raise ValueError("mv: the memory is empty (N = 0); there is nothing to read")
    return values


def scaled_affinity(mv: Segments, scale: Segments, weight: Tensor, index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Values of 8 bits, their scale, and the sparse affinity they are read out with."""
    codes, scales = affinity(mv, weight, index, _SCALED), _segments("scale", scale)
    if len(scales) != len(codes):
        raise ValueError(f"scale: wanted {len(codes)} segments as in mv, got {len(scales)}")
    for i, (s, v) in enumerate(zip(scales, codes)):
        name = _name("scale", scale, i)
        _tensor(name, s, "[B, O, G, N]", (torch.float32,))
        groups = scales[0].shape[2]
        if s.shape[:2] != v.shape[:2] or s.shape[3] != v.shape[3] or s.shape[2] != groups or groups < 1:
            shape = [*v.shape[:2], max(1, groups), v.shape[3]]
            raise ValueError(f"{name}: wanted [B, O, G, N] = {shape} to go with mv {_shape(v)}, got {_shape(s)}")
        _device(name, s, "weight", weight)
    return codes, scales


def consolidation(
    mk: Segments, ms: Segments | None, me: Segments | None, mv: Segments, usage_: Tensor, num_prototypes: int
) -> tuple[MemoryInputs, list[Tensor] | None]:
    """The candidates of a consolidation, and their selection, as equally long lists of segments."""
    first = _segments("mk", mk)[0]
    _tensor("mk" if isinstance(mk, Tensor) else "mk[0]", first, "[B, CK, N]")
    candidates, _ = read(mk, ms, mv, first, None)
    selection = None if me is None else _segments("me", me)
    if selection is not None and len(selection) != len(candidates.mk):
        raise ValueError(f"me: wanted {len(candidates.mk)} segments as in mk, got {len(selection)}")
    for i, (e, k) in enumerate(zip(selection or (), candidates.mk)):
        name = _name("me", me, i)
        _tensor(name, e, "[B, CK, N]")
        if e.shape != k.shape:
            raise ValueError(f"{name}: wanted {_shape(k)} as mk, got {_shape(e)}")
        _same(name, e, "mk", k)
    usage(usage_, num_prototypes, "num_prototypes")
    if usage_.shape[0] != first.shape[0] or usage_.shape[1] != candidates.tokens:
        raise ValueError(f"usage: wanted [B={first.shape[0]}, N={candidates.tokens}] as in mk, got {_shape(usage_)}")
    _device("usage", usage_, "mk", first)
    return candidates, selection


def usage(usage: Tensor, count: int, name: str) -> None:
    """A usage vector per batch element and how many tokens to take from it."""
    _tensor("usage", usage, "[B, N]")
    _integer(name, count)
    if not 0 <= count <= usage.shape[1]:
        raise ValueError(f"{name}: wanted 0 to N = {usage.shape[1]} (usage is {_shape(usage)}), got {count}")


def top_k(value: int) -> None:
    _integer("top_k", value)
    if value < 1:
        raise ValueError(f"top_k: wanted at least 1, got {value}")
    if value >= 2**63:
        raise ValueError(f"top_k: wanted a number of 64 bits, got {value}")


def _segments(name: str, x: Segments | None) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    if not isinstance(x, (list, tuple)):
        raise TypeError(f"{name}: wanted a tensor or a list of tensors, got {_what(x)}")
    if len(x) == 0:
        raise ValueError(f"{name}: wanted at least one segment, got an empty {type(x).__name__}")
    return list(x)


def _tensor(name: str, x: object, dimensions: str, dtypes: tuple[torch.dtype, ...] = _FLOATING) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: wanted a tensor {dimensions}, got {_what(x)}")
    if x.dtype not in dtypes:
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        listed = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        raise TypeError(f"{name}: wanted {listed}, got {x.dtype}")
    if x.dim() != dimensions.count(",") + 1:
        raise ValueError(f"{name}: wanted {dimensions}, got {_shape(x)}")


def _same(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    _device(name, x, like_name, like)
    if x.dtype != like.dtype:
        raise TypeError(f"{name}: wanted {like.dtype} as {like_name}, got {x.dtype}")


def _dtype_of_first(name: str, segment: Tensor, first: Tensor) -> None:
    if segment.dtype != first.dtype:
        raise TypeError(f"{name}: wanted {first.dtype} as in the first segment, got {segment.dtype}")


def _device(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{name}: wanted device {like.device} as {like_name}, got {x.device}")


def _integer(name: str, value: object) -> None:
    # A size read off a tensor is a SymInt while torch.compile traces.
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: wanted an int, got {_what(value)}")


def _name(name: str, x: object, i: int) -> str:
    return name if isinstance(x, Tensor) else f"{name}[{i}]"


def _shape(t: Tensor) -> list[int]:
    return list(t.shape)


def _what(x: object) -> str:
    if isinstance(x, Tensor):
        return f"{x.dtype} {_shape(x)}"
    return f"{type(x).__name__} {x!r}"[:60]
