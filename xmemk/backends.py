"""Which backend serves a call: one pure function of the call's metadata and of what is built.

A backend asked for by name never falls back: the error says what it lacks and which one would do. (A memory may ask for
one by name that reads and has no kernels for upkeep; then it asks for "auto" there, :func:`for_upkeep`.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

OPS = ("memory_read", "affinity_topk", "readout_topk", "similarity", "select_prototypes", "consolidate", "evict_lfu")

# In the order in which "auto" prefers them. "torch" serves every call, so it is last.
BACKENDS = ("triton", "cuda", "cpu", "torch")

# What each backend has kernels for.
_KERNELS: dict[str, frozenset[str]] = {
    # consolidate: selection and gathering; the potentiation between them is plain PyTorch.
    "cuda": frozenset({"select_prototypes", "consolidate", "evict_lfu"}),
    "triton": frozenset({"memory_read", "affinity_topk", "readout_topk", "consolidate"}),
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
# What a memory asks of "auto" where the backend it was given has no kernel.
_UPKEEP = ("select_prototypes", "evict_lfu")
# Those of them that do their arithmetic in float32, and those that have gradients.
_FLOAT32 = {
    "cuda": frozenset[str](),
    "triton": _KERNELS["triton"],
    "cpu": frozenset({"memory_read", "affinity_topk", "readout_topk", "readout_topk_scaled"}),
}
_GRADIENT = {
    "cuda": frozenset[str](),
    "triton": frozenset({"memory_read"}),
    "cpu": frozenset({"memory_read"}),
}
# Sizes up to which the Triton kernels go.
_LARGEST_K, _MOST_KEY_CHANNELS = 256, 128
_DEVICE = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu"}


class Call(NamedTuple):
    """What the choice depends on: the op's name, the tensors' device type, whether gradients are wanted, the widest
    dtype, two sizes, and what keeps Triton's kernels from running (or that its
    interpreter runs them).
    """

    op: str
    device: str
    gradient: bool
    dtype: torch.dtype = torch.float32
    top_k: int | None = None
    key_channels: int = 0
    triton_error: str | None = None
    interpreted: bool = False


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


def refusal(backend: str, call: Call, native_error: str | None, cuda_error: str | None = None) -> str | None:
    """Why ``backend`` cannot serve ``call``, or None if it can.

    The errors are what ops.py says of the extension and of its CUDA kernels.
    """
    if backend == "torch":
        return None
    if call.op not in _KERNELS[backend]:
        upkeep = f"; a memory with backend={backend!r} leaves it to 'auto'" if call.op in _UPKEEP else ""
        return f"has no kernel for {call.op} in this version{upkeep}"
    interpreted = backend == "triton" and call.interpreted and call.device == "cpu"
    if call.device != _DEVICE[backend] and not interpreted:
        return f"needs {_DEVICE[backend]} tensors, these are on {call.device}"
    if call.dtype == torch.float64 and call.op in _FLOAT32[backend]:
        return f"has no float64 kernel for {call.op}"
    if call.gradient and call.op not in _GRADIENT[backend]:
        return f"has no gradient for {call.op}; detach the inputs or use torch.no_grad()"
    if backend == "triton":
        return _triton_refusal(call)
    error = native_error or (cuda_error if backend == "cuda" else None)
    if error is not None:
        return f"{error}; `xmemk doctor` says how to get it"
    return None


def for_upkeep(op: str, requested: str) -> str:
    """What a memory whose backend is ``requested`` asks for in upkeep: "auto" where that one has no kernel at all."""
    without = op in _UPKEEP and op not in _KERNELS.get(requested, frozenset({op}))
    return "auto" if without else requested


def _triton_refusal(call: Call) -> str | None:
    if call.top_k is not None and call.top_k > _LARGEST_K:
        return f"has no kernel for top_k above {_LARGEST_K}, this is {call.top_k}"
    if call.key_channels > _MOST_KEY_CHANNELS:
        return f"has no kernel for CK above {_MOST_KEY_CHANNELS}, this is {call.key_channels}"
    return call.triton_error


def _first(call: Call, native_error: str | None, cuda_error: str | None) -> str:
    """What "auto" takes; the interpreter only by name."""
    at_home = (b for b in BACKENDS if _DEVICE.get(b, call.device) == call.device)
    return next(b for b in at_home if refusal(b, call, native_error, cuda_error) is None)


def choose(call: Call, requested: str, native_error: str | None, cuda_error: str | None = None) -> str:
    """The backend that serves ``call``. Raises ValueError for an unknown name, or one that cannot serve the call."""
    if requested == "auto":
        return _first(call, native_error, cuda_error)
    if requested not in BACKENDS:
        raise ValueError(f"backend: wanted 'auto' or one of {', '.join(BACKENDS)}, got {requested!r}")
    why = refusal(requested, call, native_error, cuda_error)
    if why is not None:
        able = [b for b in BACKENDS if refusal(b, call, native_error, cuda_error) is None]
        raise ValueError(f"backend: {requested!r} {why}. Would do: {', '.join(repr(b) for b in able)}")
    return requested


def explain(call: Call, requested: str, native_error: str | None, cuda_error: str | None = None) -> Explanation:
    """The choice with its reasons."""
    if requested != "auto" and requested not in BACKENDS:
        raise ValueError(f"backend: wanted 'auto' or one of {', '.join(BACKENDS)}, got {requested!r}")
    why = {b: refusal(b, call, native_error, cuda_error) for b in BACKENDS}
    if requested == "auto":
        chosen: str | None = _first(call, native_error, cuda_error)
    else:
        chosen = requested if why[requested] is None else None
    others = {b: w or "could serve it too" for b, w in why.items() if b != chosen}
    return Explanation(call.op, requested, chosen, others)
