"""Preallocated storage of one number or row of channels per token, in blocks that never move."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .changes import Move, Write
from .table import LONG_TERM, Run, Slot, Table

LARGEST_BLOCK = 256 << 20  # bytes of an added block of frames, unless one frame is larger


class Bank:
    """Blocks [B, tokens, *channels]: token-major, so a view with tokens last has channel stride 1.

    Block 0 is long-term memory, the others hold frames. Rows that were never written are
    uninitialised; only tokens that a table names are read.

    Rows that tokens are in are never written at once. :meth:`keep`, and what is written behind it,
    is noted, and done when the blocks are next accessed (:mod:`.changes`).
    """

    _later: tuple[Move | Write, ...] = ()

    def __init__(self, batch: int, channels: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.batch, self.channels, self.dtype, self.device = batch, tuple(channels), dtype, device
        self.blocks = []

    @property
    def blocks(self) -> list[Tensor]:
        """All blocks, after the changes noted for them."""
        blocks: list[Tensor] = vars(self)["blocks"]
        while self._later:
            with torch.no_grad():
                self._later[0].apply(blocks[LONG_TERM])
            self._later = self._later[1:]
        return blocks

    @blocks.setter
    def blocks(self, blocks: list[Tensor]) -> None:
        vars(self)["blocks"] = blocks

    def fork(self) -> Bank:
        """A bank on the same storage, with a list of blocks and notes of its own."""
        twin = copy.copy(self)
        twin.blocks = list(self.blocks)
        twin._later = ()
        return twin

    def copied(self) -> Bank:
        """A bank with the same numbers in storage of its own."""
        twin = copy.copy(self)
        twin.blocks = [twin.empty(block.shape[1]).copy_(block) for block in self.blocks]
        twin._later = ()
        return twin

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

    def write(self, run: Run, rows: Tensor) -> None:
        """Writes [B, n, *channels] to rows of a run that no token is in."""
        if self._later and run.block == LONG_TERM:
            self._later = (*self._later, Write(run.start, rows))
        else:
            vars(self)["blocks"][run.block][:, run.start : run.stop].copy_(rows)

    def keep(self, index: Tensor, ascending: bool) -> None:
        """Notes that long-term token index[b, i], of [B, n], moves to place i.

        Ascending tokens are moved in chunks.
        """
        self._later = (*self._later, Move(index, ascending))

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
