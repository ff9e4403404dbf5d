"""What xmemk.Memory refuses, in the oracle's words; a call that raises has changed nothing."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from memory_videos import CK, CV, H, W, frame, numbers, query, run, same, small

import xmemk
from xmemk import Memory, reference
from xmemk.memory import rules, shared

BOTH = pytest.mark.parametrize("groups", ["exact", "xmem"])
JOINS = {1: 0, 2: 0, 3: 4, 5: 9}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def bad(x, number):
    y = x.clone()
    y.view(-1)[3] = number
    return y


# Changes of a frame's arguments, refused at the first add and at later ones.
BAD_FRAMES = {
    "key of 3 dimensions": {"key": lambda x: x[0]},
    "key no tensor": {"key": lambda x: x.tolist()},
    "whole-number key": {"key": lambda x: x.long()},
    "NaN key": {"key": lambda x: bad(x, math.nan)},
    "NaN key, channels last": {"key": lambda x: bad(x, math.nan).contiguous(memory_format=torch.channels_last)},
    "Inf key and NaN": {"key": lambda x: bad(bad(x, math.inf).flip(3), math.nan)},
    "shrinkage of CK channels": {"shrinkage": lambda x: x.expand(1, CK, H, W)},
    "half shrinkage": {"shrinkage": lambda x: x.half()},
    "Inf shrinkage": {"shrinkage": lambda x: bad(x, math.inf)},
    "value of 4 dimensions": {"value": lambda x: x[0]},
    "value of one object": {"value": lambda x: x[:, :1]},
    "value of another size": {"value": lambda x: x[..., :-1]},
    "NaN value": {"value": lambda x: bad(x, math.nan)},
    "selection of 1 channel": {"selection": lambda x: x[:, :1]},
    "half selection": {"selection": lambda x: x.half()},
    "-Inf selection": {"selection": lambda x: bad(x, -math.inf)},
    "no labels": {"objects": lambda _: []},
    "label 0": {"objects": lambda x: [0, *x[1:]]},
    "label twice": {"objects": lambda x: [1, *x[:-1]]},
    "label 1.5": {"objects": lambda x: [1.5, *x[1:]]},
    "labels no sequence": {"objects": lambda _: 2},
    "labels a text": {"objects": lambda _: "12"},
}
BAD_LATER_FRAMES = {
    "another size": ({}, {"h": H + 1}),
    "another batch": ({}, {"batch": 2}),
    "another type": ({}, {"dtype": torch.float64}),
    "value of another type": ({"value": lambda x: x.double()}, {}),
    "value of fewer channels": ({"value": lambda x: x[:, :, :1]}, {}),
    "no selection": ({"selection": lambda _: None}, {}),
    "key elsewhere": ({"key": lambda x: x.to("meta")}, {}),
    "an object missing": ({}, {"objects": [2, 3]}),
    "another label": ({"objects": lambda x: [9, *x[1:]]}, {}),
}
BAD_QUERIES = {
    "another size": {"query_key": lambda x: x[..., :-1]},
    "another type": {"query_key": lambda x: x.double()},
    "NaN": {"query_key": lambda x: bad(x, math.nan)},
    "no tensor": {"query_key": lambda x: x.tolist()},
    "selection of 1 channel": {"selection": lambda x: x[:, :1]},
    "Inf selection": {"selection": lambda x: bad(x, math.inf)},
}


def changed(x, changes):
    return x | {name: change(x[name]) for name, change in changes.items()}


def both_refuse(ours, oracle, call):
    """Both raise, the same error in the same words, and ours is as it was."""
    before = numbers(ours)
    with pytest.raises((ValueError, TypeError, RuntimeError)) as oracle_error:
        call(oracle)
    with pytest.raises(oracle_error.type) as our_error:
        call(ours)
    assert str(our_error.value) == str(oracle_error.value)
    assert same(numbers(ours), before)


@BOTH
@pytest.mark.parametrize("case", BAD_FRAMES)
def test_add_refuses_on_the_first_frame_and_on_later_ones(groups, case):
    ours, oracle = Memory(small(groups)), reference.Memory(small(groups))
    both_refuse(ours, oracle, lambda m: m.add(**changed(frame(0), BAD_FRAMES[case])))
    assert ours.groups is None
    for memory in (ours, oracle):
        run(memory, 0, 9, JOINS)  # the next frame makes a consolidation and an eviction due
    both_refuse(ours, oracle, lambda m: m.add(**changed(frame(9, m.objects), BAD_FRAMES[case])))
    for a, b in zip(run(ours, 9, 15, JOINS), run(oracle, 9, 15, JOINS), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert ours.evictions > 0


@BOTH
@pytest.mark.parametrize("case", BAD_LATER_FRAMES)
def test_add_refuses_a_frame_unlike_the_first(groups, case):
    changes, options = BAD_LATER_FRAMES[case]
    ours, oracle = Memory(small(groups)), reference.Memory(small(groups))
    for memory in (ours, oracle):
        run(memory, 0, 5, JOINS)
    both_refuse(ours, oracle, lambda m: m.add(**changed(frame(5, **{"objects": m.objects} | options), changes)))


@BOTH
@pytest.mark.parametrize("case", BAD_QUERIES)
def test_read_refuses(groups, case):
    ours, oracle = Memory(small(groups)), reference.Memory(small(groups))
    both_refuse(ours, oracle, lambda m: m.read(**query(0)))  # nothing to read
    for memory in (ours, oracle):
        run(memory, 0, 3)
    both_refuse(ours, oracle, lambda m: m.read(**changed(query(0), BAD_QUERIES[case])))


def test_other_refusals():
    ours, oracle = Memory(small()), reference.Memory(small())
    both_refuse(ours, oracle, lambda m: m.remove([1]))
    both_refuse(ours, oracle, lambda m: m.add(**frame(0, h=0)))
    for memory in (ours, oracle):
        run(memory, 0, 7, JOINS)
    for leaving in ([4], [1, 4], [], 3, [1, 1]):
        both_refuse(ours, oracle, lambda m, leaving=leaving: m.remove(leaving))
    for memory in (ours, oracle):
        memory.remove([1, 2, 3])
    both_refuse(ours, oracle, lambda m: m.read(**query(0)))
    ours, oracle = Memory(small("xmem")), reference.Memory(small("xmem"))
    both_refuse(ours, oracle, lambda m: m.add(**frame(0, [2, 1])))
    both_refuse(ours, oracle, lambda m: m.add(**frame(0, batch=2)))
    for memory in (ours, oracle):
        run(memory, 0, 7, JOINS)
    both_refuse(ours, oracle, lambda m: m.add(**frame(7, [1, 2, 3, 5, 4])))
    both_refuse(ours, oracle, lambda m: m.remove([1]))
    with pytest.raises(TypeError, match="config: wanted a MemoryConfig, got dict"):
        Memory({"top_k": 3})


@BOTH
def test_long_term_memory_that_is_full_and_not_counted(groups):
    config = small(groups, enable_long_term_count_usage=False, max_long_term_elements=7)
    ours, oracle = Memory(config), reference.Memory(config)
    for memory in (ours, oracle):
        run(memory, 0, 10, JOINS)
    for _ in range(3):
        both_refuse(ours, oracle, lambda m: m.add(**frame(10, m.objects)))
    torch.testing.assert_close(ours.read(**query(0)), oracle.read(**query(0)), rtol=0, atol=1e-5)


def test_a_backend_that_cannot_serve_is_refused_and_changes_nothing():
    memory = Memory(small(), backend="cuda")
    run(memory, 0, 1)
    before = numbers(memory)
    with pytest.raises(ValueError, match="backend: 'cuda'"):
        memory.read(**query(0))
    assert same(numbers(memory), before)


# An operation that fails in the middle


@pytest.mark.parametrize(
    ("groups", "broken", "calls"),
    [
        ("exact", "consolidate", 1),
        ("exact", "consolidate", 2),
        ("exact", "evict_lfu", 1),
        ("exact", "evict_lfu", 2),
        ("xmem", "consolidate", 1),
        ("xmem", "select_prototypes", 1),
        ("xmem", "memory_read", 1),
        ("xmem", "memory_read", 2),
    ],
)
def test_an_operation_that_fails_in_an_add_leaves_the_memory_as_it_was(groups, broken, calls, monkeypatch):
    """In the first bucket, or in the second after the first has computed its change."""
    joins = {1: 0, 2: 0, 3: 3, 5: 3} if groups == "exact" else JOINS
    memory, other = Memory(small(groups)), Memory(small(groups))
    due = next_due(small(groups), joins, broken, calls)
    for m in (memory, other):
        run(m, 0, due, joins)
        m.read(**query(due))
    before = numbers(memory)
    with monkeypatch.context() as patch:
        patch.setattr(xmemk.api, broken, failing(getattr(xmemk.api, broken), calls))
        for _ in range(2):
            with pytest.raises(MemoryError):
                memory.add(**frame(due, present(joins, due)))
            patch.setattr(xmemk.api, broken, failing(getattr(xmemk.api, broken), 1))
            assert same(numbers(memory), before)
    for m in (memory, other):
        m.add(**frame(due, present(joins, due)))
    assert same(numbers(memory), numbers(other))
    assert torch.equal(memory.read(**query(0)), other.read(**query(0)))


def present(joins, t):
    return [label for label, since in joins.items() if since <= t]


def failing(function, at):
    """The function, but its ``at``-th call runs out of memory."""
    count = 0

    def call(*args, **kwargs):
        nonlocal count
        count += 1
        if count == at:
            raise MemoryError("of the device")
        return function(*args, **kwargs)

    return call


def next_due(config, joins, name, calls):
    """The first frame whose add calls an operation that often, once something has been evicted."""
    memory, function = Memory(config), getattr(xmemk.api, name)
    for t in range(60):
        if memory.objects:
            memory.read(**query(t))
        count = 0

        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            return function(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xmemk.api, name, counted)
            evictions = memory.evictions
            memory.add(**frame(t, present(joins, t)))
        if count >= calls and memory.evictions > evictions:
            return t
    raise AssertionError(f"{name} is not called {calls} times")


@BOTH
def test_an_operation_that_fails_in_a_read_leaves_the_memory_as_it_was(groups, monkeypatch):
    """The second bucket's read fails: the first's must not be recorded."""
    memory = Memory(small(groups))
    run(memory, 0, 9, JOINS)
    before = numbers(memory)
    # A read is one call of memory_read, or affinity_topk and readout_topk.
    second = failing(lambda function, *args, **kwargs: function(*args, **kwargs), 2)
    for name in ("memory_read", "readout_topk"):
        monkeypatch.setattr(xmemk.api, name, partial(second, getattr(xmemk.api, name)))
    with pytest.raises(MemoryError):
        memory.read(**query(0))
    assert same(numbers(memory), before)


def test_a_removal_that_fails_leaves_the_memory_as_it_was(monkeypatch):
    memory = Memory(small())
    run(memory, 0, 12, JOINS)
    before = numbers(memory)
    monkeypatch.setattr(xmemk.memory.values.Values, "of", failing(xmemk.memory.values.Values.of, 1))
    with pytest.raises(MemoryError):
        memory.remove([3, 1])
    assert same(numbers(memory), before)


@pytest.mark.parametrize("broken", ["sensory.SensoryMemory.remove", "exact.SeparateGroups.remove"])
def test_a_removal_takes_the_sensory_rows_along_or_nothing(broken, monkeypatch):
    memory = Memory(small())
    run(memory, 0, 6, JOINS)
    memory.sensory.create(memory.objects, frame(0)["key"])
    before, sensory = numbers(memory), memory.sensory

    def fail(*_):
        raise MemoryError("of the device")

    with monkeypatch.context() as patch:
        patch.setattr(f"xmemk.memory.{broken}", fail)
        with pytest.raises(MemoryError):
            memory.remove([1])
    assert same(numbers(memory), before) and sensory.objects == (1, 2, 3)
    memory.remove([1])
    assert memory.sensory is sensory and sensory.objects == memory.objects == (2, 3)


@BOTH
def test_a_copy_goes_its_own_way(groups):
    memory = Memory(small(groups))
    run(memory, 0, 9, JOINS)
    before = numbers(memory)
    for twin in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert same(numbers(twin), before)
        run(twin, 9, 15, JOINS)
        assert same(numbers(memory), before) and not same(numbers(twin), before)


@pytest.mark.parametrize("module", [rules, shared])
def test_no_room_for_a_new_bucket_leaves_the_memory_as_it_was(module, monkeypatch):
    groups = "exact" if module is rules else "xmem"
    memory = Memory(small(groups))
    run(memory, 0, 4)
    before = numbers(memory)
    name = "Arena" if module is rules else "values_for"
    monkeypatch.setattr(module, name, failing(getattr(module, name), 1))
    with pytest.raises(MemoryError):
        memory.add(**frame(4, [1, 2, 3]))
    assert same(numbers(memory), before)


# Finite numbers


def test_unchecked_numbers_that_are_not_finite():
    """A key that is not finite is never read; so is a shrinkage."""
    memory, clean = Memory(small(top_k=3), check_finite=False), Memory(small(top_k=3))
    for t in range(3):
        x = frame(t)
        clean.add(**x)
        x["key"], x["shrinkage"] = x["key"].clone(), x["shrinkage"].clone()
        x["key"][0, :, 0, t] = math.nan
        x["shrinkage"][0, 0, 1, t] = math.inf
        memory.add(**x)
    assert memory.read(**query(0)).isfinite().all()
    use = memory.groups.buckets[0].arena.use.rows(memory.groups.buckets[0].arena.table.runs()[0])
    assert (use.view(3, H, W)[range(3), 0, range(3)] == 0).all()
    with pytest.raises(ValueError, match="key: wanted finite numbers, got 4 of 24"):
        clean.add(**x)


def test_float16_values_must_fit():
    memory = Memory(small(value_dtype="float16"))
    x = frame(0)
    with pytest.raises(ValueError, match=r"value: wanted numbers of at most 65504, as it is stored, got 70000"):
        memory.add(**x | {"value": torch.full((1, 2, CV, H, W), -7e4)})
    memory.add(**x | {"value": torch.full((1, 2, CV, H, W), -6e4)})
    Memory(small(value_dtype="int8")).add(**x | {"value": torch.full((1, 2, CV, H, W), -7e4)})


@pytest.mark.parametrize("stored", ["bfloat16", "int8", "float8_e4m3fn"])
def test_what_is_stored_in_less_must_not_overflow(stored):
    memory = Memory(small(value_dtype=stored))
    x = frame(0)
    with pytest.raises(ValueError, match=r"value: wanted numbers of at most 3\.\d+e\+38, as it is stored, got 1e\+300"):
        memory.add(**x | {"value": torch.full((1, 2, CV, H, W), -1e300, dtype=torch.float64)})
    assert memory.objects == ()
