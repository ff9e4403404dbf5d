"""The storage of xmemk.Memory: fixed in size and place, written in place, read as views."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_videos import CK, CV, frame, numbers, query, run, same, small
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import xmemk
from xmemk import Memory, reference
from xmemk.memory import Arena, Spec, bytes_needed
from xmemk.memory.table import Run, Slot, Table, last, side_by_side

BOTH = pytest.mark.parametrize("groups", ["exact", "xmem"])
JOINS = {1: 0, 2: 0, 3: 4, 5: 9, 8: 13}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def arenas(memory):
    groups = memory.groups
    return [bucket.arena for bucket in groups.buckets] if hasattr(groups, "buckets") else [groups.arena]


def banks(memory):
    own = [bank for arena in arenas(memory) for bank in arena.banks.values()]
    return own + [bank for group in getattr(memory.groups, "late", []) for bank in group.values.banks]


def stay_in_place(memory):
    """The addresses of all blocks but those of use, which is one number per token."""
    use = [arena.use for arena in arenas(memory)]
    return [block.data_ptr() for bank in banks(memory) if bank not in use for block in bank.blocks]


# Positions


def test_frames_go_round():
    table = Table(frame=10, slots=5)
    table.frames = [Slot(1, s) for s in range(5)]
    assert table.free() is None
    assert table.runs() == [Run(1, 0, 50)]
    del table.frames[1:4]
    assert table.free() == Slot(1, 1)  # the one after the last, or where there is none, the first
    table.frames.append(Slot(1, 1))
    table.long = 7
    assert table.free() == Slot(1, 2)
    assert table.runs() == [Run(0, 0, 7), Run(1, 0, 10), Run(1, 40, 50), Run(1, 10, 20)]
    assert table.runs(table.frames[1:]) == [Run(1, 40, 50), Run(1, 10, 20)]
    assert table.runs([]) == []
    assert table.tokens == 37


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(2, 6))
def test_a_slot_is_never_given_twice(events, slots):
    table = Table(frame=3, slots=slots)
    for event in events:
        slot = table.free()
        if slot is None or (event == 0 and table.frames):
            del table.frames[: 1 + event]
        else:
            assert slot not in table.frames
            table.frames.append(slot)
        tokens = [(run.block, i) for run in table.runs() for i in range(run.start, run.stop)]
        assert tokens == [(s.block, 3 * s.slot + i) for s in table.frames for i in range(3)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.lists(st.integers(1, 5), max_size=6), st.data())
def test_runs_are_cut_and_laid_side_by_side(a, b, data):
    def runs_of(sizes, block):
        return [Run(block, 100 * i, 100 * i + n) for i, n in enumerate(sizes)]

    def tokens(runs):
        return [(run.block, i) for run in runs for i in range(run.start, run.stop)]

    first, second = runs_of(a, 1), runs_of(b, 2)
    n = data.draw(st.integers(0, min(sum(a), sum(b))))
    x, y = last(first, n), last(second, n)
    assert tokens(x) == tokens(first)[sum(a) - n :]
    cut_x, cut_y = side_by_side(x, y)
    assert tokens(cut_x) == tokens(x) and tokens(cut_y) == tokens(y)
    assert [run.tokens for run in cut_x] == [run.tokens for run in cut_y]


# Fixed in size and place


@BOTH
@pytest.mark.parametrize("value_dtype", [None, "int8"])
def test_nothing_moves_and_nothing_grows_over_hundreds_of_frames(groups, value_dtype):
    memory = Memory(small(groups, value_dtype=value_dtype))
    run(memory, 0, 14, JOINS)
    places = stay_in_place(memory)
    nbytes = memory.nbytes
    run(memory, 14, 300, JOINS)
    assert memory.evictions > 90
    assert stay_in_place(memory) == places
    assert memory.nbytes == nbytes == sum(block.nbytes for bank in banks(memory) for block in bank.blocks)


@BOTH
@pytest.mark.parametrize("value_dtype", [None, "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bytes_are_those_of_the_formula(groups, value_dtype, dtype):
    config = small(groups, value_dtype=value_dtype)
    memory = Memory(config)
    run(memory, 0, 14, JOINS, dtype=dtype)
    sizes = {"height": 2, "width": 3, "key_channels": CK, "value_channels": CV, "dtype": dtype}
    assert memory.nbytes == bytes_needed(config, objects=(2, 1, 1, 1), **sizes)


def test_bytes_by_hand():
    """480p with the default numbers, one object: 26,200 tokens."""
    tokens, in_frames = 10 * 1620 + 10000, 10 * 1620
    nbytes = tokens * (64 * 4 + 4 + 4 + 8 + 512 * 4) + in_frames * 64 * 4
    assert bytes_needed(xmemk.MemoryConfig(), height=30, width=54, objects=(1,)) == nbytes
    assert (
        Arena(Spec(1, 4, 64, 512, 3, torch.float16, torch.float16, CPU, 2, 5)).nbytes
        == 13 * (64 * 2 + 4 + 4 + 8 + 3 * 512 * 2) + 8 * 64 * 2
    )


class Allocations(TorchDispatchMode):
    """Bytes of the storages that operations make.

    Those of their arguments, and of what was there before, are free.
    """

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return result


@BOTH
def test_no_call_copies_what_is_stored(groups, monkeypatch):
    """No operation of a read or an add allocates more than one frame."""
    monkeypatch.setattr("xmemk.memory.changes.MOVED_BYTES", 1)  # else as much as all of this memory
    changes = {"max_mid_term_frames": 12, "num_prototypes": 8, "max_long_term_elements": 200, "top_k": 4}
    memory = Memory(small(groups, **changes), backend="cpu")
    options = {"h": 4, "w": 5}
    wide = torch.randn(1, 2, 200, 4, 5)
    for t in range(300):
        with Allocations() as seen:
            memory.add(**frame(t, **options) | {"value": wide})
        if t > 0:  # when the banks are there
            assert 0 < seen.largest <= wide.nbytes
        with Allocations() as seen:
            assert memory.read(**query(t, **options)).nbytes == wide.nbytes
        assert seen.largest == wide.nbytes
    assert memory.evictions > 3
    assert memory.long_term_size + memory.working_size > 10 * 20


def test_eviction_moves_a_megabyte_at_a_time(monkeypatch):
    spec = Spec(1, 4, 8, 64, 2, torch.float32, torch.float32, CPU, 2, 5000)
    results = []
    torch.manual_seed(0)
    survivors = torch.randperm(5000)[:4000].sort().values[None]
    for moved in (1 << 20, 1 << 10, 1):
        monkeypatch.setattr("xmemk.memory.changes.MOVED_BYTES", moved)
        arena = Arena(spec)
        torch.manual_seed(1)
        for bank in arena.banks.values():
            bank.blocks[0].copy_((100 * torch.rand(bank.blocks[0].shape)).to(bank.dtype))
        before = {name: bank.blocks[0].clone() for name, bank in arena.banks.items()}
        arena.table.long = 5000
        arena.keep(survivors)
        assert arena.long_term == 4000
        with Allocations() as seen:
            assert all(bank.blocks for bank in arena.banks.values())
        assert seen.largest == max(moved, 64 * 2 * 4)
        for name, bank in arena.banks.items():
            if name != "selection":
                assert torch.equal(bank.blocks[0][:, :4000], before[name][:, survivors[0]])
        results.append(arena)


def test_another_order_is_kept_too():
    spec = Spec(2, 4, 3, 2, 1, torch.float32, torch.float32, CPU, 2, 50)
    arena = Arena(spec)
    for bank in arena.banks.values():
        bank.blocks[0].copy_((100 * torch.rand(bank.blocks[0].shape)).to(bank.dtype))
    before = arena.key.blocks[0].clone()
    arena.table.long = 50
    order = torch.stack([torch.randperm(50)[:30] for _ in range(2)])
    arena.keep(order, ascending=False)
    for b in range(2):
        assert torch.equal(arena.key.blocks[0][b, :30], before[b, order[b]])


def test_without_long_term_memory_blocks_are_added_and_nothing_moves():
    config = small(enable_long_term=False)
    ours, oracle = Memory(config), reference.Memory(config)
    places = []
    for t in range(60):
        for memory in (ours, oracle):
            memory.add(**frame(t))
        now = stay_in_place(ours)
        assert set(places) <= set(now)
        places = now
        torch.testing.assert_close(ours.read(**query(t)), oracle.read(**query(t)), rtol=0, atol=1e-5)
    assert arenas(ours)[0].table.slots == [5, 10, 20, 40]
    assert ours.working_size == 60 * 6


def test_added_blocks_are_bounded(monkeypatch):
    monkeypatch.setattr("xmemk.memory.bank.LARGEST_BLOCK", 3 * 6 * (4 * CK * 2 + 4 + 4 + 8 + 2 * CV * 4))
    memory = Memory(small(enable_long_term=False))
    run(memory, 0, 15)
    assert arenas(memory)[0].table.slots == [5, 3, 3, 3, 3]


def test_no_room_for_a_frame_leaves_the_memory_as_it_was(monkeypatch):
    memory = Memory(small(enable_long_term=False))
    run(memory, 0, 5)
    before = numbers(memory)
    calls = 0
    empty = xmemk.memory.bank.Bank.empty

    def fail(self, tokens):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError("of the device")
        return empty(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(xmemk.memory.bank.Bank, "empty", fail)
        with pytest.raises(MemoryError):
            memory.add(**frame(5))
    assert same(numbers(memory), before)
    assert len(run(memory, 5, 9)) == 4


# Modes


def test_frames_added_in_inference_mode_can_be_followed_by_others():
    memory, other = Memory(small()), Memory(small())
    run(other, 0, 12)
    with torch.inference_mode():
        run(memory, 0, 4)
    run(memory, 4, 9)
    with torch.inference_mode():
        run(memory, 9, 12)
    assert same(numbers(memory), numbers(other))


def test_what_is_stored_carries_no_gradient_and_a_query_has_one():
    memory = Memory(small(top_k=None))
    for t in range(6):
        memory.add(**{name: x.requires_grad_() if isinstance(x, torch.Tensor) else x for name, x in frame(t).items()})
    assert not any(block.requires_grad for bank in banks(memory) for block in bank.blocks)
    arguments = query(0)
    arguments["query_key"].requires_grad_()
    memory.read(**arguments).square().sum().backward()
    assert arguments["query_key"].grad.abs().sum() > 0


def test_removal_frees_values_at_once_and_leaves_the_others_as_they_were():
    memory, other = Memory(small()), Memory(small())
    for m in (memory, other):
        run(m, 0, 14, {1: 0, 2: 0, 3: 0, 5: 9})
    before = memory.nbytes
    memory.remove([2])
    tokens = 5 * 6 + 10
    assert before - memory.nbytes == tokens * CV * 4
    memory.remove([5])
    assert memory.nbytes == bytes_needed(
        memory.config, height=2, width=3, objects=(2,), key_channels=CK, value_channels=CV
    )
    for t in range(14, 30):
        assert torch.equal(memory.read(**query(t)), other.read(**query(t))[:, [0, 2]])
        memory.add(**frame(t, [3, 1]))
        other.add(**frame(t, [1, 2, 3, 5]))


@pytest.mark.parametrize("value_dtype", [None, "int8"])
@pytest.mark.parametrize("top_k", [4, None])
def test_exact_groups_never_wait_for_the_device(top_k, value_dtype):
    """Tensors without data: whatever looked at a number, or made a shape from one, would raise."""

    def without_data(arguments):
        return {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}

    memory, real = (Memory(small(top_k=top_k, value_dtype=value_dtype)) for _ in range(2))
    run(real, 0, 19, JOINS)
    for t in range(19):
        if t > 0:
            memory.read(**without_data(query(t)))
        memory.add(**without_data(frame(t, [label for label, since in JOINS.items() if since <= t])))
    memory.remove([2])
    real.remove([2])
    assert repr(memory) == repr(real)
    assert memory.evictions > 1


# Many videos, and a long one


def test_a_batch_of_videos_is_read_as_each_alone():
    memories, alone = ([Memory(small(g)) for g in ("exact", "xmem", "exact")] for _ in range(2))
    lengths = [3, 20, 9]
    for group in (memories, alone):
        for memory, length in zip(group, lengths):
            run(memory, 0, length, JOINS)
    queries = [query(t) for t in range(3)]
    keys, selections = (torch.cat([q[name] for q in queries]) for name in ("query_key", "selection"))
    for arguments in ((keys, selections), (list(keys.split(1)), list(selections.split(1)))):
        readouts = xmemk.memory.read_batch(memories, *arguments)
        for readout, memory, q in zip(readouts, alone, queries, strict=True):
            assert torch.equal(readout, memory.read(**q))
    assert all(same(numbers(a), numbers(b)) for a, b in zip(memories, alone, strict=True))
    assert [r.shape[1] for r in xmemk.memory.read_batch(memories, keys)] == [2, 5, 3]
    assert xmemk.memory.read_batch([], keys[:0]) == []


def test_a_batch_is_read_for_all_or_none():
    memories = [Memory(small()) for _ in range(3)]
    for memory in memories[:2]:
        run(memory, 0, 5)
    before = [numbers(memory) for memory in memories]
    with pytest.raises(RuntimeError, match=r"memories\[2\]: the memory is empty"):
        xmemk.memory.read_batch(memories, query(0)["query_key"].expand(3, -1, -1, -1))
    with pytest.raises(ValueError, match=r"query_keys: wanted one for each of 3 memories, got 2"):
        xmemk.memory.read_batch(memories, query(0)["query_key"].expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match=r"query_keys: wanted \[M, CK, H, W\]"):
        xmemk.memory.read_batch(memories, query(0)["query_key"][0])
    assert all(same(numbers(memory), b) for memory, b in zip(memories, before, strict=True))


def test_soak(tmp_path, capsys):
    from xmemk.benchmarks.studies import soak

    curve, first_eviction, memory = soak.soak(2000, "exact")
    steady = [mb for reads, mb in curve if reads > first_eviction]
    assert memory.evictions > 300
    assert first_eviction < 200 and len(steady) > 150
    assert max(steady) / steady[0] < 1 + soak.ALLOWED
    assert math.isclose(curve[-1][0], 2000)
    soak.draw(curve, first_eviction, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 5000


def test_few_survivors_of_groups_larger_than_the_first():
    """A token of the second group takes more bytes than those that survive of the first."""
    config = small("xmem", num_prototypes=9, max_long_term_elements=10)
    ours, oracle = Memory(config), reference.Memory(config)
    for t in range(20):
        x = frame(t, [1] if t == 0 else range(1, 10))
        for memory in (ours, oracle):
            memory.add(**x)
        assert torch.allclose(ours.read(**query(t)), oracle.read(**query(t)), atol=1e-5)
    assert ours.evictions == oracle.evictions > 0
    assert ours.groups.late[0].table.long > 0
