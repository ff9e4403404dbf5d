"""Memory read: similarity, softmax over all or the k best tokens, readout, usage (Eq. 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .scores import Operands, compute_dtype, operands
from .topk import topk_rows

# Bytes of similarity that exist at a time. Large enough for an efficient matrix product, small enough for the caches.
_BLOCK_BYTES = {"cpu": 16 << 20}
_BLOCK_BYTES_ELSEWHERE = 256 << 20


def similarity(mk: list[Tensor], ms: list[Tensor] | None, qk: Tensor, qe: Tensor | None) -> Tensor:
    """-> [B, N, Q]"""
    ops = operands(mk, ms, qk, qe)
    return (ops.query @ ops.memory).transpose(1, 2)


def affinity_topk(
    mk: list[Tensor], ms: list[Tensor] | None, qk: Tensor, qe: Tensor | None, top_k: int
) -> tuple[Tensor, Tensor]:
    """-> weight [B, Q, k], index [B, Q, k] with k = min(top_k, N)"""
    ops = operands(mk, ms, qk, qe)
    blocks = [_select(ops.scores(a, b), top_k) for a, b in query_blocks(ops)]
    best, index = (torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*blocks))
    best, index = _rescored(mk, ms, qk, qe, best, index)
    # A slot left over because fewer than k tokens can be read repeats the best token, with weight 0.
    return best.softmax(2), torch.where(best == -math.inf, index[..., :1], index)


def usage_topk(weight: Tensor, index: Tensor, tokens: int) -> Tensor:
    """Probability mass each token received: weight, index [B, Q, k] -> [B, N] float32 (float64 for float64)."""
    usage = weight.new_zeros(weight.shape[0], tokens)
    return usage.scatter_add_(1, index.flatten(1), weight.flatten(1).nan_to_num(0.0))


def readout_topk(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """-> [B, O, CV, Q], in mv's dtype and with channel stride 1"""
    b, o, cv, _ = mv[0].shape
    q, k = index.shape[1:]
    dtype = compute_dtype(mv[0].dtype)
    weight = weight.to(dtype)
    # 16-bit rows are widened before they are added up, a block of queries at a time.
    step = q
    if dtype != mv[0].dtype and not torch.compiler.is_compiling():
        step = max(1, _BLOCK_BYTES["cpu"] // max(1, 4 * b * k * o * cv))
    blocks = []
    for a in range(0, q, max(1, step)):
        w, i = weight[:, a : a + step], index[:, a : a + step]
        parts = [_weighted_rows(v, w * here, local) for v, here, local in locate(mv, i)]
        blocks.append(sum(parts[1:], parts[0]).to(mv[0].dtype))
    out = torch.cat(blocks, 1) if blocks else mv[0].new_zeros(b, 0, o * cv)
    return out.view(b, q, o, cv).permute(0, 2, 3, 1)


def locate(segments: list[Tensor], index: Tensor) -> Iterator[tuple[Tensor, Tensor | int, Tensor]]:
    """For each segment [..., N]: the segment, where (or 1 for everywhere) ``index`` falls into it, and the index
    within.
    """
    if len(segments) == 1:
        yield segments[0], 1, index
        return
    start = 0
    for segment in segments:
        n = segment.shape[-1]
        if n > 0:
            yield segment, (index >= start) & (index < start + n), (index - start).clamp(0, n - 1)
        start += n


def _weighted_rows(v: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """v [B, O, CV, N], weight, index [B, q, k] -> sum_k weight * value [B, q, O * CV]"""
    table, row = token_table(v, index)
    b, q, k = index.shape
    if table.dtype == weight.dtype and table.numel() > 0:
        out = torch.nn.functional.embedding_bag(
            row.view(b * q, k), table, mode="sum", per_sample_weights=weight.reshape(b * q, k)
        )
        return out.view(b, q, table.shape[1])
    rows = table.index_select(0, row.flatten()).view(b, q, k, table.shape[1])
    return (weight.unsqueeze(2) @ rows.to(weight.dtype)).squeeze(2)


def token_table(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, ..., N], index [B, ...] -> x as rows [B * N, channels] (a view if token-major), and the index into them."""
    b, n = x.shape[0], x.shape[-1]
    table = x.movedim(-1, 1).reshape(b * n, math.prod(x.shape[1:-1]))
    if b > 1:
        index = index + n * torch.arange(b, device=index.device).view(-1, *[1] * (index.dim() - 1))
    return table, index


def memory_read(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q], usage [B, N] or None"""
    tokens = sum(k.shape[2] for k in mk)
    if top_k is not None and top_k < tokens:
        weight, index = affinity_topk(mk, ms, qk, qe, top_k)
        usage = usage_topk(weight, index, tokens) if return_usage else None
        return readout_topk(mv, weight, index), usage
    return _read_dense(operands(mk, ms, qk, qe), mv, return_usage)


def _read_dense(ops: Operands, mv: list[Tensor], return_usage: bool) -> tuple[Tensor, Tensor | None]:
    values = [v.to(ops.query.dtype).transpose(2, 3) for v in mv]  # [B, O, N, CV]
    usage = ops.memory.new_zeros(ops.memory.shape[0], ops.memory.shape[2]) if return_usage else None
    blocks = []
    for a, b in query_blocks(ops):
        affinity = ops.scores(a, b).softmax(2)
        if usage is not None:
            usage = usage + affinity.sum(1) if ops.safe else usage + affinity.nan_to_num(0.0).sum(1)
        parts = affinity.unsqueeze(1).split([v.shape[2] for v in values], dim=3)
        # One object after the other, so that the block of affinity stays in the cache.
        read = [sum(p[:, 0] @ v[:, i] for p, v in zip(parts, values)) for i in range(values[0].shape[1])]
        blocks.append(torch.stack(read, 1) if read else affinity.new_zeros(affinity.shape[0], 0, b - a, mv[0].shape[2]))
    readout = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)
    return readout.to(mv[0].dtype).transpose(2, 3), usage


def _select(score: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    if top_k < score.shape[2]:
        best, index = topk_rows(score, top_k)
    else:
        best, index = score.sort(dim=2, descending=True, stable=True)
    return best, index


def _rescored(
    mk: list[Tensor], ms: list[Tensor] | None, qk: Tensor, qe: Tensor | None, best: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """The selected tokens' scores by the differences of Eq. 2, which cancel nothing; best first, as before."""
    dtype = best.dtype
    q = qk.to(dtype).transpose(1, 2)
    e = None if qe is None else qe.to(dtype).transpose(1, 2)
    scores = []
    step = index.shape[1]
    if not torch.compiler.is_compiling():
        step = max(1, _BLOCK_BYTES["cpu"] // max(1, 4 * index.shape[0] * index.shape[2] * qk.shape[1]))
    for a in range(0, index.shape[1], max(1, step)):
        i = index[:, a : a + step]
        squared = (gather_rows(mk, i, dtype) - q[:, a : a + step].unsqueeze(2)).square()
        if e is not None:
            squared = squared * e[:, a : a + step].unsqueeze(2)
        score = -squared.sum(3) / math.sqrt(qk.shape[1])
        scores.append(score if ms is None else score * gather_rows(ms, i, dtype)[..., 0])
    exact = torch.cat(scores, 1) if scores else best
    exact = torch.where((best == -math.inf) | exact.isnan(), -math.inf, exact)
    # Rounding may have put two tokens the wrong way round. Equal scores keep the lower index first.
    by_index = index.argsort(dim=2)
    order = by_index.gather(2, exact.gather(2, by_index).argsort(dim=2, descending=True, stable=True))
    return exact.gather(2, order), index.gather(2, order)


def gather_rows(segments: list[Tensor], index: Tensor, dtype: torch.dtype) -> Tensor:
    """segments [B, ..., N], index [B, q, k] -> the tokens' channels as rows [B, q, k, channels]"""
    total: Tensor | None = None
    for segment, here, local in locate(segments, index):
        table, row = token_table(segment, local)
        rows = table.index_select(0, row.flatten()).view(*index.shape, table.shape[1]).to(dtype)
        if isinstance(here, Tensor):
            rows = rows.where(here.unsqueeze(3), 0.0)
        total = rows if total is None else total + rows
    assert total is not None  # the border lets no empty memory through
    return total


def query_blocks(ops: Operands) -> Iterator[tuple[int, int]]:
    """Query ranges whose similarity fits the block; all at once while a compiler traces, which plans memory itself."""
    b, q, _ = ops.query.shape
    step = q
    if not torch.compiler.is_compiling():
        room = _BLOCK_BYTES.get(ops.query.device.type, _BLOCK_BYTES_ELSEWHERE)
        step = min(q, max(64, room // max(1, 4 * b * ops.memory.shape[2])))
    if q == 0 or step == q:
        yield 0, q
        return
    for a in range(0, q, step):
        yield a, min(a + step, q)
