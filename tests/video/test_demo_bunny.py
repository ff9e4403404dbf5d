"""The demo follows the bunny: region similarity J with hand-drawn masks of later frames."""

from pathlib import Path

import pytest

pytest.importorskip("av")

from xmemk import Memory, MemoryConfig
from xmemk.data import BUNNY
from xmemk.data.masks import read_mask
from xmemk.data.video import read_frames
from xmemk.demo.tracker import MEMORY_CONFIG, DemoTracker

DRAWN = {
    int(path.stem): read_mask(path) for path in sorted((Path(__file__).parents[1] / "data" / "bunny").glob("*.png"))
}


def region_similarity(labels, drawn):
    """J: intersection over union of the objects' pixels."""
    labels, drawn = labels > 0, drawn > 0
    return ((labels & drawn).sum() / (labels | drawn).sum()).item()


@pytest.mark.slow
def test_the_bunny_is_followed_to_the_end():
    memory = Memory(MemoryConfig.from_dict(MEMORY_CONFIG))
    frames = read_frames(BUNNY / "clip.mp4", (854, 480), 40)
    tracker = DemoTracker(memory, next(frames), read_mask(BUNNY / "00040.png"))
    similarity = {}
    for number, image in enumerate(frames, 41):
        labels = tracker.step(image)
        if number in DRAWN:
            similarity[number] = region_similarity(labels, DRAWN[number])
    assert number == 131
    assert memory.consolidations >= 3
    assert memory.evictions >= 1
    assert sorted(similarity) == [60, 85, 110, 130]
    assert min(similarity.values()) > 0.93, similarity
