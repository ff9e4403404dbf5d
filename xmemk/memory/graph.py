"""The top-k read of an arena as a CUDA graph: captured once, replayed while the memory changes.

Why. A GPU takes less time for a read of a few thousand queries than the host takes to launch it. A
replay is one launch.

How. A replay reads the same addresses every time, while the tokens of a memory change with every
memory frame. The graph therefore reads the arena's storage, which never moves, and a table on the
device that says which of its tokens are held, and in which order (``xmemk.kernels.sized``). The
table is written when that changes. Queries are copied into buffers, results out of them.

When. The first read of a new kind (another type or stride of the query, other storage after objects
left) runs without a graph and compiles the kernels. The second read of that kind is captured. These
reads never use a graph:

* reads of all tokens, and of so few tokens that they are not grouped;
* reads with gradients, and reads that are themselves being captured or compiled;
* reads of values of 8 bits;
* reads of more than four runs, or of blocks of frames beyond the first.

Where a capture fails, the memory warns once and reads without graphs from then on.

An arena has one set of buffers: reads from two streams need a synchronisation between them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.autograd import forward_ad

from ..inputs import MemoryInputs, QueryInputs
from . import cuda_graphs
from .bank import Bank
from .cuda_graphs import CudaGraphs as CudaGraphs  # where pickles of version 0.1 look for it
from .cuda_graphs import GraphDevice, Result, Segment
from .table import LONG_TERM, Run
from .values import Values

SEGMENTS = 4  # long-term memory, and frames in at most three runs
FRAMES = 1  # the first block of frames


class Storage(Protocol):
    """What a graph reads of an arena."""

    key: Bank
    shrinkage: Bank
    values: Values

    def keys(self, runs: Sequence[Run]) -> MemoryInputs:
        """See :meth:`.arena.Arena.keys`."""


@dataclass
class Captures:
    """The graphs of all arenas of one memory.

    given_up: whether a capture has failed, after which none is tried again.
    """

    graphs: GraphDevice = field(default_factory=lambda: cuda_graphs.CUDA)
    given_up: bool = False

    def give_up(self, error: Exception) -> None:
        """Ends the use of graphs because of this error, with one warning per memory."""
        if not self.given_up:
            lines = str(error).splitlines()
            reason = type(error).__name__ + (f": {lines[0]}" if lines else "")
            message = f"cuda_graphs: this memory reads without them from now on, {reason}"
            warnings.warn(message, RuntimeWarning, _callers_level())
        self.given_up = True


def _callers_level() -> int:
    """The stacklevel with which a warning names the line that called this package."""
    frame, level = sys._getframe(1), 1
    ours = (__name__.partition(".")[0], "torch")  # torch's decorators lie between our functions
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    return level


class ReadGraph:
    """The graph of one arena.

    It is left out of copies, pickles and files, which capture their own.
    """

    def __init__(self, captures: Captures) -> None:
        self.captures = captures
        self._reading: _RepeatedRead | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"captures": self.captures, "_reading": None}

    @property
    def captured(self) -> bool:
        """Whether the next read of the last one's kind is a replay."""
        return self._reading is not None and self._reading.replay is not None

    def read(
        self,
        storage: Storage,
        runs: Sequence[Run],
        queries: QueryInputs,
        *,
        top_k: int | None,
        return_usage: bool,
        backend: str,
    ) -> Result | None:
        """As :meth:`.arena.Arena.read`; None for a read that no graph serves.

        The caller owns the result.
        """
        graphs = self.captures.graphs
        if self.captures.given_up or top_k is None or type(storage.values) is not Values:
            return None
        if not graphs.ready(queries.qk):
            return None
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in queries):
            return None
        if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
            return None
        segments = _segments(runs)
        if segments is None or not graphs.fits(sum(run.tokens for run in runs), top_k):
            return None
        banks = (storage.key, storage.shrinkage, storage.values.bank)
        addresses = tuple((block.data_ptr(), block.shape) for bank in banks for block in bank.blocks[: FRAMES + 1])
        forms = tuple(None if x is None else (x.dtype, x.shape, x.stride()) for x in queries)
        kind = (forms, top_k, return_usage, backend, addresses)
        if self._reading is None or self._reading.kind != kind:
            if not graphs.serves(queries, storage.values.bank.blocks[FRAMES], top_k, backend):
                return None
            self._reading = None  # frees its memory for the next one
        try:
            if self._reading is None:
                self._reading = _RepeatedRead(graphs, kind, storage, queries, top_k, return_usage)
            with torch.inference_mode(False), torch.no_grad():
                readout, usage = self._reading(queries, segments)
        except Exception as error:  # of CUDA, its allocator, or Triton
            # An error of the read itself, graph or not, is raised by the read that follows without
            # one.
            self._reading = None
            self.captures.give_up(error)
            return None
        return readout.to(storage.values.spec.value_dtype), usage


class _RepeatedRead:
    """Reads of one kind from one storage: the first as it is, the second captured, then replays."""

    def __init__(
        self,
        graphs: GraphDevice,
        kind: tuple[Any, ...],
        storage: Storage,
        queries: QueryInputs,
        top_k: int,
        return_usage: bool,
    ) -> None:
        self.graphs = graphs
        self.kind = kind
        # Outside of inference mode, because inference tensors cannot be written to later. Strides
        # are kept: they decide the order of sums, and results must equal those without a graph bit
        # for bit.
        with torch.inference_mode(False):
            buffers = [None if x is None else torch.empty_like(x, requires_grad=False) for x in queries]
            self.table = graphs.table(queries.qk)
        assert buffers[0] is not None
        self.queries = QueryInputs(buffers[0], buffers[1])
        self.segments_on_device: tuple[Segment, ...] | None = None
        capacity = sum(block.shape[1] for block in storage.key.blocks[: FRAMES + 1])
        arguments = (_whole_blocks(storage), self.table, capacity, self.queries, top_k, return_usage)
        self.call: Callable[[], Result] | None = lambda: graphs.read(*arguments)
        self.result: Result | None = None
        self.replay: Callable[[], None] | None = None
        self.compiled = False

    def __call__(self, queries: QueryInputs, segments: tuple[Segment, ...]) -> Result:
        for buffer, x in zip(self.queries, queries):
            if buffer is not None and x is not None:
                buffer.copy_(x)
        if self.segments_on_device != segments:
            self.graphs.place(self.table, segments)
            self.segments_on_device = segments
        tokens = sum(count for count, _, _ in segments)
        if not self.compiled:
            assert self.call is not None
            readout, usage = self.call()
            self.compiled = True
            return readout, None if usage is None else usage[:, :tokens]
        if self.replay is None:
            assert self.call is not None
            self.result, self.replay = self.graphs.capture(self.call, self.queries.qk)
            self.call = None
        self.replay()
        assert self.result is not None
        readout, usage = self.result
        # Copies, because the next replay overwrites these buffers.
        return readout.clone(), None if usage is None else usage[:, :tokens].clone()


def _segments(runs: Sequence[Run]) -> tuple[Segment, ...] | None:
    """The runs as SEGMENTS segments, long-term memory first.

    None where they do not fit into these.
    """
    long_term = [run for run in runs if run.block == LONG_TERM]
    frames = [run for run in runs if run.block == FRAMES]
    if len(long_term) + len(frames) < len(runs) or len(long_term) > 1 or len(frames) >= SEGMENTS:
        return None
    if long_term and runs[0] != long_term[0]:
        return None
    first = (long_term[0].tokens, long_term[0].start, long_term[0].start) if long_term else (0, 0, 0)
    rest = [(run.tokens, run.start, run.start) for run in frames]
    return first, *rest, *[(0, 0, 0)] * (SEGMENTS - 1 - len(rest))


def _whole_blocks(storage: Storage) -> MemoryInputs:
    """Whole blocks as segments.

    Frames stand in for a long-term memory without room, which is never read.
    """
    first = LONG_TERM if storage.key.blocks[LONG_TERM].shape[1] > 0 else FRAMES
    runs = [Run(b, 0, storage.key.blocks[b].shape[1]) for b in (first, *[FRAMES] * (SEGMENTS - 1))]
    return storage.keys(runs)._replace(mv=storage.values.segments(runs))
