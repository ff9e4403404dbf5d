"""Tokens picked by index from a memory in segments."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..modes import may_look_at


def locate(segments: list[Tensor], index: Tensor) -> Iterator[tuple[Tensor, Tensor | int, Tensor]]:
    """For each segment [..., N_i]: itself, where ``index`` falls into it, and the index within.

    The second is a mask shaped as ``index``, or 1 (everywhere) where there is one segment alone.
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


def token_table(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, ..., N], index [B, ...] -> x as rows [B * N, channels], and the index into them.

    The rows are a view if x is token-major.
    """
    b, n = x.shape[0], x.shape[-1]
    table = x.movedim(-1, 1).reshape(b * n, math.prod(x.shape[1:-1]))
    if b > 1:
        index = index + n * torch.arange(b, device=index.device).view(-1, *[1] * (index.dim() - 1))
    return table, index


def gather_rows(segments: list[Tensor], index: Tensor, dtype: torch.dtype) -> Tensor:
    """segments [B, ..., N_i], index [B, q, k] -> the tokens' channels [B, q, k, channels]"""
    total: Tensor | None = None
    for segment, here, local in locate(segments, index):
        table, row = token_table(segment, local)
        rows = table.index_select(0, row.flatten()).view(*index.shape, table.shape[1]).to(dtype)
        if isinstance(here, Tensor):
            # Not a product: what is not finite is of tokens that nobody selected.
            rows = rows.where(here.unsqueeze(3), rows.new_zeros(()))  # 0.0 would widen bytes
        total = rows if total is None else total + rows
    assert total is not None  # the border lets no empty memory through
    return total


def new_rows(segments: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Zeros [B * N_i, channels] for each segment [B, ..., N_i], for :func:`scatter_rows`."""
    return [x.new_zeros(x.shape[0] * x.shape[-1], math.prod(x.shape[1:-1]), dtype=dtype) for x in segments]


def scatter_rows(tables: list[Tensor], segments: list[Tensor], index: Tensor, rows: Tensor) -> None:
    """Adds rows [B, q, k, channels] to the tables' rows of the tokens they were gathered from."""
    targets = [t for t, x in zip(tables, segments) if x.shape[-1] > 0] if len(tables) > 1 else tables
    for table, (segment, here, local) in zip(targets, locate(segments, index)):
        _, row = token_table(segment[:, :0], local)
        masked = rows if not isinstance(here, Tensor) else rows.where(here.unsqueeze(3), 0.0)
        table.index_add_(0, row.flatten(), masked.flatten(0, -2))


def check_index(index: Tensor, tokens: int) -> None:
    """Raises IndexError for an index outside 0 .. N - 1.

    On a device and under torch.compile, reading the numbers here would wait for the device or break
    the graph: there such an index fails where it is used.
    """
    if index.numel() == 0:
        return
    if not may_look_at(index):
        inside = ((index >= 0) & (index < tokens)).all()
        torch._assert_async(inside, f"index: wanted 0 to N - 1 of {tokens} tokens")
        return
    low, high = index.aminmax()
    if low < 0 or high >= tokens:
        bad = int(low) if low < 0 else int(high)
        raise IndexError(f"index: wanted 0 to {tokens - 1} (N = {tokens} tokens), got {bad}")
