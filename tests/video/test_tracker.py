"""The frame loop: beside stored results of the released one, its rules one by one, and what it refuses."""

from pathlib import Path

import fixed_network as fixed
import numpy as np
import pytest
import torch

from xmemk import MemoryConfig
from xmemk.network import NetworkConfig, XMem
from xmemk.reference.memory import Memory
from xmemk.video.tracker import Tracker, pad, unpad

SMALL = NetworkConfig(key_dim=8, value_dim=16, hidden_dim=4, width=4, key_blocks=(1, 1, 1), decoder_dim=8)
IMAGE = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(1))


def labels(*objects):
    mask = torch.zeros(40, 56, dtype=torch.int64)
    for i, label in enumerate(objects):
        mask[4 + 8 * i : 12 + 8 * i, 10:40] = label
    return mask


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = XMem(SMALL)
    made.load_state_dict(fixed.fixed_weights(made.state_dict()))
    return made


class Watched(Memory):
    """A memory that remembers what it was asked."""

    def __init__(self, **config):
        super().__init__(MemoryConfig(hidden_dim=4, **config))
        self.calls = []

    def add(self, key, shrinkage, value, objects, selection=None):
        self.calls.append(("add", tuple(objects), selection is not None))
        super().add(key, shrinkage, value, objects, selection)

    def read(self, query_key, selection=None):
        self.calls.append(("read",))
        return super().read(query_key, selection)


def adds(memory):
    return [call for call in memory.calls if call[0] == "add"]


def test_sixty_frames_with_a_late_object_equal_the_released_tracker():
    stored = np.load(Path(__file__).parents[1] / "data" / "xmem_network.npz")
    with torch.device("meta"):
        made = XMem()
    made.load_state_dict(fixed.fixed_weights(made.state_dict()), assign=True)
    tracker = Tracker(made, MemoryConfig.from_dict({**fixed.MEMORY, "groups": "xmem"}))
    for t, frame in enumerate(fixed.frames()):
        mask = fixed.first_mask() if t == 0 else fixed.late_mask() if t == fixed.LATE else None
        got = tracker.step(frame, mask, end=t == fixed.FRAMES - 1)
        wanted = stored["two"][t] if t < fixed.LATE else stored["three"][t - fixed.LATE]
        torch.testing.assert_close(fixed.thinned("frame", got), torch.from_numpy(wanted), rtol=0, atol=1e-4)
    assert tracker.memory.consolidations > 3 and tracker.objects == (1, 2, 3)


def test_probabilities_of_the_image_size_that_sum_to_one(network):
    tracker = Tracker(network)
    first = tracker.step(IMAGE, labels(3, 7))
    second = tracker.step(IMAGE)
    assert tracker.objects == (3, 7)
    for got in (first, second):
        assert got.shape == (3, 40, 56) and got.dtype == torch.float32
        torch.testing.assert_close(got.sum(0), torch.ones(40, 56))
    assert torch.equal(torch.tensor([0, 3, 7])[first.argmax(0)], labels(3, 7))


def test_every_rth_frame_is_remembered_and_a_mask_starts_the_count_again(network):
    memory = Watched(mem_every=3)
    tracker = Tracker(network, memory=memory)
    remembered = []
    for t in range(10):
        tracker.step(IMAGE, labels(1) if t in (0, 4) else None, end=t == 9)
        remembered.append(len(adds(memory)))
    assert remembered == [1, 1, 1, 2, 3, 3, 3, 4, 4, 4]  # frames 0, 3, 4 and 7
    assert sum(call == ("read",) for call in memory.calls) == 8  # not where the mask speaks of all objects
    assert all(selection for _, _, selection in adds(memory))


def test_no_selection_is_stored_without_long_term_memory(network):
    memory = Watched(enable_long_term=False)
    Tracker(network, memory=memory).step(IMAGE, labels(1))
    assert adds(memory) == [("add", (1,), False)]


@pytest.mark.parametrize(("every", "deep"), [(-1, [0, 2, 4]), (3, [0, 4]), (1, [0, 2, 4])])
def test_when_the_deep_update_is_done(network, monkeypatch, every, deep):
    tracker = Tracker(network, MemoryConfig(hidden_dim=4, mem_every=2, deep_update_every=every))
    done = []
    encode = network.encode_value

    def watched(*args, deep_update, **kwargs):
        if deep_update:
            done.append(t)
        return encode(*args, deep_update=deep_update, **kwargs)

    monkeypatch.setattr(network, "encode_value", watched)
    for t in range(6):
        tracker.step(IMAGE, labels(1) if t == 0 else None)
    assert done == deep  # every = 3: due on frame 3, which is no memory frame, and done on the next


def test_the_shallow_update_is_left_to_the_deep_one_on_memory_frames(network, monkeypatch):
    tracker = Tracker(network, MemoryConfig(hidden_dim=4, mem_every=2))
    asked = []
    segment = network.segment

    def watched(*args, update_hidden, **kwargs):
        asked.append(update_hidden)
        return segment(*args, update_hidden=update_hidden, **kwargs)

    monkeypatch.setattr(network, "segment", watched)
    for t in range(5):
        tracker.step(IMAGE, labels(1) if t == 0 else None, end=t == 4)
    assert asked == [True, False, True, False]  # frames 1, 2 (remembered), 3, 4 (the last)


def test_a_later_mask_replaces_what_it_speaks_of_and_keeps_the_rest(network):
    tracker = Tracker(network)
    tracker.step(IMAGE, labels(1, 2))
    twin = Tracker(network)
    twin.step(IMAGE, labels(1, 2))
    predicted = twin.step(IMAGE)
    new = torch.zeros(40, 56, dtype=torch.int64)
    new[20:36, 4:30] = 5
    got = tracker.step(IMAGE, new)
    assert tracker.objects == (1, 2, 5) and got.shape[0] == 4
    inside = new == 5
    assert bool((got[3][inside] > 0.99).all()) and float(got[1:3, inside].max()) < 1e-3
    given = torch.zeros(1, 3, 40, 56)
    given[0, :2], given[0, 2] = predicted[1:] * ~inside, inside.float()
    from xmemk.network import aggregate

    torch.testing.assert_close(got, aggregate(given)[0], rtol=1e-4, atol=1e-5)


def test_an_object_can_be_said_to_be_absent(network):
    tracker = Tracker(network)
    tracker.step(IMAGE, labels(1, 2))
    got = tracker.step(IMAGE, labels(1), objects=[1, 2])
    assert float(got[2].max()) < 1e-3 and bool((got[1][labels(1) == 1] > 0.99).all())


def test_rows_of_probabilities_are_a_mask_too(network):
    rows = torch.stack([(labels(4, 9) == label).float() for label in (4, 9)])
    by_rows, by_labels = Tracker(network), Tracker(network)
    first = by_rows.step(IMAGE, rows, [4, 9])
    assert torch.equal(first, by_labels.step(IMAGE, labels(4, 9)))
    assert torch.equal(by_rows.step(IMAGE), by_labels.step(IMAGE))


def test_uint8_is_the_same_picture(network):
    pixels = (IMAGE * 255).round().to(torch.uint8)
    a, b = Tracker(network), Tracker(network)
    assert torch.equal(a.step(pixels, labels(1)), b.step(pixels.float() / 255, labels(1)))


def test_objects_leave_and_come_back(network):
    tracker = Tracker(network)
    tracker.step(IMAGE, labels(1, 2))
    tracker.step(IMAGE)
    tracker.remove([1])
    assert tracker.objects == (2,) and tracker.step(IMAGE).shape[0] == 2
    tracker.step(IMAGE, labels(1))
    assert tracker.objects == (2, 1)
    tracker.remove([1, 2])
    alone = tracker.step(IMAGE)
    assert alone.shape[0] == 1 and bool((alone == 1).all())


def test_before_the_first_mask_all_is_background(network):
    memory = Watched()
    tracker = Tracker(network, memory=memory)
    assert bool((tracker.step(IMAGE) == 1).all()) and not memory.calls
    assert bool((tracker.step(IMAGE, labels()) == 1).all())
    assert tracker.step(IMAGE, labels(1)).shape[0] == 2


def test_without_sensory_memory():
    config = NetworkConfig(key_dim=8, value_dim=16, hidden_dim=0, width=4, key_blocks=(1, 1, 1), decoder_dim=8)
    torch.manual_seed(0)
    tracker = Tracker(XMem(config), MemoryConfig(hidden_dim=0, mem_every=2))
    tracker.step(IMAGE, labels(1))
    for _ in range(4):
        assert bool(tracker.step(IMAGE).isfinite().all())


def test_half_precision_convolutions(network):
    full, half = Tracker(network), Tracker(network, autocast=torch.bfloat16)
    for t in range(4):
        mask = labels(1) if t == 0 else None
        a, b = full.step(IMAGE, mask), half.step(IMAGE, mask)
        assert b.dtype == torch.float32
        assert float((a - b).abs().mean()) < 0.05


REFUSED = [
    ({"image": None}, TypeError, "image: wanted a tensor"),
    ({"image": torch.zeros(1, 40, 56)}, ValueError, r"image: wanted RGB of shape \[3, H, W\]"),
    ({"image": torch.zeros(3, 40, 56, dtype=torch.int64)}, TypeError, "image: wanted uint8 or a floating type"),
    ({"image": torch.zeros(3, 48, 56)}, ValueError, "image: wanted H, W = 40, 56 as all frames before"),
    ({"image": IMAGE, "mask": torch.zeros(4, 4, dtype=torch.int64)}, ValueError, "mask: wanted H, W = 40, 56"),
    ({"image": IMAGE, "mask": torch.zeros(40, 56)}, TypeError, "mask: wanted labels of an integer type"),
    ({"image": IMAGE, "mask": torch.zeros(2, 40, 56)}, ValueError, "objects: wanted the labels of the mask's rows"),
    ({"image": IMAGE, "mask": torch.zeros(2, 40, 56), "objects": [1]}, ValueError, "mask: wanted 1 rows"),
    ({"image": IMAGE, "mask": torch.full((1, 40, 56), 2.0), "objects": [1]}, ValueError, "mask: wanted probabilities"),
    (
        {"image": IMAGE, "mask": labels(1, 2), "objects": [1]},
        ValueError,
        r"mask: wanted labels among objects = \[1\] and 0",
    ),
    ({"image": IMAGE, "mask": labels(1), "objects": [1, 1]}, ValueError, "objects: wanted each label once"),
    ({"image": IMAGE, "objects": [1]}, ValueError, "objects: wanted None without a mask"),
    ({"image": IMAGE, "mask": [1]}, TypeError, "mask: wanted a tensor"),
]


@pytest.mark.parametrize(("call", "kind", "said"), REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(network, call, kind, said):
    tracker, twin = Tracker(network), Tracker(network)
    for t in (tracker, twin):
        t.step(IMAGE, labels(1))
    with pytest.raises(kind, match=said):
        tracker.step(**call)
    assert torch.equal(tracker.step(IMAGE), twin.step(IMAGE))


def test_a_memory_that_does_not_fit_the_network(network):
    with pytest.raises(ValueError, match="config: wanted hidden_dim = 4 as the network has, got 64"):
        Tracker(network, MemoryConfig())
    with pytest.raises(ValueError, match="autocast: wanted"):
        Tracker(network, autocast=torch.int8)


@pytest.mark.parametrize("size", [(1, 1), (16, 32), (40, 56), (33, 47)])
def test_padding_is_undone(size):
    x = torch.rand(2, *size)
    padded, padding = pad(x)
    assert padded.shape[1] % 16 == 0 and padded.shape[2] % 16 == 0
    assert torch.equal(unpad(padded, padding), x) and padded.count_nonzero() == x.count_nonzero()
