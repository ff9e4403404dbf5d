"""Sums of values by an affinity, Eq. 1: over all tokens, or over the rows of selected ones.

They are made of short sums (:func:`.blocks.terms_at_a_time`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import terms_at_a_time


def weighted_sum(affinity: Tensor, values: list[Tensor]) -> Tensor:
    """affinity [B, q, N], values [B, N_i, C] of all segments -> [B, q, C]"""
    step = terms_at_a_time(affinity.shape[2])
    total = affinity.new_zeros(*affinity.shape[:2], values[0].shape[2])
    for weight, value in zip(affinity.split([v.shape[1] for v in values], dim=2), values):
        for w, v in zip(weight.split(step, dim=2), value.split(step, dim=1)):
            total = total + w @ v
    return total


def sum_of_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """weight [B, q, k], rows [B, q, k, C] -> [B, q, C]"""
    step = terms_at_a_time(weight.shape[2])
    total = weight.new_zeros(*rows.shape[:2], rows.shape[3])
    for w, r in zip(weight.split(step, dim=2), rows.split(step, dim=2)):
        total = total + (w.unsqueeze(2) @ r).squeeze(2)
    return total


def sum_of_table_rows(weight: Tensor, table: Tensor, row: Tensor) -> Tensor:
    """weight, row [B, q, k], table [rows, C] -> [B, q, C], without gathering the rows

    PyTorch has first derivatives of it alone.
    """
    b, q, k = row.shape
    step = terms_at_a_time(k)
    total = table.new_zeros(b * q, table.shape[1])
    for w, r in zip(weight.reshape(b * q, k).split(step, dim=1), row.reshape(b * q, k).split(step, dim=1)):
        total = total + torch.nn.functional.embedding_bag(r, table, mode="sum", per_sample_weights=w)
    return total.view(b, q, table.shape[1])
