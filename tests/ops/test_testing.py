"""Sabotage: known-wrong results must be rejected by the comparators, and right ones accepted."""

import math

import pytest
import torch

from xmemk import reference
from xmemk.testing import compare_close, compare_consolidate, compare_read, compare_topk, compare_usage, make_inputs

K = 30


@pytest.fixture(scope="module", params=[torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def x(request):
    return make_inputs(400, 60, objects=2, value_channels=16, batch=2, dtype=request.param)


def truth(x, top_k=K, **changed):
    """The oracle's answer to altered arguments, in the dtype a backend would answer in."""
    e = x.double()
    arguments = {name: getattr(e, name) for name in ("mk", "ms", "mv", "qk", "qe")} | changed
    readout, usage = reference.memory_read(**arguments, top_k=top_k, return_usage=True)
    return readout.to(x.mv.dtype), usage.to(x.ms.dtype)


def rejected(x, readout, usage, top_k=K):
    return not compare_read(x, readout, top_k=top_k).passed, not compare_usage(x, usage, top_k).passed


@pytest.mark.parametrize("top_k", [None, 1, K, 1000])
def test_the_truth_is_accepted(x, top_k):
    assert rejected(x, *truth(x, top_k), top_k) == (False, False)


@pytest.mark.parametrize("distance", [300.0, 3000.0])
def test_one_far_token_blinds_no_comparator(distance):
    x = make_inputs(400, 60, value_channels=16)
    x.mk[..., 7] += distance
    assert rejected(x, *truth(x)) == (False, False)
    assert rejected(x, *truth(x, K - 1)) == (True, True)
    assert rejected(x, *truth(x, ms=None)) == (True, True)
    assert rejected(x, *truth(x, qe=None)) == (True, True)


def test_consolidations():
    x = make_inputs(200, 1, objects=2, value_channels=8, batch=2)
    right = reference.consolidate(x.mk, x.ms, x.me, x.mv, x.usage, 9)
    assert compare_consolidate(x, 9, *right).passed
    for wrong in (
        reference.consolidate(x.mk, x.ms, None, x.mv, x.usage, 9),
        reference.consolidate(x.mk, None, x.me, x.mv, x.usage, 9),
        reference.consolidate(x.mk, x.ms, x.me, x.mv.flip(1), x.usage, 9),
        reference.consolidate(x.mk, x.ms, x.me, x.mv, x.usage.flip(1), 9),
        (right[0], right[1] * 1.001, right[2]),
        (right[0].flip(2), right[1], right[2]),
        tuple(t[..., :-1] for t in right),
    ):
        assert not compare_consolidate(x, 9, *wrong).passed


def test_shrinkage_dropped(x):
    assert rejected(x, *truth(x, ms=None)) == (True, True)


def test_selection_dropped(x):
    assert rejected(x, *truth(x, qe=None)) == (True, True)


def test_scale_dropped(x):
    assert rejected(x, *truth(x, ms=x.ms.double() * math.sqrt(64))) == (True, True)


@pytest.mark.parametrize("wrong_k", [K - 1, K + 1])
def test_k_off_by_one(x, wrong_k):
    if x.mk.dtype == torch.bfloat16:  # the 30th weight is below one rounding of the result; usage and affinity tell
        assert rejected(x, *truth(x, wrong_k))[1]
    else:
        assert rejected(x, *truth(x, wrong_k)) == (True, True)


def test_last_token_masked_off_by_one(x):
    # One query looks for the last token, which a mask off by one hides.
    x.qk[..., 0] = x.mk[..., -1]
    cut = {name: getattr(x.double(), name)[..., :-1] for name in ("mk", "ms", "mv")}
    readout, usage = truth(x, **cut)
    usage = torch.nn.functional.pad(usage, (0, 1))
    assert rejected(x, readout, usage) == (True, True)


def test_values_of_the_neighbour_or_of_another_object(x):
    readout, usage = truth(x, mv=x.mv.double().roll(1, -1))
    assert rejected(x, readout, usage)[0]
    readout, _ = truth(x)
    assert rejected(x, readout.flip(1), usage)[0]


def test_one_query_wrong(x):
    readout, usage = truth(x)
    readout = readout.clone()
    readout[1, :, :, 17] = readout[1, :, :, 16]
    assert rejected(x, readout, usage) == (True, False)


def test_stale_usage(x):
    readout, usage = truth(x)
    assert rejected(x, readout, 2 * usage) == (False, True)  # added to what was there
    assert rejected(x, readout, usage.roll(1, 1)) == (False, True)
    assert rejected(x, readout, torch.zeros_like(usage)) == (False, True)


def test_nan_and_wrong_shapes(x):
    readout, usage = truth(x)
    readout, usage = readout.clone(), usage.clone()
    readout[0, 0, 0, 0] = math.nan
    usage[0, 0] = math.nan
    assert rejected(x, readout, usage) == (True, True)
    assert rejected(x, readout[..., :-1], usage[:, :-1]) == (True, True)


def affinity(x, k=K, **changed):
    e = x.double()
    arguments = {name: getattr(e, name) for name in ("mk", "ms", "qk", "qe")} | changed
    return reference.affinity_topk(**arguments, top_k=k)


def test_affinities(x):
    weight, index = affinity(x)
    assert compare_topk(x, weight, index, K).passed
    assert not compare_topk(x, weight[..., :-1], index[..., :-1], K).passed
    assert not compare_topk(x, weight.flip(2), index, K).passed
    assert not compare_topk(x, weight * 1.01, index, K).passed
    twice = index.clone()
    twice[0, 0, 1] = twice[0, 0, 0]
    assert not compare_topk(x, weight, twice, K).passed
    assert not compare_topk(x, *affinity(x, ms=None), K).passed
    wider, rank = affinity(x, K + 1)
    skipped = torch.cat([wider[..., : K - 1], wider[..., K:]], 2), torch.cat([rank[..., : K - 1], rank[..., K:]], 2)
    assert not compare_topk(x, *skipped, K).passed


def test_a_choice_within_the_rounding_of_scores_is_accepted():
    # Tokens in pairs that no float32 score tells apart, k = 1: either of a pair is right, and a
    # mixture of them is not told from it, but the value of a third token is.
    x = make_inputs(200, 50, value_channels=4)
    x.mk[..., 100:] = x.mk[..., :100]
    x.ms[..., 100:] = x.ms[..., :100]
    weight, index = reference.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=1)
    other = (index + 100) % 200
    assert compare_topk(x, weight, other, 1).passed
    readout = reference.readout_topk(x.mv, weight, other)
    assert compare_read(x, readout, top_k=1).passed
    third = reference.readout_topk(x.mv, weight, (index + 1) % 200)
    assert not compare_read(x, third, top_k=1).passed


def test_compare_close():
    a = torch.tensor([1.0, math.nan])
    assert compare_close("a", a, a.clone(), 0.0).passed
    assert not compare_close("a", a, torch.tensor([math.nan, 1.0]), 1.0).passed
    assert not compare_close("a", a, a[:1], 1.0).passed
    assert not compare_close("a", a + 1, a, 0.5).passed
    with pytest.raises(AssertionError, match=r"a: error 1, 2 times what is allowed"):
        compare_close("a", a + 1, a, 0.5).check()


def test_numbers_too_small_for_float32_may_be_flushed():
    x = make_inputs(60, 9, value_channels=4)
    x.mv = x.mv * 1e-42
    assert compare_read(x, torch.zeros(1, 1, 4, 9), top_k=5).passed


def test_usage_of_a_token_that_rank_k_leaves_open_is_as_inexact_as_its_score():
    x = make_inputs(3, 1, key_channels=1, value_channels=1, shrinkage=False, selection=False)
    x.mk, x.qk = torch.tensor([[[0.0, 7.0, 7.0]]]), torch.zeros(1, 1, 1)
    tiny = math.exp(-49)
    for error, passes in ((3e-6, True), (1e-3, False)):
        usage = torch.tensor([[1.0, 0.0, tiny * (1 + error)]])
        assert compare_usage(x, usage, 2).passed == passes
