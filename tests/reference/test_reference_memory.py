"""The border of the oracle's memory: its parameters, and what it refuses without a change."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xmemk import reference
from xmemk.reference import Memory, MemoryConfig

BOTH = pytest.mark.parametrize("groups", ["exact", "xmem"])
CK, CV, H, W = 3, 2, 2, 3


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def frame(seed=0, objects=2, dtype=torch.float64, batch=1, h=H, w=W):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    return {
        "key": normal(batch, CK, h, w).to(dtype),
        "shrinkage": (1 + normal(batch, 1, h, w).square()).to(dtype),
        "value": normal(batch, objects, CV, h, w).to(dtype),
        "objects": list(range(1, objects + 1)),
        "selection": normal(batch, CK, h, w).sigmoid().to(dtype),
    }


def query(seed=100, **options):
    x = frame(seed, **options)
    return {"query_key": x["key"], "selection": x["selection"]}


def small(groups="exact", **changes):
    parameters = {
        "top_k": 4,
        "max_mid_term_frames": 4,
        "min_mid_term_frames": 2,
        "num_prototypes": 3,
        "max_long_term_elements": 7,
    }
    return MemoryConfig(**parameters | changes, groups=groups)


# MemoryConfig


def test_defaults_are_those_of_the_released_code():
    assert vars(MemoryConfig()) == {
        "top_k": 30,
        "mem_every": 5,
        "deep_update_every": -1,
        "max_mid_term_frames": 10,
        "min_mid_term_frames": 5,
        "num_prototypes": 128,
        "max_long_term_elements": 10000,
        "enable_long_term": True,
        "enable_long_term_count_usage": True,
        "hidden_dim": 64,
        "groups": "exact",
        "value_dtype": None,
    }


def test_config_from_xmems_dictionary_ignores_what_is_not_ours():
    config = MemoryConfig.from_dict({"top_k": None, "mem_every": 10, "key_dim": 64, "size": 480, "flip": False})
    assert config == MemoryConfig(top_k=None, mem_every=10)
    assert MemoryConfig.from_dict({"top_k": np.int64(4)}).top_k == 4
    with pytest.raises(TypeError, match="config: wanted a mapping, got list"):
        MemoryConfig.from_dict([("top_k", 3)])


def test_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MemoryConfig().top_k = 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "top_k: wanted None or a whole number >= 1, got 0"),
        ({"top_k": 2.5}, TypeError, r"top_k: wanted None or a whole number >= 1, got 2\.5"),
        ({"top_k": True}, TypeError, "top_k: .* got True"),
        ({"mem_every": 0}, ValueError, "mem_every: wanted a whole number >= 1, got 0"),
        ({"deep_update_every": None}, TypeError, "deep_update_every: wanted a whole number, got None"),
        ({"min_mid_term_frames": 0}, ValueError, "min_mid_term_frames: wanted a whole number >= 1, got 0"),
        ({"max_mid_term_frames": 5}, ValueError, "max_mid_term_frames: wanted more than min_mid_term_frames = 5"),
        ({"num_prototypes": 0}, ValueError, "num_prototypes: wanted a whole number >= 1, got 0"),
        ({"max_long_term_elements": 127}, ValueError, "max_long_term_elements: wanted at least .* = 128, got 127"),
        ({"hidden_dim": -1}, ValueError, "hidden_dim: wanted a whole number >= 0, got -1"),
        ({"enable_long_term": 1}, TypeError, "enable_long_term: wanted a bool, got 1"),
        ({"enable_long_term_count_usage": None}, TypeError, "enable_long_term_count_usage: wanted a bool, got None"),
        ({"groups": "shared"}, ValueError, "groups: wanted one of 'exact', 'xmem', got 'shared'"),
        ({"value_dtype": "int4"}, ValueError, "value_dtype: wanted None or one of 'float16', .* got 'int4'"),
    ],
)
def test_config_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        MemoryConfig(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 1},
        {"deep_update_every": 0},
        {"hidden_dim": 0},
        {"min_mid_term_frames": 1, "max_mid_term_frames": 2},
        {"max_long_term_elements": 128},
    ],
)
def test_config_accepts_the_extremes(changes):
    assert dataclasses.asdict(MemoryConfig(**changes)) | changes == dataclasses.asdict(MemoryConfig(**changes))


# What add and read refuse


def with_bad(x, number):
    y = x.clone()
    y.view(-1)[3] = number
    return y


BAD_FRAMES = {
    "key of 3 dimensions": ({"key": lambda x: x[0]}, ValueError, "key: wanted"),
    "key no tensor": ({"key": lambda x: x.numpy()}, TypeError, "key: wanted a tensor, got ndarray"),
    "whole-number key": ({"key": lambda x: x.long()}, TypeError, "key: wanted a floating type"),
    "NaN key": ({"key": lambda x: with_bad(x, math.nan)}, ValueError, "key: wanted finite numbers, got 1 of 18"),
    "shrinkage of CK channels": ({"shrinkage": lambda x: x.expand(1, CK, H, W)}, ValueError, "shrinkage: wanted shape"),
    "half shrinkage": (
        {"shrinkage": lambda x: x.half()},
        TypeError,
        "shrinkage: wanted torch.float64 or torch.float32",
    ),
    "Inf shrinkage": ({"shrinkage": lambda x: with_bad(x, math.inf)}, ValueError, "shrinkage: wanted finite"),
    "value of 4 dimensions": ({"value": lambda x: x[0]}, ValueError, "value: wanted 5 dimensions"),
    "value of one object": ({"value": lambda x: x[:, :1]}, ValueError, "value: wanted O = 2 as in objects"),
    "value of another size": ({"value": lambda x: x[..., :-1]}, ValueError, "value: wanted shape"),
    "NaN value": ({"value": lambda x: with_bad(x, math.nan)}, ValueError, "value: wanted finite numbers"),
    "selection of 1 channel": ({"selection": lambda x: x[:, :1]}, ValueError, "selection: wanted shape"),
    "float selection": ({"selection": lambda x: x.float()}, TypeError, "selection: wanted torch.float64, got"),
    "-Inf selection": ({"selection": lambda x: with_bad(x, -math.inf)}, ValueError, "selection: wanted finite"),
    "no labels": ({"objects": lambda _: []}, ValueError, "objects: wanted at least one label"),
    "label 0": ({"objects": lambda _: [0, 1]}, ValueError, r"objects: wanted labels from 1 .* got \[0, 1\]"),
    "label twice": ({"objects": lambda _: [1, 1]}, ValueError, r"objects: wanted each label once, got \[1, 1\]"),
    "label 1.5": ({"objects": lambda _: [1, 1.5]}, TypeError, r"objects: wanted whole numbers, got 1\.5"),
    "labels no sequence": ({"objects": lambda _: 2}, TypeError, "objects: wanted a sequence of labels, got int"),
}
BAD_LATER_FRAMES = {
    "key of another size": ({}, {"h": H + 1}, ValueError, r"key: wanted shape \[1, 3, 2, 3\], got \[1, 3, 3, 3\]"),
    "key of another batch": ({}, {"batch": 2}, ValueError, "key: wanted shape"),
    "key of another type": ({}, {"dtype": torch.float32}, TypeError, "key: wanted torch.float64, got torch.float32"),
    "value of another type": ({"value": lambda x: x.float()}, {}, TypeError, "value: wanted torch.float64"),
    "value of fewer channels": ({"value": lambda x: x[:, :, :1]}, {}, ValueError, "value: wanted shape"),
    "no selection": ({"selection": lambda _: None}, {}, ValueError, "selection: wanted one, as with the first frame"),
    "key elsewhere": ({"key": lambda x: x.to("meta")}, {}, ValueError, "key: wanted a tensor on cpu, got one on meta"),
    "an object missing": ({}, {"objects": 1}, ValueError, r"objects: wanted all that are held, \[1, 2\], got \[1\]"),
    "another label": ({"objects": lambda _: [1, 3]}, {}, ValueError, "objects: wanted all that are held"),
}


def changed(x, changes):
    return x | {name: change(x[name]) for name, change in changes.items()}


def snapshot(memory):
    """The state and a copy of its numbers: neither a new state nor one written into goes unseen."""

    def numbers(x):
        if isinstance(x, torch.Tensor):
            return x.clone()
        if isinstance(x, tuple):
            return [numbers(y) for y in x]
        if dataclasses.is_dataclass(x) and not isinstance(x, MemoryConfig):
            return [numbers(getattr(x, field.name)) for field in dataclasses.fields(x) if field.name != "rules"]
        return x

    return memory.groups, numbers(memory.groups), repr(memory)


def same(before, after):
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    if isinstance(before, list):
        return len(before) == len(after) and all(same(a, b) for a, b in zip(before, after, strict=True))
    return before == after


def assert_unchanged(memory, before):
    after = snapshot(memory)
    assert after[0] is before[0]
    assert same(before[1], after[1])
    assert after[2] == before[2]


@BOTH
@pytest.mark.parametrize("case", BAD_FRAMES)
def test_add_refuses_on_the_first_frame_and_on_later_ones(groups, case):
    changes, error, message = BAD_FRAMES[case]
    memory = Memory(small(groups))
    with pytest.raises(error, match=message):
        memory.add(**changed(frame(), changes))
    assert memory.groups is None
    for seed in range(3):
        memory.add(**frame(seed))
        memory.read(**query())
    before = snapshot(memory)
    with pytest.raises(error, match=message):
        memory.add(**changed(frame(3), changes))
    assert_unchanged(memory, before)
    memory.add(**frame(3))  # and goes on as if nothing had been
    assert memory.consolidations == 1


@BOTH
@pytest.mark.parametrize("case", BAD_LATER_FRAMES)
def test_add_refuses_a_frame_unlike_the_first(groups, case):
    changes, options, error, message = BAD_LATER_FRAMES[case]
    memory = Memory(small(groups))
    memory.add(**frame())
    before = snapshot(memory)
    with pytest.raises(error, match=message):
        memory.add(**changed(frame(1, **options), changes))
    assert_unchanged(memory, before)


def test_add_refuses_a_selection_that_the_first_frame_did_not_have():
    memory = Memory(small())
    memory.add(**frame() | {"selection": None})
    with pytest.raises(ValueError, match="selection: wanted None, as with the first frame"):
        memory.add(**frame(1))


def test_add_refuses_an_empty_frame():
    with pytest.raises(ValueError, match="key: wanted H >= 1"):
        Memory(small()).add(**frame(h=0))


@BOTH
@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("query_key", lambda x: x[..., :-1], ValueError, r"query_key: wanted shape \[1, 3, 2, 3\], got \[1, 3, 2, 2\]"),
        ("query_key", lambda x: x.float(), TypeError, "query_key: wanted torch.float64, got torch.float32"),
        ("query_key", lambda x: with_bad(x, math.nan), ValueError, "query_key: wanted finite numbers, got 1 of 18"),
        ("query_key", lambda x: x.tolist(), TypeError, "query_key: wanted a tensor, got list"),
        ("selection", lambda x: x[:, :1], ValueError, "selection: wanted shape"),
        ("selection", lambda x: with_bad(x, math.inf), ValueError, "selection: wanted finite"),
    ],
)
def test_read_refuses(groups, name, change, error, message):
    memory = Memory(small(groups))
    memory.add(**frame())
    before = snapshot(memory)
    with pytest.raises(error, match=message):
        memory.read(**changed(query(), {name: change}))
    assert_unchanged(memory, before)


@BOTH
def test_read_before_the_first_add(groups):
    with pytest.raises(RuntimeError, match="the memory is empty: call add before read"):
        Memory(small(groups)).read(**query())


def test_memory_refuses_a_dictionary_as_config():
    with pytest.raises(TypeError, match="config: wanted a MemoryConfig, got dict"):
        Memory({"top_k": 3})


# What add and read do with their arguments


@BOTH
def test_shapes_types_and_order(groups):
    memory = Memory(small(groups))
    assert memory.objects == ()
    memory.add(**frame(objects=3))
    readout = memory.read(**query())
    assert readout.shape == (1, 3, CV, H, W)
    assert readout.dtype == torch.float64
    text = (
        f"Memory(groups='{groups}', objects=[1, 2, 3], working_size=6, long_term_size=0, consolidations=0, evictions=0)"
    )
    assert repr(memory) == text


@BOTH
def test_query_tokens_keep_their_place(groups):
    """A query that is the first frame's key reads that frame back, token by token."""
    memory = Memory(small(groups, top_k=1))
    first = frame()
    memory.add(**first)
    readout = memory.read(first["key"], torch.ones_like(first["key"]))
    torch.testing.assert_close(readout, first["value"])


@BOTH
def test_buffers_may_be_reused(groups):
    """The memory neither sees later changes of the caller's tensors nor writes into them."""
    reused, fresh = Memory(small(groups)), Memory(small(groups))
    buffer = frame()
    for seed in range(6):
        new = frame(seed)
        for name, x in new.items():
            if isinstance(x, torch.Tensor):
                buffer[name].copy_(x)
        reused.add(**buffer)
        assert all(torch.equal(buffer[name], x) for name, x in new.items() if isinstance(x, torch.Tensor))
        for name in new:
            if isinstance(buffer[name], torch.Tensor):
                buffer[name].fill_(7)
        fresh.add(**new)
        assert torch.equal(reused.read(**query(seed)), fresh.read(**query(seed)))


@BOTH
def test_strides_do_not_matter(groups):
    def strided(x):
        return x.transpose(-1, -2).contiguous().transpose(-1, -2) if isinstance(x, torch.Tensor) else x

    plain, other = Memory(small(groups)), Memory(small(groups))
    for seed in range(6):
        plain.add(**frame(seed))
        other.add(**{name: strided(x) for name, x in frame(seed).items()})
        torch.testing.assert_close(
            plain.read(**query(seed)), other.read(**{name: strided(x) for name, x in query(seed).items()})
        )


@BOTH
@pytest.mark.parametrize("selected", [True, False])
def test_selection_of_ones_is_no_selection(groups, selected):
    with_ones, without = Memory(small(groups)), Memory(small(groups))
    for seed in range(8):
        x, q = frame(seed), query(seed)
        with_ones.add(**x | {"selection": torch.ones_like(x["key"])})
        without.add(**x | {"selection": None})
        selection = q["selection"] if selected else torch.ones_like(q["query_key"])
        expected = with_ones.read(q["query_key"], selection)
        torch.testing.assert_close(without.read(q["query_key"], selection if selected else None), expected)


@BOTH
def test_more_neighbours_than_tokens_means_all(groups):
    """The released code stops with an error."""
    some, every = Memory(small(groups, top_k=10**6)), Memory(small(groups, top_k=None))
    for seed in range(8):
        for memory in (some, every):
            memory.add(**frame(seed))
        assert torch.equal(some.read(**query(seed)), every.read(**query(seed)))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_follows_float64(groups, dtype):
    """Half keys and values with float32 shrinkage, as under autocast.

    Shrinkage stays float32, counters float64.
    """
    memory, oracle = Memory(small(groups, top_k=None)), Memory(small(groups, top_k=None))
    for seed in range(4):
        rounded = {k: x.to(dtype) if isinstance(x, torch.Tensor) else x for k, x in frame(seed).items()}
        rounded["shrinkage"] = rounded["shrinkage"].float()
        memory.add(**rounded)
        oracle.add(**{k: x.double() if isinstance(x, torch.Tensor) else x for k, x in rounded.items()})
        q = {k: x.to(dtype) for k, x in query(seed).items()}
        readout = memory.read(**q)
        assert readout.dtype == dtype
        expected = oracle.read(**{k: x.double() for k, x in q.items()})
        # A similarity of size 20 is off by 20 eps or so, and a weight by as much relatively; values
        # are below 4.
        torch.testing.assert_close(readout.double(), expected, rtol=0, atol=100 * torch.finfo(dtype).eps)
    store = memory.groups if groups == "xmem" else memory.groups.buckets[0]
    assert memory.consolidations == 1
    for part in (store.working, store.long_term):
        assert part.key.dtype == dtype
        assert part.shrinkage.dtype == torch.float32
        assert part.use.dtype == part.life.dtype == torch.float64


def test_values_may_have_a_type_of_their_own():
    memory = Memory(small())
    for seed in range(5):
        x = frame(seed, dtype=torch.float32)
        memory.add(**x | {"value": x["value"].double()})
        assert memory.read(**query(dtype=torch.float32)).dtype == torch.float64


# Running on other functions


class Recorder:
    """The reference functions, noting what they are called with."""

    def __init__(self):
        self.reads = []

    def memory_read(self, mk, ms, mv, qk, qe, **options):
        self.reads.append((mk, ms, mv, options))
        return reference.memory_read(mk, ms, mv, qk, qe, **options)

    select_prototypes = staticmethod(reference.select_prototypes)
    consolidate = staticmethod(reference.consolidate)
    evict_lfu = staticmethod(reference.evict_lfu)


@BOTH
def test_reads_hand_over_the_stores_as_they_lie_long_term_first(groups):
    ops = Recorder()
    memory = Memory(small(groups), ops=ops)
    for seed in range(4):
        memory.add(**frame(seed))
    store = memory.groups if groups == "xmem" else memory.groups.buckets[0]
    ops.reads.clear()
    memory.read(**query())
    ((mk, ms, mv, options),) = ops.reads
    assert [k.data_ptr() for k in mk] == [store.long_term.key.data_ptr(), store.working.key.data_ptr()]
    assert [s.data_ptr() for s in ms] == [store.long_term.shrinkage.data_ptr(), store.working.shrinkage.data_ptr()]
    assert [v.shape[-1] for v in mv] == [3, 12]
    assert options == {"top_k": 4, "return_usage": True}


def test_usage_is_not_asked_for_where_it_is_not_counted():
    ops = Recorder()
    memory = Memory(small(enable_long_term=False), ops=ops)
    memory.add(**frame())
    memory.read(**query())
    assert ops.reads[0][3] == {"top_k": 4}


@pytest.mark.parametrize(
    ("groups", "broken"),
    [("exact", "consolidate"), ("exact", "evict_lfu"), ("xmem", "select_prototypes"), ("xmem", "memory_read")],
)
def test_a_function_that_fails_leaves_the_memory_as_it_was(groups, broken):
    """In the middle of an add that evicts and consolidates, and in a read."""

    def fail(*_, **__):
        raise MemoryError("of the device")

    names = ("memory_read", "select_prototypes", "consolidate", "evict_lfu")
    ops = SimpleNamespace(**{name: getattr(reference, name) for name in names})
    memory, other = Memory(small(groups), ops=ops), Memory(small(groups))
    for seed in range(7):
        for m in (memory, other):
            m.add(**frame(seed))
            m.read(**query(seed))
    before = snapshot(memory)
    setattr(ops, broken, fail)
    with pytest.raises(MemoryError):
        memory.add(**frame(7))
    assert_unchanged(memory, before)
    ops.memory_read = fail
    with pytest.raises(MemoryError):
        memory.read(**query(7))
    assert_unchanged(memory, before)
    for name in names:
        setattr(ops, name, getattr(reference, name))
    for m in (memory, other):
        m.add(**frame(7))
        assert (m.consolidations, m.evictions) == (3, 1)
    assert torch.equal(memory.read(**query()), other.read(**query()))
