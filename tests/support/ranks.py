"""Ranks of a torch.distributed group as threads of this process, over gloo."""

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist


def groups(size: int, timeout: float = 30.0) -> list[dist.ProcessGroup]:
    """A process group for each of ``size`` threads, connected as ranks of one group."""
    store = dist.HashStore()  # type: ignore[attr-defined]

    def make(rank: int) -> dist.ProcessGroup:
        group = dist.ProcessGroup(store, rank, size)
        gloo = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=timeout))
        group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        return group

    return raised(_at_once([partial(make, rank) for rank in range(size)]))


def on_ranks(size: int, call: Callable[[dist.ProcessGroup, int], Any], timeout: float = 30.0) -> list[Any]:
    """``call(group, rank)`` on every rank at the same time.

    Returns results, or exceptions in their place.
    """
    made = groups(size, timeout)
    return _at_once([partial(call, made[rank], rank) for rank in range(size)])


def raised(results: Sequence[Any]) -> list[Any]:
    """Raises the first exception among results; returns them otherwise."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return list(results)


def _at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
