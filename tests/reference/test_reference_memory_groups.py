"""Objects that join and leave: the released bookkeeping with its defects, and exact groups.

Hand-made frames as in test_reference_memory_consolidation.py: frame f has keys around ``at`` (10 f
unless told) and values f + 100 (object - 1), and a query reads the one nearest token.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmemk.reference import Memory, MemoryConfig

BOTH = pytest.mark.parametrize("groups", ["exact", "xmem"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(groups, **changes):
    parameters = {"top_k": 1, "max_mid_term_frames": 4, "min_mid_term_frames": 2, "num_prototypes": 4}
    return Memory(MemoryConfig(**parameters | changes, groups=groups))


def add(memory, f, objects, at=None, hw=2):
    key = (10.0 * f if at is None else at) + 0.1 * torch.arange(hw, dtype=torch.float64).view(1, 1, 1, hw)
    value = torch.stack([torch.full((1, 1, hw), f + 100.0 * (o - 1), dtype=torch.float64) for o in objects])
    memory.add(key, torch.ones_like(key), value[None], objects, torch.ones_like(key))


def read(memory, at, hw=2):
    """What each object reads here, rounded: potentiated values are slightly off their frame's."""
    query = torch.full((1, 1, 1, hw), float(at), dtype=torch.float64)
    return [round(x, 6) for x in memory.read(query, torch.ones_like(query))[0, :, 0, 0, 0].tolist()]


# The defects, each shown and shown to be absent


def test_a_joining_frame_is_read_against_the_first_key_only_with_xmem_groups():
    """Object 2 joins at frame 1 and is trimmed to the keys: its frame 1 gets the key of frame 0."""
    readouts = {}
    for groups in ("xmem", "exact"):
        memory = make(groups)
        for f, at in enumerate((0, 100, 200, 140)):
            add(memory, f, [1] if f == 0 else [1, 2], at=at)
        assert memory.consolidations == 1
        # At 110 the nearest is object 2's frame 1 (at 100), or frame 3 (at 140) where the value of
        # frame 1 hangs at 0.
        readouts[groups] = read(memory, 110), read(memory, 0)
    assert readouts["xmem"] == ([1, 103], [0, 101])
    assert readouts["exact"] == ([1, 101], [0, 101])


def test_a_group_of_exactly_t_min_frames_is_misaligned_only_with_xmem_groups():
    """Not trimmed at all, but as long as the trimmed keys."""
    readouts = {}
    for groups in ("xmem", "exact"):
        memory = make(groups)
        for f, at in enumerate((0, 100, 200, 260)):
            add(memory, f, [1] if f < 2 else [1, 2], at=at)
        readouts[groups] = read(memory, 200)
    # Working keys are now those of frames 0 and 3; object 2 has values of frames 2 and 3.
    assert readouts["xmem"] == [2, 103]
    assert readouts["exact"] == [2, 102]


def test_a_group_of_one_frame_more_loses_a_frame_only_with_xmem_groups():
    """T_min + 1 = 3 frames (1, 2, 3): trimmed to 1 and 3, but 2 was not a candidate."""
    memory = make("xmem")
    for f in range(4):
        add(memory, f, [1] if f == 0 else [1, 2])
    assert [v.shape[-1] for v in memory.groups.long_term_values] == [4, 0]
    values = memory.groups.working_values[1][0, 0, 0]
    assert values.tolist() == [101, 101, 103, 103]
    assert 102 not in [read(memory, at)[1] for at in (0, 10, 20, 30)]

    memory = make("exact")
    for f in range(4):
        add(memory, f, [1] if f == 0 else [1, 2])
    assert [read(memory, at)[1] for at in (10, 20, 30)] == [101, 102, 103]


@BOTH
def test_a_partly_valid_batch_of_prototypes_is_mispaired_only_with_xmem_groups(groups):
    """Object 2 joins at frame 1: candidates of frame 1 are not valid for it.

    The most used token is of frame 3.
    """
    memory = make(groups, max_mid_term_frames=6, num_prototypes=2)
    for f in range(6):
        add(memory, f, [1] if f == 0 else [1, 2])
        if f == 1:
            read(memory, 10)
        if f == 3:
            read(memory, 30)
            read(memory, 30)
    if groups == "xmem":
        assert memory.groups.long_term.key[0, 0].tolist() == [30, 10]
        assert [v.shape[-1] for v in memory.groups.long_term_values] == [2, 1]
        # One value, of frame 3, against the last key, of frame 1. Object 2's own frame 1 is at 0 by
        # now.
        assert read(memory, 10) == [1, 103]
    else:
        assert read(memory, 10) == [1, 101]
    assert read(memory, 30)[0] == 3


def test_xmem_prototypes_without_any_valid_value_are_left_out():
    """The only prototype is of frame 1, before object 2 had candidates."""
    memory = make("xmem", max_mid_term_frames=6, num_prototypes=1)
    for f in range(6):
        add(memory, f, [1] if f == 0 else [1, 2])
        if f == 1:
            read(memory, 10)
    assert [v.shape[-1] for v in memory.groups.long_term_values] == [1, 0]
    assert read(memory, 10) == [1, 101]  # the joining frame, at 0 by now, is nearest


def test_xmem_potentiation_is_over_the_values_a_group_has():
    """Prototype of frame 2: object 1 averages over frames 1 to 3, object 2 over frames 2 and 3."""
    memory = make("xmem", max_mid_term_frames=5, num_prototypes=1)
    for f, at in enumerate((50, 1, 2, 3, 90)):
        add(memory, f, [1] if f == 0 else [1, 2], at=at, hw=1)
        if f == 2:
            read(memory, 2, hw=1)
    e = torch.tensor([-1.0, 0.0, -1.0], dtype=torch.float64).exp()
    first, second = (value[0, 0, 0, 0].item() for value in memory.groups.long_term_values)
    assert first == pytest.approx(float(e @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / e.sum()))
    assert second == pytest.approx(float((102 * e[1] + 103 * e[2]) / (e[1] + e[2])))


# Groups that read less than the first


@BOTH
def test_a_late_group_reads_only_frames_it_was_in(groups):
    memory = make(groups, max_mid_term_frames=8)
    for f in range(6):
        add(memory, f, [1] if f < 4 else [1, 2, 3])
    assert read(memory, 10) == [1, 104, 204]
    assert read(memory, 50) == [5, 105, 205]


@BOTH
def test_a_group_without_long_term_values_reads_working_memory_only(groups):
    memory = make(groups)
    for f in range(4):
        add(memory, f, [1] if f < 3 else [1, 2])
    assert memory.long_term_size > 0
    assert read(memory, 10) == [1, 103]
    add(memory, 4, [1, 2, 3])  # and one that joins when long-term memory is engaged
    assert read(memory, 10) == [1, 103, 204]
    assert read(memory, 40) == [4, 104, 204]


def test_xmem_usage_is_that_of_the_first_group():
    memory = make("xmem", max_mid_term_frames=8)
    add(memory, 0, [1], hw=1)
    add(memory, 1, [1, 2], hw=1)
    read(memory, 0, hw=1)  # object 2 reads frame 1 here, which does not count
    assert memory.groups.working.use.tolist() == [[1, 0]]


def test_exact_usage_is_counted_per_group():
    memory = make("exact", max_mid_term_frames=8)
    add(memory, 0, [1], hw=1)
    add(memory, 1, [1, 2], hw=1)
    read(memory, 0, hw=1)
    assert [bucket.working.use.tolist() for bucket in memory.groups.buckets] == [[[1, 0]], [[1]]]
    assert memory.working_size == 3


# Order, joining, leaving


def test_readouts_are_in_order_of_introduction():
    memory = make("exact", max_mid_term_frames=8)
    add(memory, 0, [7, 3])
    add(memory, 1, [3, 5, 7, 1])
    assert memory.objects == (7, 3, 5, 1)
    assert read(memory, 10) == [601, 201, 401, 1]
    assert read(memory, 0) == [600, 200, 401, 1]


def test_xmem_rows_are_found_by_label():
    memory = make("xmem", max_mid_term_frames=8)
    add(memory, 0, [1, 2])
    add(memory, 1, [2, 1, 4])
    assert memory.objects == (1, 2, 4)
    assert read(memory, 10) == [1, 101, 301]


@pytest.mark.parametrize(("first", "then"), [([2, 1], None), ([1, 3], [1, 2, 3]), ([1], [1, 3, 2])])
def test_xmem_groups_want_ascending_labels(first, then):
    memory = make("xmem")
    if then is not None:
        add(memory, 0, first)
    before = memory.groups
    with pytest.raises(ValueError, match=r"objects: wanted new labels in ascending order .* got"):
        add(memory, 1, then or first)
    assert memory.groups is before


def test_removing_objects_leaves_the_others_as_they_were():
    memory, other = make("exact", num_prototypes=3), make("exact", num_prototypes=3)
    for f in range(7):
        for m in (memory, other):
            add(m, f, [1, 2] if f < 2 else [1, 2, 3])
            read(m, 10 * f)
    memory.sensory.create([1, 2, 3], torch.zeros(1, 1, 2, 2))
    memory.remove([1])
    assert memory.objects == (2, 3)
    assert memory.sensory.objects == (2, 3)
    for f in range(7):
        assert read(memory, 10 * f) == read(other, 10 * f)[1:]
    consolidations, size = memory.consolidations, memory.working_size
    memory.remove([3])  # the last of its bucket
    assert memory.objects == (2,)
    assert len(memory.groups.buckets) == 1
    assert memory.working_size < size
    assert memory.consolidations == consolidations
    for f in range(7):
        assert read(memory, 10 * f) == read(other, 10 * f)[1:2]
    for f in range(7, 12):
        add(memory, f, [2])
        add(other, f, [1, 2, 3])
        assert read(memory, 5 * f) == read(other, 5 * f)[1:2]


def test_a_label_that_left_joins_anew():
    memory = make("exact")
    add(memory, 0, [1, 2])
    memory.remove([2])
    add(memory, 1, [1])
    add(memory, 2, [2, 1])
    assert memory.objects == (1, 2)
    assert read(memory, 0) == [0, 102]


def test_all_objects_may_leave():
    memory = make("exact")
    add(memory, 0, [1, 2])
    memory.remove([2, 1])
    assert memory.objects == ()
    assert memory.working_size == 0
    with pytest.raises(RuntimeError, match="holds no object"):
        read(memory, 0)
    add(memory, 1, [4])
    assert read(memory, 0) == [301]


def test_xmem_objects_cannot_leave():
    memory = make("xmem")
    add(memory, 0, [1, 2])
    before = memory.groups
    with pytest.raises(RuntimeError, match='use groups="exact"'):
        memory.remove([2])
    assert memory.groups is before


def test_only_known_objects_can_leave():
    memory = make("exact")
    with pytest.raises(ValueError, match=r"objects: wanted labels among \[\], got \[1\]"):
        memory.remove([1])
    add(memory, 0, [1, 2])
    with pytest.raises(ValueError, match=r"objects: wanted labels among \[1, 2\], got \[2, 3\]"):
        memory.remove([2, 3])
    assert memory.objects == (1, 2)


# Random schedules


class Film:
    """Random frames, the same however often one asks, with values per label."""

    CK, CV, H, W = 3, 2, 2, 2

    def __init__(self, seed, batch=1):
        self.seed, self.batch = seed, batch

    def frame(self, t):
        g = torch.Generator().manual_seed(1000 * self.seed + t)
        shape = (self.batch, self.CK, self.H, self.W)
        key = torch.randn(shape, generator=g, dtype=torch.float64)
        selection = torch.rand(shape, generator=g, dtype=torch.float64)
        shrinkage = 1 + torch.randn(self.batch, 1, self.H, self.W, generator=g, dtype=torch.float64).square()
        values = torch.randn(self.batch, 10, self.CV, self.H, self.W, generator=g, dtype=torch.float64)
        return key, shrinkage, selection, values


def random_config(draw, **changes):
    t_min = draw(st.integers(1, 3))
    p = draw(st.integers(1, 8))
    parameters = {
        "top_k": draw(st.sampled_from([None, 1, 3, 50])),
        "min_mid_term_frames": t_min,
        "max_mid_term_frames": t_min + draw(st.integers(1, 4)),
        "num_prototypes": p,
        "max_long_term_elements": p + draw(st.integers(0, 20)),
    }
    return MemoryConfig(**parameters | changes)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_exact_groups_are_memories_of_their_own(data):
    """All objects together read and count as each group in a memory of its own."""
    config = random_config(data.draw, groups="exact")
    film = Film(data.draw(st.integers(0, 100)))
    together = Memory(config)
    alone: list[tuple[Memory, list[int]]] = []
    labels = list(range(10, 0, -1))
    for t in range(30):
        key, shrinkage, selection, values = film.frame(t)
        if alone:
            # The two differ in the shapes of their products, so in the last digit.
            expected = torch.cat([memory.read(key, selection) for memory, _ in alone], 1)
            torch.testing.assert_close(together.read(key, selection), expected, rtol=0, atol=1e-12)
        event = data.draw(st.sampled_from(["skip", "add", "add", "add", "join", "leave"])) if alone else "join"
        if event == "leave" and len(alone) > 1:
            memory, leaving = alone.pop(data.draw(st.integers(0, len(alone) - 1)))
            together.remove(leaving)
        if event == "join" and len(labels) >= 2:
            alone.append((Memory(config), [labels.pop() for _ in range(data.draw(st.integers(1, 2)))]))
        if event in ("add", "join"):
            objects = [label for _, group in alone for label in group]
            together.add(key, shrinkage, values[:, [label - 1 for label in objects]], objects, selection)
            for memory, group in alone:
                memory.add(key, shrinkage, values[:, [label - 1 for label in group]], group, selection)
        assert together.objects == tuple(label for _, group in alone for label in group)
        for bucket, (memory, _) in zip(together.groups.buckets, alone, strict=True):
            (single,) = memory.groups.buckets
            torch.testing.assert_close(bucket.working.use, single.working.use, rtol=0, atol=1e-12)
            assert (bucket.consolidations, bucket.evictions) == (single.consolidations, single.evictions)
            assert torch.equal(bucket.working.key, single.working.key)
            if single.long_term is not None:
                assert torch.equal(bucket.long_term.key, single.long_term.key)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_group_is_the_same_either_way_where_nothing_ties(data):
    exact_config = random_config(data.draw, groups="exact", top_k=None)
    film = Film(data.draw(st.integers(0, 100)))
    exact, xmem = Memory(exact_config), Memory(MemoryConfig(**vars(exact_config) | {"groups": "xmem"}))
    for t in range(40):
        key, shrinkage, selection, values = film.frame(t)
        if t > 0:
            for _ in range(1 + t % 2):
                read = exact.read(key, selection)
                torch.testing.assert_close(read, xmem.read(key, selection), rtol=0, atol=1e-12)
        for memory in (exact, xmem):
            memory.add(key, shrinkage, values[:, :2], [1, 2], selection)
        assert (exact.working_size, exact.long_term_size) == (xmem.working_size, xmem.long_term_size)
        assert (exact.consolidations, exact.evictions) == (xmem.consolidations, xmem.evictions)
    assert exact.consolidations > 0


def test_a_batch_is_its_elements_side_by_side():
    config = MemoryConfig(
        top_k=3, max_mid_term_frames=4, min_mid_term_frames=2, num_prototypes=3, max_long_term_elements=8
    )
    film, together, alone = Film(3, batch=2), Memory(config), [Memory(config), Memory(config)]
    for t in range(20):
        key, shrinkage, selection, values = film.frame(t)
        objects = [1, 2] if t < 5 else [1, 2, 3]
        values = values[:, : len(objects)]
        if t > 0:
            expected = [m.read(key[b : b + 1], selection[b : b + 1]) for b, m in enumerate(alone)]
            torch.testing.assert_close(together.read(key, selection), torch.cat(expected), rtol=0, atol=1e-12)
        together.add(key, shrinkage, values, objects, selection)
        for b, m in enumerate(alone):
            one = slice(b, b + 1)
            m.add(key[one], shrinkage[one], values[one], objects, selection[one])
    assert together.evictions > 2
    keys = together.groups.buckets[0].long_term.key
    assert not torch.equal(keys[0], keys[1])


def test_xmem_groups_want_a_batch_of_one():
    memory = make("xmem")
    key, shrinkage, selection, values = Film(0, batch=2).frame(0)
    with pytest.raises(ValueError, match="key: wanted a batch of 1"):
        memory.add(key, shrinkage, values[:, :1], [1], selection)
    assert memory.groups is None
