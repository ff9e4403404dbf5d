"""The float64 gradients of a memory read, and how far float32 arithmetic may take a kernel from
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..testing import Inputs, compare_close, score_tolerance

NAMES = ("mk", "ms", "mv", "qk", "qe")
UNIT = 2.0**-24  # float32's, which is that of the arithmetic for 16-bit input, too


Read = Callable[..., Any]
Gradients = dict[str, Tensor]


def gradients(read: Read, x: Inputs, upstream: Any) -> Gradients:
    """{name: gradient} of every input of ``read(*x.read)`` that there is; what it returns meets
    ``upstream``.
    """
    inputs = {name: t.detach().requires_grad_() for name, t in zip(NAMES, x.read) if t is not None}
    out = read(*(inputs.get(name) for name in NAMES))
    out, upstream = (t if isinstance(t, tuple) else (t,) for t in (out, upstream))
    return dict(zip(inputs, torch.autograd.grad(out, list(inputs.values()), upstream, allow_unused=True)))


def oracle(index: Tensor | None = None) -> Read:
    """The oracle's dense read with usage; with ``index`` [B, Q, k] over these tokens."""

    def read(mk: Tensor, ms: Tensor | None, mv: Tensor, qk: Tensor, qe: Tensor | None) -> Any:
        if index is None:
            return reference.memory_read(mk, ms, mv, qk, qe, return_usage=True)
        score = reference.similarity(mk, ms, qk, qe)
        chosen = torch.zeros_like(score, dtype=torch.bool).scatter(1, index.transpose(1, 2), True)
        weight = score.masked_fill(~chosen, -math.inf).softmax(1)
        return mv @ weight.unsqueeze(1), weight.sum(2)

    return read


def check_gradients(
    x: Inputs, got: Gradients, d_readout: Tensor, d_usage: Tensor | None = None, index: Tensor | None = None
) -> None:
    """``got`` {name: gradient} against float64 over the same tokens; raises AssertionError beyond
    rounding.
    """
    exact = x.double()
    d_readout = d_readout.double()
    d_usage = torch.zeros_like(exact.usage) if d_usage is None else d_usage.double()
    expected = gradients(oracle(index), exact, (d_readout, d_usage))
    # What float64 leaves where terms cancel to nothing.
    upstream = _largest(d_readout) * _largest(exact.mv) + _largest(d_usage)
    noise = 1e-14 * upstream * (1 + _largest(exact.mk)) ** 2 * (1 + (0 if exact.ms is None else _largest(exact.ms)))
    allowed = rounding(x, d_readout, d_usage, index)
    assert set(got) == set(expected)
    for name, gradient in got.items():
        source = dict(zip(NAMES, x.read))[name]
        assert source is not None
        assert gradient.dtype == source.dtype, name
        info = torch.finfo(gradient.dtype)
        room = allowed[name] + info.eps * expected[name].abs() + max(1e-30, info.smallest_normal * info.eps) + noise
        compare_close(f"gradient of {name}", gradient.double() / room, expected[name] / room, 1.0).check()


def _largest(x: Tensor) -> float:
    return float(x.abs().amax()) if x.numel() else 0.0


def rounding(x: Inputs, d_readout: Tensor, d_usage: Tensor, index: Tensor | None) -> Gradients:
    """{name: the error that float32 may leave in that gradient}, number by number.

    A score that is off by d moves its weight by d, relatively, and by the mean d that the softmax's
    sum carries. Each sum adds its own rounding, of the size of its terms' absolute values about a
    central key, as in xmemk.testing. The kernel chooses its own central key, so the terms are
    larger by the keys' mean distance from the one used here.
    """
    exact = x.double()
    ms = torch.ones_like(exact.mk[:, :1]) if exact.ms is None else exact.ms
    qe = torch.ones_like(exact.qk) if exact.qe is None else exact.qe
    ck, n, q = exact.mk.shape[1], exact.mk.shape[2], exact.qk.shape[2]
    root = math.sqrt(ck)
    score = reference.similarity(exact.mk, ms, exact.qk, qe)
    if index is not None:
        chosen = torch.zeros_like(score, dtype=torch.bool).scatter(1, index.transpose(1, 2), True)
        score = score.masked_fill(~chosen, -math.inf)
    weight = score.softmax(1)
    center = exact.mk.nanmedian(2, keepdim=True).values
    shift = (exact.mk - center).abs().nanmean(2, keepdim=True)
    s = ms.transpose(1, 2) / root
    tolerance = score_tolerance(x) + math.sqrt(2 * ck + 2) * UNIT * s * 2 * (qe * shift**2).sum(1, keepdim=True)
    if ck < 8:  # the square root is that of many roundings that partly cancel; a few may all go one way
        tolerance = 2 * tolerance
    relative = tolerance + (weight * tolerance).sum(1, keepdim=True)

    d_weight = torch.einsum("bocn,bocq->bnq", exact.mv, d_readout) + d_usage.unsqueeze(2)
    size = torch.einsum("bocn,bocq->bnq", exact.mv.abs(), d_readout.abs()) + d_usage.abs().unsqueeze(2)
    centred = (d_weight - (weight * d_weight).sum(1, keepdim=True)).abs()
    terms = 8 + math.sqrt(exact.mv.shape[1] * exact.mv.shape[2])
    off = relative * centred + (weight * relative * centred).sum(1, keepdim=True)
    off = weight * (off + terms * UNIT * (size + (weight * size).sum(1, keepdim=True)))
    d_score = weight * centred

    k, p = (exact.mk - center).unsqueeze(3), (exact.qk - center).unsqueeze(2)  # [B, CK, N, 1], [B, CK, 1, Q]
    apart, together = (k - p).abs(), k.abs() + p.abs() + 2 * shift.unsqueeze(3)
    e, s = qe.unsqueeze(2), s.unsqueeze(1)
    by_token, by_query = (8 + math.sqrt(q)) * UNIT, (8 + math.sqrt(n)) * UNIT

    def summed(of_apart: Tensor, of_together: Tensor, unit: float, over: int) -> Tensor:
        return (off.unsqueeze(1) * of_apart + unit * d_score.unsqueeze(1) * of_together).sum(over)

    return {
        "mk": summed(2 * s * e * apart, 2 * s * e * together, by_token, 3),
        "ms": summed(
            (e * apart**2).sum(1, keepdim=True) / root, (e * together**2).sum(1, keepdim=True) / root, by_token, 3
        ),
        "mv": torch.einsum("bnq,bocq->bocn", weight * (relative + by_token), d_readout.abs()),
        "qk": summed(2 * s * e * apart, 2 * s * e * together, by_query, 2),
        "qe": summed(s * apart**2, s * together**2, by_query, 2),
    }
