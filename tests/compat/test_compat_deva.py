"""DEVA by its interface: a stand-in and its replacement over 200 frames."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from hosts.deva_like import memory_manager
from test_compat_xmem import CONFIG, frames

import xmemk
from xmemk.compat import UnknownHost

DEVA = CONFIG | {"value_dim": 2, "chunk_size": -1}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def follow(config, n=200, joining=None, leaving=None):
    """Readouts by object of every frame, and the manager; joining and leaving: labels by frame."""
    manager, readouts, objects = memory_manager.MemoryManager(config), [], []
    joining = joining or {0: [4, 2]}
    for t, (key, shrinkage, selection, value) in enumerate(frames(n, seed=4)):
        if t:
            readouts.append(manager.match_memory(key, selection))
        for label in (leaving or {}).get(t, ()):
            objects.remove(label)
            manager.purge_except(objects)
        objects += joining.get(t, [])
        if t in joining or t % 2 == 0:
            manager.initialize_sensory_if_needed(key, objects)
            rows = [label - 1 for label in objects]
            manager.add_memory(key, shrinkage, value[:, rows], objects, selection)
    return readouts, manager


def compare(config, **schedule):
    with xmemk.patch("hosts.deva_like") as handle:
        assert handle.report.families == ["DEVA"]
        ours, mine = follow(config, **schedule)
        assert type(mine).__mro__[1].__module__ == "xmemk.compat.deva"
    theirs, host = follow(config, **schedule)
    assert [list(x) for x in ours] == [list(x) for x in theirs]
    assert max(float((a[obj] - b[obj]).abs().max()) for a, b in zip(ours, theirs) for obj in a) < 1e-5
    assert list(mine.sensory) == list(host.sensory)
    return mine, host


@pytest.mark.parametrize("chunk_size", [-1, 1, 2])
def test_objects_that_join_and_leave_with_evictions(chunk_size):
    config = DEVA | {"chunk_size": chunk_size}
    schedule = {"joining": {0: [4, 2, 5], 9: [1], 40: [3]}, "leaving": {60: [2], 90: [1]}}
    mine, host = compare(config, **schedule)
    assert list(mine.work_mem.buckets.values()) == [[4, 5], [3]]
    for i, (_, memory) in zip(mine.work_mem.buckets, host.buckets):
        assert mine.work_mem.size(i) == memory.work_mem.size
        assert mine.long_mem.size(i) == memory.long_mem.size


def test_every_token_and_no_long_term_memory():
    compare(DEVA | {"top_k": None, "chunk_size": 1}, n=60)
    mine, host = compare(DEVA | {"enable_long_term": False}, n=60)
    assert mine.work_mem.size(0) == host.buckets[0][1].work_mem.size


def test_when_all_have_left():
    with xmemk.patch("hosts.deva_like"):
        _, mine = follow(DEVA, 20)
        mine.purge_except([])
        assert not mine.engaged
        assert mine.sensory == {}
        key, shrinkage, selection, value = next(frames(1))
        with pytest.raises(RuntimeError, match="empty"):
            mine.match_memory(key, selection)
        mine.add_memory(key, shrinkage, value[:, :1], [7], selection)
        assert list(mine.match_memory(key, selection)) == [7]


def test_bad_input_changes_nothing():
    with xmemk.patch("hosts.deva_like"):
        _, mine = follow(DEVA, 15, joining={0: [1, 2], 4: [3]})
        key, shrinkage, selection, value = next(frames(1))
        sizes = [mine.work_mem.size(i) for i in (0, 1)]
        bad = {
            "key": (key[..., :2], shrinkage[..., :2], value[:, :3, :, :, :2], [1, 2, 3], selection[..., :2]),
            "objects: wanted all of": (key, shrinkage, value[:, :2], [1, 3], selection),
            "objects": (key, shrinkage, value[:, :3], [1, 2, 2], selection),
            "value": (key, shrinkage, value[:, :2], [1, 2, 3], selection),
            "selection": (key, shrinkage, value[:, :3], [1, 2, 3], None),
            "shrinkage: wanted finite": (key, shrinkage * float("inf"), value[:, :3], [1, 2, 3], selection),
        }
        for words, arguments in bad.items():
            with pytest.raises(ValueError, match=words):
                mine.add_memory(*arguments)
        with pytest.raises(ValueError, match="query_key"):
            mine.match_memory(key[..., :2], selection[..., :2])
        assert sizes == [mine.work_mem.size(i) for i in (0, 1)]


def test_what_is_not_known_is_refused(monkeypatch):
    with pytest.raises(UnknownHost, match="cannot be verified"):
        xmemk.patch("hosts.deva_like", verify=True)
    manager = memory_manager.MemoryManager(DEVA)
    with pytest.raises(RuntimeError, match="exists already"):
        xmemk.patch("hosts.deva_like")
    assert type(manager) is memory_manager.MemoryManager
    assert manager.config is DEVA
    del manager

    class MemoryManager(memory_manager.MemoryManager):
        def forget_half(self, share):
            pass

    module = types.ModuleType("deva_fork")
    MemoryManager.__module__, module.MemoryManager, module.torch = "deva_fork", MemoryManager, torch
    monkeypatch.setitem(sys.modules, "deva_fork", module)
    with pytest.raises(UnknownHost, match=r"deva_fork\..*forget_half: found a method .*\(self, share\)"):
        xmemk.patch(module)
