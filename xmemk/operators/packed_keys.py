"""Keys in 8 bits for the first look of a top-k read on the CPU (csrc/cpu/quantised_bank.h).

A read packs its keys by itself. A memory that is read often keeps them packed: one tensor for each
segment, all about one centre [B, CK] float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .library import LIBRARY, Tensors, define, fake

_BLOCK_TOKENS = 64  # of a block of packed keys
_NUMBERS = 4  # float32 numbers of a token: its scale, bounds and shrinkage
_BYTES_OF_A_PAIR = 4  # of two channels, a byte each for k^2 and k

define("key_centre(Tensor[] mk) -> Tensor")
define("empty_packed_keys(Tensor mk, SymInt tokens) -> Tensor")
LIBRARY.define("quantise_keys(Tensor mk, Tensor? ms, Tensor centre, Tensor(a!) packed, SymInt first) -> ()")


def key_centre(mk: Tensors) -> Tensor:
    """A median key of all segments [B, CK] float32."""
    centre: Tensor = torch.ops.xmemk.key_centre(mk)
    return centre


def empty_packed_keys(mk: Tensor, tokens: int) -> Tensor:
    """Room for so many packed tokens with the B and CK of mk [B, CK, N], uint8."""
    packed: Tensor = torch.ops.xmemk.empty_packed_keys(mk, tokens)
    return packed


def quantise_keys(mk: Tensor, ms: Tensor | None, centre: Tensor, packed: Tensor, first: int) -> None:
    """Writes keys mk [B, CK, N] and shrinkage ms [B, 1, N] to the packed tokens first to first + N
    - 1.
    """
    torch.ops.xmemk.quantise_keys(mk, ms, centre, packed, first)


@fake("key_centre")
def _fake_centre(mk: Tensors) -> Tensor:
    return mk[0].new_empty(mk[0].shape[:2], dtype=torch.float32)


@fake("empty_packed_keys")
def _fake_packed(mk: Tensor, tokens: int) -> Tensor:
    block = _BLOCK_TOKENS * (4 * _NUMBERS + (mk.shape[1] + 1) // 2 * _BYTES_OF_A_PAIR)
    blocks = (tokens + _BLOCK_TOKENS - 1) // _BLOCK_TOKENS
    return mk.new_empty((mk.shape[0], blocks, block), dtype=torch.uint8)


@fake("quantise_keys")
def _fake_quantise(mk: Tensor, ms: Tensor | None, centre: Tensor, packed: Tensor, first: int) -> None:
    return None
