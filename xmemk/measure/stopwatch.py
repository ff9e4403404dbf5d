"""The time that the stages of repeated work take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """``with watch("stage"): ...`` adds to ``seconds["stage"]`` and ``calls["stage"]``.

    Before and after each stage it waits for the GPU, if one is in use, so that each stage is
    charged with its own time.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if not self.enabled:
            yield
            return
        _wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            _wait()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            self.calls[stage] = self.calls.get(stage, 0) + 1


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
