"""Files that an earlier version wrote: pickles, memories, networks. tests/data/README.md says how they were made."""

import gzip
import pickle
from pathlib import Path

import memory_videos as videos
import pytest
import torch

import xmemk

FILES = Path(__file__).parents[1] / "data" / "version-0.1"


@pytest.mark.parametrize("name", ["memory_exact", "memory_xmem", "memory_int8"])
def test_memories_go_on_bit_for_bit(name):
    wanted = torch.load(FILES / f"{name}.out.pt", weights_only=True)
    unpickled = pickle.loads((FILES / f"{name}.pkl").read_bytes())
    for memory in (unpickled, xmemk.Memory.load(FILES / f"{name}.xmem")):
        assert torch.equal(memory.read(**videos.query(50)), wanted)
        memory.add(**videos.frame(14))
        memory.read(**videos.query(51))


def test_a_tracker_and_its_network():
    tracker = pickle.loads(gzip.decompress((FILES / "tracker.pkl.gz").read_bytes()))
    assert type(tracker) is xmemk.Tracker
    assert type(tracker.network) is xmemk.XMem
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = torch.load(FILES / "tracker.out.pt", weights_only=True)
    torch.testing.assert_close(tracker.step(image.flip(2)), wanted, rtol=0, atol=1e-5)
