"""What a user could call instead of xmemk on a GPU, in the shape of one read: nothing -> readout, usage or None.

Each gets its inputs in the dtype it works in; what depends on the query is computed in the call, as in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding_bag, pad, scaled_dot_product_attention

import xmemk
from xmemk import reference
from xmemk.demo import original
from xmemk.testing import Inputs, compare_consolidate, compare_read

Call = Callable[[], tuple[Tensor, ...]]
# A call, and what it got on a few queries compared with float64: whether it is within the rounding of float32, and the
# relative error.
Check = Callable[[tuple[Tensor, ...]], tuple[bool, float]]


def reads(x: Inputs, k: int | None) -> dict[str, Callable[[], Call]]:
    """The peers of one read, in the order in which they are timed. Each is made when its turn comes, and may fail."""
    device = x.mk.device.type

    def ours(backend: str) -> Callable[[], Call]:
        return lambda: lambda: xmemk.memory_read(*x.read, top_k=k, return_usage=True, backend=backend)

    def made(make: Callable[..., Call], *arguments: object) -> Callable[[], Call]:
        return lambda: make(x, k, *arguments)

    found = {f"xmemk {b}": ours(b) for b in ("triton" if device == "cuda" else "cpu", "torch")}
    found |= {"original float32": made(_original, False, False), "original autocast": made(_original, True, False)}
    found |= {"tidy": made(_tidy, False)}
    if k is None:
        found |= {
            "sdpa efficient": made(_sdpa, SDPBackend.EFFICIENT_ATTENTION),
            "sdpa flash": made(_sdpa, SDPBackend.FLASH_ATTENTION),
            "sdpa cudnn": made(_sdpa, SDPBackend.CUDNN_ATTENTION),
            "sdpa math": made(_sdpa, SDPBackend.MATH),
            "flex": made(_flex),
        }
    found |= {"tidy compiled": made(_tidy, True)}
    found |= {
        "original float32 compiled": made(_original, False, True),
        "original autocast compiled": made(_original, True, True),
    }
    return found


def check_read(x: Inputs, k: int | None, queries: int = 40) -> Check:
    """Against float64, on some of the queries."""
    picked = torch.linspace(0, x.qk.shape[2] - 1, queries, device=x.qk.device).long()
    qe = None if x.qe is None else x.qe[..., picked]
    some = Inputs(x.mk, x.ms, x.mv, x.qk[..., picked], qe, x.me, x.usage)
    wanted = reference.memory_read(*some.double().read, top_k=k)

    def check(result: tuple[Tensor, ...]) -> tuple[bool, float]:
        got = result[0][..., picked]
        return compare_read(some, got, top_k=k).passed, _relative(got, wanted)

    return check


def _relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def _original(x: Inputs, k: int | None, autocast: bool, compiled: bool) -> Call:
    assert x.ms is not None and x.qe is not None
    as_given = (x.mk, x.ms, x.mv, x.qk, x.qe)
    mk, ms, mv, qk, qe = as_given if autocast else (t.float() for t in as_given)

    def topk(mk: Tensor, ms: Tensor, mv: Tensor, qk: Tensor, qe: Tensor) -> tuple[Tensor, Tensor]:
        assert k is not None
        return original.memory_read([mk], [ms], [mv], qk, qe, top_k=k)

    read = _original_dense if k is None else topk
    if compiled:
        read = torch.compile(read, dynamic=False)

    def call() -> tuple[Tensor, Tensor]:
        with torch.autocast(mk.device.type, torch.float16, enabled=autocast):
            return read(mk, ms, mv, qk, qe)

    return call


def _original_dense(mk: Tensor, ms: Tensor, mv: Tensor, qk: Tensor, qe: Tensor) -> tuple[Tensor, Tensor]:
    k = mk.transpose(1, 2)
    similarity = -(k.pow(2) @ qe) + 2 * (k @ (qk * qe)) - (qe * qk.pow(2)).sum(1, keepdim=True)
    affinity = (similarity * ms.transpose(1, 2) / math.sqrt(mk.shape[1])).softmax(1)
    return mv @ affinity[:, None].to(mv.dtype), affinity.sum(2)


def _operands(x: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """memory [N, 2 CK], query [Q, 2 CK], s [N], b [Q], float32: S = memory query^T - s b^T."""
    assert x.ms is not None and x.qe is not None
    k, q, e = (t[0].T.float() for t in (x.mk, x.qk, x.qe))
    s = x.ms[0].T.float() / math.sqrt(k.shape[1])
    return torch.cat([-s * k * k, 2 * s * k], 1), torch.cat([e, e * q], 1), s[:, 0], (e * q * q).sum(1)


def _augmented(x: Inputs) -> tuple[Tensor, Tensor]:
    """The same with s and b as one more channel: S = memory query^T."""
    memory, query, s, b = _operands(x)
    return torch.cat([memory, -s[:, None]], 1), torch.cat([query, b[:, None]], 1)


def _tidy(x: Inputs, k: int | None, compiled: bool) -> Call:
    """One augmented product, top-k along memory, an embedding bag over [N, O CV]; dense: softmax and one product."""
    _, o, cv, n = x.mv.shape
    values = x.mv[0].permute(2, 0, 1).reshape(n, o * cv)

    def read() -> tuple[Tensor, Tensor]:
        memory, query = _augmented(x)
        score = query @ memory.T
        if k is None:
            affinity = score.softmax(1)
            flat, usage = affinity.to(values.dtype) @ values, affinity.sum(0)
        else:
            best, index = score.topk(k, dim=1)
            weight = best.softmax(1)
            usage = weight.new_zeros(n).scatter_add_(0, index.flatten(), weight.flatten())
            flat = embedding_bag(index, values, mode="sum", per_sample_weights=weight.to(values.dtype))
        return flat.view(-1, o, cv).permute(1, 2, 0)[None], usage[None]

    return torch.compile(read, dynamic=False) if compiled else read


def _sdpa(x: Inputs, k: int | None, backend: SDPBackend) -> Call:
    """Objects as heads, in the values' dtype, without usage. Flash and cuDNN want one head size, so values go in halves
    of 256 channels.
    """
    _, o, cv, n = x.mv.shape
    q = x.qk.shape[2]
    halves = cv // 256 if backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION) and cv > 256 else 1
    values = x.mv[0].permute(0, 2, 1).reshape(o, n, halves, cv // halves).transpose(1, 2).reshape(1, o * halves, n, -1)
    width = values.shape[3] if halves > 1 else 8 * math.ceil((2 * x.mk.shape[1] + 1) / 8)

    def call() -> tuple[Tensor, ...]:
        memory, query = (pad(t.to(values.dtype), (0, width - t.shape[1])) for t in _augmented(x))
        heads = values.shape[1]
        with sdpa_kernel(backend):
            read = scaled_dot_product_attention(
                query.expand(1, heads, -1, -1), memory.expand(1, heads, -1, -1), values, scale=1.0
            )
        return (read.view(1, o, halves, q, -1).permute(0, 1, 2, 4, 3).reshape(1, o, cv, q),)

    return call


def _flex(x: Inputs, k: int | None) -> Call:
    """FlexAttention, compiled, objects as heads, without usage; the rank-one term is its score_mod, in float32."""
    from torch.nn.attention.flex_attention import flex_attention

    values = x.mv.permute(0, 1, 3, 2)
    heads = values.shape[1]
    compiled = torch.compile(flex_attention, dynamic=False)
    # Its own choice of tiles does not fit values of 512 channels.
    options = {"BLOCK_M": 64, "BLOCK_N": 32, "num_stages": 1} if x.mk.device.type == "cuda" else None

    def call() -> tuple[Tensor, ...]:
        memory, query, s, b = _operands(x)

        def rank_one(score: Tensor, _b: Tensor, _h: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
            return score - s[ki] * b[qi]

        read = compiled(
            query.to(values.dtype).expand(1, heads, -1, -1),
            memory.to(values.dtype).expand(1, heads, -1, -1),
            values,
            score_mod=rank_one,
            scale=1.0,
            kernel_options=options,
        )
        return (read.permute(0, 1, 3, 2),)

    return call


def consolidations(x: Inputs, count: int) -> dict[str, Callable[[], Call]]:
    arguments = (x.mk, x.ms, x.me, x.mv, x.usage, count)

    def ours(backend: str) -> Callable[[], Call]:
        return lambda: lambda: xmemk.consolidate(*arguments, backend=backend)

    names = ("triton", "cuda", "torch") if x.mk.device.type == "cuda" else ("cpu", "torch")
    return {f"xmemk {name}": ours(name) for name in names}


def check_consolidation(x: Inputs, count: int) -> Check:
    wanted = reference.consolidate(*(t.double() for t in (x.mk, x.ms, x.me, x.mv, x.usage)), count)  # type: ignore[union-attr]

    def check(result: tuple[Tensor, ...]) -> tuple[bool, float]:
        return compare_consolidate(x, count, *result).passed, _relative(result[2], wanted[2])

    return check


def selections(op: str, usage: Tensor, count: int) -> dict[str, Callable[[], Call]]:
    def ours(backend: str) -> Callable[[], Call]:
        return lambda: lambda: (getattr(xmemk, op)(usage, count, backend=backend),)

    def topk() -> Call:
        if op == "select_prototypes":
            return lambda: (usage.topk(count, dim=1).indices,)
        return lambda: (usage.topk(count, dim=1, sorted=False).indices.sort(1).values,)

    names = ("cuda" if usage.device.type == "cuda" else "cpu", "torch")
    return {f"xmemk {name}": ours(name) for name in names} | {"torch.topk": topk}


def check_selection(op: str, usage: Tensor, count: int) -> Check:
    """The same usage was chosen; which of equals, torch.topk leaves open."""
    wanted = getattr(reference, op)(usage.cpu(), count)

    def check(result: tuple[Tensor, ...]) -> tuple[bool, float]:
        index = result[0].cpu()
        chosen = [usage.cpu().gather(1, i).sort(1).values for i in (index, wanted)]
        right = bool(torch.equal(*chosen))
        return bool(torch.equal(index, wanted)), 0.0 if right else math.inf

    return check
