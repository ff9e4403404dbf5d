"""The oracle's functions against figures worked out by hand."""

import math

import pytest
import torch

from xmemk import reference


def row(*numbers, dtype=torch.float64):
    """[1, 1, N]"""
    return torch.tensor([[numbers]], dtype=dtype)


def test_similarity_is_equation_2():
    # CK = 4, so 1/sqrt(CK) = 1/2. Differences (1, 2, 0, 3), squared 1, 4, 0, 9; e = (1, 1/2, 1, 0):
    # 1 + 2 = 3; s = 4.
    mk = torch.tensor([[[1.0], [2.0], [5.0], [3.0]]], dtype=torch.float64)
    qk = torch.tensor([[[0.0], [0.0], [5.0], [0.0]]], dtype=torch.float64)
    qe = torch.tensor([[[1.0], [0.5], [1.0], [0.0]]], dtype=torch.float64)
    assert reference.similarity(mk, row(4.0), qk, qe).item() == -4 * 3 / 2
    assert reference.similarity(mk, None, qk, qe).item() == -3 / 2
    assert reference.similarity(mk, row(4.0), qk, None).item() == -4 * 14 / 2


def test_dense_read_is_the_softmax_average():
    # Scores 0 and -log 3: weights 3/4 and 1/4.
    mk, qk = row(0.0, math.sqrt(math.log(3))), row(0.0)
    mv = torch.tensor([[[[8.0, 4.0]], [[0.0, 1.0]]]], dtype=torch.float64)  # O = 2, CV = 1
    readout, usage = reference.memory_read(mk, None, mv, qk, None, return_usage=True)
    assert torch.allclose(readout, torch.tensor([[[[7.0]], [[0.25]]]], dtype=torch.float64))
    assert torch.allclose(usage, torch.tensor([[0.75, 0.25]], dtype=torch.float64))


def test_top_k_keeps_the_k_most_similar():
    mk = row(3.0, 0.0, math.sqrt(math.log(3)), -4.0)
    weight, index, usage = reference.affinity_topk(mk, None, row(0.0), None, top_k=2, return_usage=True)
    assert index.tolist() == [[[1, 2]]]
    assert torch.allclose(weight, torch.tensor([[[0.75, 0.25]]], dtype=torch.float64))
    assert torch.allclose(usage, torch.tensor([[0, 0.75, 0.25, 0]], dtype=torch.float64))
    mv = torch.tensor([[[[100.0, 8.0, 4.0, 100.0]]]], dtype=torch.float64)
    assert reference.memory_read(mk, None, mv, row(0.0), None, top_k=2).item() == pytest.approx(7)
    assert reference.readout_topk(mv, weight, index).item() == pytest.approx(7)


@pytest.mark.parametrize("top_k", [3, 4, 100])
def test_k_of_n_or_more_means_all(top_k):
    mk, mv = row(1.0, 2.0, 0.5), torch.tensor([[[[1.0, 2.0, 3.0]]]], dtype=torch.float64)
    all_of_them = reference.memory_read(mk, None, mv, row(0.0), None)
    assert torch.equal(reference.memory_read(mk, None, mv, row(0.0), None, top_k=top_k), all_of_them)
    weight, index = reference.affinity_topk(mk, None, row(0.0), None, top_k=top_k)
    assert index.tolist() == [[[2, 0, 1]]]
    assert weight.sum() == pytest.approx(1)


def test_ties_at_rank_k_go_to_the_lowest_index():
    mk = row(1.0, -1.0, 0.0, 1.0, -1.0)
    _, index = reference.affinity_topk(mk, None, row(0.0), None, top_k=3)
    assert index.tolist() == [[[2, 0, 1]]]


def test_scores_that_all_underflow_still_read():
    # The original divides 0 by 0 here: exp(-1e4) is 0 without subtracting the maximum.
    mk = row(100.0, 101.0)
    mv = torch.tensor([[[[5.0, 7.0]]]], dtype=torch.float64)
    assert reference.memory_read(mk, None, mv, row(0.0), None, top_k=1).item() == 5
    assert reference.memory_read(mk, None, mv, row(0.0), None).item() == pytest.approx(5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_key_that_is_not_finite_is_never_read(bad, top_k):
    mk = row(0.5, bad, 0.25, 9.0)
    mv = torch.tensor([[[[1.0, 1e9, 2.0, 3.0]]]], dtype=torch.float64)
    readout, usage = reference.memory_read(mk, None, mv, row(0.0), None, top_k=top_k, return_usage=True)
    keep = [0, 2, 3]
    expected, used = reference.memory_read(
        mk[..., keep], None, mv[..., keep], row(0.0), None, top_k=top_k, return_usage=True
    )
    assert torch.equal(readout, expected)
    assert usage[0, 1] == 0
    assert torch.equal(usage[:, keep], used)


def test_slots_left_over_repeat_the_best_token_with_weight_0():
    weight, index = reference.affinity_topk(row(math.nan, 1.0, math.nan), None, row(0.0), None, top_k=2)
    assert weight.tolist() == [[[1.0, 0.0]]]
    assert index.tolist() == [[[1, 1]]]


def test_a_query_that_is_not_finite_reads_nan_and_is_not_used():
    mk, mv = row(0.0, 1.0), torch.tensor([[[[1.0, 2.0]]]], dtype=torch.float64)
    for top_k in (None, 1):
        readout, usage = reference.memory_read(mk, None, mv, row(math.nan, 0.0), None, top_k=top_k, return_usage=True)
        assert readout.isnan().flatten().tolist() == [True, False]
        assert usage.sum() == pytest.approx(1)


def test_an_empty_memory_cannot_be_read():
    with pytest.raises(ValueError, match="the memory is empty"):
        reference.memory_read(row(), None, torch.zeros(1, 1, 1, 0), row(1.0), None)


def test_segments_are_one_memory():
    g = torch.Generator().manual_seed(1)
    mk, ms, mv = (torch.rand(1, *s, 9, generator=g, dtype=torch.float64) for s in ((3,), (1,), (2, 4)))
    qk, qe = (torch.rand(1, 3, 5, generator=g, dtype=torch.float64) for _ in range(2))
    whole = reference.memory_read(mk, ms, mv, qk, qe, top_k=4)
    parts = [[x[..., :2], x[..., 2:2], x[..., 2:]] for x in (mk, ms, mv)]
    assert torch.equal(reference.memory_read(*parts, qk, qe, top_k=4), whole)


def test_prototypes_by_usage_then_lowest_index_then_nan():
    usage = torch.tensor([[1.0, math.nan, 3.0, 0.0, 3.0, -math.inf, -0.0, math.nan]])
    assert reference.select_prototypes(usage, 8).tolist() == [[2, 4, 0, 3, 6, 5, 1, 7]]
    assert reference.select_prototypes(usage, 3).tolist() == [[2, 4, 0]]
    assert reference.select_prototypes(usage, 0).shape == (1, 0)


def test_eviction_takes_the_least_used_and_of_equals_the_oldest():
    usage = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0, math.nan]])
    survivors = [reference.evict_lfu(usage, keep).tolist()[0] for keep in range(7)]
    assert survivors == [[], [1], [1, 3], [1, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]


def test_consolidation_averages_with_the_softmax_around_each_prototype():
    # CK = 1. Candidates 0 and sqrt(log 3) apart; the prototype is the second (usage 5), its
    # selection 1: distances to it: log 3 and 0, with shrinkage 1: weights 1/4 and 3/4.
    mk = row(0.0, math.sqrt(math.log(3)))
    mv = torch.tensor([[[[8.0, 4.0]]]], dtype=torch.float64)
    pk, ps, pv = reference.consolidate(mk, row(1.0, 1.0), row(0.3, 1.0), mv, torch.tensor([[2.0, 5.0]]), 1)
    assert torch.equal(pk, mk[..., 1:])
    assert ps.item() == pytest.approx(1)
    assert pv.item() == pytest.approx(5)
    # The shrinkage is potentiated with the same weights: distance log 3 scaled by s = 2 gives
    # weights 1/10 and 9/10.
    _, ps, pv = reference.consolidate(mk, row(2.0, 6.0), row(0.3, 1.0), mv, torch.tensor([[2.0, 5.0]]), 1)
    assert ps.item() == pytest.approx(0.1 * 2 + 0.9 * 6)
    assert pv.item() == pytest.approx(0.1 * 8 + 0.9 * 4)


def test_consolidation_uses_the_prototypes_own_selection():
    mk = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    me = torch.tensor(
        [[[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64
    )  # the second token's selection sees no difference
    mv = torch.tensor([[[[0.0, 10.0]]]], dtype=torch.float64)
    _, _, pv = reference.consolidate(mk, row(1.0, 1.0), me, mv, torch.tensor([[0.0, 1.0]]), 1)
    assert pv.item() == pytest.approx(5)


@pytest.mark.parametrize("top_k", [None, 3])
def test_gradients_of_the_oracle(top_k):
    g = torch.Generator().manual_seed(2)

    def leaf(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64).requires_grad_()

    inputs = leaf(1, 3, 6), leaf(1, 1, 6), leaf(1, 2, 2, 6), leaf(1, 3, 4), leaf(1, 3, 4)
    assert torch.autograd.gradcheck(lambda *a: reference.memory_read(*a, top_k=top_k, return_usage=True), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: reference.memory_read(*a, top_k=top_k), inputs)
