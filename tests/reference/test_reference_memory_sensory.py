"""The oracle's sensory memory: zeros for new objects, rows kept for the others."""

from __future__ import annotations

import pytest
import torch

from xmemk.reference import Memory, MemoryConfig, Sensory

SAMPLE = torch.ones(2, 7, 3, 4)


def test_new_objects_start_at_zero_and_the_others_keep_their_state():
    sensory = Sensory(hidden_dim=5)
    sensory.create([1, 2], SAMPLE)
    assert sensory.objects == (1, 2)
    assert torch.equal(sensory.get(), torch.zeros(2, 2, 5, 3, 4))
    state = torch.randn(2, 2, 5, 3, 4)
    sensory.set(state)
    assert sensory.get() is state
    sensory.create([1, 2, 7, 4], SAMPLE)
    assert sensory.objects == (1, 2, 7, 4)
    assert torch.equal(sensory.get()[:, :2], state)
    assert torch.equal(sensory.get()[:, 2:], torch.zeros(2, 2, 5, 3, 4))


def test_create_again_changes_nothing():
    sensory = Sensory(hidden_dim=5)
    sensory.create([1, 2], SAMPLE)
    sensory.set(torch.ones(2, 2, 5, 3, 4))
    sensory.create([2, 1], SAMPLE)
    assert sensory.objects == (1, 2)
    assert torch.equal(sensory.get(), torch.ones(2, 2, 5, 3, 4))


def test_rows_of_removed_objects_go():
    sensory = Sensory(hidden_dim=1)
    sensory.create([3, 1, 2], torch.ones(1, 1, 1, 1))
    sensory.set(torch.tensor([3.0, 1.0, 2.0]).view(1, 3, 1, 1, 1))
    sensory.remove([1])
    assert sensory.objects == (3, 2)
    assert sensory.get().flatten().tolist() == [3, 2]
    sensory.create([3, 2, 1], torch.ones(1, 1, 1, 1))
    assert sensory.get().flatten().tolist() == [3, 2, 0]
    sensory.remove([1, 2, 3])
    assert sensory.get().shape == (1, 0, 1, 1, 1)


@pytest.mark.parametrize(
    ("sample", "state"),
    [(torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_zeros_are_float32_or_better(sample, state):
    sensory = Sensory()
    sensory.create([1], SAMPLE.to(sample))
    assert sensory.get().dtype == state
    assert sensory.get().shape == (2, 1, 64, 3, 4)


def test_a_state_of_another_type_keeps_it():
    sensory = Sensory(hidden_dim=2)
    sensory.create([1], SAMPLE)
    sensory.set(torch.ones(2, 1, 2, 3, 4, dtype=torch.float16))
    sensory.create([1, 2], SAMPLE)
    assert sensory.get().dtype == torch.float16


def test_no_hidden_channels():
    sensory = Sensory(hidden_dim=0)
    sensory.create([1], SAMPLE)
    assert sensory.get().shape == (2, 1, 0, 3, 4)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda s: s.create([1], SAMPLE), ValueError, r"objects: wanted all that have a state, \[1, 2\], got \[1\]"),
        (lambda s: s.create([1, 2, 2], SAMPLE), ValueError, "objects: wanted each label once"),
        (lambda s: s.create([1, 2], SAMPLE[0]), ValueError, "sample_key: wanted 4 dimensions"),
        (lambda s: s.create([1, 2, 3], SAMPLE[..., :3]), ValueError, "sample_key: wanted B, H, W = 2, 3, 4 on cpu"),
        (lambda s: s.create([1, 2], SAMPLE.long()), TypeError, "sample_key: wanted a floating type"),
        (lambda s: s.set(torch.ones(2, 1, 5, 3, 4)), ValueError, r"hidden: wanted shape \[2, 2, 5, 3, 4\], got"),
        (lambda s: s.set(None), TypeError, "hidden: wanted a tensor, got NoneType"),
        (lambda s: s.remove([3]), ValueError, r"objects: wanted labels among \[1, 2\], got \[3\]"),
    ],
)
def test_refuses_and_keeps_its_state(act, error, message):
    sensory = Sensory(hidden_dim=5)
    sensory.create([1, 2], SAMPLE)
    state = sensory.get()
    with pytest.raises(error, match=message):
        act(sensory)
    assert sensory.objects == (1, 2)
    assert sensory.get() is state


def test_without_a_state():
    sensory = Sensory()
    for act in (sensory.get, lambda: sensory.set(SAMPLE[:, :, None])):
        with pytest.raises(RuntimeError, match="no state yet: call create first"):
            act()


def test_memory_brings_one_with_the_configured_channels():
    memory = Memory(MemoryConfig(hidden_dim=9))
    memory.sensory.create([1], SAMPLE)
    assert memory.sensory.get().shape == (2, 1, 9, 3, 4)
