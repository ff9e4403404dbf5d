"""Captures on CUDA, with torch.cuda replaced by a recorder: they end whatever happens in them."""

import contextlib

import pytest
import torch

from xmemk.memory import cuda_graphs
from xmemk.memory.cuda_graphs import CudaGraphs


class FakeCuda:
    """What :class:`CudaGraphs` calls of torch.cuda, written down."""

    def __init__(self, monkeypatch):
        self.calls = []
        for name in ("device_of", "stream"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: self._context(name))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)

    def _context(self, name):
        return contextlib.nullcontext()

    def wait_stream(self, other):
        self.calls.append("wait")

    def capture_begin(self, capture_error_mode):
        assert capture_error_mode == "thread_local"  # another thread may allocate meanwhile
        self.calls.append("begin")

    def capture_end(self):
        self.calls.append("end")

    def replay(self):
        self.calls.append("replay")


def test_a_capture_is_ended_whatever_happens(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    result, replay = CudaGraphs().capture(lambda: cuda.calls.append("call"), torch.zeros(1))
    replay()
    assert result is None
    assert cuda.calls == ["wait", "begin", "call", "end", "wait", "replay"]
    cuda.calls.clear()
    with pytest.raises(ZeroDivisionError):
        CudaGraphs().capture(lambda: 1 / 0, torch.zeros(1))
    assert cuda.calls == ["wait", "begin", "end"]
    assert cuda_graphs._UNENDED == []


def test_a_graph_whose_capture_cuda_gave_up_is_kept(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "_UNENDED", [])

    def invalidated():
        raise RuntimeError("operation failed due to a previous error during capture")

    cuda.capture_end = invalidated
    with pytest.raises(RuntimeError, match="previous error"):
        CudaGraphs().capture(lambda: None, torch.zeros(1))
    with pytest.raises(ZeroDivisionError):  # what was wrong in the first place
        CudaGraphs().capture(lambda: 1 / 0, torch.zeros(1))
    assert [cuda] * 4 == cuda_graphs._UNENDED  # a second capture each was to succeed


def test_after_a_capture_that_fails_one_succeeds(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "_UNENDED", [])

    def invalidated_once():
        cuda.calls.append("end")
        if cuda.calls.count("end") == 1:
            raise RuntimeError("operation failed due to a previous error during capture")

    cuda.capture_end = invalidated_once
    with pytest.raises(RuntimeError, match="previous error"):
        CudaGraphs().capture(lambda: cuda.calls.append("call"), torch.zeros(1))
    assert cuda.calls == ["wait", "begin", "call", "end", "begin", "end"]
    assert [cuda] == cuda_graphs._UNENDED
