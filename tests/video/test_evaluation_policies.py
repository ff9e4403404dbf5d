"""The baselines do what they are named for, on small made-up features."""

import math
from itertools import pairwise

import pytest
import torch

from xmemk import MemoryConfig, reference
from xmemk.evaluation.policies import (
    POLICIES,
    SEED,
    at_random,
    k_means,
    make_memory,
    read_by_dot_product,
    read_by_l2,
)
from xmemk.evaluation.thinned import ThinnedMemory
from xmemk.memory import Memory
from xmemk.reference import memory_read

CK, CV, H, W = 6, 5, 3, 4
HW = H * W
CONFIG = MemoryConfig(
    top_k=None,
    max_mid_term_frames=4,
    min_mid_term_frames=2,
    num_prototypes=7,
    max_long_term_elements=40,
    hidden_dim=3,
)


def frame(seed, objects=2):
    g = torch.Generator().manual_seed(seed)
    key, value = torch.randn(1, CK, H, W, generator=g), torch.randn(1, objects, CV, H, W, generator=g)
    shrinkage, selection = 1 + torch.rand(1, 1, H, W, generator=g), torch.rand(1, CK, H, W, generator=g)
    return key, shrinkage, value, selection


def filled(memory, count, objects=(1, 2)):
    """``count`` frames, each read before it is added but the first; what was added."""
    added = []
    for i in range(count):
        key, shrinkage, value, selection = frame(i, len(objects))
        if i:
            memory.read(key, selection)
        memory.add(key, shrinkage, value, objects, selection if memory.config.enable_long_term else None)
        added.append((key.flatten(2), shrinkage.flatten(2), value.flatten(3), selection.flatten(2)))
    return added


def softmax_read(score, value):
    """score [N, Q], value [O, CV, N] -> [O, CV, Q], by the definition."""
    weight = torch.tensor([[math.exp(s - max(column)) for s in column] for column in score.T.tolist()]).T
    return value @ (weight / weight.sum(0))


def whole(added):
    return [torch.cat([one[i] for one in added], -1) for i in range(4)]


def test_stcn_reads_all_frames_by_plain_distance():
    memory = make_memory("stcn", CONFIG)
    k, _, v, _ = whole(filled(memory, 9))
    q, _, _, e = frame(100)
    distance = ((k[0][:, :, None] - q.flatten(2)[0][:, None]) ** 2).sum(0)
    expected = softmax_read(-distance / math.sqrt(CK), v[0])
    torch.testing.assert_close(memory.read(q, e)[0].flatten(2), expected, rtol=1e-4, atol=1e-5)
    assert memory.working_size == 9 * HW and memory.long_term_size == 0


def test_stm_reads_by_the_dot_product():
    memory = make_memory("stm", MemoryConfig(top_k=30, hidden_dim=3))
    k, _, v, _ = whole(filled(memory, 5))
    q, _, _, e = frame(100)
    expected = softmax_read(k[0].T @ q.flatten(2)[0] / math.sqrt(CK), v[0])
    torch.testing.assert_close(memory.read(q, e)[0].flatten(2), expected, rtol=1e-4, atol=1e-5)
    assert memory.config.top_k is None


def test_dot_products_in_blocks_with_top_k_and_usage(monkeypatch):
    from xmemk.evaluation import policies

    key, _, value, _ = frame(3)
    k, v, q = key.flatten(2), value.flatten(3), frame(4)[0].flatten(2)
    whole, usage = read_by_dot_product(k, None, v, q, None, top_k=2, return_usage=True)
    monkeypatch.setattr(policies, "READ_BYTES", 4 * HW * 5)
    blocks, counted = read_by_dot_product(
        [k[..., :5], k[..., 5:]], None, [v[..., :5], v[..., 5:]], q, None, top_k=2, return_usage=True
    )
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(counted, usage)
    score = k[0].T @ q[0] / math.sqrt(CK)
    bar = score.topk(2, 0).values[-1]
    torch.testing.assert_close(whole[0], softmax_read(score.masked_fill(score < bar, -1e9), v[0]), rtol=1e-4, atol=1e-5)
    assert usage.sum().item() == pytest.approx(HW)


def test_without_long_term_memory_working_memory_grows_and_reads_as_xmem_does():
    memory = make_memory("no-long-term", CONFIG)
    k, s, v, _ = whole(filled(memory, 9))
    q, _, _, e = frame(100)
    expected = memory_read(k, s, v, q.flatten(2), e.flatten(2))
    torch.testing.assert_close(memory.read(q, e).flatten(3), expected, rtol=1e-4, atol=1e-5)
    assert memory.working_size == 9 * HW and isinstance(make_memory("xmem", CONFIG), Memory)


@pytest.mark.parametrize("policy", ["xmem-plain", "random", "random-plain", "kmeans", "kmeans-plain"])
def test_prototypes(policy):
    """The first consolidation, at four frames: 7 of 24 tokens of frames 1 and 2 are prototypes."""
    memory = make_memory(policy, CONFIG)
    added = filled(memory, 4)
    k, s, v, e = whole(added[1:3])
    store = memory.groups.buckets[0]
    pk, ps, pv = store.long_term.key, store.long_term.shrinkage, store.long_term_value
    assert pk.shape == (1, CK, 7) and pv.shape == (1, 2, CV, 7) and memory.working_size == 2 * HW
    if policy.startswith("kmeans"):
        expected, cluster = k_means(k, 7)
        torch.testing.assert_close(pk, expected)
        members = torch.nn.functional.one_hot(cluster[0], 7).float()
        means = [x[0] @ members / members.sum(0) for x in (s, v, e)]
    else:
        index = (k[0, :, :, None] - pk[0, :, None]).abs().sum(0).argmin(0)
        assert torch.equal(k[:, :, index], pk) and len(set(index.tolist())) == 7
        if policy.startswith("random"):
            assert torch.equal(index, at_random(k, None, 7)[0])
        means = [x[0][..., index] for x in (s, v, e)]
    if policy.endswith("plain"):
        torch.testing.assert_close(ps[0], means[0])
        torch.testing.assert_close(pv[0], means[1])
    else:
        torch.testing.assert_close(pv, memory_read(k, s, v, pk, means[2][None]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ps, memory_read(k, s, s[:, None], pk, means[2][None])[:, 0], rtol=1e-4, atol=1e-5)


def test_xmem_plain_takes_the_prototypes_that_xmem_takes():
    ours, plain = reference.Memory(CONFIG), make_memory("xmem-plain", CONFIG)
    filled(ours, 4)
    filled(plain, 4)
    q, _, _, e = frame(100)
    a, b = ours.groups.buckets[0].long_term, plain.groups.buckets[0].long_term
    torch.testing.assert_close(a.key, b.key)
    assert not torch.allclose(ours.read(q, e), plain.read(q, e), atol=1e-3)


def test_random_candidates_are_all_different_and_the_same_again():
    keys = torch.randn(2, CK, 50)
    index = at_random(keys, None, 20)
    assert index.shape == (2, 20) and torch.equal(index, at_random(keys, None, 20))
    assert all(row.unique().numel() == 20 and int(row.max()) < 50 for row in index)
    assert not torch.equal(index[0], index[1]) and isinstance(SEED, int)
    assert torch.equal(at_random(keys, None, 50)[0], torch.arange(50))


def test_k_means_ends_where_lloyd_changes_nothing():
    """Each key is with the nearest centre, each centre is a mean, the error decreases."""
    g = torch.Generator().manual_seed(2)
    places = 10 * torch.randn(CK, 4, generator=g)
    keys = (places[:, torch.arange(60) % 4] + 0.5 * torch.randn(CK, 60, generator=g))[None]
    centres, cluster = k_means(keys, 6)
    distance = torch.cdist(keys.transpose(1, 2), centres.transpose(1, 2))
    assert torch.equal(distance.argmin(2), cluster) and cluster.unique().numel() == 6
    for i in range(6):
        torch.testing.assert_close(centres[0, :, i], keys[0][:, cluster[0] == i].mean(1))
    start = keys[..., at_random(keys, None, 6)[0]].transpose(1, 2)
    assert distance.amin(2).square().sum() < 0.9 * torch.cdist(keys.transpose(1, 2), start).amin(2).square().sum()


def test_k_means_of_fewer_places_than_centres_has_no_empty_cluster():
    keys = torch.zeros(1, CK, 9)
    keys[..., 4:] = 1
    centres, cluster = k_means(keys.half(), 5)
    assert cluster.unique().numel() == 5 and bool(centres.isfinite().all()) and centres.dtype == torch.float16


def test_a_thinned_memory_keeps_the_first_the_last_and_an_even_choice():
    memory = ThinnedMemory(CONFIG, read_by_l2, frames=5)
    for count in range(1, 40):
        key, shrinkage, value, _ = frame(count)
        memory.add(key, shrinkage, value, (1, 2))
        (numbers,) = memory.numbers
        assert numbers[0] == 0 and numbers[-1] == count - 1 and len(numbers) == min(count, 5)
    gaps = [b - a for a, b in pairwise(numbers)]
    assert max(gaps[:-1]) <= 2 * min(gaps[:-1]) and gaps[-1] <= max(gaps)


def test_a_thinned_memory_reads_the_frames_that_it_keeps():
    memory = ThinnedMemory(CONFIG, read_by_l2, frames=3)
    added = filled(memory, 8)
    k, _, v, _ = whole([added[i] for i in memory.numbers[0]])
    q, _, _, e = frame(100)
    expected = memory_read(k, None, v, q.flatten(2), None)
    torch.testing.assert_close(memory.read(q, e).flatten(3), expected, rtol=1e-4, atol=1e-5)
    assert make_memory("stcn-subsampled", CONFIG).frames == make_memory("stm", CONFIG).frames == 50


@pytest.mark.parametrize("policy", POLICIES)
def test_objects_join_and_leave(policy):
    """An object is read as if it were alone, over the frames since it joined, with every policy."""
    memory, alone = make_memory(policy, CONFIG), make_memory(policy, CONFIG)
    frames = [frame(i, 3) for i in range(6)]
    for i, (key, shrinkage, value, selection) in enumerate(frames):
        labels = [4, 2] if i < 3 else [4, 2, 9]
        selection = selection if memory.config.enable_long_term else None
        memory.add(key, shrinkage, value[:, : len(labels)], labels, selection)
        if i >= 3:
            alone.add(key, shrinkage, value[:, 2:], [9], selection)
    q, _, _, e = frame(100)
    assert memory.objects == (4, 2, 9)
    readout = memory.read(q, e)
    assert readout.shape == (1, 3, CV, H, W)
    torch.testing.assert_close(readout[:, 2:], alone.read(q, e))
    memory.remove([4])
    assert memory.objects == (2, 9)
    torch.testing.assert_close(memory.read(q, e), readout[:, 1:])
    with pytest.raises(ValueError, match="objects"):
        memory.remove([4])
    with pytest.raises(ValueError, match="objects"):
        memory.add(q, frames[0][1], frames[0][2][:, :1], [2], e if memory.config.enable_long_term else None)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"policy: wanted one of xmem, .*, got 'aot'"):
        make_memory("aot", CONFIG)
    with pytest.raises(ValueError, match="frames: wanted at least 2, the first and the last, got 1"):
        ThinnedMemory(CONFIG, read_by_l2, frames=1)
    with pytest.raises(RuntimeError, match="the memory is empty"):
        make_memory("stm", CONFIG).read(frame(0)[0])
