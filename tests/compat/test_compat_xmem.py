"""XMem's manager and its replacement over 200 frames: equal readouts, equal usage, equal sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts.xmem_like import inference_core, memory_manager

import xmemk
from xmemk.compat.xmem import MemoryManager

CONFIG = {
    "hidden_dim": 3,
    "top_k": 12,
    "mem_every": 2,
    "deep_update_every": -1,
    "enable_long_term": True,
    "enable_long_term_count_usage": True,
    "max_mid_term_frames": 6,
    "min_mid_term_frames": 3,
    "num_prototypes": 7,
    "max_long_term_elements": 40,
}
H, W, CK, CV, OBJECTS = 4, 5, 8, 6, 6


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def frames(n, seed=3):
    """Key, shrinkage, selection and values of a scene that changes slowly.

    With other seeds, in one query of many thousands, the k-th and the next token may differ by less
    than rounding.
    """
    g = torch.Generator().manual_seed(seed)
    scene = torch.randn(1, CK, H, W, generator=g)
    for _ in range(n):
        key = scene + 0.7 * torch.randn(1, CK, H, W, generator=g)
        shrinkage = 1 + torch.rand(1, 1, H, W, generator=g)
        selection = torch.rand(1, CK, H, W, generator=g)
        yield key, shrinkage, selection, torch.randn(1, OBJECTS, CV, H, W, generator=g)


def follow(config, n=200, joining=None, every=2):
    """Readouts of every frame, and the core; joining: how many objects join at which frame."""
    core, readouts, objects = inference_core.InferenceCore(config), [], 0
    joining = joining or {0: 2}
    for t, (key, shrinkage, selection, value) in enumerate(frames(n)):
        objects += joining.get(t, 0)
        labels = list(range(1, objects + 1))
        readouts.append(
            core.step(key, shrinkage, selection, value[:, :objects], labels, t in joining or t % every == 0)
        )
    return readouts[1:], core


def largest(a, b):
    assert [x.shape for x in a] == [x.shape for x in b]
    return max(float((x - y).abs().max()) for x, y in zip(a, b))


def patched(*args, **kwargs):
    with xmemk.patch("hosts.xmem_like", **kwargs.pop("options", {})) as handle:
        readouts, core = follow(*args, **kwargs)
        assert isinstance(core.memory, MemoryManager)
    return readouts, core.memory, handle


CASES = {
    "one group, evictions": ({}, {0: 2}),
    "late objects": ({"max_long_term_elements": 4000}, {0: 1, 9: 1, 40: 2, 71: 1}),
    "late objects around a consolidation": (
        {"max_long_term_elements": 4000},
        {0: 2, 4: 1, 10: 1, 11: 1},
    ),
    "no long-term memory": ({"enable_long_term": False}, {0: 2, 7: 1}),
    "usage of long-term memory not counted": (
        {"enable_long_term_count_usage": False, "max_long_term_elements": 4000},
        {0: 2},
    ),
    "all tokens": ({"top_k": None}, {0: 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_reads_and_keeps_what_the_host_does(case):
    changes, joining = CASES[case]
    config = CONFIG | changes
    ours, mine, _ = patched(config, joining=joining)
    theirs, core = follow(config, joining=joining)
    host = core.memory
    assert largest(ours, theirs) < 1e-5
    for name in ("CK", "CV", "H", "W", "HW", "top_k", "hidden_dim", "enable_long_term", "enable_long_term_usage"):
        assert getattr(mine, name) == getattr(host, name), name
    assert mine.hidden.shape == host.hidden.shape
    stores = ["work_mem", "long_mem"] if config["enable_long_term"] else ["work_mem"]
    for a, b in ((getattr(mine, name), getattr(host, name)) for name in stores):
        assert (a.size, a.num_groups, a.engaged()) == (b.size, b.num_groups, b.engaged())
        assert torch.equal(a.key, b.key)
        assert torch.allclose(a.shrinkage, b.shrinkage, atol=1e-5)
        assert (a.selection is None) == (b.selection is None)
        assert [v.shape for v in a.value] == [v.shape for v in b.value]
        assert [a.get_v_size(i) for i in range(a.num_groups)] == [v.shape[-1] for v in b.value]
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a.value, b.value))
        if b.count_usage:
            assert torch.allclose(a.get_usage(), b.get_usage(), atol=1e-5)
            sliced, host_usage = a.get_all_sliced(2, -3), b.get_usage()[..., 2:-3]
            assert torch.allclose(sliced[3], host_usage, atol=1e-5)
    assert mine.work_mem.obj_groups == host.work_mem.obj_groups
    if config["enable_long_term"]:
        assert mine.max_work_elements == host.max_work_elements
        assert mine.memory.consolidations > 20
        assert (mine.memory.evictions > 10) == (config["max_long_term_elements"] == 40)


def test_goes_on_where_the_host_stops():
    config = CONFIG | {"top_k": 50}  # more than the first frame has tokens
    with pytest.raises(RuntimeError, match="out of range"):
        follow(config, 3)
    assert len(patched(config, 3)[0]) == 2
    late = {0: 2, 9: 1}
    with pytest.raises(NotImplementedError):
        follow(CONFIG, joining=late)
    readouts, memory, _ = patched(CONFIG, joining=late)
    assert memory.memory.evictions > 10
    assert all(x.isfinite().all() for x in readouts)
    # Long-term memory of exactly the size to keep: there is nothing to evict.
    even = CONFIG | {"max_mid_term_frames": 4, "max_long_term_elements": 14}
    with pytest.raises(IndexError):
        follow(even, 14)
    assert len(patched(even, 14)[0]) == 13


def test_exact_groups_are_those_of_objects_followed_apart():
    options = {"groups": "exact"}
    together, memory, _ = patched(CONFIG, joining={0: 2, 10: 1}, options=dict(options))
    alone, memory_alone, _ = patched(CONFIG, joining={0: 2}, options=dict(options))
    assert memory.memory.config.groups == "exact"
    assert memory_alone.memory.evictions > 10
    assert largest([x[:2] for x in together], alone) < 1e-6
    # One group alone is what the host has, as long as nothing is evicted.
    roomy = CONFIG | {"max_long_term_elements": 4000}
    ours, mine, _ = patched(roomy, 100, options=dict(options))
    assert largest(ours, follow(roomy, 100)[0]) < 1e-5
    assert mine.work_mem.key.shape == (1, CK, mine.work_mem.size)
    with pytest.raises(RuntimeError, match="each group"):
        _ = memory.work_mem.key
    assert memory.work_mem.size == memory.memory.working_size


def test_limits_may_change_while_a_video_runs():
    def run():
        core = inference_core.InferenceCore(dict(CONFIG))
        readouts = []
        for t, (key, shrinkage, selection, value) in enumerate(frames(120)):
            if t == 50:
                core.memory.update_config(
                    CONFIG | {"top_k": 9, "max_mid_term_frames": 8, "num_prototypes": 9, "max_long_term_elements": 90}
                )
            readouts.append(core.step(key, shrinkage, selection, value[:, :2], [1, 2], t % 2 == 0))
        return readouts[1:], core.memory

    with xmemk.patch("hosts.xmem_like"):
        ours, mine = run()
    theirs, host = run()
    assert largest(ours, theirs) < 1e-5
    assert torch.equal(mine.long_mem.key, host.long_mem.key)
    assert mine.max_work_elements == 8 * H * W
    with pytest.raises(ValueError, match="enable_long_term: wanted True as before, got False"):
        mine.update_config(CONFIG | {"enable_long_term": False})


def test_in_and_out_of_inference_mode():
    manager = MemoryManager(CONFIG)
    readouts = []
    for t, (key, shrinkage, selection, value) in enumerate(frames(40)):
        with torch.inference_mode(t % 3 == 0):
            if t:
                readouts.append(manager.match_memory(key * 1, selection).clone())
            manager.add_memory(key * 1, shrinkage, value[:, :2] * 1, [1, 2], selection)
    plain, _, _ = patched(CONFIG, 40, every=1)
    assert largest(readouts, plain) < 1e-6


def test_bfloat16_features():
    def run(manager, dtype):
        readouts = []
        for t, (key, shrinkage, selection, value) in enumerate(frames(40)):
            if t:
                readouts.append(manager.match_memory(key.to(dtype), selection.to(dtype)))
            manager.add_memory(key.to(dtype), shrinkage, value[:, :2].to(dtype), [1, 2], selection.to(dtype))
        return readouts

    rough = run(MemoryManager(CONFIG), torch.bfloat16)
    assert {x.dtype for x in rough} == {torch.bfloat16}
    assert largest([x.float() for x in rough[:8]], run(MemoryManager(CONFIG), torch.float32)[:8]) < 0.3


def test_consolidation_as_the_host_offers_it():
    g = torch.Generator().manual_seed(2)
    n = 30
    key, shrinkage = torch.randn(1, CK, n, generator=g), 1 + torch.rand(1, 1, n, generator=g)
    selection, usage = torch.rand(1, CK, n, generator=g), torch.rand(1, 1, n, generator=g)
    values = [torch.randn(2, CV, n, generator=g), torch.randn(1, CV, 12, generator=g), None]
    ours = MemoryManager(CONFIG).consolidation(key, shrinkage, selection, usage, values)
    host = memory_manager.MemoryManager(CONFIG).consolidation(key, shrinkage, selection, usage, values)
    assert torch.equal(ours[0], host[0])
    assert torch.allclose(ours[2], host[2], atol=1e-5)
    assert [x is None for x in ours[1]] == [x is None for x in host[1]] == [False, False, True]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours[1][:2], host[1][:2]))


def held(manager):
    """All that is stored, for comparison."""
    stores = [manager.work_mem, manager.long_mem]
    tensors = [t for s in stores for t in (s.key, s.shrinkage, s.selection, s.use_count, s.life_count, *s.value)]
    return [None if t is None else t.clone() for t in tensors]


def test_bad_input_names_the_argument_and_changes_nothing():
    manager = MemoryManager(CONFIG)
    key, shrinkage, selection, value = next(frames(1))
    with pytest.raises(RuntimeError, match="empty"):
        manager.match_memory(key, selection)
    for key, shrinkage, selection, value in frames(14):
        manager.add_memory(key, shrinkage, value[:, :3], [1, 2, 3], selection)
        manager.match_memory(key, selection)
    before = held(manager)
    bad = {
        "key": (key[..., :3], shrinkage[..., :3], value[:, :3, :, :, :3], [1, 2, 3], selection[..., :3]),
        "objects: wanted new ones in ascending order": (key, shrinkage, value[:, :5], [1, 2, 3, 5, 4], selection),
        "objects": (key, shrinkage, value[:, :2], [1, 2], selection),
        "value": (key, shrinkage, value[:, :2], [1, 2, 3], selection),
        "selection": (key, shrinkage, value[:, :3], [1, 2, 3], None),
        "shrinkage": (key, shrinkage[..., :2], value[:, :3], [1, 2, 3], selection),
        "key: wanted finite": (key * float("nan"), shrinkage, value[:, :3], [1, 2, 3], selection),
    }
    for words, arguments in bad.items():
        with pytest.raises(ValueError, match=words):
            manager.add_memory(*arguments)
    for arguments in ((key[..., :3], selection[..., :3]), (key, None), (key * float("inf"), selection)):
        with pytest.raises(ValueError, match=r"query_key|selection"):
            manager.match_memory(*arguments)
    after = held(manager)
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(before, after))
    with pytest.raises(RuntimeError, match="compress_features"):
        manager.compress_features()
    manager.create_hidden_state(3, key)
    with pytest.raises(ValueError, match="n: wanted at least 3"):
        manager.create_hidden_state(2, key)


def test_usage_that_is_all_zero_still_consolidates_by_the_lowest_index():
    manager = MemoryManager(CONFIG)
    keys = []
    for key, shrinkage, selection, value in frames(6):
        manager.add_memory(key, shrinkage, value[:, :1], [1], selection)
        keys.append(key.flatten(2))
    assert manager.memory.consolidations == 1
    assert torch.equal(manager.long_mem.key, keys[1][..., :7])


@pytest.mark.parametrize("key", ["top_k", "enable_long_term", "num_prototypes", "hidden_dim"])
def test_a_configuration_that_lacks_a_key(key):
    config = copy.copy(CONFIG)
    del config[key]
    with pytest.raises(ValueError, match=f"config: wanted the key '{key}'"):
        MemoryManager(config)
