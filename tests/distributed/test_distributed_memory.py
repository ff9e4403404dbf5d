"""A memory over several ranks against the memory of one process."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks, raised

import xmemk
from xmemk import distributed
from xmemk.distributed import Shards, files
from xmemk.distributed.arena import shares_of
from xmemk.distributed.objects import ObjectColumns

CONFIG = xmemk.MemoryConfig(
    top_k=20, max_mid_term_frames=4, min_mid_term_frames=2, num_prototypes=13, max_long_term_elements=60, hidden_dim=0
)
CK, CV, H, W = 16, 24, 5, 7


def frame(seed, objects, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    key = torch.randn(1, CK, H, W, generator=g).to(dtype)
    shrinkage = 1 + torch.rand(1, 1, H, W, generator=g)
    value = torch.randn(1, objects, CV, H, W, generator=g).to(dtype)
    return key, shrinkage, value, torch.rand(1, CK, H, W, generator=g).to(dtype)


def follow(memory, frames=24, dtype=torch.float32):
    """Objects that join and leave while frames are added and read: all readouts and sizes."""
    seen, labels = [], [3, 1]
    for i in range(frames):
        if i == 5:
            labels = [3, 1, 7]
        if i == 14:
            memory.remove([1])
            labels = [3, 7]
        if i % 2 == 0:
            key, shrinkage, value, selection = frame(i, len(labels), dtype)
            memory.add(key, shrinkage, value, labels, selection)
        key, _, _, selection = frame(1000 + i, 1, dtype)
        seen.append(memory.read(key, selection))
        seen.append(
            (memory.objects, memory.working_size, memory.long_term_size, memory.consolidations, memory.evictions)
        )
    return seen


def check_equal(seen, expected, tolerance):
    for one, other in zip(seen, expected, strict=True):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
        else:
            assert one == other


@pytest.mark.parametrize(
    ("size", "changes", "dtype", "tolerance"),
    [
        (1, {}, torch.float32, 1e-5),
        (3, {}, torch.float32, 1e-4),
        (8, {}, torch.float32, 1e-4),
        (3, {"top_k": None}, torch.float32, 1e-4),
        (2, {"value_dtype": "int8"}, torch.float32, 1e-4),
        (3, {"enable_long_term": False}, torch.float32, 1e-4),
        (2, {}, torch.bfloat16, 3e-2),
    ],
)
def test_follows_as_one_process(size, changes, dtype, tolerance):
    config = replace(CONFIG, **changes)
    expected = follow(xmemk.Memory(config), dtype=dtype)
    for seen in raised(on_ranks(size, lambda group, _: follow(distributed.Memory(config, group=group), dtype=dtype))):
        check_equal(seen, expected, tolerance)


def test_more_ranks_than_tokens_of_a_frame():
    def call(memory):
        memory.add(*(x[..., :1, :3] for x in frame(0, 1)[:3]), [1])
        return memory.read(frame(1, 1)[0][..., :1, :3])

    expected = call(xmemk.Memory(CONFIG))
    for readout in raised(on_ranks(5, lambda group, _: call(distributed.Memory(CONFIG, group=group)))):
        torch.testing.assert_close(readout, expected)


def test_long_term_memory_stays_balanced():
    def held(group, rank):
        memory = distributed.Memory(CONFIG, group=group)
        follow(memory, 30)
        return [bucket.arena.long_term for bucket in memory.local.groups.buckets], memory.evictions

    results = raised(on_ranks(4, held))
    assert results[0][1] >= 3
    for per_rank in zip(*(held for held, _ in results), strict=True):
        assert max(per_rank) - min(per_rank) <= 1, per_rank


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 60))
def test_shares_level_what_is_held(held, count):
    after = [h + s for h, s in zip(held, shares_of(count, held), strict=True)]
    assert sum(after) == sum(held) + count
    assert all(a >= h for a, h in zip(after, held, strict=True))
    raised_ranks = [a for a, h in zip(after, held, strict=True) if a > h]
    assert not raised_ranks or max(raised_ranks) <= min(after) + 1


@pytest.mark.parametrize("size", [2, 3])
def test_objects_over_ranks(size):
    """Objects dealt out over the second dimension: each rank's memory has its own objects alone."""
    expected = follow(xmemk.Memory(CONFIG), 16)

    def call(group, rank):
        memory = distributed.Memory(CONFIG)
        memory.columns = ObjectColumns(Shards(group))
        seen = follow(memory, 16)
        return seen, memory.local.objects

    results = raised(on_ranks(size, call))
    for seen, _ in results:
        readouts = [x for x in seen if isinstance(x, torch.Tensor)]
        check_equal(readouts, [x for x in expected if isinstance(x, torch.Tensor)], 1e-5)
    assert sorted(label for _, objects in results for label in objects) == [3, 7]


def test_ranks_with_other_frames_are_told_so():
    def call(group, rank):
        memory = distributed.Memory(CONFIG, group=group)
        key, shrinkage, value, _ = frame(0, 1 + rank)
        memory.add(key, shrinkage, value, [1, 2][: 1 + rank])

    for error in on_ranks(2, call):
        assert isinstance(error, ValueError) and "wanted the same on every rank" in str(error)


def test_refusals():
    with pytest.raises(ValueError, match="groups"):
        distributed.Memory(replace(CONFIG, groups="xmem"))
    memory = distributed.Memory(CONFIG)
    with pytest.raises(RuntimeError, match="no object"):
        memory.read(frame(0, 1)[0])
    key, shrinkage, value, _ = frame(0, 1)
    with pytest.raises(ValueError, match="batch of 1"):
        memory.add(key.expand(2, -1, -1, -1), shrinkage, value, [1])
    with pytest.raises(TypeError, match="key: wanted a tensor"):
        memory.add("key", shrinkage, value, [1])
    memory.add(key, shrinkage, value, [1])
    with pytest.raises(ValueError, match="all that are held"):
        memory.add(key, shrinkage, value, [2])


@pytest.mark.parametrize(("before", "after"), [(3, 2), (1, 4), (4, 1), (2, 2)])
def test_a_saved_set_goes_on_over_any_number_of_ranks(before, after, tmp_path):
    path = tmp_path / "memory.json"
    whole = xmemk.Memory(CONFIG)
    follow(whole, 20)
    key, _, _, selection = frame(99, 1)
    expected = [whole.read(key, selection)]
    for i in range(30, 40):
        frame_key, shrinkage, value, frame_selection = frame(i, 2)
        whole.add(frame_key, shrinkage, value, [3, 7], frame_selection)
        expected.append(whole.read(key, selection))

    def write(group, rank):
        memory = distributed.Memory(CONFIG, group=group)
        follow(memory, 20)
        memory.save(path)

    def go_on(group, rank):
        memory = distributed.Memory.load(path, group=group)
        readouts = [memory.read(key, selection)]
        for i in range(30, 40):
            frame_key, shrinkage, value, frame_selection = frame(i, 2)
            memory.add(frame_key, shrinkage, value, [3, 7], frame_selection)
            readouts.append(memory.read(key, selection))
        return readouts

    raised(on_ranks(before, write))
    assert len(list(tmp_path.iterdir())) == before + 1
    for readouts in raised(on_ranks(after, go_on)):
        check_equal(readouts, expected, 1e-4)
    raised(on_ranks(before, write))  # replaces the old set
    assert len(list(tmp_path.iterdir())) == before + 1


def test_objects_and_sensory_memory_are_saved(tmp_path):
    path = tmp_path / "memory.json"
    config = replace(CONFIG, hidden_dim=4)

    def write(group, rank):
        memory = distributed.Memory(config)
        memory.columns = ObjectColumns(Shards(group))
        memory.sensory.create([3, 1, 7], torch.zeros(1, 1, H, W))
        memory.sensory.set(torch.arange(3.0).view(1, 3, 1, 1, 1).expand(1, 3, 4, H, W))
        follow(memory, 12)
        memory.save(path)
        return memory.read(*frame(99, 1)[::3]), memory.objects

    (readout, objects), _ = raised(on_ranks(2, write))
    memory = distributed.Memory.load(path)
    assert memory.objects == objects and memory.sensory.objects == (3, 1, 7)
    assert memory.sensory.get()[0, :, 0, 0, 0].tolist() == [0, 1, 2]
    torch.testing.assert_close(memory.read(*frame(99, 1)[::3]), readout)


def test_an_empty_memory_is_saved(tmp_path):
    distributed.Memory(CONFIG).save(tmp_path / "memory.json")
    assert distributed.Memory.load(tmp_path / "memory.json").objects == ()


def test_sets_that_are_damaged_are_refused_by_name(tmp_path):
    path = tmp_path / "memory.json"
    memory = distributed.Memory(CONFIG)
    follow(memory, 12)
    memory.save(path)
    (tensors,) = tmp_path.glob("*.safetensors")
    whole, head = tensors.read_bytes(), json.loads(path.read_text())
    damages = [
        lambda: tensors.write_bytes(whole[: len(whole) // 2]),
        tensors.unlink,
        lambda: path.write_text("{"),
        lambda: path.write_text("[]"),
        lambda: path.write_text(json.dumps(head | {"version": 99})),
        lambda: path.write_text(json.dumps(head | {"files": [["../other.safetensors"]]})),
        lambda: path.write_text(json.dumps(head | {"files": [head["files"][0] * 2]})),
        lambda: path.write_text(json.dumps(head | {"layout": head["layout"] | {"height": 4}})),
    ]
    for damage in damages:
        damage()
        with pytest.raises(ValueError, match=r"memory\.json: wanted a whole set"):
            distributed.Memory.load(path)
        tensors.write_bytes(whole)
        path.write_text(json.dumps(head))
    assert distributed.Memory.load(path).objects == memory.objects


def test_a_rank_that_cannot_write_leaves_the_old_set(tmp_path, monkeypatch):
    path = tmp_path / "memory.json"
    write = files.write_tensors

    def full_disk(path, local, sensory):
        write(path, local, sensory)
        if local.shards.rank == 1:
            raise OSError("no space left on device")

    def call(group, rank):
        memory = distributed.Memory(CONFIG, group=group)
        follow(memory, 6)
        memory.save(path)

    raised(on_ranks(2, call))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(files, "write_tensors", full_disk)
    for error in on_ranks(2, call):
        assert isinstance(error, OSError) and "memory.json: could not be written" in str(error)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
