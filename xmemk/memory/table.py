"""Where the tokens of a memory lie, and the order in which they are read: positions, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LONG_TERM = 0  # the block of long-term memory; frames lie in blocks 1, 2, ...


class Run(NamedTuple):
    """Tokens start to stop of a block."""

    block: int
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start


class Slot(NamedTuple):
    """The place of one frame: the slot-th of a block."""

    block: int
    slot: int


class Table:
    """The order of the tokens: ``long`` long-term tokens, then those of ``frames``, oldest first.

    frame: tokens per frame. slots: frames that the first block holds.

    A frame keeps its slot until it leaves. A new frame gets the slot after the last frame's where
    that is free. A memory that drops its oldest frames is therefore a ring, and its frames form two
    or three runs.
    """

    def __init__(self, frame: int, slots: int) -> None:
        self.frame = frame
        self.slots = [slots]
        self.frames: list[Slot] = []
        self.long = 0

    def fork(self) -> Table:
        """A table with the same positions in lists of its own."""
        twin = Table(self.frame, 0)
        twin.slots, twin.frames, twin.long = list(self.slots), list(self.frames), self.long
        return twin

    @property
    def tokens(self) -> int:
        return self.long + len(self.frames) * self.frame

    def free(self) -> Slot | None:
        """The slot for the next frame; None where all slots are taken."""
        taken = set(self.frames)
        if self.frames:
            after = Slot(self.frames[-1].block, self.frames[-1].slot + 1)
            if after.slot < self.slots[after.block - 1] and after not in taken:
                return after
        if sum(self.slots) == len(self.frames):
            return None
        all_slots = (Slot(b + 1, s) for b, slots in enumerate(self.slots) for s in range(slots))
        return next(slot for slot in all_slots if slot not in taken)

    def run(self, slot: Slot) -> Run:
        """The tokens of one frame."""
        return Run(slot.block, slot.slot * self.frame, (slot.slot + 1) * self.frame)

    def runs(self, frames: Sequence[Slot] | None = None) -> list[Run]:
        """The tokens of these frames, in order, in as few runs as possible; all tokens for None."""
        runs = [Run(LONG_TERM, 0, self.long)] if frames is None and self.long else []
        for slot in self.frames if frames is None else frames:
            new = self.run(slot)
            if runs and runs[-1].block == new.block and runs[-1].stop == new.start:
                runs[-1] = Run(new.block, runs[-1].start, new.stop)
            else:
                runs.append(new)
        return runs


def last(runs: Sequence[Run], tokens: int) -> list[Run]:
    """The runs of the last ``tokens`` tokens."""
    kept: list[Run] = []
    for run in reversed(runs):
        if tokens <= 0:
            break
        kept.append(run._replace(start=max(run.start, run.stop - tokens)))
        tokens -= run.tokens
    return kept[::-1]


def side_by_side(a: Sequence[Run], b: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Cuts two lists of runs over equally many tokens so that their i-th runs are equally long."""
    cut_a, cut_b = [], []
    left, right = list(a[::-1]), list(b[::-1])
    while left and right:
        x, y = left.pop(), right.pop()
        n = min(x.tokens, y.tokens)
        cut_a.append(x._replace(stop=x.start + n))
        cut_b.append(y._replace(stop=y.start + n))
        if n < x.tokens:
            left.append(x._replace(start=x.start + n))
        if n < y.tokens:
            right.append(y._replace(start=y.start + n))
    return cut_a, cut_b
