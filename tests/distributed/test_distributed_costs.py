"""The model of costs against the bytes that a read really sends."""

import pytest
import torch
from ranks import on_ranks, raised

from xmemk import distributed
from xmemk.distributed import Placement, Shards
from xmemk.distributed.costs import COLLECTIVES, MACHINES, Read, markdown
from xmemk.testing import make_inputs


class CountingShards(Shards):
    """Notes what a rank sends to the others in each collective."""

    def __init__(self, group):
        super().__init__(group)
        self.sent = []

    def gather(self, x):
        self.sent.append(x.nbytes * (self.size - 1))
        return super().gather(x)

    def exchange(self, parts, shape):
        self.sent.append(sum(part.nbytes for rank, part in enumerate(parts) if rank != self.rank))
        return super().exchange(parts, shape)

    def total(self, x):
        self.sent.append(2 * x.nbytes * (self.size - 1) / self.size)  # the ring algorithm's
        return super().total(x)


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_are_those_of_the_model(size):
    x = make_inputs(400, 60 * size, objects=2, value_channels=32)

    def read(group, rank):
        shards = CountingShards(group)
        mine = slice(rank * 100, (rank + 1) * 100)
        memory = [t[..., mine] for t in (x.mk, x.ms, x.mv)]
        placement = Placement(torch.arange(400)[mine], (100,) * size)
        distributed.memory_read(*memory, x.qk, x.qe, top_k=30, shards=shards, place=placement)
        return shards.sent

    expected = Read(100 * size, 60 * size, objects=2, value_channels=32).sent(size)
    for candidates, verdict, readout in raised(on_ranks(size, read)):
        assert candidates == expected["candidates"]
        assert verdict == expected["verdict"]
        assert readout == pytest.approx(expected["readout"])
    assert len(expected) == COLLECTIVES


def test_predictions():
    nvlink = MACHINES[0]
    read = Read(1_000_000, 8_160)
    assert read.efficiency(1, nvlink) == 1
    assert read.efficiency(8, nvlink) > 0.9 > Read(1_000, 8_160).efficiency(8, nvlink)
    enough = read.tokens_for(0.85, 8, nvlink)
    assert Read(enough, 8_160).efficiency(8, nvlink) == pytest.approx(0.85, abs=1e-4)
    assert markdown().count("\n") == 1 + len(MACHINES) * 4
