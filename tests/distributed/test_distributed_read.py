"""A sharded read against the read of one process: selected tokens equal, numbers to rounding."""

import pytest
import torch
from ranks import on_ranks, raised

import xmemk
from xmemk import distributed
from xmemk.distributed import Shards
from xmemk.testing import make_inputs

CASES = [
    (1, 30, False),
    (2, 1, False),
    (3, 30, True),
    (8, 30, False),
    (5, 700, True),
    (3, None, True),
    (8, None, False),
]


def shard(x, group, rank, interleaved=False):
    """This rank's tokens of the inputs, contiguous or dealt out, and their places."""
    n = x.mk.shape[2]
    size = group.size()
    place = torch.arange(rank, n, size) if interleaved else torch.arange(rank * n // size, (rank + 1) * n // size)
    return tuple(None if t is None else t[..., place] for t in (x.mk, x.ms, x.mv)), place


@pytest.mark.parametrize(("size", "top_k", "interleaved"), CASES)
def test_read(size, top_k, interleaved):
    x = make_inputs(611, 45, objects=2, value_channels=33, seed=size)

    def read(group, rank):
        memory, place = shard(x, group, rank, interleaved)
        options = {"place": place} if interleaved else {}
        return distributed.memory_read(
            *memory, x.qk, x.qe, top_k=top_k, return_usage=True, shards=Shards(group), **options
        ), place

    expected, expected_usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True)
    usage = torch.zeros_like(expected_usage)
    for (readout, part), place in raised(on_ranks(size, read)):
        torch.testing.assert_close(readout, expected, rtol=2e-5, atol=2e-5)
        usage[:, place] = part
    torch.testing.assert_close(usage, expected_usage, rtol=1e-4, atol=1e-5)
    if top_k is not None:
        assert torch.equal(usage > 0, expected_usage > 0) or top_k == 700


@pytest.mark.parametrize("size", [2, 7])
def test_ties_go_to_the_token_that_stands_first(size):
    x = make_inputs(60, 9, value_channels=60, seed=3)
    x.mk[:] = x.mk[..., :1]  # all scores are equal
    x.ms[:] = 1.0
    x.mv[:] = torch.eye(60)

    def read(group, rank):
        memory, place = shard(x, group, rank, interleaved=True)
        return distributed.memory_read(*memory, x.qk, x.qe, top_k=20, shards=Shards(group), place=place)

    for readout in raised(on_ranks(size, read)):
        assert torch.allclose(readout[0, 0, :20], torch.tensor(0.05))
        assert not readout[0, 0, 20:].any()


@pytest.mark.parametrize("top_k", [4, None])
def test_more_ranks_than_tokens(top_k):
    x = make_inputs(3, 6, value_channels=5)
    expected = xmemk.memory_read(*x.read, top_k=top_k)

    def read(group, rank):
        memory, _ = shard(x, group, rank)
        return distributed.memory_read(*memory, x.qk, x.qe, top_k=top_k, shards=Shards(group))

    for readout in raised(on_ranks(5, read)):
        torch.testing.assert_close(readout, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [2, None])
def test_numbers_that_are_not_finite(top_k):
    """Such a key is not read, such a value spoils what selects it, no key at all reads NaN."""
    x = make_inputs(12, 5, value_channels=3)
    x.mk[:, :, 7] = float("nan")
    x.mv[..., 2] = float("inf")
    x.qk[:, :, 3] = float("inf")
    expected, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True)

    def read(group, rank):
        memory, _ = shard(x, group, rank)
        return distributed.memory_read(*memory, x.qk, x.qe, top_k=top_k, return_usage=True, shards=Shards(group))

    results = raised(on_ranks(4, read))
    torch.testing.assert_close(torch.cat([part for _, part in results], 1), usage, rtol=1e-4, atol=1e-5)
    for readout, _ in results:
        assert torch.equal(readout.isfinite(), expected.isfinite())
        torch.testing.assert_close(readout.nan_to_num(0, 0, 0), expected.nan_to_num(0, 0, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top_k", [5, None])
@pytest.mark.parametrize("size", [1, 3])
def test_gradients(size, top_k):
    x = make_inputs(40, 11, objects=2, value_channels=6, key_channels=8).double()
    names = ("mk", "ms", "mv", "qk", "qe")
    whole = [getattr(x, name).detach().clone().requires_grad_() for name in names]
    toward = torch.randn(1, 2, 6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (xmemk.reference.memory_read(*whole, top_k=top_k) * toward).sum().backward()

    def read(group, rank):
        memory, place = shard(x, group, rank)
        inputs = [t.detach().clone().requires_grad_() for t in (*memory, x.qk, x.qe)]
        readout = distributed.memory_read(*inputs, top_k=top_k, shards=Shards(group))
        (readout * toward).sum().backward()
        return [t.grad for t in inputs], place

    for gradients, place in raised(on_ranks(size, read)):
        for name, got, expected in zip(names, gradients, (t.grad for t in whole), strict=True):
            part = expected if name.startswith("q") else expected[..., place]
            torch.testing.assert_close(got, part, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_ranks_that_disagree_are_told_so():
    x = make_inputs(12, 5)

    def read(group, rank):
        memory, _ = shard(x, group, rank)
        return distributed.memory_read(*memory, x.qk[..., : 5 - rank], x.qe[..., : 5 - rank], shards=Shards(group))

    for error in on_ranks(2, read):
        assert isinstance(error, ValueError) and "on rank 0 and" in str(error)


def test_nothing_anywhere():
    x = make_inputs(4, 5)
    none = [t[..., :0] for t in (x.mk, x.ms, x.mv)]
    for error in on_ranks(2, lambda group, _: distributed.memory_read(*none, x.qk, x.qe, shards=Shards(group))):
        assert isinstance(error, ValueError) and "empty on every rank" in str(error)


def test_a_rank_that_leaves_is_an_error_within_the_timeout():
    x = make_inputs(12, 5)

    def read(group, rank):
        if rank == 1:
            raise KeyError("this rank dies")
        memory, _ = shard(x, group, rank)
        return distributed.memory_read(*memory, x.qk, x.qe, shards=Shards(group))

    alive, dead = on_ranks(2, read, timeout=1.0)
    assert isinstance(dead, KeyError)
    assert isinstance(alive, RuntimeError) and "rank 0 of 2" in str(alive)


def test_wrong_places_and_groups():
    x = make_inputs(4, 5)
    with pytest.raises(ValueError, match="place: wanted int64"):
        distributed.memory_read(*x.read, shards=Shards(), place=torch.arange(3))
    with pytest.raises(TypeError, match="group: wanted"):
        Shards("world")
