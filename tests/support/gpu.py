"""What the tests on a GPU share. They are marked `gpu`, and skipped where there is none."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from xmemk import operators as ops

DEVICE = "cuda"
AVAILABLE = torch.cuda.is_available()

_no_gpu = pytest.mark.skipif(not AVAILABLE, reason="no NVIDIA GPU")
gpu = [pytest.mark.gpu, _no_gpu]

_why = ops.cuda_error()
needs_cuda_kernels = pytest.mark.skipif(_why is not None, reason=f"no CUDA kernels: {_why}")

# By function: the backends that can serve it on a GPU, where they are there.
BACKENDS_OF = {
    "memory_read": ["auto", "triton", "torch"],
    "affinity_topk": ["auto", "triton", "torch"],
    "readout_topk": ["auto", "triton", "torch"],
    "consolidate": ["auto", "triton", "cuda", "torch"],
}


@contextlib.contextmanager
def no_waiting() -> Iterator[Any]:
    """Fails where an operation makes the host wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


_FAILED: list[Any] = []


def captured(call: Any) -> Any:
    """-> a CUDA graph of the call, and its result, which every replay writes anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(side), torch.cuda.graph(graph, stream=side):
            result = call()
    except BaseException:
        _FAILED.append(graph)  # the allocator may go on to ask it: tests after this one would fail with it
        raise
    return graph, result
