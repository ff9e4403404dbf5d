"""Files that an earlier version wrote: pickles, memories, networks. See tests/data/README.md."""

import gzip
import pickle
from pathlib import Path

import memory_videos as videos
import pytest
import torch

import xmemk

FILES = Path(__file__).parents[1] / "data" / "version-0.1"


def stored_readout(name):
    return torch.load(FILES / f"{name}.out.pt", weights_only=True)


@pytest.mark.parametrize("name", ["memory_exact", "memory_xmem", "memory_int8"])
def test_memories_resume_bit_exactly(name):
    unpickled = pickle.loads((FILES / f"{name}.pkl").read_bytes())
    for memory in (unpickled, xmemk.Memory.load(FILES / f"{name}.xmem")):
        assert torch.equal(memory.read(**videos.query(50)), stored_readout(name))
        memory.add(**videos.frame(14))
        memory.read(**videos.query(51))


def test_a_memory_with_cuda_graphs():
    memory = pickle.loads((FILES / "memory_graphs.pkl").read_bytes())
    assert memory.cuda_graphs
    assert torch.equal(memory.read(**videos.query(50)), stored_readout("memory_graphs"))


def test_a_manager_of_a_patched_host():
    manager = pickle.loads((FILES / "manager.pkl").read_bytes())
    assert isinstance(manager, xmemk.compat.xmem.MemoryManager)
    assert (manager.groups, manager.backend) == ("exact", "torch")
    readout = manager.match_memory(*videos.query(50).values())
    torch.testing.assert_close(
        readout, stored_readout("manager"), rtol=0, atol=1e-6
    )  # the kernels sum in another order


def test_a_tracker_and_its_network():
    tracker = pickle.loads(gzip.decompress((FILES / "tracker.pkl.gz").read_bytes()))
    assert type(tracker) is xmemk.Tracker
    assert type(tracker.network) is xmemk.XMem
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tracker.step(image.flip(2)), stored_readout("tracker"), rtol=0, atol=1e-5)


def test_public_names_of_classes_that_were_renamed():
    assert xmemk.memory.Sensory is xmemk.memory.SensoryMemory
    assert xmemk.compat.Report is xmemk.compat.PatchReport
