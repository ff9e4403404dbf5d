"""The top-k read of an arena as a CUDA graph: captured once, replayed while the memory grows, shrinks and moves.

A read of a few thousand queries takes a GPU less time than launching it takes the host. A replay is one launch, but it
reads the same places every time, while the tokens of a memory change with every memory frame. So the graph reads the
arena's storage, which stays where it is, and a table on the device says which tokens of it are held, in which order
(``xmemk.kernels.sized``). The table is written when that changes. Queries are copied into buffers, results out of them.

A read of a new kind (another type or stride of the query, other storage since objects left) is made without a graph,
which compiles what is to be compiled; the second one of that kind is captured. What the graph cannot do, the arena does
as if there were none: reads of all tokens, of so few that they are not grouped, with gradients, of values of 8 bits, of
more than four runs or blocks of frames added to the first, and those that are themselves being captured. Where a
capture fails, the memory says so once, and reads without graphs from then on.

An arena has one set of buffers: reads from two streams need a synchronization between them.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import api
from .. import operators as ops
from .table import LONG_TERM, Run
from .values import Values

if TYPE_CHECKING:
    from .arena import Arena

SEGMENTS = 4  # long-term memory, and frames in at most three runs
FRAMES = 1  # the first block of frames

Segment = tuple[int, int, int]  # tokens held, the first of them in the keys' storage, and in the values'
Result = tuple[Tensor, Tensor | None]


class Graphs(Protocol):
    """What a :class:`ReadGraph` needs of a device: a read whose sizes are on it, and graphs."""

    def ready(self, like: Tensor) -> bool:
        """Whether a read could be captured or replayed now; asked at every read."""

    def serves(self, qk: Tensor, qe: Tensor | None, mv: Tensor, top_k: int, backend: str) -> bool:
        """Whether ``backend`` would make such a read as :meth:`read` does; asked once for each kind."""

    def fits(self, tokens: int, top_k: int) -> bool:
        """Whether :meth:`read` can read so many tokens."""

    def table(self, like: Tensor) -> Tensor:
        """A new table on the device."""

    def place(self, table: Tensor, segments: Sequence[Segment]) -> None:
        """Writes which tokens are held; reads started before see what was there then."""

    def read(
        self,
        mk: list[Tensor],
        ms: list[Tensor],
        mv: list[Tensor],
        table: Tensor,
        capacity: int,
        qk: Tensor,
        qe: Tensor | None,
        top_k: int,
        return_usage: bool,
    ) -> Result:
        """-> readout [B, O, CV, Q], usage [B, capacity] or None, of the segments' tokens that ``table`` names."""

    def capture(self, call: Callable[[], Result], like: Tensor) -> tuple[Result, Callable[[], None]]:
        """A graph of ``call``: the places of its results, which hold them only after each replay; and the replay."""


class CudaGraphs:
    """Backend "triton" on CUDA."""

    def ready(self, like: Tensor) -> bool:
        # An installation that cannot run the kernels must not fail here: other backends serve it.
        if not like.is_cuda or ops.triton_error("cuda", like.device.index) is not None:
            return False
        return not torch.cuda.is_current_stream_capturing()

    def serves(self, qk: Tensor, qe: Tensor | None, mv: Tensor, top_k: int, backend: str) -> bool:
        said = api.explain("memory_read", qk, qk if qe is None else qe, mv, top_k=top_k, backend=backend)
        return said.chosen == "triton"

    def fits(self, tokens: int, top_k: int) -> bool:
        found: bool = ops.sized().fits(tokens, top_k)
        return found

    def table(self, like: Tensor) -> Tensor:
        table: Tensor = ops.sized().new_table(like)
        return table

    def place(self, table: Tensor, segments: Sequence[Segment]) -> None:
        with torch.cuda.device_of(table):
            ops.sized().write(table, ops.sized().rows(segments))

    def read(
        self,
        mk: list[Tensor],
        ms: list[Tensor],
        mv: list[Tensor],
        table: Tensor,
        capacity: int,
        qk: Tensor,
        qe: Tensor | None,
        top_k: int,
        return_usage: bool,
    ) -> Result:
        with torch.cuda.device_of(qk):
            result: Result = ops.sized().memory_read(mk, ms, mv, table, capacity, qk, qe, top_k, return_usage)
        return result

    def capture(self, call: Callable[[], Result], like: Tensor) -> tuple[Result, Callable[[], None]]:
        """On a stream of its own, in a pool of its own; other threads may use CUDA meanwhile."""
        with torch.cuda.device_of(like):
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    result = call()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # what it says then is a consequence
                        _end(graph, like)
                    raise
                _end(graph, like)
            torch.cuda.current_stream().wait_stream(stream)
        return result, graph.replay


_UNENDED: list[torch.cuda.CUDAGraph] = []


def _end(graph: torch.cuda.CUDAGraph, like: Tensor) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        _UNENDED.append(graph)  # the allocator goes on to ask it which streams it captures: it must not go
        with contextlib.suppress(RuntimeError):
            _free_generator(like)
        raise


def _free_generator(like: Tensor) -> None:
    """Where torch's random generator knows one capture at a time (that of 2.13 knows each), it takes the failed one to
    go on, and raises when asked for numbers; one that succeeds ends that.
    """
    with torch.cuda.stream(torch.cuda.Stream()):
        graph = torch.cuda.CUDAGraph()
        _UNENDED.append(graph)
        graph.capture_begin(capture_error_mode="thread_local")
        like.new_zeros(1)  # torch warns of a graph of nothing
        graph.capture_end()
        _UNENDED.remove(graph)


CUDA = CudaGraphs()


@dataclass
class Captures:
    """The graphs of one memory, of all its arenas."""

    graphs: Graphs
    given_up: bool = False

    def give_up(self, error: Exception) -> None:
        """No more of them, since this came of one; said once."""
        if not self.given_up:
            lines = str(error).splitlines()
            why = type(error).__name__ + (f": {lines[0]}" if lines else "")
            said = f"cuda_graphs: this memory reads without them from now on, {why}"
            warnings.warn(said, RuntimeWarning, _callers_level())
        self.given_up = True


def _callers_level() -> int:
    """The stacklevel with which a warning names the line that called this package."""
    frame, level = sys._getframe(1), 1
    ours = (__name__.partition(".")[0], "torch")  # whose decorators lie between our functions
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    return level


class ReadGraph:
    """The graph of one arena. Copies, pickles and files of a memory go without it, and make their own."""

    def __init__(self, captures: Captures) -> None:
        self.captures = captures
        self._reading: _Reading | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"captures": self.captures, "_reading": None}

    @property
    def captured(self) -> bool:
        """Whether the next read of the last one's kind is a replay."""
        return self._reading is not None and self._reading.replay is not None

    def read(
        self,
        arena: Arena,
        runs: Sequence[Run],
        qk: Tensor,
        qe: Tensor | None,
        *,
        top_k: int | None,
        return_usage: bool,
        backend: str,
    ) -> Result | None:
        """As :meth:`.arena.Arena.read`; None for a read that is not for a graph. Results are the caller's to keep."""
        graphs = self.captures.graphs
        if self.captures.given_up or top_k is None or type(arena.values) is not Values or not graphs.ready(qk):
            return None
        if torch.is_grad_enabled() and (qk.requires_grad or (qe is not None and qe.requires_grad)):
            return None
        if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
            return None
        segments = _segments(runs)
        if segments is None or not graphs.fits(arena.tokens, top_k):
            return None
        banks = (arena.key, arena.shrinkage, arena.values.bank)
        places = tuple((block.data_ptr(), block.shape) for bank in banks for block in bank.blocks[: FRAMES + 1])
        of_qe = None if qe is None else (qe.shape, qe.stride())
        kind = (qk.dtype, qk.shape, qk.stride(), of_qe, top_k, return_usage, backend, places)
        if self._reading is None or self._reading.kind != kind:
            if not graphs.serves(qk, qe, arena.values.bank.blocks[FRAMES], top_k, backend):
                return None
            self._reading = None  # its memory is free for the next one
        try:
            if self._reading is None:
                self._reading = _Reading(graphs, kind, arena, qk, qe, top_k, return_usage)
            with torch.inference_mode(False), torch.no_grad():
                readout, usage = self._reading(qk, qe, segments)
        except Exception as error:  # CUDA's, its allocator's, Triton's; what is wrong with any such read, the next says
            self._reading = None
            self.captures.give_up(error)
            return None
        return readout.to(arena.spec.value_dtype), usage


class _Reading:
    """Reads of one kind, from one storage."""

    def __init__(
        self,
        graphs: Graphs,
        kind: tuple[Any, ...],
        arena: Arena,
        qk: Tensor,
        qe: Tensor | None,
        top_k: int,
        return_usage: bool,
    ) -> None:
        self.graphs = graphs
        self.kind = kind
        # Tensors made in inference mode could not be written to outside of it. Strides are kept: they decide how sums
        # are made, and results are those of a read without a graph to the bit.
        with torch.inference_mode(False):
            self.qk = torch.empty_like(qk, requires_grad=False)
            self.qe = None if qe is None else torch.empty_like(qe, requires_grad=False)
            self.table = graphs.table(qk)
        self.placed: tuple[Segment, ...] | None = None
        storage = _storage(arena)
        buffers = (self.qk, self.qe)
        capacity = sum(block.shape[1] for block in arena.key.blocks[: FRAMES + 1])
        table = self.table
        self.call: Callable[[], Result] | None = lambda: graphs.read(
            *storage, table, capacity, *buffers, top_k, return_usage
        )
        self.result: Result | None = None
        self.replay: Callable[[], None] | None = None
        self.compiled = False

    def __call__(self, qk: Tensor, qe: Tensor | None, segments: tuple[Segment, ...]) -> Result:
        self.qk.copy_(qk)
        if self.qe is not None and qe is not None:
            self.qe.copy_(qe)
        if self.placed != segments:
            self.graphs.place(self.table, segments)
            self.placed = segments
        tokens = sum(held for held, _, _ in segments)
        if not self.compiled:
            assert self.call is not None
            readout, usage = self.call()
            self.compiled = True
            return readout, None if usage is None else usage[:, :tokens]
        if self.replay is None:
            assert self.call is not None
            self.result, self.replay = self.graphs.capture(self.call, self.qk)
            self.call = None
        self.replay()
        assert self.result is not None
        readout, usage = self.result
        # Copies: the next replay writes where these are.
        return readout.clone(), None if usage is None else usage[:, :tokens].clone()


def _segments(runs: Sequence[Run]) -> tuple[Segment, ...] | None:
    """The runs as SEGMENTS segments, of which the first is long-term memory's; None where they are others."""
    long_term = [run for run in runs if run.block == LONG_TERM]
    frames = [run for run in runs if run.block == FRAMES]
    if len(long_term) + len(frames) < len(runs) or len(long_term) > 1 or len(frames) >= SEGMENTS:
        return None
    if long_term and runs[0] != long_term[0]:
        return None
    first = (long_term[0].tokens, long_term[0].start, long_term[0].start) if long_term else (0, 0, 0)
    rest = [(run.tokens, run.start, run.start) for run in frames]
    return first, *rest, *[(0, 0, 0)] * (SEGMENTS - 1 - len(rest))


def _storage(arena: Arena) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Whole blocks as segments; in the place of a long-term memory without room, which is never read, frames."""
    first = LONG_TERM if arena.key.blocks[LONG_TERM].shape[1] > 0 else FRAMES
    runs = [Run(b, 0, arena.key.blocks[b].shape[1]) for b in (first, *[FRAMES] * (SEGMENTS - 1))]
    mk, ms = arena.keys(runs)
    return mk, ms, arena.values.segments(runs)
