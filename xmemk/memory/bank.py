"""Preallocated storage of one number or row of channels per token, in blocks that never move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .table import LONG_TERM, Run, Slot, Table

MOVED_BYTES = 1 << 20  # moved at a time when long-term memory is compacted
LARGEST_BLOCK = 256 << 20  # bytes of an added block of frames, unless one frame is larger


class Bank:
    """Blocks [B, tokens, *channels]: token-major, so a view with tokens last has channel stride 1.

    Block 0 is long-term memory, the others hold frames. Rows that were never written are
    uninitialised; only tokens that a table names are read.
    """

    def __init__(self, batch: int, channels: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.batch, self.channels, self.dtype, self.device = batch, tuple(channels), dtype, device
        self.blocks: list[Tensor] = []

    def empty(self, tokens: int) -> Tensor:
        """A new block.

        Never an inference tensor, which could not be written to outside of inference mode.
        """
        with torch.inference_mode(False):
            return torch.empty(self.batch, tokens, *self.channels, dtype=self.dtype, device=self.device)

    def rows(self, run: Run) -> Tensor:
        """[B, n, *channels] of a run, as a view."""
        return self.blocks[run.block][:, run.start : run.stop]

    def view(self, run: Run) -> Tensor:
        """[B, *channels, n] of a run, as a view: the form that the stateless functions take."""
        return self.rows(run).movedim(1, -1)

    def keep(self, index: Tensor, scratch: Tensor, ascending: bool) -> None:
        """Moves long-term token index[b, i] to place i. ``scratch``: :meth:`moving_bytes` of uint8.

        Where ``index`` [B, n] ascends, rows move in chunks from the front. Then index[b, i] >= i,
        so no row is read after it was overwritten.
        """
        block = self.blocks[LONG_TERM]
        n = index.shape[1]
        if n == 0 or block.numel() == 0:
            return
        block_bytes = block.view(self.batch, block.shape[1], -1).view(torch.uint8)
        row = block_bytes.shape[2]
        step = max(1, scratch.numel() // row) if ascending else n
        for b in range(self.batch):
            for i in range(0, n, step):
                j = min(i + step, n)
                chunk = scratch[: (j - i) * row].view(j - i, row)
                torch.index_select(block_bytes[b], 0, index[b, i:j], out=chunk)
                block_bytes[b, i:j].copy_(chunk)

    def moving_bytes(self, tokens: int, ascending: bool) -> int:
        """Bytes of scratch that :meth:`keep` of so many tokens needs."""
        row = self.row_bytes
        return max(row, min(MOVED_BYTES, tokens * row)) if ascending else tokens * row

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one batch element."""
        count = self.dtype.itemsize
        for c in self.channels:
            count *= c
        return count

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)


def add_block(banks: Iterable[Bank], tokens: int) -> None:
    """Adds a block to every bank, or raises and adds none."""
    pairs = [(bank, bank.empty(tokens)) for bank in banks]
    for bank, block in pairs:
        bank.blocks.append(block)


def place(table: Table, banks: Sequence[Bank]) -> Slot:
    """The slot for the next frame. Where all are taken, a block of frames is added to the banks."""
    slot = table.free()
    if slot is None:
        frame_bytes = sum(bank.row_bytes * bank.batch for bank in banks) * table.frame
        slots = max(1, min(2 * table.slots[-1], LARGEST_BLOCK // frame_bytes))
        add_block(banks, slots * table.frame)
        table.slots.append(slots)
        slot = table.free()
        assert slot is not None
    return slot
