"""Changes that happen completely or not at all, wherever an exception or a signal interrupts them.

**One moment.** A call computes its results in forks of what it changes, and :func:`commit` then
puts them in place. ``dict.update`` runs no Python code, so no exception comes in between.

**Noted, then done.** Rows that tokens are in must not be written before that moment, and cannot be
written within it. They are noted with the commit, and the next access to the storage moves them.
Each step of :class:`Move` and :class:`Write` can be repeated, so an access that was interrupted is
finished by the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MOVED_BYTES = 1 << 20  # moved at a time when long-term memory is compacted


def commit(changes: Sequence[tuple[object, Mapping[str, Any]]], result: Any = None) -> Any:
    """Sets attributes of several objects at one moment, and returns ``result``.

    changes: an object and its new attributes, each.
    """
    owners, attributes = [vars(owner) for owner, _ in changes], [new for _, new in changes]
    # One expression, so that no line of Python lies between the change and the return.
    return (deque(map(dict.update, owners, attributes), maxlen=0), result)[1]


def adoption(memory: Any, draft: Any) -> list[tuple[object, Mapping[str, Any]]]:
    """The changes that give a memory, and its sensory memory, the state of its draft."""
    own = {name: value for name, value in vars(draft).items() if name != "sensory"}
    return [(memory, own), (memory.sensory, vars(draft.sensory))]


class Write:
    """Writes rows [B, n, *channels] into a block from token ``start`` on."""

    def __init__(self, start: int, rows: Tensor) -> None:
        self.start, self.rows = start, rows

    def apply(self, block: Tensor) -> None:
        """Writes them; may be repeated."""
        block[:, self.start : self.start + self.rows.shape[1]].copy_(self.rows)


class Move:
    """Moves token index[b, i], of [B, n], of a block to place i.

    Where ``index`` ascends, rows move in chunks from the front. Then index[b, i] >= i, so no row is
    read after it was overwritten.
    """

    def __init__(self, index: Tensor, ascending: bool) -> None:
        self.index, self.ascending = index, ascending
        self._scratch: Tensor | None = None
        self._lifted, self._laid = 0, 0  # chunks that were copied to the scratch, and from it

    def apply(self, block: Tensor) -> None:
        """Moves them. Where an exception has interrupted it, a second call finishes."""
        batch, n = self.index.shape
        if n == 0 or block.numel() == 0:
            return
        rows = block.view(batch, block.shape[1], -1).view(torch.uint8)
        row = rows.shape[2]
        if self._scratch is None:
            step = min(n, max(1, MOVED_BYTES // row)) if self.ascending else n
            self._scratch = torch.empty(step, row, dtype=torch.uint8, device=block.device)
        step = self._scratch.shape[0]
        chunks = [(b, i, min(i + step, n)) for b in range(batch) for i in range(0, n, step)]
        for chunk, (b, i, j) in enumerate(chunks):
            if chunk < self._laid:
                continue
            scratch = self._scratch[: j - i]
            if chunk == self._lifted:  # until it is laid down, its rows are still in their old places
                torch.index_select(rows[b], 0, self.index[b, i:j], out=scratch)
                self._lifted = chunk + 1
            rows[b, i:j].copy_(scratch)
            self._laid = chunk + 1
