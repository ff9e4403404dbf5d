"""The Triton kernels of the top-k read, under Triton's interpreter, against the float64 oracle."""

import itertools
from unittest import mock

import pytest
import torch
from interpreter import interpreted

import xmemk
from xmemk.inputs import MemoryInputs, QueryInputs
from xmemk.testing import compare_read, compare_topk, compare_usage, make_inputs


def parts(x, cuts):
    return list(x.split([b - a for a, b in itertools.pairwise(cuts)], dim=-1))


def prepared(x, pad=64):
    """Memory and queries as the kernels take them, and their split operands."""
    from xmemk.kernels import split_operands, structs

    memory = structs.segments(MemoryInputs([x.mk], [x.ms], []))
    queries = structs.query_args(QueryInputs(x.qk, x.qe))
    return memory, queries, split_operands.prepare(memory, queries, pad)


def check(x, k):
    weight, index, usage = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=k, return_usage=True, backend="triton")
    compare_topk(x, weight, index, k).check()
    compare_usage(x, usage, min(k, x.mk.shape[2])).check()
    assert (weight.diff(dim=2) <= 0).all()
    return weight, index, usage


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_agree_with_the_oracle_in_every_dtype(dtype):
    x = make_inputs(200, 3, objects=2, value_channels=33, dtype=dtype)
    readout, usage = xmemk.memory_read(*x.read, top_k=5, return_usage=True, backend="triton")
    assert readout.dtype == dtype
    assert readout.stride(2) == 1
    compare_read(x, readout, usage, top_k=5).check()


@interpreted
@pytest.mark.parametrize(
    ("n", "q", "k", "more"),
    [
        (1, 1, 1, {}),
        (37, 3, 30, {"batch": 2}),
        (530, 2, 1, {"shrinkage": False, "key_channels": 17}),
        (700, 2, 7, {"selection": False, "token_major": False, "batch": 2, "key_channels": 33}),
        (300, 1, 256, {"key_channels": 100}),
        (40, 2, 256, {}),
    ],
)
def test_affinity_agrees_with_the_oracle(n, q, k, more):
    check(make_inputs(n, q, value_channels=1, seed=n, **more), k)


@interpreted
def test_the_same_bits_every_time():
    x = make_inputs(90, 3, key_channels=16, value_channels=3, dtype=torch.float16)
    first, again = (xmemk.memory_read(*x.read, top_k=4, return_usage=True, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


@interpreted
@pytest.mark.parametrize("uncertified", [None, 70, 130])
def test_group_maxima_of_several_blocks(uncertified):
    from xmemk.kernels import configs
    from xmemk.kernels.ops import affinity_topk_groups as groups

    x = make_inputs(600, 140, batch=2, key_channels=6, value_channels=1)
    if uncertified is not None:  # one block of queries is scored by the direct form
        x.qe[1, 0, uncertified] = -0.01
    config = configs.of("split_maxima", x.qk)
    memory, queries, operands = prepared(x, config["BLOCK_N"] * groups.GROUP)
    got = [groups.group_maxima(operands, memory, queries, *span, config) for span in ((0, 128), (128, 12))]
    score = xmemk.reference.similarity(*(None if t is None else t.double() for t in (x.mk, x.ms, x.qk, x.qe)))
    score = torch.nn.functional.pad(score, (0, 0, 0, 608 - 600), value=-float("inf"))
    wanted = score.unflatten(1, (-1, groups.GROUP)).amax(2).transpose(1, 2)
    torch.testing.assert_close(torch.cat(got, 1)[..., :38].double(), wanted, atol=1e-4, rtol=1e-6)


@interpreted
@pytest.mark.parametrize("cuts", [(0, 600), (0, 0, 250, 250, 600), (0, 1, 2, 300, 301, 599, 600)])
def test_segments_are_one_memory(cuts):
    x = make_inputs(600, 2, objects=2, key_channels=16, value_channels=5)
    whole = xmemk.memory_read(*x.read, top_k=4, return_usage=True, backend="triton")
    mk, ms, mv = (parts(t, cuts) for t in (x.mk, x.ms, x.mv))
    cut = xmemk.memory_read(mk, ms, mv, x.qk, x.qe, top_k=4, return_usage=True, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(whole, cut))


@interpreted
def test_equal_scores_go_to_the_lowest_index():
    # Integers, whose scores are exact: many equal ones within groups, across them and at rank k.
    g = torch.Generator().manual_seed(0)
    mk = torch.randint(-1, 2, (1, 6, 600), generator=g).float()
    qk = torch.randint(-1, 2, (1, 6, 4), generator=g).float()
    for keys, k in ((mk, 3), (mk, 20), (torch.ones_like(mk), 5), (mk.sort(dim=2).values, 7)):
        score = xmemk.reference.similarity(keys.double(), None, qk.double(), None)
        wanted = score.sort(dim=1, descending=True, stable=True).indices[:, :k].transpose(1, 2)
        assert torch.equal(xmemk.affinity_topk(keys, None, qk, None, top_k=k, backend="triton")[1], wanted)


@interpreted
@pytest.mark.parametrize("descending", [False, True])
def test_a_sorted_memory_is_no_harder(descending):
    x = make_inputs(300, 2, key_channels=16, value_channels=1, shrinkage=False)
    score = xmemk.reference.similarity(x.mk, None, x.qk[..., :1], x.qe[..., :1])[0, :, 0]
    x.mk = x.mk[..., score.argsort(descending=descending)]
    check(x, 9)


@interpreted
def test_what_is_not_finite_is_never_read():
    x = make_inputs(600, 4, key_channels=8, value_channels=3)
    x.mk[0, 3, 77], x.mk[0, :, 200], x.mk[0, 0, 3] = 1e30, float("nan"), float("inf")
    x.ms[0, 0, 300], x.ms[0, 0, 301] = float("inf"), float("nan")
    x.qk[0, 5, 3] = float("nan")
    got = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=5, return_usage=True, backend="triton")
    wanted = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=5, return_usage=True, backend="torch")
    assert got[0][0, 3].isnan().all()
    assert torch.equal(got[1][:, :3], wanted[1][:, :3])
    torch.testing.assert_close(got[0], wanted[0], atol=1e-6, rtol=1e-5, equal_nan=True)
    torch.testing.assert_close(got[2], wanted[2], atol=1e-6, rtol=1e-5)
    assert got[2][0, [200, 3, 300, 301]].sum() == 0


@interpreted
def test_slots_without_a_token_repeat_the_best_with_weight_0():
    x = make_inputs(50, 2, value_channels=1)
    x.mk[..., 3:] = float("nan")
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=5, backend="triton")
    assert (weight[..., 3:] == 0).all()
    assert torch.equal(index[..., 3:], index[..., :1].expand(-1, -1, 2))
    x.mk[:] = float("nan")
    assert xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=5, backend="triton")[0].isnan().all()


@interpreted
@pytest.mark.parametrize("case", ["far key", "query at the centre", "negative selection", "tiny", "huge"])
def test_numbers_beyond_float16_are_scored_by_the_direct_form(case):
    x = make_inputs(140, 3, key_channels=8, value_channels=1)
    if case == "far key":
        x.mk[0, 3, 77] = 1e4
    elif case == "query at the centre":
        x.qk[..., 1] = prepared(x)[2].center[:, :8]
    elif case == "negative selection":
        x.qe[0, :2] *= -0.1
    else:
        for t in (x.mk, x.qk):
            t *= 1e-12 if case == "tiny" else 1e12
        if case == "huge":
            x.qe *= 1e-24
    operands = prepared(x)[2]
    assert operands.fallback_memory.any() or operands.fallback_queries.any()
    check(x, 6)


@interpreted
def test_certified_scores_stay_within_float32():
    # Queries far beyond the keys, with the largest shrinkage that is certified: what decides is the
    # shrinkage, which scores of -inf would hide.
    x = make_inputs(600, 2, key_channels=8, value_channels=1)
    x.qk *= 1e19
    x.ms = 1e17 * (1 + torch.rand(1, 1, 600, generator=torch.Generator().manual_seed(0)))
    x.ms[0, 0, 555:560] = 0.5e17
    index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe * 1e-20, top_k=5, backend="triton")[1]
    assert index.sort(2).values.tolist() == [[[555, 556, 557, 558, 559]] * 2]


@interpreted
@pytest.mark.parametrize("c", [1e18, 2e19])
def test_eq_2_is_read_as_written_where_its_expansion_overflows(c):
    far = torch.arange(40) >= 15
    mk = torch.where(far, -c, c) * torch.ones(1, 1, 40)
    mv = torch.where(far, -1.0, torch.arange(40.0)).view(1, 1, 1, 40)
    qk = torch.full((1, 1, 3), c)
    for top_k, wanted in ((2, 0.5), (15, 7.0), (None, 7.0)):
        readout = xmemk.memory_read(mk, None, mv, qk, None, top_k=top_k, backend="triton")
        torch.testing.assert_close(readout, torch.full((1, 1, 1, 3), wanted))


@interpreted
def test_most_numbers_are_certified():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = make_inputs(600, 200, value_channels=1, dtype=dtype, batch=2)
        x.mk[:, :, 5] = float("nan")
        operands = prepared(x)[2]
        assert not operands.fallback_memory.any()
        assert not operands.fallback_queries.any()


@interpreted
def test_groups_of_groups():
    from xmemk.kernels.ops import affinity_topk_groups as groups
    from xmemk.kernels.structs import encode

    maxima = torch.randn(1, 2, 300, generator=torch.Generator().manual_seed(0))
    maxima[..., 100:200] = maxima[..., :100]
    wanted = maxima.sort(dim=2, descending=True, stable=True).indices[..., :9].sort(dim=2).values
    assert torch.equal(groups.candidate_groups(maxima, 9, encode(4800)).long(), wanted)
    # Of so few that there are not as many groups of groups as are chosen.
    few = maxima[..., :20].sort(dim=2, descending=True, stable=True).indices[..., :9].sort(dim=2).values
    assert torch.equal(groups.candidate_groups(maxima, 9, encode(20 * groups.GROUP)).long(), few)
    with mock.patch.object(groups, "WIDEST", 4):
        assert torch.equal(groups.candidate_groups(maxima, 9, encode(4800)).long(), wanted)
        # What lies behind the last token, here in the 260th group, does not matter.
        wanted = maxima[..., :260].sort(dim=2, descending=True, stable=True).indices[..., :9].sort(dim=2).values
        maxima[..., 260:] = float("inf")
        end = torch.tensor([260 * groups.GROUP - 3])
        assert torch.equal(groups.candidate_groups(maxima, 9, end).long(), wanted)


@interpreted
def test_queries_in_turns():
    from xmemk.kernels.ops import affinity_topk

    x = make_inputs(40, 131, key_channels=8, value_channels=1, dtype=torch.float16)
    with mock.patch.object(affinity_topk, "MAXIMA_BYTES", 1):
        weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=2, backend="triton")
    compare_topk(x, weight, index, 2).check()


@interpreted
def test_usage_is_exact_in_any_order():
    from xmemk.kernels.ops import affinity_topk_usage as usages

    x = make_inputs(40, 3, value_channels=1)
    for t in (x.mk, x.qk):
        t *= 3
    _, _, got = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=30, return_usage=True, backend="triton")
    flip = [t.flip(2) for t in (x.qk, x.qe)]
    _, _, turned = xmemk.affinity_topk(x.mk, x.ms, *flip, top_k=30, return_usage=True, backend="triton")
    assert torch.equal(got, turned)
    assert 0 < got[got > 0].min() < 1e-20
    compare_usage(x, got, 30).check()
    for q in (1, 1620, 1 << 20):  # the largest sum there can be fits
        assert q << usages.usage_bits(q) < 1 << 63


@interpreted
def test_readout_of_given_weights():
    g = torch.Generator().manual_seed(1)
    mv = torch.randn(2, 3, 19, 70, generator=g)
    weight = torch.rand(2, 5, 6, generator=g)
    index = torch.randint(0, 70, (2, 5, 6), generator=g)
    wanted = xmemk.reference.readout_topk(mv.double(), weight.double(), index)
    for values in (mv, parts(mv, (0, 0, 30, 70)), mv.movedim(3, 1).contiguous().movedim(1, 3)):
        got = xmemk.readout_topk(values, weight, index, backend="triton")
        torch.testing.assert_close(got.double(), wanted, atol=1e-6, rtol=1e-6)
    index[1, 2, 3] = 70
    with pytest.raises(IndexError, match="N = 70"):
        xmemk.readout_topk(mv, weight, index, backend="triton")
