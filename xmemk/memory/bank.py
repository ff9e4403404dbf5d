"""Preallocated storage for one number or row of channels per token, in blocks that never move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .table import LONG_TERM, Run, Slot, Table

MOVED_BYTES = 1 << 20  # of rows that are on their way at a time when long-term memory is compacted
LARGEST_BLOCK = 256 << 20  # bytes of frames that are added at a time, or one frame


class Bank:
    """[B, tokens, *channels] per block: token-major, so that a view with tokens last has channel stride 1.

    Block 0 is long-term memory, the others hold frames. What was never written is uninitialised; only tokens that a
    table names are ever looked at.
    """

    def __init__(self, batch: int, channels: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.batch, self.channels, self.dtype, self.device = batch, tuple(channels), dtype, device
        self.blocks: list[Tensor] = []

    def empty(self, tokens: int) -> Tensor:
        """A new block. Never an inference tensor: those could not be written to outside of inference mode."""
        with torch.inference_mode(False):
            return torch.empty(self.batch, tokens, *self.channels, dtype=self.dtype, device=self.device)

    def rows(self, run: Run) -> Tensor:
        """[B, n, *channels] of a run, a view."""
        return self.blocks[run.block][:, run.start : run.stop]

    def view(self, run: Run) -> Tensor:
        """[B, *channels, n] of a run, a view: as the stateless functions take it."""
        return self.rows(run).movedim(1, -1)

    def keep(self, index: Tensor, moving: Tensor, ascending: bool) -> None:
        """Long-term token i becomes what token index[b, i] was. ``moving``: uint8 scratch of :meth:`moving_bytes`.

        In chunks from the front where ``index`` [B, n] ascends: then index[b, i] >= i, and nothing is read after it
        was written over.
        """
        block = self.blocks[LONG_TERM]
        n = index.shape[1]
        if n == 0 or block.numel() == 0:
            return
        bytes_of = block.view(self.batch, block.shape[1], -1).view(torch.uint8)
        row = bytes_of.shape[2]
        step = max(1, moving.numel() // row) if ascending else n
        for b in range(self.batch):
            for i in range(0, n, step):
                j = min(i + step, n)
                chunk = moving[: (j - i) * row].view(j - i, row)
                torch.index_select(bytes_of[b], 0, index[b, i:j], out=chunk)
                bytes_of[b, i:j].copy_(chunk)

    def moving_bytes(self, tokens: int, ascending: bool) -> int:
        """Scratch that :meth:`keep` of so many tokens needs."""
        row = self.row_bytes
        return max(row, min(MOVED_BYTES, tokens * row)) if ascending else tokens * row

    @property
    def row_bytes(self) -> int:
        """Of one token of one batch element."""
        count = self.dtype.itemsize
        for c in self.channels:
            count *= c
        return count

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)


def add_block(banks: Iterable[Bank], tokens: int) -> None:
    """A block more for all of them, or an error and none."""
    pairs = [(bank, bank.empty(tokens)) for bank in banks]
    for bank, block in pairs:
        bank.blocks.append(block)


def place(table: Table, banks: Sequence[Bank]) -> Slot:
    """The slot for the next frame; where all are taken, the banks get a block of frames more."""
    slot = table.free()
    if slot is None:
        frame_bytes = sum(bank.row_bytes * bank.batch for bank in banks) * table.frame
        slots = max(1, min(2 * table.slots[-1], LARGEST_BLOCK // frame_bytes))
        add_block(banks, slots * table.frame)
        table.slots.append(slots)
        slot = table.free()
        assert slot is not None
    return slot
