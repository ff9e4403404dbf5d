"""The sensory memory of xmemk.Memory against the oracle's: states, rows and errors."""

import copy

import pytest
import torch
from memory_videos import frame, query, small

from xmemk import Memory, reference
from xmemk.memory import SensoryMemory

SAMPLE = torch.ones(2, 7, 3, 4)


def both():
    return SensoryMemory(hidden_dim=5), reference.Sensory(hidden_dim=5)


def step(pair, act):
    """One call on ours and the oracle's: the same state, or the same error and no change."""
    before, state = pair[0].objects, pair[0]._hidden
    outcomes = []
    for sensory in pair:
        try:
            act(sensory)
            outcomes.append(None)
        except (ValueError, TypeError, RuntimeError) as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]
    if outcomes[0] is not None:
        assert pair[0].objects == before and pair[0]._hidden is state
    assert pair[0].objects == pair[1].objects
    if pair[0]._hidden is not None:
        assert torch.equal(pair[0].get(), pair[1].get())
        assert pair[0].get().dtype == pair[1].get().dtype
    return outcomes[0]


def test_a_life_of_coming_and_going():
    pair = both()
    assert step(pair, lambda s: s.get())[0] is RuntimeError
    assert step(pair, lambda s: s.set(SAMPLE))[0] is RuntimeError
    assert step(pair, lambda s: s.create([3, 1], SAMPLE)) is None
    assert pair[0].get().shape == (2, 2, 5, 3, 4)
    state = torch.randn(2, 2, 5, 3, 4)
    assert step(pair, lambda s: s.set(state)) is None
    assert pair[0].get() is state
    assert step(pair, lambda s: s.create([1, 3], SAMPLE)) is None
    assert pair[0].get() is state  # nobody is new
    assert step(pair, lambda s: s.create([1, 3, 7], SAMPLE)) is None
    assert torch.equal(pair[0].get()[:, :2], state) and not pair[0].get()[:, 2:].any()
    assert step(pair, lambda s: s.remove([3])) is None
    assert pair[0].objects == (1, 7)
    assert step(pair, lambda s: s.set(pair[1].get().half())) is None
    assert step(pair, lambda s: s.create([1, 7, 3], SAMPLE)) is None
    assert step(pair, lambda s: s.remove([1, 3, 7])) is None
    assert pair[0].get().shape == (2, 0, 5, 3, 4)


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s.create([1], SAMPLE),
        lambda s: s.create([1, 2, 2], SAMPLE),
        lambda s: s.create([1, 2], SAMPLE[0]),
        lambda s: s.create([1, 2, 3], SAMPLE[..., :3]),
        lambda s: s.create([1, 2], SAMPLE.long()),
        lambda s: s.create([1, 2], SAMPLE.to("meta")),
        lambda s: s.set(torch.ones(2, 1, 5, 3, 4)),
        lambda s: s.set(None),
        lambda s: s.remove([3]),
        lambda s: s.remove([]),
    ],
)
def test_refuses_in_the_words_of_the_oracle(act):
    pair = both()
    for sensory in pair:
        sensory.create([1, 2], SAMPLE)
    assert step(pair, act) is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_zeros_are_float32_or_better(dtype):
    pair = both()
    step(pair, lambda s: s.create([1], SAMPLE.to(dtype)))
    assert pair[0].get().dtype == torch.promote_types(dtype, torch.float32)


def test_objects_that_leave_a_memory_take_their_rows_along():
    memory = Memory(small(hidden_dim=3))
    memory.add(**frame(0, [1, 2, 3]))
    memory.sensory.create([1, 2, 3], frame(0)["key"])
    memory.sensory.set(torch.arange(3.0).view(1, 3, 1, 1, 1).expand(1, 3, 3, 2, 3))
    memory.remove([2])
    assert memory.sensory.objects == memory.objects == (1, 3)
    assert memory.sensory.get()[0, :, 0, 0, 0].tolist() == [0, 2]


@pytest.mark.parametrize("groups", ["exact", "xmem"])
def test_a_state_with_a_graph_is_kept_without_it_and_can_be_copied(groups):
    memory = Memory(small(groups, hidden_dim=3))
    memory.add(**frame(0))
    memory.sensory.create([1, 2], frame(0)["key"])
    state = torch.randn(1, 2, 3, 2, 3, requires_grad=True)
    memory.sensory.set(state * 2)
    assert not memory.sensory.get().requires_grad
    assert torch.equal(memory.sensory.get(), 2 * state)
    copied = copy.deepcopy(memory)
    assert torch.equal(copied.sensory.get(), memory.sensory.get())
    for t in range(1, 15):
        assert torch.equal(copied.read(**query(t)), memory.read(**query(t)))
        for each in (copied, memory):
            each.add(**frame(t))
    memory.add(**frame(15))
    assert copied.working_size != memory.working_size


def test_restored_rows_must_go_with_their_labels():
    sensory = SensoryMemory(hidden_dim=5)
    for objects, hidden in (([1], torch.ones(1, 2, 5, 3, 4)), ([1], torch.ones(1, 1, 4, 3, 4)), ([1], torch.ones(5))):
        with pytest.raises(ValueError, match="hidden: wanted"):
            sensory.restore(objects, hidden)
    assert sensory.objects == ()
