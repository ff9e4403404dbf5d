"""Inputs and comparators for validating a memory read against the float64 oracle.

They are public, for other projects too.
The measure is float64. A result may be off by a small factor times what plain PyTorch in the same
dtype is off by, plus an epsilon that grows with the length of the sums. Top-k choices are judged by
the scores of what was chosen and never by index: within the rounding of a score, another choice is
as right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference


@dataclass
class Inputs:
    """Arguments of a memory read; for a consolidation also ``me``, its selection, and ``usage``."""

    mk: Tensor
    ms: Tensor | None
    mv: Tensor
    qk: Tensor
    qe: Tensor | None
    me: Tensor
    usage: Tensor

    @property
    def read(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
        return self.mk, self.ms, self.mv, self.qk, self.qe

    def double(self) -> Inputs:
        """The same numbers in float64, for the oracle."""
        fields = (self.mk, self.ms, self.mv, self.qk, self.qe, self.me, self.usage)
        return Inputs(*(None if t is None else t.detach().double() for t in fields))  # type: ignore[arg-type]


def make_inputs(
    n: int,
    q: int,
    *,
    batch: int = 1,
    objects: int = 1,
    key_channels: int = 64,
    value_channels: int = 512,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    shrinkage: bool = True,
    selection: bool = True,
    token_major: bool = True,
    seed: int = 0,
) -> Inputs:
    """Random features of a video's statistics.

    Each query resembles some memory tokens and differs from most.
    mk [B, CK, N], ms [B, 1, N] in 1 .. 10, mv [B, O, CV, N], qk and qe [B, CK, Q], me [B, CK, N],
    usage [B, N]. Token-major tensors have channel stride 1; otherwise they are contiguous.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    mk = normal(batch, n, key_channels) + 0.5 * normal(1, 1, key_channels)
    source = torch.randint(max(n, 1), (batch, q), generator=g)
    near = mk.gather(1, source.unsqueeze(2).expand(-1, -1, key_channels)) if n else mk.new_zeros(batch, q, key_channels)
    qk = near + 0.3 * normal(batch, q, key_channels)
    mv = normal(batch, n, objects, value_channels)
    ms = 1 + 9 * uniform(batch, n, 1) ** 2
    qe, me = uniform(batch, q, key_channels), uniform(batch, n, key_channels)
    usage = uniform(batch, n) ** 4

    def placed(x: Tensor, as_dtype: torch.dtype = dtype) -> Tensor:
        x = x.movedim(1, -1).to(device, as_dtype)
        return x if token_major else x.contiguous()

    return Inputs(
        mk=placed(mk),
        ms=placed(ms, _float32_or_more(dtype)) if shrinkage else None,
        mv=placed(mv),
        qk=placed(qk),
        qe=placed(qe) if selection else None,
        me=placed(me),
        usage=usage.to(device),
    )


def _float32_or_more(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class Comparison:
    """error: the largest absolute error, in the units of what was compared.

    share: the largest share of the allowed error that any number used; up to 1 passes.
    """

    what: str
    error: float
    share: float

    @property
    def passed(self) -> bool:
        return self.share <= 1  # NaN fails

    def __str__(self) -> str:
        return f"{self.what}: error {self.error:.3g}, {self.share:.3g} times what is allowed"

    def check(self) -> None:
        """Raises AssertionError when the comparison failed."""
        if not self.passed:
            raise AssertionError(str(self))


def _compared(what: str, error: Tensor, allowed: Tensor) -> Comparison:
    """error and allowed >= 0, of one shape. NaN fails, and any error where nothing is allowed."""
    if error.numel() == 0:
        return Comparison(what, 0.0, 0.0)
    share = torch.where(error == 0, 0.0, error / allowed).nan_to_num(math.inf, math.inf)
    return Comparison(what, float(error.nan_to_num(math.inf).amax()), float(share.amax()))


def _failed(what: str) -> Comparison:
    return Comparison(what, math.inf, math.inf)


def exact_scores(inputs: Inputs) -> Tensor:
    """Eq. 2 in float64, [B, N, Q], as it is written: nothing cancels, nothing overflows."""
    exact = inputs.double()
    if inputs.mk.dtype != torch.float64 and exact.mk.numel() > 0 and exact.qk.numel() > 0:
        center = exact.mk.median(2, keepdim=True).values
        k, q = exact.mk - center, exact.qk - center
        if float(k.abs().amax()) < 1e3 and float(q.abs().amax()) < 1e3:  # not so for NaN
            # What cancels in float64 is 1e-9 of score_tolerance, and products are quick.
            return reference.similarity(k, exact.ms, q, exact.qe)
    distance = exact.mk.new_zeros(exact.mk.shape[0], exact.mk.shape[2], exact.qk.shape[2])
    for c in range(exact.mk.shape[1]):
        difference = exact.mk[:, c].unsqueeze(2) - exact.qk[:, c].unsqueeze(1)
        distance += (difference if exact.qe is None else difference * exact.qe[:, c].unsqueeze(1)) * difference
    score = -distance / math.sqrt(exact.mk.shape[1])
    return score if exact.ms is None else score * exact.ms.transpose(1, 2)


def score_tolerance(inputs: Inputs) -> Tensor:
    """How far each float32 score may be from its float64 value, [B, N, Q].

    It follows from the terms of Eq. 2 that cancel.

    There are n = 2 CK + 2 products of the size of that token's terms, centred on the median key.
    Each is rounded by u = 2^-24 (2^-53 for float64 input). The tolerance is sqrt(n) u times that
    size, some ten times what random roundings add up to; and n times the smallest normal number,
    below which processors may take a product for 0.
    """
    exact = inputs.double()
    center = exact.mk.nanmedian(2, keepdim=True).values if exact.mk.shape[2] else exact.mk.new_zeros(())
    k, q = exact.mk - center, exact.qk - center
    e = torch.ones_like(q) if exact.qe is None else exact.qe
    s = k.new_ones(k.shape[0], 1, k.shape[2]) if exact.ms is None else exact.ms
    ck = k.shape[1]
    terms = k.square().transpose(1, 2) @ e + (q.square() * e).sum(1, keepdim=True)
    products = 2 * ck + 2
    flushed = products * torch.finfo(_float32_or_more(inputs.mk.dtype)).smallest_normal * (1 + s.transpose(1, 2))
    return math.sqrt(products) * _unit(inputs.mk.dtype) / math.sqrt(ck) * s.transpose(1, 2) * terms + flushed


def _unit(dtype: torch.dtype) -> float:
    """Unit roundoff of the arithmetic: float32 for the 16-bit types."""
    return 2.0**-53 if dtype == torch.float64 else 2.0**-24


def compare_topk(inputs: Inputs, weight: Tensor, index: Tensor, top_k: int) -> Comparison:
    """Judges an affinity [B, Q, k]: k different tokens, each no worse than the true k-th best,
    weighed by their scores.

    A chosen token's float64 score may fall short of that of one not chosen by the
    :func:`score_tolerance` of both. A weight may differ from the softmax of the chosen float64
    scores, relatively, by twice its token's tolerance and the mean one, which the sum carries, and
    by the roundings of the softmax.
    """
    score = exact_scores(inputs).transpose(1, 2)
    k = min(top_k, score.shape[2])
    what = f"top-{k} affinity"
    if index.shape != (*score.shape[:2], k) or weight.shape != index.shape:
        return _failed(f"{what} of shape {list(index.shape)}")
    if k > 1 and bool((index.sort(2).values.diff(dim=2) == 0).any()):
        return _failed(f"{what} that selects a token twice")
    tolerance = score_tolerance(inputs).transpose(1, 2)  # [B, Q, N]
    chosen, chosen_tolerance = score.gather(2, index), tolerance.gather(2, index)
    rest = (score - tolerance).scatter(2, index, -math.inf)
    best, at = rest.max(2, keepdim=True)
    error = torch.where(best == -math.inf, 0.0, score.gather(2, at) - chosen).clamp_min(0)
    shortfall = _compared(f"choice of the {what}", error, chosen_tolerance + tolerance.gather(2, at))
    expected = chosen.softmax(2)
    relative = 2 * (chosen_tolerance + (expected * chosen_tolerance).sum(2, keepdim=True))
    rounding = (8 + k) * _unit(weight.dtype)  # of exp and of the sum; a weight below 1e-30 may be flushed to 0
    drift = _compared(what, (weight.double() - expected).abs(), expected * (relative + rounding) + 1e-30)
    return max(shortfall, drift, key=lambda c: c.share)


def compare_read(
    inputs: Inputs, readout: Tensor, usage: Tensor | None = None, top_k: int | None = None, factor: float = 2.0
) -> Comparison:
    """Judges a readout [B, O, CV, Q] (and usage [B, N]) against the float64 oracle.

    Scores that are off by d move a readout by up to d times the spread (standard deviation) of the
    values it averages. Allowed is ``factor`` times that, with d the largest error that Eq. 2 has
    when it is written out in plain PyTorch in float32, plus the rounding of the result and of a sum
    of its length. Where rank k is decided by less than :func:`score_tolerance`, any of the tokens
    in question may have been chosen: such a readout must lie between the extremes that these
    choices allow.
    """
    b, o, cv, n = inputs.mv.shape
    if readout.shape != (b, o, cv, inputs.qk.shape[2]):
        return _failed(f"readout of shape {list(readout.shape)}")
    truth = _truth(inputs, top_k)
    exact, weight = truth.inputs, truth.weight
    low, high = _readout_range(truth)
    got = readout.double()
    mean, mean_square = exact.mv @ weight.unsqueeze(1), exact.mv.square() @ weight.unsqueeze(1)
    spread = (mean_square - mean.square()).clamp_min(0).sqrt()
    terms = n if top_k is None else min(top_k, n)
    # The truth is a sum in float64, whose roundings may all go one way.
    roundings = (8 + math.sqrt(terms)) * _unit(inputs.mk.dtype) + terms * _unit(torch.float64)
    rounding = roundings * mean_square.sqrt()
    info = torch.finfo(readout.dtype)
    # Processors may flush what is below the normal float32 numbers; a 16-bit result has its own
    # smallest step.
    smallest = max(torch.finfo(torch.float32).smallest_normal, info.smallest_normal * info.eps)
    rounding = rounding + info.eps * torch.maximum(low.abs(), high.abs()) + smallest
    allowed = factor * _plain_score_error(inputs, truth) * spread + rounding
    comparison = _compared("readout", torch.maximum(low - got, got - high).clamp_min(0), allowed)
    if usage is None or not comparison.passed:
        return comparison
    return _compare_usage(truth, usage)


def compare_usage(inputs: Inputs, usage: Tensor, top_k: int | None = None) -> Comparison:
    """Judges usage [B, N]: each token within what rank k leaves open, and Q in sum."""
    return _compare_usage(_truth(inputs, top_k), usage)


def _compare_usage(truth: _Truth, usage: Tensor) -> Comparison:
    weight, tolerance = truth.weight, truth.tolerance
    b, n, q = weight.shape
    if usage.shape != (b, n):
        return _failed(f"usage of shape {list(usage.shape)}")
    if n == 0 or q == 0:
        return _compared("usage", usage.abs(), torch.zeros_like(usage))
    low, high = (weight - truth.open_mass).clamp_min(0).sum(2), (weight + truth.open_mass).sum(2)
    # A weight's relative error is that of its score and of the sum; Q of them are added up. A token
    # that rank k leaves open may have the open mass, with that error.
    unit = _unit(usage.dtype)
    drift = ((weight + truth.open_mass) * (tolerance + (weight * tolerance).sum(1, keepdim=True))).sum(2)
    outside = torch.maximum(low - usage, usage - high).clamp_min(0)
    roundings = (8 + math.sqrt(q)) * unit + (n + q) * _unit(torch.float64)  # the truth's own, too
    tokens = _compared("usage", outside, 2 * drift + high * roundings + 1e-30)
    drift = (usage.double().sum(1) - q).abs()
    # The sum of N weights is rounded, and so is each token's sum over Q queries.
    total = _compared("sum of usage", drift, torch.full_like(drift, q * unit * (8 + math.sqrt(n) + math.sqrt(q))))
    return max(tokens, total, key=lambda c: c.share)


def compare_consolidate(inputs: Inputs, num_prototypes: int, pk: Tensor, ps: Tensor, pv: Tensor) -> Comparison:
    """Judges prototypes pk [B, CK, P], ps [B, 1, P], pv [B, O, CV, P] of a consolidation against
    the float64 oracle.

    Keys must be those of the oracle's prototypes, to the bit; shrinkage and values are judged as
    readouts (Eq. 3).
    """
    mk, ms, mv, me = inputs.mk, inputs.ms, inputs.mv, inputs.me
    index = reference.select_prototypes(inputs.usage, num_prototypes)
    row = index.unsqueeze(1).expand(-1, mk.shape[1], -1)
    keys = mk.gather(2, row)
    if pk.shape != keys.shape or not torch.equal(pk, keys):
        return _failed("prototype keys")
    values = Inputs(mk, ms, mv, keys, me.gather(2, row), me, inputs.usage)
    shrinkage = torch.ones_like(mk[:, :1], dtype=ps.dtype) if ms is None else ms
    shrinkages = Inputs(mk, ms, shrinkage.unsqueeze(1), values.qk, values.qe, me, inputs.usage)
    compared = [compare_read(values, pv), compare_read(shrinkages, ps.unsqueeze(1))]
    return max(compared, key=lambda c: c.share)


def compare_close(what: str, got: Tensor, expected: Tensor, allowed: float) -> Comparison:
    """No number may differ by more than ``allowed``; shapes must agree, NaN only where NaN is
    expected.
    """
    if got.shape != expected.shape:
        return _failed(f"{what} of shape {list(got.shape)}, wanted {list(expected.shape)}")
    if not torch.equal(got.isnan(), expected.isnan()):
        return _failed(f"{what} with NaN in other places")
    difference = (got.double() - expected.double()).abs().nan_to_num(0.0, math.inf)
    return _compared(what, difference, torch.full_like(difference, allowed))


class _Truth(NamedTuple):
    """What a read is judged by, in float64."""

    inputs: Inputs
    score: Tensor  # [B, N, Q]
    tolerance: Tensor  # of a float32 score, [B, N, Q]
    weight: Tensor  # the affinity, [B, N, Q]
    open_mass: Tensor  # mass of tokens whose choice the rounding of scores leaves open, [B, N, Q]


def _truth(inputs: Inputs, top_k: int | None) -> _Truth:
    exact, score, tolerance = inputs.double(), exact_scores(inputs), score_tolerance(inputs)
    n = score.shape[1]
    if top_k is None or top_k >= n:
        weight = score.softmax(1)
        return _Truth(exact, score, tolerance, weight, torch.zeros_like(weight))
    best, order = score.sort(dim=1, descending=True, stable=True)
    total = best[:, :top_k].logsumexp(1, keepdim=True)
    weight = torch.zeros_like(score).scatter(1, order[:, :top_k], (best[:, :top_k] - total).exp())
    near = open_choices(score, tolerance, top_k)[1]
    kth = best[:, top_k - 1 : top_k]
    return _Truth(exact, score, tolerance, weight, torch.where(near, (kth - total).exp(), 0.0))


def open_choices(score: Tensor, tolerance: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """score, tolerance [B, N, Q], k < N -> which tokens are the k best, and which of all tokens the
    rounding of scores may exchange, [B, N, Q] bool.
    """
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter(1, order, True)
    low, high = score - tolerance, score + tolerance
    worst = low.masked_fill(~chosen, math.inf).amin(1, keepdim=True)
    next_best = high.masked_fill(chosen, -math.inf).amax(1, keepdim=True)
    return chosen, torch.where(chosen, low <= next_best, high >= worst)


def _readout_range(truth: _Truth) -> tuple[Tensor, Tensor]:
    """Smallest and largest readout [B, O, CV, Q] that the open choices at rank k allow."""
    mv = truth.inputs.mv
    readout = mv @ truth.weight.unsqueeze(1)
    low, high = readout.clone(), readout.clone()
    for b, q in (truth.open_mass > 0).any(1).nonzero().tolist():
        near = truth.open_mass[b, :, q] > 0
        mass = float(truth.open_mass[b, near, q][0])
        w = truth.weight[b, :, q]
        room = int((w[near] > 0).sum())  # how many of the near ones there is room for
        values = mv[b, :, :, near].sort(dim=-1).values
        sure = mv[b] @ torch.where(near, 0.0, w)
        # Their masses differ within the tolerance, too.
        slack = 4 * float(truth.tolerance[b, near, q].max()) * mass * (values.abs().sum(-1) + sure.abs())
        low[b, :, :, q] = sure + mass * values[..., :room].sum(-1) - slack
        high[b, :, :, q] = sure + mass * values[..., values.shape[-1] - room :].sum(-1) + slack
    return torch.minimum(low, readout), torch.maximum(high, readout)


def _plain_score_error(inputs: Inputs, truth: _Truth) -> float:
    """Largest error of a score that matters (one with weight), of Eq. 2 as XMem writes it, in
    float32 or in the float64 of the inputs.
    """
    dtype = torch.float64 if inputs.mk.dtype == torch.float64 else torch.float32
    mk, ms, _, qk, qe = (None if t is None else t.to(dtype) for t in inputs.read)
    assert mk is not None and qk is not None
    error = (reference.similarity(mk, ms, qk, qe).double() - truth.score).abs().nan_to_num(0.0, 0.0)
    return float(torch.where(truth.weight > 1e-9, error, 0.0).amax()) if error.numel() else 0.0
