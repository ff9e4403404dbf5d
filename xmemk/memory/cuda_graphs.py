"""CUDA graphs of a read whose size is on the device: what a ReadGraph needs, and how CUDA gives it.

:class:`GraphDevice` is the interface. :class:`CudaGraphs` implements it with
``xmemk.kernels.sized`` and ``torch.cuda``; tests implement it on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .. import api, ops
from ..inputs import MemoryInputs, QueryInputs

Segment = tuple[int, int, int]  # tokens, the first of them in the keys' storage, and in the values'
Result = tuple[Tensor, Tensor | None]  # readout [B, O, CV, Q], usage [B, capacity]


class GraphDevice(Protocol):
    """What :class:`.graph.ReadGraph` needs of a device: a read with sizes on it, and graphs."""

    def ready(self, like: Tensor) -> bool:
        """Whether a read could be captured or replayed now. Asked at every read."""

    def serves(self, queries: QueryInputs, mv: Tensor, top_k: int, backend: str) -> bool:
        """Whether ``backend`` would make such a read as :meth:`read` does. Asked once per kind."""

    def fits(self, tokens: int, top_k: int) -> bool:
        """Whether :meth:`read` can read so many tokens."""

    def table(self, like: Tensor) -> Tensor:
        """A new table on the device."""

    def place(self, table: Tensor, segments: Sequence[Segment]) -> None:
        """Writes which tokens are held. Reads that were started before see the old table."""

    def read(
        self,
        memory: MemoryInputs,
        table: Tensor,
        capacity: int,
        queries: QueryInputs,
        top_k: int,
        return_usage: bool,
    ) -> Result:
        """Reads the tokens of ``memory`` that ``table`` names: readout, and usage [B, capacity]."""

    def capture(self, call: Callable[[], Result], like: Tensor) -> tuple[Result, Callable[[], None]]:
        """Captures ``call``: the buffers of its results, valid after a replay, and the replay."""


class CudaGraphs:
    """Backend "triton" on CUDA."""

    def ready(self, like: Tensor) -> bool:
        # An installation that cannot run the kernels must not fail here: other backends serve it.
        if not like.is_cuda or ops.triton_error("cuda", like.device.index) is not None:
            return False
        return not torch.cuda.is_current_stream_capturing()

    def serves(self, queries: QueryInputs, mv: Tensor, top_k: int, backend: str) -> bool:
        return api.explain("memory_read", *queries, mv, top_k=top_k, backend=backend).chosen == "triton"

    def fits(self, tokens: int, top_k: int) -> bool:
        return bool(ops.sized().fits(tokens, top_k))

    def table(self, like: Tensor) -> Tensor:
        table: Tensor = ops.sized().new_table(like)
        return table

    def place(self, table: Tensor, segments: Sequence[Segment]) -> None:
        with torch.cuda.device_of(table):
            ops.sized().write(table, ops.sized().rows(segments))

    def read(
        self,
        memory: MemoryInputs,
        table: Tensor,
        capacity: int,
        queries: QueryInputs,
        top_k: int,
        return_usage: bool,
    ) -> Result:
        with torch.cuda.device_of(queries.qk):
            result: Result = ops.sized().memory_read(memory, table, capacity, queries, top_k, return_usage)
        return result

    def capture(self, call: Callable[[], Result], like: Tensor) -> tuple[Result, Callable[[], None]]:
        """Captures on a stream and in a memory pool of its own.

        Other threads may use CUDA meanwhile.
        """
        with torch.cuda.device_of(like):
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    result = call()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # a consequence of the first error
                        _end(graph, like)
                    raise
                _end(graph, like)
            torch.cuda.current_stream().wait_stream(stream)
        return result, graph.replay


CUDA = CudaGraphs()
_UNENDED: list[torch.cuda.CUDAGraph] = []  # graphs whose capture could not be ended


def _end(graph: torch.cuda.CUDAGraph, like: Tensor) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        # The allocator keeps asking this graph which streams it captures, so it must stay alive.
        _UNENDED.append(graph)
        with contextlib.suppress(RuntimeError):
            _free_generator(like)
        raise


def _free_generator(like: Tensor) -> None:
    """Frees torch's random generator of a failed capture, by a capture that succeeds.

    Before torch 2.13 the generator knows one capture at a time. It takes the failed one to be still
    under way, and raises when it is asked for numbers.
    """
    with torch.cuda.stream(torch.cuda.Stream()):
        graph = torch.cuda.CUDAGraph()
        _UNENDED.append(graph)
        graph.capture_begin(capture_error_mode="thread_local")
        like.new_zeros(1)  # torch warns of an empty graph
        graph.capture_end()
        _UNENDED.remove(graph)
