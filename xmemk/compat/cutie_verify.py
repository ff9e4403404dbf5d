"""Cutie's memory manager beside the host's own (see :mod:`xmemk.compat.verify`)."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..testing import Inputs
from .report import PatchReport
from .verify import Judge, in_words, same_settings, twin_of

_OF_THE_STORES = ("work_mem", "long_mem")


def verified(base: Any, original: Any, report: PatchReport) -> Any:
    """A subclass of ``base`` that compares every read and add with the host's, ``original``.

    Figures go to ``report``. A read is compared where it leaves the memory: at the visual readout
    that enters the network's pixel fusion.
    """
    twin = twin_of(original)

    class Verified(base):
        def __init__(self, cfg: Any, object_manager: Any) -> None:
            super().__init__(cfg, object_manager)
            self._host: Any = twin(cfg, object_manager)
            self._calls = {"read": 0, "add": 0}

        def _take_over(self, before: dict[str, Any]) -> None:
            super()._take_over(before)
            self._host = twin.__new__(twin)
            vars(self._host).update(before)
            for name in self._stores():
                setattr(self._host, name, copy.deepcopy(before[name]))
            self._calls = {"read": 0, "add": 0}

        def update_config(self, cfg: Any) -> None:
            super().update_config(cfg)
            if self._host is not None:
                self._host.update_config(cfg)

        def read(
            self, pix_feat: Tensor, query_key: Tensor, selection: Tensor, last_mask: Tensor, network: Any
        ) -> dict[int, Tensor]:
            judge, host = self._begin("read")
            theirs, ours = _Tap(network), _Tap(network)
            done = None
            if host is not None and self._buckets:
                inputs = [self._inputs(bucket, query_key, selection) for bucket in self._buckets.by_id.values()]
                with judge.watch.host():
                    done = self._try_host(
                        judge, lambda: host.read(pix_feat, query_key, selection, last_mask, theirs) and True
                    )
            with judge.watch.ours():
                readouts: dict[int, Tensor] = super().read(pix_feat, query_key, selection, last_mask, ours)
            if done:
                judge.same("read, number of readouts", len(ours.visual), len(theirs.visual))
                part = iter(zip(ours.visual, theirs.visual))
                for i, bucket in enumerate(self._buckets.by_id.values()):
                    for first, last in self._parts(bucket):
                        mine, other = next(part)
                        judge.read(
                            f"read, bucket {i}, objects {bucket.objects[first:last]}",
                            mine.flatten(3),
                            other.flatten(3),
                            lambda queries, i=i, first=first, last=last: inputs[i](queries, first, last),  # type: ignore[misc]
                            self.top_k,
                        )
                judge.same("calls of the network", ours.calls, theirs.calls)
                judge.attributes(self, host, but=_OF_THE_STORES)
                self._compare_counters(judge, host)
                judge.report_to(report, "read")
            return readouts

        def add_memory(self, *args: Any, **kwargs: Any) -> None:
            judge, host = self._begin("add")
            with judge.watch.ours():
                super().add_memory(*args, **kwargs)
            if host is None:
                return
            with judge.watch.host():
                done = self._try_host(judge, lambda: host.add_memory(*args, **kwargs) or True)
            if done:
                judge.attributes(self, host, but=_OF_THE_STORES)
                self._compare_stores(judge, host)
                judge.report_to(report, "add")

        def _begin(self, kind: str) -> tuple[Judge, Any]:
            self._calls[kind] += 1
            after = f" (after {self._calls['add']} memory frames)" if kind == "read" else ""
            host = self._host
            if host is not None:
                for name in self._stores():
                    _copy_state(getattr(self, name), getattr(host, name))
                host.sensory = dict(self.sensory)
                host.obj_v = {obj: x.clone() for obj, x in self.obj_v.items()}
                same_settings(self, host)
            return Judge(f"{kind} {self._calls[kind]}{after} of Cutie's MemoryManager", report), host

        def _try_host(self, judge: Judge, call: Callable[[], Any]) -> Any:
            try:
                with torch.no_grad():
                    return call()
            except Exception as error:
                report.host_stopped.append(f"{judge.what}: {type(error).__name__}: {str(error).split(chr(10))[0]}")
                self._host = None  # it may be half changed; ours continues alone
                return None

        def _stores(self) -> list[str]:
            return ["work_mem", "long_mem"] if self.use_long_term else ["work_mem"]

        def _parts(self, bucket: Any) -> list[tuple[int, int]]:
            n = len(bucket.objects)
            step = n if self.chunk_size < 1 else self.chunk_size
            return [(i, min(i + step, n)) for i in range(0, n, step)]

        def _inputs(self, bucket: Any, query_key: Tensor, selection: Tensor) -> Callable[[Tensor, int, int], Inputs]:
            """The arguments of a bucket's read, for some of the queries and objects."""
            arena = bucket.arena

            def of(queries: Tensor, first: int, last: int) -> Inputs:
                runs = arena.table.runs()
                mk, ms = (torch.cat(parts, 2) for parts in arena.keys(runs)[:2])
                mv = torch.cat(arena.values.segments(runs), 3)[:, first:last]
                qk, qe = (x.flatten(2)[..., queries].to(mk.dtype) for x in (query_key, selection))
                return Inputs(mk, ms, mv, qk, qe, mk, ms[:, 0])

            return of

        def _compare_counters(self, judge: Judge, host: Any) -> None:
            for name in self._stores():
                ours, theirs = getattr(self, name), getattr(host, name)
                for i in ours.buckets if ours.save_usage else ():
                    judge.usage(
                        f"{name}.use_cnt[{i}]", ours.use_cnt[i], _or_nothing(theirs.use_cnt, i, ours.use_cnt[i])
                    )
                    judge.close(
                        f"{name}.life_cnt[{i}]", ours.life_cnt[i], _or_nothing(theirs.life_cnt, i, ours.life_cnt[i])
                    )

        def _compare_stores(self, judge: Judge, host: Any) -> None:
            for name in self._stores():
                ours, theirs = getattr(self, name), getattr(host, name)
                judge.same(f"{name}.buckets", ours.buckets, dict(theirs.buckets))
                for i in ours.buckets:
                    judge.same(f"{name}.size({i})", ours.size(i), theirs.size(i))
                    judge.same(f"{name}.perm_size({i})", ours.perm_size(i), theirs.perm_size(i))
                    judge.equal(f"{name}.key[{i}]", ours.key[i], theirs.key[i])
                    judge.close(f"{name}.shrinkage[{i}]", ours.shrinkage[i], theirs.shrinkage[i])
                    if ours.save_selection:
                        judge.equal(f"{name}.selection[{i}]", ours.e[i], _or_nothing(theirs.e, i, ours.e[i]))
                for obj, value in ours.value.items():
                    judge.close(f"{name}.value[{obj}]", value, theirs.value[obj])
            self._compare_counters(judge, host)

    return Verified


class _Tap:
    """A network that records its calls, and the visual readouts it is given."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self.visual: list[Tensor] = []
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._network, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = _by_name(value, args, kwargs)
            self.calls.append((name, in_words(arguments)))
            if name == "pixel_fusion":
                self.visual.append(arguments["pixel"] if "pixel" in arguments else args[1])
            return value(*args, **kwargs)

        return call


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by parameter, defaults included; else by position."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {**{str(i): x for i, x in enumerate(args)}, **kwargs}
    bound.apply_defaults()
    return dict(bound.arguments)


def _copy_state(ours: Any, host: Any) -> None:
    host.buckets, host.k, host.s, host.v = ours.buckets, ours.key, ours.shrinkage, ours.value
    host.perm_end_pt = defaultdict(int, ours.perm_end_pt)
    host.global_bucket_id = ours.global_bucket_id
    # The host has no entry where it has never had such a token.
    if ours.save_selection:
        host.e = {i: x for i, x in ours.e.items() if x.shape[-1]}
    if ours.save_usage:
        host.use_cnt = {i: x for i, x in ours.use_cnt.items() if x.shape[-1]}
        host.life_cnt = {i: x for i, x in ours.life_cnt.items() if x.shape[-1]}


def _or_nothing(by_bucket: dict[int, Tensor], i: int, like: Tensor) -> Tensor:
    return by_bucket[i] if i in by_bucket else like[..., :0]
