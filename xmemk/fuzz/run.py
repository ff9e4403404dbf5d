"""Many cases in a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..backends import Call, refusal
from .cases import DTYPES, Case, draw
from .judge import OPS, differences


@dataclass(frozen=True)
class Report:
    """One call: the number it was drawn from, what it was, and what is wrong with its results."""

    number: int
    op: str
    backend: str
    case: Case
    faults: list[str]


def run(count: int, backend: str, first: int = 0) -> Iterator[Report]:
    """``count`` calls of a backend on the CPU, numbered from ``first``; each op in its turn.

    A call that raises is a fault. Raises ValueError for a backend that cannot run here.
    """
    why = refused(backend)
    if why is not None:
        raise ValueError(f"backend: {backend!r} {why}")
    served = {op: _dtypes(op, backend) for op in OPS}
    served = {op: dtypes for op, dtypes in served.items() if dtypes}
    # Reads have more to go wrong than selections.
    turns = [op for op in served for _ in range(3 if op.startswith(("memory_read", "affinity")) else 1)]
    for number in range(first, first + count):
        op = turns[number % len(turns)]
        case = draw(number, served[op])
        try:
            faults = differences(op, case, backend)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            faults = [f"{type(error).__name__}: {error}"]
        yield Report(number, op, backend, case, faults)


def refused(backend: str) -> str | None:
    """Why a backend cannot run here, or None."""
    return refusal(backend, Call("memory_read", "cpu", False)) if not any(_dtypes(op, backend) for op in OPS) else None


def _dtypes(op: str, backend: str) -> tuple[str, ...]:
    name = op.removesuffix(" backward")
    call = Call(name, "cpu", gradient=name != op)
    return tuple(n for n, dtype in DTYPES.items() if refusal(backend, call._replace(dtype=dtype)) is None)
