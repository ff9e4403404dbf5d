"""A step of the tracker happens completely or not at all."""

import copy

import pytest
import torch
from interrupted import Interruption, interruptions
from memory_videos import numbers, same
from small_network import IMAGES, labels, small_network

from xmemk import Memory, MemoryConfig, Tracker, reference
from xmemk.evaluation.thinned import ThinnedMemory

RULES = {"hidden_dim": 4, "top_k": 5, "mem_every": 1, "max_mid_term_frames": 3, "min_mid_term_frames": 2}
RULES |= {"num_prototypes": 4, "max_long_term_elements": 6}
STEPS = {
    "the first mask": (0, lambda t: t.step(IMAGES[0], labels(1, 2))),
    "the last frame": (6, lambda t: t.step(IMAGES[6], end=True)),
    "a remembered frame, with an eviction": (5, lambda t: t.step(IMAGES[5])),
    "an object that joins": (6, lambda t: t.step(IMAGES[6], labels(3))),
    "a removal": (6, lambda t: t.remove([1])),
}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def network():
    return small_network()


def tracked(network, frames, memory=None):
    tracker = Tracker(network, memory=memory or Memory(MemoryConfig(**RULES)))
    for t in range(frames):
        tracker.step(IMAGES[t], labels(1, 2) if t == 0 else None)
    return tracker


def copied(tracker):
    return copy.deepcopy(tracker, {id(tracker.network): tracker.network})


def state(tracker):
    sensory = [tracker.memory.sensory.get().clone()] if tracker.memory.sensory.objects else []
    return [str(tracker.state()), *numbers(tracker.memory), *sensory]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_interrupted_anywhere_has_changed_nothing(network, name):
    frames, call = STEPS[name]
    tracker = tracked(network, frames)
    before = state(copied(tracker))
    after = copied(tracker)
    call(after)
    assert "eviction" not in name or after.memory.evictions > tracker.memory.evictions

    def make():
        subject = copied(tracker)
        return subject, lambda: call(subject)

    part = "memory/memory.py" if name == "a removal" else "video/tracker.py"
    for i, (subject, where) in enumerate(interruptions(make, f"/xmemk/{part}")):
        assert same(state(subject), before), where
        memory = subject.memory
        if i % 10 == 0:
            call(subject)
            assert subject.memory is memory
            assert same(state(subject), state(after)), where


@pytest.mark.parametrize("stage", ["encode_key", "encode_value", "segment"])
@pytest.mark.parametrize("kind", ["product", "oracle", "thinned"])
def test_a_network_that_fails_leaves_every_kind_of_memory_as_it_was(network, monkeypatch, stage, kind):
    config = MemoryConfig(**RULES)
    make = {"product": Memory, "oracle": reference.Memory, "thinned": lambda c: ThinnedMemory(c, reading)}[kind]
    mine, twin = (tracked(network, 5, make(config)) for _ in range(2))

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    for t in range(5, 8):
        with monkeypatch.context() as patch:
            patch.setattr(network, stage, fail)
            for mask in (None, labels(4)):
                with pytest.raises(RuntimeError, match="out of memory"):
                    mine.step(IMAGES[t], mask)
            assert mine.objects == mine.memory.sensory.objects == (1, 2)
        assert torch.equal(mine.step(IMAGES[t]), twin.step(IMAGES[t]))


def reading(mk, ms, mv, qk, qe, *, top_k=None, return_usage=False):
    return reference.memory_read(mk, ms, mv, qk, qe, top_k=top_k, return_usage=return_usage)


def test_a_first_step_that_fails_can_be_made_with_another_mask(network, monkeypatch):
    tracker = tracked(network, 0)
    with monkeypatch.context() as patch:
        patch.setattr(network, "encode_value", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tracker.step(IMAGES[0], labels(1))
    assert tracker.memory.sensory.objects == () and tracker.objects == ()
    assert tracker.step(IMAGES[0], labels(2)).shape[0] == 2


def test_restoring_is_all_or_nothing(network):
    tracker, other = tracked(network, 2), tracked(network, 6)
    saved, before = other.state(), tracker.state()

    def make():
        subject = copied(tracker)
        return subject, lambda: subject.restore(other.memory, saved)

    for subject, where in interruptions(make, "/xmemk/video/tracker.py"):
        assert subject.memory is not other.memory and subject.state() == before, where
    for damaged in ({}, {**saved, "frame": "3"}, {**saved, "size": [32]}, {**saved, "size": 3}, [], None):
        with pytest.raises(ValueError, match=r"state: wanted what Tracker\.state\(\) returned"):
            tracker.restore(other.memory, damaged)
    assert tracker.state() == before


def test_an_interruption_is_no_exception_that_code_would_catch():
    assert not issubclass(Interruption, Exception)
