"""The memory read over a memory of fixed room, as plain tensor operations that ONNX and
torch.export can hold.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

OPSET = 18


class MaskedRead(nn.Module):
    """:func:`xmemk.memory_read` over a memory of fixed room, of which a mask says what is there.

    mk [B, CK, N], ms [B, 1, N], mv [B, O, CV, N]: N is the room; places that ``valid`` [B, N] bool
    leaves out hold any finite numbers. qk, qe [B, CK, Q]. Returns the readout [B, O, CV, Q] and the
    usage [B, N], 0 where nothing is valid. At least one token must be valid. With ``top_k``, the
    room must be at least k; fewer valid tokens than k mean all.

    No operation depends on the data, so the graph of one call serves all: nothing grows, nothing is
    recompiled.
    """

    def __init__(self, top_k: int | None = 30) -> None:
        super().__init__()
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k: wanted None or a whole number >= 1, got {top_k}")
        self.top_k = top_k

    def forward(
        self, mk: Tensor, ms: Tensor, mv: Tensor, valid: Tensor, qk: Tensor, qe: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = mv.permute(0, 3, 1, 2)
        readout, usage = read_rows(
            mk.transpose(1, 2), ms.transpose(1, 2), rows, valid, qk.transpose(1, 2), qe.transpose(1, 2), self.top_k
        )
        return readout.permute(0, 2, 3, 1), usage


def read_rows(
    key: Tensor, shrinkage: Tensor, value: Tensor, valid: Tensor, qk: Tensor, qe: Tensor, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """The read, tokens first: key [B, N, CK], shrinkage [B, N, 1], value [B, N, O, CV], valid [B,
    N], qk and qe [B, Q, CK] -> readout [B, Q, O, CV], usage [B, N].
    """
    score = scores(key, shrinkage, qk, qe).masked_fill(~valid.unsqueeze(1), -math.inf)
    flat = value.flatten(2)
    if top_k is None:
        weight = score.softmax(2)
        return (weight @ flat).unflatten(2, value.shape[2:]), weight.sum(1)
    best, index = score.topk(top_k, dim=2)
    exact = rescored(key, shrinkage, qk, qe, index).masked_fill(best == -math.inf, -math.inf)
    weight = exact.softmax(2)
    readout = (weight.unsqueeze(2) @ rows_of(flat, index)).squeeze(2)
    usage = torch.zeros_like(valid, dtype=weight.dtype)
    usage = usage.scatter_add(1, index.flatten(1), weight.flatten(1))
    return readout.unflatten(2, value.shape[2:]), usage


def scores(key: Tensor, shrinkage: Tensor, qk: Tensor, qe: Tensor) -> Tensor:
    """Eq. 2 as matrix products, [B, Q, N]; keys and queries translated by the mean query, which
    cancels less.
    """
    center = qk.mean(1, keepdim=True)
    k, q = key - center, qk - center
    distance = qe @ k.square().transpose(1, 2) - 2 * ((qe * q) @ k.transpose(1, 2)) + (qe * q.square()).sum(2, True)
    return -distance * (shrinkage / math.sqrt(key.shape[2])).transpose(1, 2)


def rescored(key: Tensor, shrinkage: Tensor, qk: Tensor, qe: Tensor, index: Tensor) -> Tensor:
    """The direct form of Eq. 2 for the chosen tokens index [B, Q, k], which carries no
    cancellation.
    """
    squared = (rows_of(key, index) - qk.unsqueeze(2)).square()
    return -(squared * qe.unsqueeze(2)).sum(3) * rows_of(shrinkage, index).squeeze(3) / math.sqrt(key.shape[2])


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """table [B, N, C], index [B, Q, k] -> [B, Q, k, C]"""
    b, n, c = table.shape
    if b > 1:
        index = index + n * torch.arange(b, device=index.device).view(-1, 1, 1)
    return table.reshape(b * n, c).index_select(0, index.flatten()).unflatten(0, index.shape)


def export_read(
    *,
    top_k: int | None = 30,
    room: int | None = None,
    queries: int | None = None,
    objects: int | None = None,
    key_dim: int = 64,
    value_dim: int = 512,
) -> torch.export.ExportedProgram:
    """:class:`MaskedRead` through torch.export, for one video. ``room``, ``queries`` and
    ``objects`` that are None stay free. XMem at 480p with its default memory: ``room=26200,
    queries=1620``. ValueError for a room below k.
    """
    for name, size, least in (("room", room, top_k or 1), ("queries", queries, 1), ("objects", objects, 1)):
        if size is not None and size < least:
            raise ValueError(f"{name}: wanted at least {least}, got {size}")
    n = Dim("room", min=top_k or 1) if room is None else None
    q = Dim("queries", min=1) if queries is None else None
    o = Dim("objects", min=1) if objects is None else None
    shapes = ({2: n}, {2: n}, {1: o, 3: n}, {1: n}, {2: q}, {2: q})
    room, queries, objects = room or 4 * (top_k or 8), queries or 12, objects or 2
    query = [torch.rand(1, key_dim, queries) for _ in range(2)]  # two: one tensor would be traced as one input
    mk, mv = torch.rand(1, key_dim, room), torch.rand(1, objects, value_dim, room)
    arguments = (mk, torch.ones(1, 1, room), mv, torch.ones(1, room, dtype=torch.bool), *query)
    with torch.no_grad():
        return torch.export.export(MaskedRead(top_k), arguments, dynamic_shapes=shapes, strict=False)


def export_read_onnx(path: str | os.PathLike[str], **sizes: Any) -> None:
    """:func:`export_read` as an ONNX file, its inputs named as the arguments, its outputs
    ``readout`` and ``usage``.
    """
    write(path, export_read(**sizes), ("mk", "ms", "mv", "valid", "qk", "qe"), ("readout", "usage"))


def write(
    path: str | os.PathLike[str], program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """One ONNX file, its weights inside. RuntimeError where onnx or onnxscript is missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as missing:
        raise RuntimeError(f"export needs {missing.name}: pip install 'xmemk[export]'") from missing
    names: dict[str, Any] = {"input_names": list(inputs), "output_names": list(outputs)}
    torch.onnx.export(program, f=os.fspath(path), opset_version=OPSET, external_data=False, verbose=False, **names)
