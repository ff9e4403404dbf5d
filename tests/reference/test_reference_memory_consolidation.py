"""When the oracle's memory consolidates and evicts, what it keeps and counts; checked by hand.

Most tests use one-channel keys: the tokens of frame f lie at 10 f, 10 f + 0.1, ..., and their
values are f, so that a query at 10 f that reads one token says which frame is held there.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from xmemk.reference import Memory, MemoryConfig

BOTH = pytest.mark.parametrize("groups", ["exact", "xmem"])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(position, hw):
    return (position + 0.1 * torch.arange(hw, dtype=torch.float64)).view(1, 1, 1, hw)


def add(memory, f, hw=1, objects=(1,)):
    """Frame f for these objects; object o has value f + 100 (o - 1)."""
    value = torch.stack([torch.full((1, 1, hw), f + 100.0 * (o - 1), dtype=torch.float64) for o in objects])
    ones = torch.ones(1, 1, 1, hw, dtype=torch.float64)
    memory.add(tokens(10.0 * f, hw), ones, value[None], objects, ones)


def read(memory, f, hw=1):
    """What a query at frame f's first token reads, for every object."""
    query = torch.full((1, 1, 1, hw), 10.0 * f, dtype=torch.float64)
    return memory.read(query, torch.ones_like(query))[0, :, 0, 0, 0].tolist()


def stores(memory):
    groups = memory.groups
    return groups if memory.config.groups == "xmem" else groups.buckets[0]


def frames(store):
    """The frames of a store's keys, in the order in which they lie there."""
    return [] if store is None else [round(k) // 10 for k in store.key[0, 0].tolist()]


def small(groups, **changes):
    """One-token frames; each consolidation takes two of three frames and leaves the first."""
    parameters = {
        "top_k": 1,
        "max_mid_term_frames": 3,
        "min_mid_term_frames": 1,
        "num_prototypes": 2,
        "max_long_term_elements": 5,
    }
    return Memory(MemoryConfig(**parameters | changes, groups=groups))


# When


@BOTH
def test_default_schedule(groups):
    """Consolidations of P tokens at t = 45, 70, 95 with a memory frame every 5.

    In between there are 5 to 9 frames.
    """
    config = MemoryConfig(groups=groups, num_prototypes=7)
    memory, due, frame_counts = Memory(config), [], []
    for t in range(0, 100, config.mem_every):
        before = memory.consolidations
        add(memory, t, hw=4)
        frame_counts.append(memory.working_size // 4)
        if memory.consolidations > before:
            due.append(t)
            assert memory.long_term_size == 7 * memory.consolidations
    assert due == [45, 70, 95]
    assert frame_counts == [1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5]


@BOTH
@pytest.mark.parametrize(
    ("limit", "mem_every", "evicts_at"),
    [(10000, 5, 1995), (10000, 10, 3990), (1000, 5, 220)],
)
def test_first_eviction_with_the_default_numbers(groups, limit, mem_every, evicts_at):
    memory = Memory(MemoryConfig(groups=groups, max_long_term_elements=limit))
    for t in range(0, evicts_at + 1, mem_every):
        assert memory.evictions == 0
        before = memory.long_term_size
        add(memory, t, hw=26)  # 5 candidate frames of 26 tokens are the fewest that give 128 prototypes
        assert memory.long_term_size in (before, before + 128, limit, 128)
    assert memory.evictions == 1
    # Nothing was read: all usage is equal. Exact groups keep as much as fits, the released code's
    # rule keeps nothing.
    assert memory.long_term_size == (limit if groups == "exact" else 128)


# What stays and what goes


@BOTH
def test_the_first_frame_and_the_last_stay_and_the_rest_are_candidates(groups):
    """T = 10, T_min = 5: candidates are frames 1 to 5.

    There are fewer than P, so all become prototypes.
    """
    memory = Memory(MemoryConfig(groups=groups, top_k=1))
    for f in range(10):
        add(memory, f, hw=2)
    assert frames(stores(memory).working) == [0, 0, 6, 6, 7, 7, 8, 8, 9, 9]
    assert frames(stores(memory).long_term) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [round(read(memory, f, hw=2)[0]) for f in range(10)] == list(range(10))
    for f in range(10, 15):
        add(memory, f, hw=2)
    assert frames(stores(memory).working) == [0, 0, 11, 11, 12, 12, 13, 13, 14, 14]
    assert sorted(frames(stores(memory).long_term)[10:]) == [6, 6, 7, 7, 8, 8, 9, 9, 10, 10]


@BOTH
def test_a_minimum_of_one_frame_keeps_the_first_only(groups):
    memory = small(groups, max_long_term_elements=100)
    for f in range(5):
        add(memory, f)
    assert frames(stores(memory).working) == [0]
    assert frames(stores(memory).long_term) == [1, 2, 3, 4]


@BOTH
def test_prototypes_are_those_used_most_per_read(groups):
    """Two uses in one read beat two uses in two: usage is normalised by the time in memory."""
    config = MemoryConfig(groups=groups, top_k=1, max_mid_term_frames=4, min_mid_term_frames=2, num_prototypes=2)
    memory = Memory(config)
    add(memory, 0, hw=2)
    add(memory, 1, hw=2)
    read(memory, 1, hw=2)  # both queries lie on frame 1's first token: use 2
    add(memory, 2, hw=2)
    memory.read(tokens(20.1, 1).expand(1, 1, 1, 2))  # and on frame 2's second
    add(memory, 3, hw=2)
    long_term = stores(memory).long_term
    assert long_term.key[0, 0].tolist() == [20.1, 10.0]
    assert long_term.use.tolist() == [[0, 0]]  # counters start anew
    assert long_term.life.tolist() == [[1e-7, 1e-7]]
    assert long_term.selection is None


@BOTH
def test_potentiation_by_hand(groups):
    """Eq. 3 with candidates at 0 and 2, the second a prototype: weights from s, e and distance."""
    memory = small(groups, num_prototypes=1)
    shrinkage, selection, values = [1.0, 2.0, 3.0], [1.0, 0.9, 0.25], [9.0, 5.0, 7.0]
    for f, position in enumerate((100.0, 0.0, 2.0)):
        add_one(memory, position, shrinkage[f], values[f], selection[f])
    store = stores(memory)
    # Both are unread, so the older candidate, at 0, is the prototype; its own selection 0.9 counts.
    far = math.exp(-3.0 * 0.9 * 2**2)
    weight = far / (1 + far)
    assert store.long_term.key.tolist() == [[[0.0]]]
    value = store.long_term_value if groups == "exact" else store.long_term_values[0]
    assert value.item() == pytest.approx(5 + 2 * weight, abs=1e-14)
    assert store.long_term.shrinkage.item() == pytest.approx(2 + weight, abs=1e-14)


def add_one(memory, position, shrinkage, value, selection):
    def one(x):
        return torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 1)

    memory.add(one(position), one(shrinkage), one(value)[None], [1], one(selection))


# Usage


@BOTH
def test_usage_counts_mass_and_life(groups):
    memory = small(groups, top_k=None, max_mid_term_frames=9)
    add(memory, 0)
    add(memory, 1)
    working = stores(memory).working
    assert working.life.tolist() == [[1e-7, 1e-7]]
    assert working.usage.tolist() == [[0, 0]]
    memory.read(torch.full((1, 1, 1, 1), 5.0, dtype=torch.float64))  # halfway between the two
    read(memory, 1)
    add(memory, 2)
    working = stores(memory).working
    assert working.use[0].tolist() == pytest.approx([0.5, 1.5, 0])
    assert working.life[0].tolist() == pytest.approx([2 + 1e-7, 2 + 1e-7, 1e-7], rel=1e-12)
    assert working.usage[0, 2] == 0
    assert working.usage[0].tolist() == pytest.approx([0.25, 0.75, 0])


@BOTH
def test_usage_goes_to_the_store_that_was_read(groups):
    memory = small(groups)
    for f in range(4):
        add(memory, f)
    assert frames(stores(memory).long_term) == [1, 2]
    read(memory, 2)
    read(memory, 3)
    read(memory, 3)
    assert stores(memory).long_term.use.tolist() == [[0, 1]]
    assert stores(memory).working.use.tolist() == [[0, 2]]
    assert stores(memory).long_term.life[0].tolist() == pytest.approx([3, 3])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counters_are_float64(groups, dtype):
    memory = small(groups)
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    memory.add(one, one, one[None], [1], one)
    memory.read(one, one)
    assert stores(memory).working.use.dtype == torch.float64
    assert stores(memory).working.life.dtype == torch.float64


@BOTH
def test_without_long_term_memory_everything_is_kept_and_nothing_counted(groups):
    memory = small(groups, enable_long_term=False)
    for f in range(20):
        add(memory, f)
        assert read(memory, f) == [f]
    assert memory.working_size == 20
    assert memory.long_term_size == memory.consolidations == 0
    assert stores(memory).working.use is None
    assert read(memory, 0) == [0]


# Eviction. One-token frames 1 and 2, 3 and 4 are prototypes when frame 6 makes a third
# consolidation due.


def grow(memory, until, reading=()):
    for f in range(until + 1):
        add(memory, f)
        if f >= 4 and f < until:
            for label in reading:
                read(memory, label)


def test_exact_groups_evict_what_does_not_fit_and_the_older_of_equals_first():
    memory = small("exact")
    grow(memory, 6)
    assert frames(memory.groups.buckets[0].long_term) == [2, 3, 4, 5, 6]
    assert memory.evictions == 1


def test_xmem_groups_evict_all_that_tie_at_the_threshold():
    memory = small("xmem")
    grow(memory, 6)
    assert frames(memory.groups.long_term) == [5, 6]
    assert memory.evictions == 1


@pytest.mark.parametrize(
    ("reading", "exact", "xmem"),
    [
        ((1, 2, 3), [1, 2, 3, 5, 6], [1, 2, 3, 5, 6]),  # one was not used, and goes
        ((1,), [1, 3, 4, 5, 6], [1, 5, 6]),  # three were not used, one has to go
        ((1, 2, 3, 4), [2, 3, 4, 5, 6], [5, 6]),  # all were used alike
        ((1, 1, 2, 3, 3, 4), [1, 3, 4, 5, 6], [1, 3, 5, 6]),
    ],
)
@BOTH
def test_eviction_by_usage(groups, reading, exact, xmem):
    memory = small(groups)
    grow(memory, 6, reading)
    assert frames(stores(memory).long_term) == (exact if groups == "exact" else xmem)
    remaining = sorted([*frames(stores(memory).long_term), 0])
    assert [read(memory, f) for f in remaining] == [
        [pytest.approx(f)] for f in remaining
    ]  # values went with their keys


@BOTH
def test_long_term_memory_exactly_at_its_limit_evicts_nothing(groups):
    memory = small(groups, max_long_term_elements=6)
    grow(memory, 6)
    assert memory.evictions == 0
    assert frames(stores(memory).long_term) == [1, 2, 3, 4, 5, 6]
    add(memory, 7)
    add(memory, 8)
    assert memory.evictions == 1
    assert memory.long_term_size <= 6


@BOTH
def test_a_limit_of_one_batch_of_prototypes(groups):
    memory = small(groups, max_long_term_elements=2)
    for f in range(9):
        add(memory, f)
        read(memory, f)
        assert memory.long_term_size in (0, 2)
    assert sorted(frames(stores(memory).long_term)) == [7, 8]
    assert memory.evictions == 3


@BOTH
def test_nan_usage_is_evicted_first(groups):
    memory = small(groups)
    grow(memory, 5, reading=(1, 2, 3, 4))
    spoil(memory, long_term_use=[5.0, math.nan, 6.0, 7.0])
    add(memory, 6)
    assert frames(stores(memory).long_term) == ([1, 3, 4, 5, 6] if groups == "exact" else [3, 4, 5, 6])


def spoil(memory, long_term_use):
    """Writes usage directly, where no read could bring it about."""
    store = stores(memory)
    use = torch.tensor([long_term_use], dtype=torch.float64)
    changed = dataclasses.replace(store, long_term=dataclasses.replace(store.long_term, use=use))
    memory._groups = (
        changed if memory.config.groups == "xmem" else dataclasses.replace(memory.groups, buckets=(changed,))
    )


def test_xmem_long_term_memory_without_tokens_is_still_read():
    memory = small("xmem")
    grow(memory, 5)
    memory._groups = memory.groups._evict()
    assert memory.long_term_size == 0
    assert memory.groups.long_term is not None
    assert read(memory, 3) == [5]  # the nearest frame in working memory; with 10 per frame, 3 is nearer to 5 than to 0
    add(memory, 6)
    assert frames(memory.groups.long_term) == [5, 6]


def test_xmem_eviction_with_a_later_group_keeps_values_with_their_keys():
    """The released code stops here.

    Object 2 joins at frame 1, whose value it loses to the first frame's key.
    """
    memory = small("xmem", max_mid_term_frames=4, num_prototypes=3, max_long_term_elements=8)
    for f in range(10):
        add(memory, f, objects=(1,) if f == 0 else (1, 2))
        if 6 <= f < 9:
            for label in (1, 3, 5, 6):
                read(memory, label)
        if f == 6:
            assert frames(memory.groups.long_term) == [1, 2, 3, 4, 5, 6]
            assert labels(memory.groups.long_term_values) == [[1, 2, 3, 4, 5, 6], [102, 103, 104, 105, 106]]
    assert memory.evictions == 1
    assert frames(memory.groups.long_term) == [1, 3, 5, 6, 7, 8, 9]
    assert labels(memory.groups.long_term_values) == [[1, 3, 5, 6, 7, 8, 9], [103, 105, 106, 107, 108, 109]]
    assert read(memory, 5) == [pytest.approx(5), pytest.approx(105)]


def labels(values):
    return [[round(x) for x in v[0, 0, 0].tolist()] for v in values]


@BOTH
def test_a_full_long_term_memory_without_counts_is_an_error_that_changes_nothing(groups):
    memory = small(groups, enable_long_term_count_usage=False)
    grow(memory, 5)
    before = memory.groups
    for _ in range(2):
        with pytest.raises(RuntimeError, match="enable_long_term_count_usage"):
            add(memory, 6)
        assert memory.groups is before
    assert memory.long_term_size == 4
    assert read(memory, 4) == [pytest.approx(4)]
    assert stores(memory).working.use is not None
    assert stores(memory).long_term.use is None


@BOTH
@pytest.mark.parametrize("seed", range(12))
def test_long_term_memory_never_exceeds_its_limit(groups, seed):
    rng = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=rng))

    t_min, p, hw = number(1, 4), number(1, 6), number(1, 3)
    config = MemoryConfig(
        top_k=number(1, 4),
        min_mid_term_frames=t_min,
        max_mid_term_frames=t_min + number(1, 4),
        num_prototypes=p,
        max_long_term_elements=p + number(0, 12),
        groups=groups,
    )
    memory, largest = Memory(config), 0
    for f in range(60):
        add(memory, f, hw=hw)
        read(memory, number(0, f), hw=hw)
        prototypes = min(p, (config.max_mid_term_frames - t_min) * hw)
        most_before = config.max_long_term_elements - p
        assert memory.long_term_size <= config.max_long_term_elements
        assert memory.working_size < config.max_mid_term_frames * hw
        largest = max(largest, memory.long_term_size)
        if groups == "exact" and memory.evictions:
            assert memory.long_term_size <= most_before + prototypes
    assert memory.evictions > 0
    if groups == "exact" and (config.max_mid_term_frames - t_min) * hw >= p:
        assert largest == config.max_long_term_elements
        assert memory.long_term_size == largest
