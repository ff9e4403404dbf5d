"""The backward pass in C++ against the oracle's float64 gradients, and what only it promises."""

import itertools
import math

import pytest
import torch
from extension import needs_extension
from fresh import fresh
from gradient_rounding import NAMES, check_gradients, gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_sets import vector_sets

import xmemk
from xmemk.testing import Inputs, make_inputs

pytestmark = needs_extension

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def upstream(x, seed=1):
    b, o, cv, n = x.mv.shape
    g = torch.Generator().manual_seed(seed)
    d_readout = torch.randn(b, o, cv, x.qk.shape[2], generator=g).to(x.mv.dtype)
    return d_readout, torch.randn(b, n, generator=g)


def selection(x, top_k):
    if top_k is None or top_k >= x.mk.shape[2]:
        return None
    return xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=top_k, backend="cpu")[1]


def ours(x, top_k, upstream, backend="cpu", cut=lambda t: t):
    def read(mk, ms, mv, qk, qe):
        memory = (None if t is None else cut(t) for t in (mk, ms, mv))
        out = xmemk.memory_read(*memory, qk, qe, top_k=top_k, return_usage=len(upstream) == 2, backend=backend)
        return out if len(upstream) == 2 else (out,)

    return gradients(read, x, upstream)


def check(x, top_k, cut=lambda t: t):
    d = upstream(x)
    check_gradients(x, ours(x, top_k, d, cut=cut), *d, index=selection(x, top_k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("top_k", [None, 1, 7, 90, 200])
@pytest.mark.parametrize("token_major", [True, False])
@pytest.mark.parametrize("optional", [{}, {"shrinkage": False}, {"selection": False}], ids=str)
def test_gradients(dtype, top_k, token_major, optional):
    check(
        make_inputs(90, 70, objects=2, value_channels=33, batch=2, dtype=dtype, token_major=token_major, **optional),
        top_k,
    )


@pytest.mark.parametrize("top_k", [None, 30])
@pytest.mark.parametrize(
    ("n", "q", "objects", "value_channels"),
    [(1, 1, 1, 1), (1, 300, 1, 3), (700, 1, 1, 512), (257, 130, 5, 64), (1500, 90, 1, 16), (64, 64, 1, 64)],
)
def test_shapes(top_k, n, q, objects, value_channels):
    check(make_inputs(n, q, objects=objects, value_channels=value_channels), top_k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("top_k", [None, 30])
def test_more_queries_than_are_packed_together(dtype, top_k):
    check(make_inputs(150, 4500, key_channels=8, value_channels=4, dtype=dtype), top_k)
    check(make_inputs(80, 300, key_channels=8, objects=17, value_channels=512, dtype=dtype), top_k)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 150),
    q=st.integers(1, 150),
    batch=st.integers(1, 2),
    objects=st.integers(1, 3),
    key_channels=st.integers(1, 20),
    value_channels=st.integers(1, 40),
    top_k=st.none() | st.integers(1, 160),
    dtype=st.sampled_from(DTYPES),
    token_major=st.booleans(),
    at=st.lists(st.floats(0, 1), max_size=3),
)
def test_any_size(n, q, batch, objects, key_channels, value_channels, top_k, dtype, token_major, at):
    options = {"batch": batch, "objects": objects, "key_channels": key_channels, "value_channels": value_channels}
    x = make_inputs(n, q, dtype=dtype, token_major=token_major, **options)
    bounds = [0, *sorted(round(a * n) for a in at), n]
    check(x, top_k, cut=lambda t: [t[..., a:b] for a, b in itertools.pairwise(bounds)])


@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_keys_far_from_zero(top_k, offset):
    x = make_inputs(300, 80, value_channels=16)
    x.mk, x.qk = x.mk + offset, x.qk + offset
    check(x, top_k)


@pytest.mark.parametrize("top_k", [None, 7])
def test_queries_far_from_every_key(top_k):
    # Their scores are below -100, and the last tile of tokens is not full.
    x = make_inputs(70, 65, value_channels=8)
    x.qk = x.qk + 5
    check(x, top_k)


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_gradients_of_sharp_reads_are_as_exact_as_plain_ones(scale, mean):
    x = make_inputs(1500, 200, value_channels=128, seed=3)
    x.mk, x.qk, x.mv = x.mk * scale, x.qk * scale, x.mv + mean
    d = torch.randn(1, 1, 128, 200, generator=torch.Generator().manual_seed(1))
    exact = gradients(lambda *a: xmemk.reference.memory_read(*a), x.double(), (d.double(),))

    def error(backend):
        got = gradients(lambda *a: xmemk.memory_read(*a, backend=backend), x, (d,))
        return {name: float((got[name] - exact[name]).square().mean().sqrt()) for name in exact}

    cpu, plain = error("cpu"), error("torch")
    assert all(cpu[name] <= 2.5 * plain[name] for name in exact), (cpu, plain)


def test_saved_numbers_of_any_strides():
    x = make_inputs(60, 9, objects=2, value_channels=6)
    memory = [x.mk], [x.ms], [x.mv], x.qk, x.qe
    readout, _, softmax, index = torch.ops.xmemk.memory_read_saving(*memory, None, False)
    strided = softmax.transpose(1, 2).contiguous().transpose(1, 2)
    given = [
        torch.ops.xmemk.memory_read_backward(*memory, readout, s, index, upstream(x)[0], None, [True] * 5)
        for s in (softmax, strided)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*given))


@pytest.mark.parametrize("top_k", [None, 7])
def test_readout_alone_and_usage_alone(top_k):
    x = make_inputs(90, 40, objects=2, value_channels=9)
    d_readout, d_usage = upstream(x)
    index = selection(x, top_k)
    check_gradients(x, ours(x, top_k, (d_readout,)), d_readout, index=index)

    def usage(*a):
        return xmemk.memory_read(*a, top_k=top_k, return_usage=True, backend="cpu")[1]

    alone = gradients(usage, x, d_usage)
    check_gradients(x, alone, torch.zeros_like(d_readout), d_usage, index)
    assert (alone["mv"] == 0).all()


@pytest.mark.parametrize("top_k", [None, 7])
def test_upstream_gradients_of_any_strides(top_k):
    x = make_inputs(90, 70, objects=3, value_channels=20, batch=2)
    d_readout, _ = upstream(x)
    layouts = [
        d_readout.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        d_readout.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        torch.cat([d_readout, d_readout], 3)[..., ::2][..., :70],
        d_readout[..., :1].expand(-1, -1, -1, 70),
        d_readout[:1, :1, :1, :1].expand_as(d_readout),
    ]
    for d in layouts:
        check_gradients(x, ours(x, top_k, (d,)), d, index=selection(x, top_k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("top_k", [None, 20])
@pytest.mark.parametrize(("n", "q"), [(3000, 150), (1100, 3), (130, 1000)])
def test_bit_for_bit_the_same_for_any_number_of_threads(threads, dtype, top_k, n, q):
    x = make_inputs(n, q, objects=2, value_channels=32, dtype=dtype)
    d = upstream(x)
    results = []
    for count in (1, 2, 3, 8, 64):
        threads(count)
        results.append(ours(x, top_k, d))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in NAMES)


@pytest.mark.parametrize("name", vector_sets())
@pytest.mark.parametrize("top_k", [None, 30])
def test_every_vector_set(pin, name, top_k):
    pin(name)
    check(make_inputs(301, 90, objects=2, value_channels=37), top_k)
    check(make_inputs(301, 90, value_channels=37, dtype=torch.float16), top_k)


@pytest.mark.parametrize("top_k", [None, 7])
def test_only_what_is_wanted_is_computed(top_k):
    x = make_inputs(200, 40, objects=2, value_channels=8)
    whole = ours(x, top_k, upstream(x))

    def cut(t):
        return [t[..., :70], t[..., 70:70], t[..., 70:]]

    given = [[t.detach().requires_grad_() for t in cut(m)] for m in (x.mk, x.ms, x.mv)]
    query = [x.qk.detach().requires_grad_(), x.qe.detach().requires_grad_()]
    leaves = {"mk": given[0], "ms": given[1], "mv": given[2], "qk": query[:1], "qe": query[1:]}
    everything = [t for group in leaves.values() for t in group]
    all_at_once = None
    for wanted in (everything, *leaves.values(), [given[0][2], given[2][0]], [given[1][0], query[1]]):
        for t in everything:
            t.requires_grad_(any(t is w for w in wanted))
        out = xmemk.memory_read(*given, *query, top_k=top_k, return_usage=True, backend="cpu")
        got = torch.autograd.grad(out, wanted, upstream(x))
        all_at_once = all_at_once or dict(zip(map(id, everything), got))
        assert all(torch.equal(g, all_at_once[id(w)]) for g, w in zip(got, wanted))
    for name, group in leaves.items():
        together = torch.cat([all_at_once[id(t)] for t in group], -1)
        torch.testing.assert_close(together, whole[name], rtol=1e-4, atol=1e-4 * float(whole[name].abs().max()))


def same_places(got, plain):
    for name in got:
        assert torch.equal(got[name].isnan(), plain[name].isnan()), name
        torch.testing.assert_close(got[name], plain[name], rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)


@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_cannot_be_read_is_as_in_plain_pytorch(top_k, bad):
    x = make_inputs(100, 30, objects=2, value_channels=6, batch=2)
    x.mk[0, 2, 5] = bad
    x.ms[1, 0, 6:80] = bad
    d = upstream(x)
    got = ours(x, top_k, d)
    same_places(got, ours(x, top_k, d, backend="torch"))
    assert all(g.isfinite().all() for g in got.values())
    assert (got["mk"][0, :, 5] == 0).all()
    assert (got["ms"][1, 0, 6:80] == 0).all()
    x.qk[1, 4, 11] = bad  # a query without any finite score
    same_places(ours(x, top_k, d), ours(x, top_k, d, backend="torch"))


def test_fewer_readable_tokens_than_k():
    x = make_inputs(60, 9, value_channels=6)
    x.mk[..., 4:] = math.nan
    d = upstream(x)
    same_places(ours(x, 7, d), ours(x, 7, d, backend="torch"))


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("empty", ["B", "O", "CV", "Q"])
def test_nothing_to_differentiate(top_k, empty):
    sizes = {"B": 2, "O": 2, "CV": 5, "Q": 4} | {empty: 0}
    x = make_inputs(9, 4, batch=2, objects=2, value_channels=5)
    mk, ms, mv = x.mk[: sizes["B"]], x.ms[: sizes["B"]], x.mv[: sizes["B"], : sizes["O"], : sizes["CV"]]
    qk, qe = (t[: sizes["B"], :, : sizes["Q"]] for t in (x.qk, x.qe))
    y = Inputs(mk, ms, mv, qk, qe, mk, x.usage[: sizes["B"]])
    d = upstream(y)
    got, plain = ours(y, top_k, d), ours(y, top_k, d, backend="torch")
    for name, t in zip(NAMES, y.read):
        assert got[name].shape == t.shape
        torch.testing.assert_close(got[name], plain[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("top_k", [None, 5])
def test_operators_pass_opcheck(shrinkage, top_k):
    x = make_inputs(40, 7, objects=2, value_channels=5, batch=2, shrinkage=shrinkage)
    mk, mv = [x.mk[..., :9], x.mk[..., 9:]], [x.mv[..., :9], x.mv[..., 9:]]
    ms = [x.ms[..., :9], x.ms[..., 9:]] if shrinkage else []
    saved = torch.ops.xmemk.memory_read_saving(mk, ms, mv, x.qk, x.qe, top_k, True)
    wanted = [True, False] * (2 + len(ms) // 2) + [True, True]
    d_readout, d_usage = upstream(x)
    arguments = (mk, ms, mv, x.qk, x.qe, saved[0], *saved[2:], d_readout, d_usage, wanted)
    torch.library.opcheck(torch.ops.xmemk.memory_read_backward, arguments)
    for t in (*mk, *ms, *mv, x.qk, x.qe):
        t.requires_grad_()
    torch.library.opcheck(torch.ops.xmemk.memory_read_saving, (mk, ms, mv, x.qk, x.qe, top_k, True))


def test_the_operator_checks_what_it_is_given():
    x = make_inputs(20, 3, value_channels=2)
    backward = torch.ops.xmemk.memory_read_backward
    _, _, weight, index = torch.ops.xmemk.memory_read_saving([x.mk], [x.ms], [x.mv], x.qk, x.qe, 4, False)
    d = torch.ones(1, 1, 2, 3)
    read, wanted = ([x.mk], [x.ms], [x.mv], x.qk, x.qe, d), [True] * 5
    with pytest.raises(ValueError, match="d_readout"):
        backward(*read, weight, index, d[..., :2], None, wanted)
    with pytest.raises(ValueError, match="d_usage"):
        backward(*read, weight, index, d, torch.ones(1, 19), wanted)
    with pytest.raises(ValueError, match="weight"):
        backward(*read, weight[..., :2], index, d, None, wanted)
    with pytest.raises(ValueError, match="index"):
        backward(*read, weight, index.int(), d, None, wanted)
    with pytest.raises(ValueError, match="wanted"):
        backward(*read, weight, index, d, None, wanted[:4])
    with pytest.raises(ValueError, match="readout"):
        backward(*read[:5], d[:, :0], torch.ones(1, 2, 3), index[..., :0], d, None, wanted)
    with pytest.raises(IndexError, match=r"wanted 0 to 19 .*got 20"):
        backward(*read, weight, index.clone().fill_(20), d, None, wanted)


MEMORY = """
import torch, xmemk
from xmemk.measure.peak import Peak
from xmemk.testing import make_inputs
torch.set_num_threads(2)
x = make_inputs({n}, 1000, value_channels=64, dtype=torch.{dtype})
inputs = [t.requires_grad_() for t in x.read]
def step(x, inputs):
    readout, usage = xmemk.memory_read(*x, top_k={top_k}, return_usage=True, backend="cpu")
    return torch.autograd.grad((readout, usage), inputs, (torch.ones_like(readout), torch.ones_like(usage)))
few = [t[..., :100].detach().requires_grad_() for t in inputs]
step(few, few)
with Peak(torch.device("cpu")) as peak:
    gradients = step(inputs, inputs)
print(-1 if peak.bytes is None else peak.bytes - sum(g.numel() * g.element_size() for g in gradients))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("top_k", [None, 30])
def test_memory_beyond_the_gradients_does_not_grow_with_n_times_q(top_k, dtype):
    # 20,000 x 1,000 numbers of 4 bytes are 80 MB. The forward pass may pack 64 MB of keys and as
    # much of values.
    def extra(n):
        return int(fresh(MEMORY.format(n=n, top_k=top_k, dtype=dtype)))

    small, large = extra(5_000), extra(20_000)
    if small < 0:
        pytest.skip("resident memory cannot be measured here")
    assert large < 60e6
    assert large - small < 35e6
