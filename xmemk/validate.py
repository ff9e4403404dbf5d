"""Every backend on this machine against the float64 oracle, over dtypes and shapes.

Printed by ``xmemk validate``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from . import api, reference
from .backends import BACKENDS, OPS, Call, refusal
from .testing import (
    Comparison,
    Inputs,
    compare_close,
    compare_consolidate,
    compare_read,
    compare_topk,
    compare_usage,
    make_inputs,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Shape:
    n: int
    q: int
    objects: int = 1
    batch: int = 1
    key_channels: int = 64
    value_channels: int = 64
    token_major: bool = True
    shrinkage: bool = True
    selection: bool = True

    def __str__(self) -> str:
        words = [
            f"N={self.n} Q={self.q} O={self.objects} B={self.batch} CK={self.key_channels} CV={self.value_channels}"
        ]
        words += [] if self.token_major else ["channel-major"]
        words += [] if self.shrinkage else ["no shrinkage"]
        words += [] if self.selection else ["no selection"]
        return " ".join(words)


QUICK = (
    Shape(1, 1),
    Shape(37, 19, objects=3, batch=2, value_channels=33),
    Shape(700, 90, objects=2, token_major=False),
    Shape(500, 64, selection=False, shrinkage=False, key_channels=17),
)
FULL = (
    *QUICK,
    Shape(29, 257),
    Shape(128, 128, objects=5, value_channels=512),
    Shape(1000, 1, batch=3, shrinkage=False),
    Shape(4099, 150, value_channels=128, selection=False),
    Shape(7000, 100, objects=2, value_channels=256),
)


@dataclass
class Outcome:
    """One op on one backend in one dtype.

    checks: how many comparisons. worst: the largest share of the allowed error that one of them
        used.
    """

    op: str
    backend: str
    dtype: str
    checks: int = 0
    worst: float = 0.0
    worst_case: str = ""
    failures: list[str] = field(default_factory=list)
    unavailable: str | None = None

    @property
    def passed(self) -> bool:
        return not self.failures

    def record(self, comparison: Comparison, case: str) -> None:
        self.checks += 1
        if comparison.share >= self.worst:
            self.worst, self.worst_case = comparison.share, case
        if not comparison.passed:
            self.failures.append(f"{case}: {comparison}")

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"passed": self.passed}


def validate(shapes: tuple[Shape, ...], device: str = "cpu", only: str | None = None) -> Iterator[Outcome]:
    """Yields an outcome per op, backend and dtype as each is done; ``only`` is the name of one
    backend.

    A backend that cannot serve an op on this device gives one outcome with the reason, and no
    dtype.
    """
    for row, dtype in _planned(device, only):
        if dtype is None:
            yield row
            continue
        for i, shape in enumerate(shapes):
            try:
                for comparison, case in _compare(row.op, row.backend, shape, dtype, device, seed=i):
                    row.record(comparison, f"{shape}{case}")
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                row.checks += 1
                row.failures.append(f"{shape}: {type(error).__name__}: {error}")
        yield row


def outcomes(device: str = "cpu", only: str | None = None) -> int:
    """How many outcomes :func:`validate` yields."""
    return sum(1 for _ in _planned(device, only))


def _planned(device: str, only: str | None) -> Iterator[tuple[Outcome, torch.dtype | None]]:
    where = torch.device(device)
    for op in OPS:
        for backend in BACKENDS if only is None else (only,):
            call = Call(op, where.type, False, device_index=where.index)
            why = refusal(backend, call)
            if why is not None:
                yield Outcome(op, backend, "", unavailable=why), None
                continue
            for dtype in DTYPES:
                if refusal(backend, call._replace(dtype=dtype)) is None:
                    yield Outcome(op, backend, str(dtype).removeprefix("torch.")), dtype


def _compare(
    op: str, backend: str, shape: Shape, dtype: torch.dtype, device: str, seed: int
) -> Iterator[tuple[Comparison, str]]:
    x = make_inputs(
        shape.n,
        shape.q,
        batch=shape.batch,
        objects=shape.objects,
        key_channels=shape.key_channels,
        value_channels=shape.value_channels,
        dtype=dtype,
        device=device,
        shrinkage=shape.shrinkage,
        selection=shape.selection,
        token_major=shape.token_major,
        seed=seed,
    )
    if op == "memory_read":
        for top_k in (None, 1, 30):
            case = f" k={top_k or 'all'}"
            readout, usage = api.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)
            yield compare_read(x, readout, top_k=top_k), case
            yield compare_usage(x, usage, top_k), case + " usage"
    elif op == "affinity_topk":
        for top_k in (1, 30, 256):
            weight, index = api.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=top_k, backend=backend)[:2]
            yield compare_topk(x, weight, index, top_k), f" k={top_k}"
    elif op == "readout_topk":
        weight, index = reference.affinity_topk(x.mk.float(), x.ms, x.qk.float(), _float(x.qe), top_k=30)[:2]
        expected = reference.readout_topk(x.mv.double(), weight.double(), index)
        yield _close("readout", api.readout_topk(x.mv, weight, index, backend=backend), expected, x.mv), ""
    elif op == "similarity":
        exact = x.double()
        expected = reference.similarity(exact.mk, exact.ms, exact.qk, exact.qe)
        got = api.similarity(x.mk, x.ms, x.qk, x.qe, backend=backend)
        # The largest scores are those that lose most, so the error is measured against them.
        largest = float(expected.abs().amax())
        yield compare_close("similarity", got, expected, 64 * torch.finfo(got.dtype).eps * max(largest, 1.0)), ""
    elif op == "consolidate":
        yield from _compare_consolidation(x, backend)
    else:
        yield from _compare_selection(op, x.usage.to(dtype), backend)


def _compare_consolidation(x: Inputs, backend: str) -> Iterator[tuple[Comparison, str]]:
    n = x.mk.shape[2]
    for count in {1, min(n, 128)}:
        prototypes = api.consolidate(x.mk, x.ms, x.me, x.mv, x.usage, count, backend=backend)
        yield compare_consolidate(x, count, *prototypes), f" P={count}"


def _compare_selection(op: str, usage: Tensor, backend: str) -> Iterator[tuple[Comparison, str]]:
    n = usage.shape[1]
    tied = (usage * 8).round() / 8
    for name, values in (("", usage), (" ties", tied), (" all equal", torch.zeros_like(usage))):
        for count in sorted({0, 1, n // 3, n}):
            got = getattr(api, op)(values, count, backend=backend)
            expected = getattr(reference, op)(values, count)
            yield compare_close("index", got, expected, 0.0), f"{name} {count} of {n}"


def _close(what: str, got: Tensor, expected: Tensor, source: Tensor) -> Comparison:
    """A weighted average may be off by some roundings of its largest source, in float32 and in its
    own dtype.
    """
    largest = float(source.abs().amax()) if source.numel() else 0.0
    arithmetic = torch.float64 if source.dtype == torch.float64 else torch.float32
    unit = torch.finfo(arithmetic).eps * 16 + torch.finfo(got.dtype).eps
    return compare_close(what, got, expected, unit * max(largest, 1.0))


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()
