"""A memory on the CPU takes its last read's choice as a hint. That changes no bit."""

import copy

import pytest
import torch
from extension import needs_extension

import xmemk
from xmemk.memory.choice import GONE, Recall, after_eviction
from xmemk.memory.table import Run

pytestmark = needs_extension

H, W, CK, CV = 6, 9, 20, 8


def frames(count, seed=0):
    """Frames that change little from one to the next: keys, shrinkage, values, selections."""
    g = torch.Generator().manual_seed(seed)
    base = [torch.randn(1, c, H, W, generator=g) for c in (CK, CV)]
    for _ in range(count):
        key, value = (b + 0.1 * torch.randn(b.shape, generator=g) for b in base)
        yield key, torch.rand(1, 1, H, W, generator=g) + 1, value[:, None], torch.rand(1, CK, H, W, generator=g)


def small(**options):
    config = {
        "top_k": 12, "max_mid_term_frames": 5, "min_mid_term_frames": 3, "num_prototypes": 16,
        "max_long_term_elements": 60, **options,
    }  # fmt: skip
    return xmemk.Memory(xmemk.MemoryConfig(**config), backend="cpu")


@pytest.fixture
def hints(monkeypatch):
    """The hints that the public function was given, and, set "ignored", what drops them."""
    seen = {"hints": [], "ignored": False}
    affinity_topk = xmemk.api.affinity_topk

    def spy(*args, hint=None, **options):
        seen["hints"].append(hint)
        result = affinity_topk(*args, hint=None if seen["ignored"] else hint, **options)
        seen["index"] = result[1]
        return result

    monkeypatch.setattr(xmemk.api, "affinity_topk", spy)
    return seen


def video(memory, count=14):
    readouts = []
    for i, (key, shrinkage, value, selection) in enumerate(frames(count)):
        if memory.objects:
            readouts.append(memory.read(key, selection))
        objects = [1, 2] if i >= 4 else [1]
        memory.add(key, shrinkage, value.expand(-1, len(objects), -1, -1, -1), objects, selection)
    return readouts


@pytest.mark.parametrize("value_dtype", [None, "float16", "int8"])
@pytest.mark.parametrize("groups", ["exact", "xmem"])
def test_hints_change_no_bit_through_consolidation_and_eviction(hints, groups, value_dtype):
    memory = small(groups=groups, value_dtype=value_dtype)
    readouts = video(memory)
    assert memory.consolidations > 0
    assert memory.evictions > 0
    assert sum(hint is not None for hint in hints["hints"]) >= 12
    hints["ignored"] = True
    again = small(groups=groups, value_dtype=value_dtype)
    assert all(torch.equal(a, b) for a, b in zip(readouts, video(again)))


def test_a_read_hints_at_what_the_last_one_chose(hints):
    memory = small(top_k=12)
    for key, shrinkage, value, selection in frames(4):
        memory.add(key, shrinkage, value, [1], selection)
    key, _, _, selection = next(frames(1))
    memory.read(key, selection)
    chosen = hints["index"]
    memory.read(key, selection)
    assert torch.equal(hints["hints"][-1], chosen)
    *_, (key, shrinkage, value, selection) = frames(5)
    memory.add(key, shrinkage, value, [1], selection)  # consolidates: frames 1 and 2 become prototypes
    assert memory.consolidations == 1
    memory.read(key, selection)
    hint = hints["hints"][-1]
    first_frame = chosen < H * W  # which stays, behind the prototypes
    assert torch.equal(hint[first_frame], chosen[first_frame] + 16)


def test_a_read_with_gradients_takes_no_hint(hints):
    memory = small()
    for key, shrinkage, value, selection in frames(4):
        memory.add(key, shrinkage, value, [1], selection)
    query = key.clone().requires_grad_()
    memory.read(query, selection).sum().backward()
    assert query.grad is not None
    assert hints["hints"] == []


def test_a_new_memory_knows_nothing(hints):
    memory = small()
    twin = copy.deepcopy(memory)
    for m in (memory, twin):
        for key, shrinkage, value, selection in frames(3):
            m.add(key, shrinkage, value, [1], selection)
    memory.read(key, selection)
    twin.read(key, selection)
    assert hints["hints"] == [None, None]


def test_rows_that_move_and_leave():
    runs, sizes = [Run(0, 0, 4), Run(1, 6, 9), Run(1, 0, 3)], [5, 9]
    recall = Recall(runs, sizes, torch.tensor([[[0, 3, 11, 5, GONE]]]), 1)
    assert recall.hint is not None
    assert recall.hint.tolist() == [[[0, 3, 4, 7, 0]]]
    moved = after_eviction(torch.tensor([[[0, 1, 4, 11, GONE]]]), torch.tensor([[1, 2, 4]]), 5)
    assert moved is not None
    assert moved.tolist() == [[[GONE, 0, 2, 11, GONE]]]
    assert Recall(runs, sizes, torch.zeros(1, 2, 3, dtype=torch.int64), 5).hint is None
