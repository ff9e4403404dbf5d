"""Which backend serves a call: one pure function of the call's metadata and of what is built.

A backend asked for by name never falls back: the error says what it lacks and which one would do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

OPS = ("memory_read", "affinity_topk", "readout_topk", "similarity", "select_prototypes", "consolidate", "evict_lfu")

# In the order in which "auto" prefers them. "torch" serves every call, so it is last.
BACKENDS = ("cuda", "triton", "cpu", "torch")

# What each backend has kernels for.
_KERNELS: dict[str, frozenset[str]] = {
    "cuda": frozenset(),
    "triton": frozenset(),
    "cpu": frozenset(
        {
            "memory_read",
            "affinity_topk",
            "readout_topk",
            "readout_topk_scaled",  # readout_topk with a scale
            "select_prototypes",
            "consolidate",
            "evict_lfu",
        }
    ),
}
# Those of them that do their arithmetic in float32.
_FLOAT32 = frozenset({"memory_read", "affinity_topk", "readout_topk", "readout_topk_scaled"})
# Those of them that can be differentiated.
_GRADIENT: dict[str, frozenset[str]] = {"cuda": frozenset(), "triton": frozenset(), "cpu": frozenset({"memory_read"})}
_DEVICE = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu"}


class Call(NamedTuple):
    """What the choice depends on: the op's name, the tensors' device type, whether gradients are wanted, and the
    widest dtype.
    """

    op: str
    device: str
    gradient: bool
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Explanation:
    """Which backend a call uses, and why each other one does not. ``print`` it."""

    op: str
    requested: str
    chosen: str | None
    refusals: dict[str, str]

    def __str__(self) -> str:
        head = f"{self.op}(backend={self.requested!r}) uses {self.chosen!r}"
        if self.chosen is None:
            head = f"{self.op}(backend={self.requested!r}) is refused"
        return "\n".join([head, *(f"  {name}: {why}" for name, why in self.refusals.items())])


def refusal(backend: str, call: Call, native_error: str | None) -> str | None:
    """Why ``backend`` cannot serve ``call``, or None if it can."""
    if backend == "torch":
        return None
    if call.op not in _KERNELS[backend]:
        return f"has no kernel for {call.op} in this version"
    if call.device != _DEVICE[backend]:
        return f"needs {_DEVICE[backend]} tensors, these are on {call.device}"
    if call.dtype == torch.float64 and call.op in _FLOAT32:
        return f"has no float64 kernel for {call.op}"
    if call.gradient and call.op not in _GRADIENT[backend]:
        return f"has no gradient for {call.op}; detach the inputs or use torch.no_grad()"
    if native_error is not None:
        return f"{native_error}; `xmemk doctor` says how to get it"
    return None


def choose(call: Call, requested: str, native_error: str | None) -> str:
    """The backend that serves ``call``. Raises ValueError for an unknown name, or one that cannot serve the call."""
    if requested == "auto":
        for backend in BACKENDS:
            if refusal(backend, call, native_error) is None:
                return backend
    if requested not in BACKENDS:
        raise ValueError(f"backend: wanted 'auto' or one of {', '.join(BACKENDS)}, got {requested!r}")
    why = refusal(requested, call, native_error)
    if why is not None:
        able = [b for b in BACKENDS if refusal(b, call, native_error) is None]
        raise ValueError(f"backend: {requested!r} {why}. Would do: {', '.join(repr(b) for b in able)}")
    return requested


def explain(call: Call, requested: str, native_error: str | None) -> Explanation:
    """The choice with its reasons."""
    if requested != "auto" and requested not in BACKENDS:
        raise ValueError(f"backend: wanted 'auto' or one of {', '.join(BACKENDS)}, got {requested!r}")
    why = {b: refusal(b, call, native_error) for b in BACKENDS}
    if requested == "auto":
        chosen: str | None = next(b for b in BACKENDS if why[b] is None)
    else:
        chosen = requested if why[requested] is None else None
    others = {b: w or "could serve it too" for b, w in why.items() if b != chosen}
    return Explanation(call.op, requested, chosen, others)
