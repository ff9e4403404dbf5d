"""XMem's memory manager beside the host's own (see :mod:`xmemk.compat.verify`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..testing import Inputs
from .report import PatchReport
from .verify import Judge, same_settings, twin_of
from .xmem import MemoryManager

_KEPT_BY_OURS = ("work_mem", "long_mem", "hidden")


def verified(original: Callable[[Any], Any], report: PatchReport) -> type[MemoryManager]:
    """A manager that compares every read and add with the host's, ``original``, for ``report``."""
    twin = twin_of(original)

    class Verified(MemoryManager):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self._host: Any = twin(config)
            self._calls = {"read": 0, "add": 0}
            self._fresh_config: Any = None

        def update_config(self, config: Any) -> None:
            super().update_config(config)
            if self._host is not None:
                self._host.update_config(config)

        def match_memory(self, query_key: Tensor, selection: Tensor) -> Tensor:
            judge, host = self._begin("read")
            theirs = None
            if host is not None and self.work_mem.engaged():
                inputs = self._inputs(query_key, selection)
                with judge.watch.host():
                    theirs = self._try_host(judge, lambda: host.match_memory(query_key, selection))
            with judge.watch.ours():
                ours = super().match_memory(query_key, selection)
            if theirs is not None:
                for group, rows in enumerate(_rows(self.work_mem.obj_groups)):
                    judge.read(
                        f"match_memory, group {group}",
                        ours[None, rows].flatten(3),
                        theirs[None, rows].flatten(3),
                        lambda queries, group=group: inputs(group, queries),  # type: ignore[misc]
                        self.top_k,
                    )
                judge.attributes(self, host, but=_KEPT_BY_OURS)
                self._compare_counters(judge, host)
                judge.report_to(report, "read")
            return ours

        def add_memory(
            self, key: Tensor, shrinkage: Tensor, value: Tensor, objects: Any, selection: Tensor | None = None
        ) -> None:
            judge, host = self._begin("add")
            frame = (key, shrinkage, value, list(objects), selection)
            with judge.watch.ours():
                super().add_memory(*frame)
            if host is None:
                return
            with judge.watch.host():
                done = self._try_host(judge, lambda: host.add_memory(*frame) or True)
            if done:
                judge.attributes(self, host, but=_KEPT_BY_OURS)
                self._compare_stores(judge, host)
                judge.report_to(report, "add")

        def _begin(self, kind: str) -> tuple[Judge, Any]:
            self._calls[kind] += 1
            after = f" (after {self._calls['add']} memory frames)" if kind == "read" else ""
            if self._host is not None:
                same_settings(self, self._host)
                for name in self._stores():
                    _copy_state(getattr(self, name), getattr(self._host, name))
            return Judge(f"{kind} {self._calls[kind]}{after} of XMem's MemoryManager", report), self._host

        def _try_host(self, judge: Judge, call: Callable[[], Any]) -> Any:
            try:
                with torch.no_grad():
                    return call()
            except Exception as error:
                report.host_stopped.append(f"{judge.what}: {type(error).__name__}: {str(error).split(chr(10))[0]}")
                self._host = None  # it may be half changed; ours continues alone
                return None

        def _stores(self) -> list[str]:
            return ["work_mem", "long_mem"] if self.enable_long_term else ["work_mem"]

        def _inputs(self, query_key: Tensor, selection: Tensor) -> Callable[[int, Tensor], Inputs]:
            """The arguments of a group's read, for some of the queries, from the current stores."""
            stores = [s for s in (getattr(self, n) for n in self._stores()[::-1]) if s.engaged()]
            tensors = [(s.key, s.shrinkage, s.value) for s in stores]

            def of(group: int, queries: Tensor) -> Inputs:
                parts = [
                    (k[..., k.shape[-1] - v[group].shape[-1] :], s[..., s.shape[-1] - v[group].shape[-1] :], v[group])
                    for k, s, v in tensors
                    if group < len(v)
                ]
                mk, ms, mv = (torch.cat(list(x), -1) for x in zip(*parts))
                qk, qe = (x.flatten(2)[..., queries].to(mk.dtype) for x in (query_key, selection))
                return Inputs(mk, ms, mv[None], qk, qe, mk, ms[:, 0])

            return of

        def _compare_counters(self, judge: Judge, host: Any) -> None:
            for name in self._stores():
                ours, theirs = getattr(self, name), getattr(host, name)
                if ours.count_usage and ours.engaged():
                    judge.usage(f"{name}.use_count", ours.use_count, theirs.use_count)
                    judge.close(f"{name}.life_count", ours.life_count, theirs.life_count)

        def _compare_stores(self, judge: Judge, host: Any) -> None:
            for name in self._stores():
                ours, theirs = getattr(self, name), getattr(host, name)
                judge.same(f"{name}.size", ours.size, theirs.size)
                judge.same(f"{name}, sizes of values", [v.shape for v in ours.value], [v.shape for v in theirs.value])
                judge.equal(f"{name}.key", ours.key, theirs.key)
                judge.equal(f"{name}.selection", ours.selection, theirs.selection)
                if ours.engaged():
                    judge.close(f"{name}.shrinkage", ours.shrinkage, theirs.shrinkage)
                for group, (mine, other) in enumerate(zip(ours.value, theirs.value)):
                    judge.close(f"{name}.value of group {group}", mine, other)
            self._compare_counters(judge, host)

    return Verified


def _copy_state(ours: Any, host: Any) -> None:
    host.k, host.s, host.e, host.v = ours.key, ours.shrinkage, ours.selection, ours.value
    if ours.count_usage:
        host.use_count, host.life_count = ours.use_count, ours.life_count
    if host.obj_groups is not None and not ours._long_term:
        host.obj_groups, host.all_objects = ours.obj_groups, ours.all_objects


def _rows(groups: list[list[int]]) -> list[list[int]]:
    """Per group its rows in a readout, which has one group after the other."""
    rows, at = [], 0
    for group in groups:
        rows.append(list(range(at, at + len(group))))
        at += len(group)
    return rows
