"""The report of a patch: the names it bound, and the differences that verification measured."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class VerifiedCalls:
    """The verified calls of one kind ("read", "add")."""

    calls: int = 0
    largest: float = 0.0  # difference of a number, relative to the host's largest (at least 1)
    settled: int = 0  # calls beyond the tolerance that the float64 oracle decided in our favour
    seconds: float = 0.0
    host_seconds: float = 0.0


@dataclass
class PatchReport:
    """The report of a patch; ``print`` it.

    bound: "module.name -> ours" for every name. levels: per copy of a host whether its manager or
    only its functions were replaced. adopted: managers without objects that were taken over. left:
    what stays on the host's own code, and why. untrusted: the fingerprint of every copy whose code
    no known version has.
    """

    families: list[str] = field(default_factory=list)
    bound: list[str] = field(default_factory=list)
    levels: dict[str, str] = field(default_factory=dict)
    adopted: int = 0
    left: list[str] = field(default_factory=list)
    verify: bool = False
    steps: dict[str, VerifiedCalls] = field(default_factory=dict)
    host_stopped: list[str] = field(default_factory=list)  # calls in which the host alone raised
    not_compared: int = 0  # affinities of the host's functions that were not compared
    failed: bool = False  # whether a verified call differed
    untrusted: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def reads(self) -> int:
        """Verified reads."""
        return self.steps["read"].calls if "read" in self.steps else 0

    @property
    def largest(self) -> float:
        """The largest difference of all verified calls."""
        return max((step.largest for step in self.steps.values()), default=0.0)

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds in verified calls: ours, the host's."""
        steps = self.steps.values()
        return sum(s.seconds for s in steps), sum(s.host_seconds for s in steps)

    @property
    def trust(self) -> list[str]:
        """After a clean verified run, what ``trust=`` takes for this code; else nothing."""
        clean = self.verify and self.reads and not (self.failed or self.host_stopped or self.not_compared)
        return sorted(set(self.untrusted.values())) if clean else []

    def count(self, name: str, difference: float, settled: bool, seconds: float, host_seconds: float) -> None:
        """Counts one verified call."""
        with self._lock:
            step = self.steps.setdefault(name, VerifiedCalls())
            step.calls += 1
            step.largest = max(step.largest, difference)
            step.settled += settled
            step.seconds += seconds
            step.host_seconds += host_seconds

    def __str__(self) -> str:
        lines = [f"patched {', '.join(self.families)}"]
        lines += [f"  {where}: {level}" for where, level in self.levels.items()]
        lines += [f"  {line}" for line in self.bound]
        if self.adopted:
            lines.append(f"  {self.adopted} memory managers without objects taken over")
        lines += [f"  not replaced: {what}" for what in self.left]
        for name, s in self.steps.items():
            lines.append(
                f"  {name}: {s.calls} verified, largest difference {s.largest:.2g}, {s.settled} settled in float64, "
                f"{s.seconds:.3f} s against {s.host_seconds:.3f} s"
            )
        ours, host = self.seconds
        if ours + host:
            lines.append(f"  share of the time: ours {ours / (ours + host):.0%}, the host's {host / (ours + host):.0%}")
        lines += [f"  the host stopped: {what}" for what in self.host_stopped]
        if self.not_compared:
            lines.append(f"  {self.not_compared} affinities not compared, since their numbers were used by themselves")
        lines += [f"  verified without a difference; from now on: xmemk.patch(..., trust={x!r})" for x in self.trust]
        return "\n".join(lines)


class PairStopwatch:
    """``with watch.ours()`` adds to ``seconds``, ``with watch.host()`` to ``host_seconds``."""

    def __init__(self) -> None:
        self.seconds = self.host_seconds = 0.0

    @contextlib.contextmanager
    def ours(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    @contextlib.contextmanager
    def host(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.host_seconds += time.perf_counter() - start
