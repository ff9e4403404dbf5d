"""``verify=True``: runs the host's own code beside ours, from one state, on every read and add.

**State.** Before each call, the content of our stores is copied into the host's. A difference
therefore belongs to the call in which it shows, and choices that depend on rounding (the k-th
token, the P-th prototype) do not add up.

**Reads.** A read may differ by 1e-5 of the host's largest number, or by four roundings of a 16-bit
type. Beyond that, the queries that differ most are judged by the float64 oracle, with the
tolerances of :mod:`xmemk.testing`. Ours must be right. The host may be off by its rounding: by 1000
times our tolerance in float32, and by three quarters of the readout's size where it computes scores
in 16 bits or TF32, which may choose other tokens. Ours may be no further off than the host's there.

**Copies.** Keys, and counters of tokens that stay, must be bit-exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import reference
from ..testing import Inputs, compare_read
from .report import PairStopwatch, PatchReport

TOLERANCE = 1e-5
_PLAIN = (bool, int, float, str, type(None))
_JUDGED_QUERIES = 32
# Measured with XMem's manager and 16 synthetic frames on a CPU: shares of our tolerance up to 0.21
# in float32, relative errors up to 0.23 under autocast. A doubled readout has a relative error of
# 1.
_HOST_SHARE = 1000.0
_HOST_SIZE = 0.75


def twin_of(original: Any) -> Any:
    """A subclass of the host's manager, whose instances are not taken for managers in use."""
    return type(original.__name__, (original,), {"__module__": original.__module__, "_twin_of_xmemk": True})


def same_settings(ours: Any, host: Any) -> None:
    """Gives the host's twin our plain attributes: numbers, flags and names."""
    for name, value in vars(host).items():
        if name in vars(ours) and isinstance(value, _PLAIN) and isinstance(vars(ours)[name], _PLAIN):
            setattr(host, name, vars(ours)[name])


def in_words(value: Any) -> Any:
    """A value for comparison: tensors by shape and type, objects by their class."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    if isinstance(value, dict):
        return {key: in_words(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_words(x) for x in value]
    return value if isinstance(value, _PLAIN) else f"a {type(value).__name__}"


class VerificationError(AssertionError):
    """Ours and the host's differ too much. The message names the call, the op and the figure."""


class Judge:
    """Compares the results of one call. ``what`` names it: "read 17 of MemoryManager".

    report: learns of a difference, before VerificationError is raised.
    """

    def __init__(self, what: str, report: PatchReport | None = None) -> None:
        self.what = what
        self._report = report
        self.largest = 0.0
        self.settled = False
        self.open_queries = 0  # queries whose k-th token seems to be another one
        self.not_finite = 0  # queries whose readout is finite in ours alone
        self.watch = PairStopwatch()

    def report_to(self, report: PatchReport, name: str) -> None:
        """Adds the call to the report, as one of kind ``name``."""
        report.count(name, self.largest, self.settled, self.watch.seconds, self.watch.host_seconds)

    def fail(self, difference: str) -> NoReturn:
        """Raises VerificationError."""
        if self._report is not None:
            self._report.failed = True
        raise VerificationError(f"{self.what}, {difference}")

    def same(self, op: str, ours: object, host: object) -> None:
        """Compares sizes, labels and the like."""
        if ours != host:
            self.fail(f"{op}: ours is {ours}, the host's is {host}")

    def attributes(self, ours: Any, host: Any, but: Iterable[str]) -> None:
        """Compares what the managers hold beside their stores; ours may hold more."""
        for name, value in vars(host).items():
            if name in but:
                continue
            if name not in vars(ours):
                self.fail(f"the host's code sets {name!r} on the manager, and ours does not")
            self.same(f"attribute {name!r}", in_words(vars(ours)[name]), in_words(value))

    def equal(self, op: str, ours: Tensor | None, host: Tensor | None) -> None:
        """Compares copies, which must be bit-exact."""
        if (ours is None) != (host is None):
            self.fail(f"{op}: ours is {_shape(ours)}, the host's is {_shape(host)}")
        if ours is None or host is None:
            return
        self.same(f"{op}, shape", list(ours.shape), list(host.shape))
        if not torch.equal(ours.to(host.dtype), host):
            count = (ours.to(host.dtype) != host).sum()
            self.fail(f"{op}: {int(count)} of {host.numel()} numbers differ")

    def close(self, op: str, ours: Tensor, host: Tensor, tolerance: float = TOLERANCE) -> None:
        """Compares to within ``tolerance`` of the host's largest number."""
        difference = self._differences(op, ours, host)
        if difference.numel() and not float(difference.max()) <= _allowed(host, tolerance):
            self.fail(f"{op}: differs by {float(difference.max()):.3g}, relative")

    def read(self, op: str, ours: Tensor, host: Tensor, inputs: Callable[[Tensor], Inputs], top_k: int | None) -> None:
        """Compares readouts [B, O, CV, Q].

        inputs(queries): the arguments of the read with these queries alone.
        """
        spoilt = (~host.isfinite() & ours.isfinite()).flatten(0, 2).any(0)
        if bool(spoilt.any()):  # the host's softmax does not subtract the maximum, and every weight was 0
            self._right_alone(op, ours, spoilt, inputs, top_k)
            host = torch.where(spoilt, ours.to(host.dtype), host)
        difference = self._differences(op, ours, host)
        if not difference.numel():
            return
        per_query = difference.amax((0, 1, 2))
        worst = per_query.topk(min(_JUDGED_QUERIES, per_query.numel()))
        if float(worst.values[0]) <= _allowed(host, TOLERANCE):
            return
        queries = worst.indices[worst.values > _allowed(host, TOLERANCE)]
        judged, rough = inputs(queries), _rough(host)
        with torch.autocast(host.device.type, enabled=False):  # it would round the reference, too
            comparison = compare_read(judged, ours[..., queries], top_k=top_k)
            complaint = _far_off(judged, host[..., queries], top_k, rough)
            further = rough and _further(judged, ours[..., queries], host[..., queries], top_k)
        differs = f"{op}: differs from the host's by {float(worst.values[0]):.3g}, relative, and"
        if not comparison.passed:
            self.fail(f"{differs} from float64 by {comparison.share:.3g} times what rounding allows")
        if complaint:
            self.fail(f"{differs} the host's from float64 by {complaint}; ours is right")
        if further:
            self.fail(f"{differs} ours is further from float64 than the host's")
        self.settled = True
        self.open_queries += int((per_query > _allowed(host, TOLERANCE)).sum())

    def _right_alone(
        self, op: str, ours: Tensor, spoilt: Tensor, inputs: Callable[[Tensor], Inputs], top_k: int | None
    ) -> None:
        """Judges ours by float64 alone for queries where the host's readout is not finite."""
        queries = spoilt.nonzero()[:_JUDGED_QUERIES, 0]
        with torch.autocast(ours.device.type, enabled=False):
            comparison = compare_read(inputs(queries), ours[..., queries], top_k=top_k)
        if not comparison.passed:
            self.fail(
                f"{op}: the host's is not finite, and ours differs from float64 by "
                f"{comparison.share:.3g} times what rounding allows"
            )
        self.settled = True
        self.not_finite = int(spoilt.sum())

    def usage(self, op: str, ours: Tensor, host: Tensor) -> None:
        """Compares usage counters. Each open query may have put its mass of 1 on another token."""
        self.same(f"{op}, shape", list(ours.shape), list(host.shape))
        if self.not_finite:  # the host's counters are spoilt where its weights are
            ours, host = ours[host.isfinite()], host[host.isfinite()]
        if not host.numel():
            return
        difference = float((ours.double() - host.double()).abs().max())
        if not difference <= _allowed(host, TOLERANCE) * max(1.0, float(host.abs().max())) + self.open_queries:
            self.fail(f"{op}: a counter differs by {difference:.3g}")

    def _differences(self, op: str, ours: Tensor, host: Tensor) -> Tensor:
        self.same(f"{op}, shape", list(ours.shape), list(host.shape))
        if not host.numel():
            return host.new_zeros(0)
        ours, host = ours.double(), host.double()
        if not torch.equal(ours.isfinite(), host.isfinite()):
            self.fail(f"{op}: NaN or Inf in other places than the host's")
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
    """The error of the host's readout [B, O, CV, Q] in words; empty where rounding explains it.

    Queries whose weights are below the normal numbers, since the host's softmax does not subtract
    the maximum, are left out.
    """
    best = reference.similarity(inputs.mk, inputs.ms, inputs.qk, inputs.qe).amax((0, 1))
    normal = best > math.log(torch.finfo(torch.float32).smallest_normal)
    if not bool(normal.any()):
        return ""
    inputs = replace(inputs, qk=inputs.qk[..., normal], qe=None if inputs.qe is None else inputs.qe[..., normal])
    host = host[..., normal]
    if not rough:
        share = compare_read(inputs, host, top_k=top_k).share
        return "" if share <= _HOST_SHARE else f"{share:.3g} times what rounding allows"
    size = _error(inputs, host, top_k)
    return "" if size <= _HOST_SIZE else f"{size:.3g} times its size"


def _further(inputs: Inputs, ours: Tensor, host: Tensor, top_k: int | None) -> bool:
    """Whether ours is further from float64 than the host's, beyond the rounding to its type."""
    return _error(inputs, ours, top_k) > _error(inputs, host, top_k) + 4 * torch.finfo(ours.dtype).eps


def _error(inputs: Inputs, readout: Tensor, top_k: int | None) -> float:
    """The distance of a readout [B, O, CV, Q] from float64, relative to its size."""
    exact, _ = reference.memory_read(*inputs.double().read, top_k=top_k, return_usage=True)
    return float((readout.double() - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float32).tiny))


def _allowed(host: Tensor, tolerance: float) -> float:
    return max(tolerance, 4 * torch.finfo(host.dtype).eps if host.dtype.itemsize == 2 else 0.0)


def _shape(x: Tensor | None) -> str:
    return "None" if x is None else f"of shape {list(x.shape)}"
