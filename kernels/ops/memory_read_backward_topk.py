"""Gradients of the top-k read: the sums of memory_read_backward_dense.py over the selected tokens, by the direct form.

One kernel per query gives the gradients of query and selection, and of each slot's score. A stable sort orders the slots
by token, so that a token's slots keep the order of the queries. Then one program per token adds up its own slots: in a
fixed order, without atomics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...inputs import MemoryInputs, QueryInputs
from .. import configs
from ..structs import (
    MemoryArgs,
    Pointer,
    QueryArgs,
    Requested,
    ValueArgs,
    padded_channels,
    query_args,
    segments,
    value_args,
)
from ..tiles import bound, load_queries, load_shrinkage, load_tokens
from .memory_read_backward_dense import Rows

_SLOTS = tl.constexpr(16)  # that the program of a token takes at a time for its key
_VALUE_SLOTS = tl.constexpr(8)  # and for its values
_PAIRS = tl.constexpr(4096)  # slots times channels that the program of a query takes at a time
_LEAST_BLOCK = tl.constexpr(16)  # channels of them, at least


class Slots(NamedTuple):
    """What the forward pass selected."""

    weight: Pointer  # [B, Q, k]
    index: Pointer  # [B, Q, k]


class Incoming(NamedTuple):
    """The gradients of the results."""

    readout: Pointer  # [B, Q, O, CV]
    usage: Pointer | None  # [B, N]


class SlotGradients(NamedTuple):
    """Of each slot [B, Q, k], what its token is to add up."""

    shrinkage: Pointer  # its share of its token's gradient of the shrinkage
    distance: Pointer  # the gradient of D, the distance of Eq. 2


class QueryGradients(NamedTuple):
    """What a program of a query writes."""

    dq: Pointer  # [B, Q, CK]
    de: Pointer  # [B, Q, CK]
    slots: SlotGradients


class TokenSlots(NamedTuple):
    """Slots by token."""

    order: Pointer  # [B, Q * k]: the slots, sorted by token
    bounds: Pointer  # [B, N + 1]: where each token's slots begin in ``order``


def memory_read_backward(
    memory: MemoryInputs, queries: QueryInputs, weight: Tensor, index: Tensor,
    d_readout: Tensor, d_usage: Tensor | None, requested: Requested,
) -> Rows:  # fmt: skip
    """As memory_read_backward_dense's, from the forward's weight and index [B, Q, k].

    Three launches, a sort and a search, or those of them that the requested gradients need.
    """
    used, asking, values = segments(memory), query_args(queries), value_args(memory.mv)
    (b, ck, q), (_, o, cv, _) = queries.qk.shape, memory.mv[0].shape
    n, k, ckp = used.tokens, weight.shape[2], padded_channels(ck)
    slots = Slots(weight, index)
    usage = None if d_usage is None else d_usage.float().contiguous()
    incoming = Incoming(d_readout.float().permute(0, 3, 1, 2).contiguous(), usage)
    new = incoming.readout.new_empty
    slot_gradients = SlotGradients(torch.empty_like(weight), torch.empty_like(weight))
    out = QueryGradients(new((b, q, ck)), new((b, q, ck)), slot_gradients)
    if q > 0 and requested.of_scores:
        kp = configs.power_of_2_from(k)
        query_gradients[(q, b)](
            used.args, asking, values, slots, incoming, out, n, q, k, O=o, CV=cv, root=1 / math.sqrt(ck),
            CK=ck, CKP=ckp, KP=kp, num_warps=4 if kp <= 64 else 8,
        )  # fmt: skip
    dq, de = out.dq if requested.qk else None, out.de if requested.qe else None
    if not (requested.of_tokens or requested.mv):
        return None, None, None, dq, de
    token, order = index.flatten(1).sort(dim=1, stable=True)
    numbers = torch.arange(n + 1, device=index.device).expand(b, -1).contiguous()
    by_token = TokenSlots(order, torch.searchsorted(token, numbers))
    dk, ds = new((b, n, ck)), new((b, n, 1))
    if requested.of_tokens:
        key_gradients[(n, b)](
            used.args, asking, by_token, slot_gradients, dk, ds, n, q, k, CK=ck, CKP=ckp, num_warps=1
        )
    dv = new((b, n, o * cv)) if requested.mv else None
    block = min(512, max(16, configs.power_of_2_from(o * cv)))
    if dv is not None and dv.numel() > 0:
        value_gradients[(n, -(-o * cv // block), b)](
            by_token, weight, incoming.readout, dv, n, q, k, WIDTH=o * cv, BLOCK_C=block
        )
    return dk if requested.mk else None, ds if requested.ms else None, dv, dq, de


@triton.jit(do_not_specialize=["N", "Q"])
def query_gradients(
    memory: MemoryArgs, queries: QueryArgs, values: ValueArgs, slots: Slots, incoming: Incoming, out: QueryGradients,
    N: tl.tensor, Q: tl.tensor, K: tl.tensor, O: tl.tensor, CV: tl.tensor, root: tl.tensor,  # noqa: E741
    CK: tl.constexpr, CKP: tl.constexpr, KP: tl.constexpr,
) -> None:  # fmt: skip
    """Fills ``out`` for one query. KP is the power of two from K; ``root`` is 1 / sqrt(CK). Grid [Q, B]."""
    BLOCK_C: tl.constexpr = _PAIRS // KP if KP * _LEAST_BLOCK < _PAIRS else _LEAST_BLOCK
    b = tl.program_id(1).to(tl.int64)
    query = tl.program_id(0)
    slot = tl.arange(0, KP)
    row = (b * Q + query) * K + slot
    w = tl.load(slots.weight + row, mask=slot < K, other=0.0)
    token = tl.load(slots.index + row, mask=slot < K, other=-1)
    dw = tl.zeros((KP,), tl.float32)
    for o in range(O):
        for start in range(0, CV, BLOCK_C):
            channel = start + tl.arange(0, BLOCK_C)
            d = tl.load(incoming.readout + ((b * Q + query) * O + o) * CV + channel, mask=channel < CV, other=0.0)
            for i in tl.static_range(len(values.mv)):
                here = (token >= bound(values.starts, i)) & (token < bound(values.ends, i))
                at = values.mv[i] + b * values.sb[i] + (b * 0 + o) * values.so[i]
                at += (token - bound(values.starts, i))[:, None] * values.sn[i]
                mask = here[:, None] & (channel < CV)[None, :]
                x = tl.load(at + channel[None, :].to(tl.int64) * values.sc[i], mask=mask, other=0.0)
                dw += tl.sum(x.to(tl.float32) * d[None, :], 1)
    if incoming.usage is not None:
        dw += tl.load(incoming.usage + b * N + token, mask=slot < K, other=0.0)
    d_score = w * (dw - tl.sum(w * dw, 0))
    channel = tl.arange(0, CKP)
    q, e = load_queries(queries, b, query + tl.arange(0, 1), Q, CK, CKP)
    x = load_tokens(memory, b, token, channel, CK).to(tl.float32) - q
    s = load_shrinkage(memory, b, token)
    # A slot of weight 0 has no share, whatever its token's numbers are.
    d_score = tl.where((slot < K) & (w != 0), d_score, 0.0)
    x = tl.where((d_score != 0)[:, None], x, 0.0)
    h = tl.where(d_score != 0, -d_score * s * root, 0.0)
    tl.store(out.slots.shrinkage + row, -d_score * root * tl.sum(e * x * x, 1), mask=slot < K)
    tl.store(out.slots.distance + row, h, mask=slot < K)
    at = (b * Q + query) * CK + channel
    x_h = x * h[:, None]
    e_row = tl.sum(e, 0)
    tl.store(out.dq + at, -2 * e_row * tl.sum(x_h, 0), mask=channel < CK)
    tl.store(out.de + at, tl.sum(x_h * x, 0), mask=channel < CK)


@triton.jit(do_not_specialize=["N", "Q"])
def key_gradients(
    memory: MemoryArgs, queries: QueryArgs, by_token: TokenSlots, slots: SlotGradients, dk: tl.tensor, ds: tl.tensor,
    N: tl.tensor, Q: tl.tensor, K: tl.tensor, CK: tl.constexpr, CKP: tl.constexpr,
) -> None:  # fmt: skip
    """dk [B, N, CK], ds [B, N, 1]. Grid [N, B]."""
    b = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0)
    channel = tl.arange(0, CKP)
    k = load_tokens(memory, b, (token + tl.arange(0, 1)).to(tl.int64), channel, CK).to(tl.float32)
    d_key = tl.zeros((CKP,), tl.float32)
    d_shrinkage = tl.zeros((_SLOTS,), tl.float32)
    first = tl.load(by_token.bounds + b * (N + 1) + token)
    last = tl.load(by_token.bounds + b * (N + 1) + token + 1)
    for start in range(first, last, _SLOTS):
        at = start + tl.arange(0, _SLOTS)
        slot = tl.load(by_token.order + b * Q * K + at, mask=at < last, other=0)
        query = tl.where(at < last, slot // K, Q)
        q, e = load_queries(queries, b, query, Q, CK, CKP)
        h = tl.load(slots.distance + b * Q * K + slot, mask=at < last, other=0.0)
        d_key += 2 * tl.sum(tl.where((h != 0)[:, None], h[:, None] * e * (k - q), 0.0), 0)
        d_shrinkage += tl.load(slots.shrinkage + b * Q * K + slot, mask=at < last, other=0.0)
    tl.store(dk + (b * N + token) * CK + channel, d_key, mask=channel < CK)
    tl.store(ds + b * N + token, tl.sum(d_shrinkage, 0))


@triton.jit(do_not_specialize=["N", "Q"])
def value_gradients(
    by_token: TokenSlots, weight: tl.tensor, d_out: tl.tensor, dv: tl.tensor,
    N: tl.tensor, Q: tl.tensor, K: tl.tensor, WIDTH: tl.tensor, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """dv [B, N, WIDTH]: sum over a token's slots of weight * d_out [B, Q, WIDTH]. Grid [N, blocks of WIDTH, B]."""
    b = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    first = tl.load(by_token.bounds + b * (N + 1) + token)
    last = tl.load(by_token.bounds + b * (N + 1) + token + 1)
    for start in range(first, last, _VALUE_SLOTS):
        at = start + tl.arange(0, _VALUE_SLOTS)
        slot = tl.load(by_token.order + b * Q * K + at, mask=at < last, other=0)
        w = tl.load(weight + b * Q * K + slot, mask=at < last, other=0.0)
        mask = (at < last)[:, None] & (channel < WIDTH)[None, :]
        x = tl.load(d_out + (b * Q + slot // K)[:, None] * WIDTH + channel[None, :], mask=mask, other=0.0)
        total += tl.sum(w[:, None] * x, 0)
    tl.store(dv + (b * N + token) * WIDTH + channel, total, mask=channel < WIDTH)
