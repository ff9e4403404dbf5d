"""``verify=True``: the host's own code runs beside ours, from the same state, on every read and every add.

Each call starts from one state: before it, what our stores hold is copied into the host's. So every difference belongs
to the call it is found in, and choices that rounding may decide (the k-th token, the P-th prototype) do not add up.

A read may differ by 1e-5 of the host's largest number (four roundings of a 16-bit type). Beyond that, the queries that
differ most are put to the float64 oracle, with the tolerances of :mod:`xmemk.testing`: where ours is right, the host's
rounding is to blame, as long as the host is about right, too. What it may be off by is generous: 1000 times what ours
may in float32, and three quarters of the readout's size where scores are computed in 16 bits or in TF32, which may
choose other tokens. What is copied (keys, counters of tokens that stay) must be equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..testing import Inputs, compare_read
from .report import Report, Stopwatch

TOLERANCE = 1e-5
_JUDGED_QUERIES = 32
# Measured with XMem's manager and 16 made-up frames on a CPU: shares up to 0.21 in float32, sizes up to 0.23 under
# autocast. A readout that is doubled has a size of 1.
_HOST_SHARE = 1000.0
_HOST_SIZE = 0.75


def twin_of(original: Any) -> Any:
    """The host's class under another identity, so that its instances do not pass for managers of the host's own."""
    return type(original.__name__, (original,), {"__module__": original.__module__, "_twin_of_xmemk": True})


class VerificationError(AssertionError):
    """Ours and the host's differ by more than is allowed. The message names the call, the op and the figure."""


class Judge:
    """Compares the outcomes of one call: ``what`` names it, such as "read 17 of MemoryManager"."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.largest = 0.0
        self.settled = False
        self.open_queries = 0  # whose k-th token, as far as the readouts tell, was chosen differently
        self.watch = Stopwatch()

    def report_to(self, report: Report, name: str) -> None:
        """Counts the call as one of kind ``name``."""
        report.count(name, self.largest, self.settled, self.watch.seconds, self.watch.host_seconds)

    def same(self, op: str, ours: object, host: object) -> None:
        """Sizes, labels and other plain things."""
        if ours != host:
            raise VerificationError(f"{self.what}, {op}: ours is {ours}, the host's is {host}")

    def equal(self, op: str, ours: Tensor | None, host: Tensor | None) -> None:
        """What is only copied: equal to the bit."""
        if (ours is None) != (host is None):
            raise VerificationError(f"{self.what}, {op}: ours is {_shape(ours)}, the host's is {_shape(host)}")
        if ours is None or host is None:
            return
        self.same(f"{op}, shape", list(ours.shape), list(host.shape))
        if not torch.equal(ours.to(host.dtype), host):
            where = (ours.to(host.dtype) != host).sum()
            raise VerificationError(f"{self.what}, {op}: {int(where)} of {host.numel()} numbers differ")

    def close(self, op: str, ours: Tensor, host: Tensor, tolerance: float = TOLERANCE) -> None:
        """Within ``tolerance`` of the host's largest number."""
        difference = self._differences(op, ours, host)
        if difference.numel() and not float(difference.max()) <= _allowed(host, tolerance):
            raise VerificationError(f"{self.what}, {op}: differs by {float(difference.max()):.3g}, relative")

    def read(self, op: str, ours: Tensor, host: Tensor, inputs: Callable[[Tensor], Inputs], top_k: int | None) -> None:
        """A readout [B, O, CV, Q]; ``inputs(queries)`` are the arguments of the read with these queries alone."""
        difference = self._differences(op, ours, host)
        if not difference.numel():
            return
        per_query = difference.amax((0, 1, 2))
        worst = per_query.topk(min(_JUDGED_QUERIES, per_query.numel()))
        if float(worst.values[0]) <= _allowed(host, TOLERANCE):
            return
        queries = worst.indices[worst.values > _allowed(host, TOLERANCE)]
        judged, rough = inputs(queries), _rough(host)
        with torch.autocast(host.device.type, enabled=False):  # which would make the yardstick itself rough
            found = compare_read(judged, ours[..., queries], top_k=top_k)
            complaint = _far_off(judged, host[..., queries], top_k, rough)
        differs = f"{self.what}, {op}: differs from the host's by {float(worst.values[0]):.3g}, relative, and"
        if not found.passed:
            raise VerificationError(f"{differs} from float64 by {found.share:.3g} times what rounding allows")
        if complaint:
            raise VerificationError(f"{differs} the host's from float64 by {complaint}; ours is right")
        self.settled = True
        self.open_queries += int((per_query > _allowed(host, TOLERANCE)).sum())

    def usage(self, op: str, ours: Tensor, host: Tensor) -> None:
        """Counters after a read: a query whose choice is open may have put its mass of 1 elsewhere."""
        self.same(f"{op}, shape", list(ours.shape), list(host.shape))
        if not host.numel():
            return
        difference = float((ours.double() - host.double()).abs().max())
        if not difference <= _allowed(host, TOLERANCE) * max(1.0, float(host.abs().max())) + self.open_queries:
            raise VerificationError(f"{self.what}, {op}: a counter differs by {difference:.3g}")

    def _differences(self, op: str, ours: Tensor, host: Tensor) -> Tensor:
        self.same(f"{op}, shape", list(ours.shape), list(host.shape))
        if not host.numel():
            return host.new_zeros(0)
        ours, host = ours.double(), host.double()
        if not torch.equal(ours.isfinite(), host.isfinite()):
            raise VerificationError(f"{self.what}, {op}: NaN or Inf in other places than the host's")
        scale = host.abs().nan_to_num(0.0, 0.0, 0.0).amax().clamp_min(1)
        difference = ((ours - host).abs() / scale).nan_to_num(0.0)
        self.largest = max(self.largest, float(difference.max()))
        return difference


def _rough(host: Tensor) -> bool:
    """Whether the host may have computed scores in 16 bits or in TF32."""
    device = host.device.type
    tf32 = device == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return host.dtype.itemsize == 2 or torch.is_autocast_enabled(device) or tf32


def _far_off(inputs: Inputs, host: Tensor, top_k: int | None, rough: bool) -> str:
    """How far the host's readout [B, O, CV, Q] is from the truth, in words, where no rounding explains it."""
    if not rough:
        share = compare_read(inputs, host, top_k=top_k).share
        return "" if share <= _HOST_SHARE else f"{share:.3g} times what rounding allows"
    wanted, _ = reference.memory_read(*inputs.double().read, top_k=top_k, return_usage=True)
    size = float((host.double() - wanted).norm() / wanted.norm().clamp_min(torch.finfo(torch.float32).tiny))
    return "" if size <= _HOST_SIZE else f"{size:.3g} times its size"


def _allowed(host: Tensor, tolerance: float) -> float:
    return max(tolerance, 4 * torch.finfo(host.dtype).eps if host.dtype.itemsize == 2 else 0.0)


def _shape(x: Tensor | None) -> str:
    return "None" if x is None else f"of shape {list(x.shape)}"
