"""xmemk.Memory against the oracle, frame by frame, over random schedules of both kinds of groups.

Failing schedules are not shrunk: that would take minutes, and schedules are short.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import xmemk
from xmemk import MemoryConfig, reference

EXACT, XMEM = "exact", "xmem"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Film:
    """Reproducible random frames of a random size, with values for ten labels."""

    def __init__(self, seed, dtype, batch, height, width, selected=True):
        self.seed, self.dtype, self.selected = seed, dtype, selected
        self.shape = batch, 4, height, width

    def __call__(self, t):
        b, _, h, w = self.shape
        g = torch.Generator().manual_seed(1000 * self.seed + t)
        key = torch.randn(self.shape, generator=g, dtype=torch.float64).to(self.dtype)
        selection = torch.rand(self.shape, generator=g, dtype=torch.float64).to(self.dtype)
        shrinkage = (1 + torch.randn(b, 1, h, w, generator=g, dtype=torch.float64).square()).to(self.dtype)
        values = torch.randn(b, 10, 2, h, w, generator=g, dtype=torch.float64).to(self.dtype)
        return key, shrinkage, selection if self.selected else None, values


class Grid(Film):
    """Keys of four whole-number channels: similarities are exact in float32, and many are equal."""

    def __call__(self, t):
        key, _, selection, values = super().__call__(t)
        key = (2 * key).round()
        return key, torch.ones_like(key[:, :1]), torch.ones_like(selection), values


def random_config(draw, groups, **changes):
    t_min = draw(st.integers(1, 3))
    p = draw(st.integers(1, 8))
    parameters = {
        "top_k": draw(st.sampled_from([None, 1, 3, 50])),
        "min_mid_term_frames": t_min,
        "max_mid_term_frames": t_min + draw(st.integers(1, 4)),
        "num_prototypes": p,
        "max_long_term_elements": p + draw(st.integers(0, 20)),
        "enable_long_term": draw(st.sampled_from([True, True, True, False])),
    }
    return MemoryConfig(**parameters | changes, groups=groups)


def stores(memory, groups):
    """The buckets or the shared groups of a memory, in the order that product and oracle share."""
    if memory.groups is None:
        return []
    if groups == EXACT:
        return list(memory.groups.buckets)
    return [memory.groups]


def assert_close(ours, oracle, atol, rtol=0.0):
    """As torch.testing.assert_close, which takes much longer.

    It is called thousands of times here.
    """
    assert (ours.shape, ours.dtype) == (oracle.shape, oracle.dtype)
    assert torch.allclose(ours, oracle, rtol=rtol, atol=atol), f"{(ours - oracle).abs().max()} > {atol}"


def assert_same_state(ours, oracle, groups, tolerance):
    """Compares keys bit for bit and in order; use, usage and shrinkage up to rounding."""
    assert repr(ours) == repr(oracle)
    for mine, theirs in zip(stores(ours, groups), stores(oracle, groups), strict=True):
        arena = mine.arena
        parts = [(theirs.long_term, long_runs(arena)), (theirs.working, frame_runs(arena))]
        for store, runs in parts:
            if store is None:
                assert sum(run.tokens for run in runs) == 0
                continue
            if store.size == 0:
                continue
            mk, ms, _ = arena.keys(runs)
            assert torch.equal(torch.cat(mk, 2), store.key)
            assert_close(torch.cat(ms, 2), store.shrinkage, atol=tolerance)
            if store.use is not None:
                use = torch.cat([arena.use.rows(run) for run in runs], 1)
                assert_close(use, store.use, atol=100 * tolerance)
                assert_close(arena.usage(runs), store.usage, rtol=1e-6, atol=100 * tolerance)
            if store.selection is not None:
                assert torch.equal(torch.cat([arena.selection.view(run) for run in runs], 2), store.selection)


def long_runs(arena):
    return [run for run in arena.table.runs() if run.block == 0]


def frame_runs(arena):
    return arena.table.runs(arena.frames)


def clear(oracle, groups):
    """Whether the oracle's next selection and eviction do not depend on the last digits of float32.

    Ties of exact zeros are settled by index and do not count. Two numbers that nearly agree do.
    """
    for store in stores(oracle, groups):
        for part in (store.working, store.long_term):
            if part is None or part.use is None:
                continue
            usage = part.usage.sort(dim=1).values
            gap = usage.diff(dim=1)
            if ((gap > 0) & (gap < 1e-4 * usage[:, 1:])).any() or ((gap == 0) & (usage[:, 1:] > 0)).any():
                return False
    return True


def follow(data, film, config, tolerance, frames=30, exactly=False):
    """Follows one random schedule with the product and the oracle."""
    groups = config.groups
    ours, oracle = xmemk.Memory(config), reference.Memory(config)
    present: list[int] = []
    unused = list(range(10, 0, -1)) if groups == XMEM else [3, 9, 1, 10, 4, 2, 8, 5, 7, 6]
    for t in range(frames):
        key, shrinkage, selection, values = film(t)
        if present:
            for _ in range(data.draw(st.integers(0, 2))):
                expected = oracle.read(key, selection)
                assert_close(ours.read(key, selection), expected, atol=tolerance)
        choices = ["skip", "add", "add", "add", "join"] + ["leave"] * (groups == EXACT)
        event = data.draw(st.sampled_from(choices)) if present else "join"
        if event == "leave" and len(present) > 1:
            leaving = data.draw(st.lists(st.sampled_from(present), min_size=1, max_size=len(present) - 1, unique=True))
            ours.remove(leaving)
            oracle.remove(leaving)
            present = [label for label in present if label not in leaving]
        if event == "join":
            present += [unused.pop() for _ in range(min(len(unused), data.draw(st.integers(1, 2))))]
        if event in ("add", "join") and present:
            if not (exactly or clear(oracle, groups)):
                return ours
            order = data.draw(st.permutations(present)) if groups == EXACT and event == "add" else present
            value = values[:, [label - 1 for label in order]]
            for memory in (ours, oracle):
                memory.add(key, shrinkage, value, list(order), selection)
        assert ours.objects == oracle.objects
        assert_same_state(ours, oracle, groups, tolerance)
    return ours


BOTH = pytest.mark.parametrize("groups", [EXACT, XMEM])
TYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
SETTINGS = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])


@BOTH
@TYPES
@SETTINGS
@given(data=st.data())
def test_equal_to_the_oracle(groups, dtype, tolerance, data):
    draw = data.draw
    batch = 1 if groups == XMEM else draw(st.integers(1, 2))
    film = Film(draw(st.integers(0, 99)), dtype, batch, draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    follow(data, film, random_config(draw, groups), tolerance, exactly=dtype == torch.float64)


@BOTH
@TYPES
@SETTINGS
@given(data=st.data())
def test_usage_that_ties_is_settled_as_the_oracle_does(groups, dtype, tolerance, data):
    """One neighbour: weights are 1 and usage whole numbers, many of them equal."""
    film = Film(data.draw(st.integers(0, 99)), dtype, 1, 2, data.draw(st.integers(1, 4)))
    follow(data, film, random_config(data.draw, groups, top_k=1), tolerance, exactly=True)


@BOTH
@TYPES
@SETTINGS
@given(data=st.data())
def test_scores_that_tie_are_settled_as_the_oracle_does(groups, dtype, tolerance, data):
    film = Grid(data.draw(st.integers(0, 99)), dtype, 1, 2, data.draw(st.integers(1, 4)))
    follow(data, film, random_config(data.draw, groups, top_k=1, enable_long_term=False), 0, exactly=True)
