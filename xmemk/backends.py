"""Which backend serves a call: one table of kernels, and one pure function of a call's metadata.

The choice depends on the call and on what can run here, never on the numbers in a tensor.
A backend asked for by name never falls back: the error says what it lacks and which one would do. A
memory may ask for one by name that reads and has no kernels for upkeep; it asks for "auto" there
(:func:`for_upkeep`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from . import operators, plain

# By backend: why it cannot run. In place of what the rows of the table find on this machine.
Errors = Mapping[str, str | None]


@dataclass(frozen=True)
class Kernel:
    """A row of the table: what a backend has for an op, and the calls that it serves."""

    backend: str
    op: str
    run: Callable[..., Any]
    # What runs instead where a gradient is wanted; None where there is no gradient.
    run_with_gradient: Callable[..., Any] | None = None
    device: str | None = None  # None: any
    dtypes: tuple[torch.dtype, ...] | None = None  # None: any
    largest_k: int | None = None
    most_key_channels: int | None = None
    transforms: bool = False  # of torch.func, and forward mode
    takes_hint: bool = False  # whether `run` has the argument hint; other kernels need none
    # (device type, index) -> why the kernel cannot run there, or None.
    error: Callable[[str, int | None], str | None] = lambda *_: None
    remedy: str = ""  # the end of that sentence
    needs: str = ""  # for the table that people read
    remark: str = ""


_ALL_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_FLOAT32_AND_16_BIT = _ALL_DTYPES[:3]
_DOCTOR = "; `xmemk doctor` says how to get it"

_triton = partial(
    Kernel,
    "triton",
    device="cuda",
    dtypes=_FLOAT32_AND_16_BIT,
    largest_k=256,
    most_key_channels=128,
    error=operators.triton_error,
    needs="NVIDIA GPU, compute capability 8.0 or newer",
)
_cuda = partial(
    Kernel,
    "cuda",
    device="cuda",
    dtypes=_ALL_DTYPES,
    error=lambda *_: operators.cuda_error(),
    remedy=_DOCTOR,
    needs="NVIDIA GPU, C++ extension built with CUDA",
)
_cpu = partial(
    Kernel,
    "cpu",
    device="cpu",
    dtypes=_FLOAT32_AND_16_BIT,
    error=lambda *_: operators.native_error(),
    remedy=_DOCTOR,
    needs="CPU, C++ extension",
)
_torch = partial(Kernel, "torch", transforms=True, needs="any")

# "auto" takes the first backend that serves a call. "torch" serves every call, so it is last.
_ROWS = (
    _triton("memory_read", operators.memory_read, operators.memory_read_saving, takes_hint=True),
    _triton("affinity_topk", operators.affinity_topk, takes_hint=True),
    _triton("readout_topk", operators.readout_topk),
    _triton("consolidate", operators.consolidate_triton),
    _cuda("select_prototypes", operators.select_prototypes),
    _cuda("consolidate", operators.consolidate_cuda, remark="potentiation in PyTorch"),
    _cuda("evict_lfu", operators.evict_lfu),
    _cpu("memory_read", operators.memory_read, operators.memory_read_saving, takes_hint=True),
    _cpu("affinity_topk", operators.affinity_topk, takes_hint=True),
    _cpu("readout_topk", operators.readout_topk),
    _cpu("readout_topk_scaled", operators.readout_topk_scaled),
    _cpu("select_prototypes", operators.select_prototypes, dtypes=_ALL_DTYPES),
    _cpu("consolidate", operators.consolidate_cpu, dtypes=_ALL_DTYPES, remark="float64 potentiation in PyTorch"),
    _cpu("evict_lfu", operators.evict_lfu, dtypes=_ALL_DTYPES),
    _torch("memory_read", plain.memory_read, plain.memory_read_saving),
    _torch("affinity_topk", plain.affinity_topk),
    _torch("readout_topk", plain.readout_topk, plain.readout_topk),
    _torch("readout_topk_scaled", plain.readout_topk_scaled, plain.readout_topk_scaled),
    _torch("similarity", plain.similarity, plain.similarity),
    _torch("select_prototypes", plain.select_prototypes),
    _torch("consolidate", plain.consolidate, plain.consolidate),
    _torch("evict_lfu", plain.evict_lfu),
)

# The public functions; readout_topk with a scale is an op of its own, readout_topk_scaled.
OPS = ("memory_read", "affinity_topk", "readout_topk", "similarity", "select_prototypes", "consolidate", "evict_lfu")
BACKENDS = tuple(dict.fromkeys(row.backend for row in _ROWS))

# The table: op -> backend -> row, in the order of preference.
TABLE = {op: {row.backend: row for row in _ROWS if row.op == op} for op in (*OPS, "readout_topk_scaled")}

# Ops with a gradient on some backend. The others select, whatever is asked of their input.
DIFFERENTIABLE = {row.op for row in _ROWS if row.run_with_gradient is not None}

# What a memory leaves to "auto" where the backend it was given has no kernel.
_UPKEEP = ("select_prototypes", "evict_lfu")


class Call(NamedTuple):
    """What the choice depends on.

    device, device_index: of the tensors. dtype: the widest of theirs. key_channels: CK, or 0 where
    the op has no keys. transform: forward mode or a transform of torch.func is under way.
    """

    op: str
    device: str
    gradient: bool
    dtype: torch.dtype = torch.float32
    top_k: int | None = None
    key_channels: int = 0
    device_index: int | None = None
    transform: bool = False


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


def refusal(backend: str, call: Call, errors: Errors | None = None) -> str | None:
    """Why ``backend`` cannot serve ``call``, or None if it can.

    ``errors``: what to suppose of this machine; without it, the table's row is asked.
    """
    row = TABLE[call.op].get(backend)
    if row is None:
        upkeep = f"; a memory with backend={backend!r} leaves it to 'auto'" if call.op in _UPKEEP else ""
        return f"has no kernel for {call.op} in this version{upkeep}"
    if row.device is not None and call.device != row.device:
        return f"needs {row.device} tensors, these are on {call.device}"
    if row.dtypes is not None and call.dtype not in row.dtypes:
        return f"has no {_name(call.dtype)} kernel for {call.op}"
    if call.transform and not row.transforms:
        return f"has no forward mode and no torch.func transforms for {call.op}"
    if call.gradient and row.run_with_gradient is None and call.op in DIFFERENTIABLE:
        return f"has no gradient for {call.op}; detach the inputs or use torch.no_grad()"
    if call.top_k is not None and row.largest_k is not None and call.top_k > row.largest_k:
        return f"has no kernel for top_k above {row.largest_k}, this is {call.top_k}"
    if row.most_key_channels is not None and call.key_channels > row.most_key_channels:
        return f"has no kernel for CK above {row.most_key_channels}, this is {call.key_channels}"
    error = row.error(call.device, call.device_index) if errors is None else errors.get(backend)
    return None if error is None else error + row.remedy


def choose(call: Call, requested: str, errors: Errors | None = None) -> str:
    """The backend that serves ``call``.

    Raises ValueError for an unknown name, or one that cannot.
    """
    if requested == "auto":
        for backend in TABLE[call.op]:
            if refusal(backend, call, errors) is None:
                return backend
    _check_name(requested)
    why = refusal(requested, call, errors)
    if why is not None:
        able = [b for b in BACKENDS if refusal(b, call, errors) is None]
        raise ValueError(f"backend: {requested!r} {why}. Would do: {', '.join(repr(b) for b in able)}")
    return requested


def explain(call: Call, requested: str, errors: Errors | None = None) -> Explanation:
    """The choice with its reasons."""
    why = {b: refusal(b, call, errors) for b in BACKENDS}
    if requested == "auto":
        chosen: str | None = choose(call, requested, errors)
    else:
        _check_name(requested)
        chosen = requested if why[requested] is None else None
    others = {b: w or "could serve it too" for b, w in why.items() if b != chosen}
    return Explanation(call.op, requested, chosen, others)


def for_upkeep(op: str, requested: str) -> str:
    """The backend of a memory's upkeep: "auto" where the ``requested`` one has no kernel for it."""
    without = op in _UPKEEP and requested in BACKENDS and requested not in TABLE[op]
    return "auto" if without else requested


def markdown() -> str:
    """The table in Markdown: a line for the functions of a backend that take the same types."""
    lines = ["| backend | needs | functions | types |", "|---|---|---|---|"]
    for backend in reversed(BACKENDS):
        rows = [TABLE[op][backend] for op in OPS if backend in TABLE[op]]
        for dtypes in dict.fromkeys(row.dtypes for row in rows):
            alike = [row for row in rows if row.dtypes == dtypes]
            functions = ", ".join(_function(row) for row in alike)
            limits = f"; top_k up to {alike[0].largest_k}" if alike[0].largest_k else ""
            limits += f", CK up to {alike[0].most_key_channels}" if alike[0].most_key_channels else ""
            types = ", ".join(_name(dtype) for dtype in dtypes or _ALL_DTYPES)
            lines.append(f"| `{backend}` | {alike[0].needs} | {functions}{limits} | {types} |")
    return "\n".join(lines)


def _function(row: Kernel) -> str:
    words = ["with gradients" if row.run_with_gradient else "", row.remark]
    remarks = ", ".join(word for word in words if word)
    return f"`{row.op}`" + (f" ({remarks})" if remarks else "")


def _check_name(requested: str) -> None:
    if requested != "auto" and requested not in BACKENDS:
        raise ValueError(f"backend: wanted 'auto' or one of {', '.join(BACKENDS)}, got {requested!r}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
