"""The demo's tracker on made-up videos, and the properties of what it is made of."""

import pytest
import torch
import torch.nn.functional as F

from xmemk import Memory, MemoryConfig
from xmemk.demo.features import CELL, describe, grid_size, shrinkage_of
from xmemk.demo.refine import guided_filter, rows_of
from xmemk.demo.tracker import MEMORY_CONFIG, DemoTracker

HEIGHT, WIDTH = 128, 192


def texture(seed, colour, height=HEIGHT, width=WIDTH):
    """Smooth noise around a colour, uint8 [height, width, 3]."""
    noise = torch.randn(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    noise = F.interpolate(noise, (height, width), mode="bicubic")[0].permute(1, 2, 0)
    return (torch.tensor(colour) + 25 * noise).clamp(0, 255).to(torch.uint8)


def video(frames):
    """Images and label masks of two textured ellipses, 3 and 7, that move before a still
    background.
    """
    background = texture(0, [90.0, 140.0, 60.0])
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    for t in range(frames):
        image, mask = background.clone(), torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
        for label, colour, cy, cx in (
            (3, [180.0, 180.0, 190.0], 50 + t, 45 + 2 * t),
            (7, [170.0, 90.0, 70.0], 80 - t, 150 - t),
        ):
            inside = ((y - cy) / 30) ** 2 + ((x - cx) / 22) ** 2 < 1
            # The texture travels with the object.
            image[inside] = texture(label, colour).roll((cy, cx), (0, 1))[inside]
            mask[inside] = label
        yield image, mask


def track(frames, mem_every=5, first=None, memory=None):
    """The tracker's masks of all frames but the first, the true ones, and the memory."""
    memory = memory or Memory(MemoryConfig(**MEMORY_CONFIG))
    tracker, masks, truth = None, [], []
    for image, mask in video(frames):
        if tracker is None:
            tracker = DemoTracker(memory, image, mask if first is None else first(mask), mem_every)
        else:
            masks.append(tracker.step(image))
            truth.append(mask)
    return masks, truth, memory


def overlap(a, b):
    return ((a & b).sum() / (a | b).sum()).item()


class Spy(Memory):
    """Notes what is added after how many reads."""

    def __init__(self):
        super().__init__(MemoryConfig(**MEMORY_CONFIG))
        self.reads, self.added = 0, []

    def read(self, *args):
        self.reads += 1
        return super().read(*args)

    def add(self, key, shrinkage, value, objects, selection=None):
        self.added.append((self.reads, value, objects))
        super().add(key, shrinkage, value, objects, selection)


def test_two_objects_are_followed_through_consolidation_and_eviction():
    masks, truth, memory = track(18, mem_every=1)
    assert memory.consolidations >= 3
    assert memory.evictions >= 1
    for mask, true in zip(masks, truth):
        assert mask.dtype == torch.uint8 and mask.shape == true.shape
        assert set(mask.unique().tolist()) == {0, 3, 7}
        for label in (3, 7):
            assert overlap(mask == label, true == label) > 0.9


def test_every_fifth_frame_becomes_memory_as_it_was_decided():
    masks, _, spy = track(12, memory=Spy())
    assert [reads for reads, _, _ in spy.added] == [0, 5, 10]
    h, w = grid_size(HEIGHT, WIDTH)
    assert (h * CELL, w * CELL) == (HEIGHT, WIDTH)  # so that nothing is resized here
    for reads, value, objects in spy.added[1:]:
        assert objects == (3, 7)
        assert value.shape == (1, 2, CELL * CELL, h, w)
        for row, label in enumerate(objects):
            kept = F.pixel_shuffle(value[0, row], CELL)[0] == 1
            assert torch.equal(kept, masks[reads - 1] == label)


def test_the_same_video_gives_the_same_masks():
    assert all(torch.equal(a, b) for a, b in zip(track(6)[0], track(6)[0]))


def test_halves_are_followed_as_the_whole_is():
    def halved(mask):
        below = torch.arange(HEIGHT)[:, None] >= 50
        return torch.where((mask == 3) & below, 4, mask)

    for mask, whole in zip(track(8, first=halved)[0], track(8)[0]):
        assert set(mask.unique().tolist()) == {0, 3, 4, 7}
        assert overlap((mask == 3) | (mask == 4), whole == 3) > 0.95


@pytest.mark.parametrize(
    ("size", "grid"), [((480, 854), (45, 80)), ((854, 480), (80, 45)), ((128, 192), (16, 24)), ((3, 5), (2, 2))]
)
def test_grids_are_of_square_cells_and_bounded(size, grid):
    assert grid_size(*size) == grid


def test_descriptors_move_with_the_picture():
    image = texture(1, [120.0, 120.0, 120.0], 2 * HEIGHT, 2 * WIDTH)
    grid = grid_size(2 * HEIGHT, 2 * WIDTH)
    here = describe(image, grid)
    there = describe(image.roll((CELL, 2 * CELL), (0, 1)), grid)
    assert here.key.shape == here.selection.shape == (1, 12, *grid)
    assert here.selection.min() >= 0 and here.selection.max() <= 1
    inner = slice(8, -8)  # away from where rolling or the border shows
    rolled = here.key.roll((1, 2), (2, 3))
    assert torch.allclose(rolled[:, :10, inner, inner], there.key[:, :10, inner, inner], atol=1e-3)
    assert torch.equal(here.key[:, 10:], there.key[:, 10:])


def test_shrinkage_is_least_on_edges():
    value = torch.tensor([0.0, 0.5, 1.0]).expand(1, 1, 4, 1, 3)
    assert shrinkage_of(value).flatten().tolist() == [1.5, 1.0, 1.5]
    two_that_fill_the_cell = torch.full((1, 2, 4, 1, 1), 0.5)
    assert shrinkage_of(two_that_fill_the_cell).item() == 1.5


def test_the_guided_filter_moves_an_edge_to_that_of_the_picture():
    image = texture(2, [60.0, 110.0, 60.0])
    image[:, 100:] = texture(3, [150.0, 150.0, 170.0])[:, 100:]
    true = torch.zeros(HEIGHT, WIDTH)
    true[:, 100:] = 1
    rough = torch.zeros(HEIGHT, WIDTH)
    rough[:, 98:] = 1
    wrong = (rows_of(guided_filter(image, rough[None])) != true).sum()
    assert wrong < 0.2 * (rough != true).sum()


def test_the_guided_filter_keeps_what_is_flat_and_what_adds_up():
    image = texture(4, [128.0, 100.0, 80.0], 48, 64)[:47, :61]
    flat = torch.full((1, 47, 61), 0.3)
    assert torch.allclose(guided_filter(image, flat), flat, atol=1e-4)
    mask = torch.rand(1, 47, 61, generator=torch.Generator().manual_seed(0))
    both = guided_filter(image, torch.cat([mask, 1 - mask]))
    assert both.min() >= 0 and both.max() <= 1
    assert torch.allclose(both.sum(0), torch.ones(47, 61), atol=1e-4)


def test_background_wins_ties():
    soft = torch.tensor([[0.5, 0.6, 0.2, 0.2], [0.0, 0.0, 0.7, 0.2]])[:, None]
    assert rows_of(soft).tolist() == [[0, 1, 2, 0]]
