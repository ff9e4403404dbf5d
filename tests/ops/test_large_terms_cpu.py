"""The C++ read where the expanded form of Eq. 2 overflows or cancels (csrc/cpu/direct_form.h).

Eq. 2 as written is the truth: the direct form in float64. What lies near a query is read, whatever
its coordinates are.
"""

import math

import pytest
import torch
from extension import needs_extension
from vector_sets import vector_sets

import xmemk

pytestmark = needs_extension

NEAR = 15


def far_clusters(c, n=40, queries=3, channels=1):
    """Most tokens, and so the median key, at -c; the first ones and the queries at c. Values are
    the number of the token.
    """
    at = torch.where(torch.arange(n) < NEAR, c, -c)
    mk = at.expand(1, channels, n).contiguous()
    mv = torch.arange(n).float().view(1, 1, 1, n)
    return mk, mv, torch.full((1, channels, queries), c)


@pytest.mark.parametrize("name", vector_sets())
@pytest.mark.parametrize("c", [1e3, 1e9, 1e15, 1e18, 2e19, 1e30, 3e38])
@pytest.mark.parametrize(("top_k", "mean"), [(5, 2.0), (NEAR, 7.0), (None, 7.0)])
def test_what_lies_at_a_query_is_read(pin, name, c, top_k, mean):
    pin(name)
    mk, mv, qk = far_clusters(c)
    readout, usage = xmemk.memory_read(mk, None, mv, qk, None, top_k=top_k, return_usage=True, backend="cpu")
    assert torch.allclose(readout, torch.tensor(mean))
    assert usage.sum().item() == pytest.approx(3)
    assert usage[0, NEAR:].abs().max() == 0


@pytest.mark.parametrize("c", [1e9, 2e19])
def test_a_large_memory_is_read_alike(c):
    n = 2600  # enough for a first look
    mk, mv, qk = far_clusters(c, n, 5, 16)
    for top_k, mean in ((5, 2.0), (NEAR, 7.0), (None, 7.0)):
        readout = xmemk.memory_read(mk, None, mv, qk, None, top_k=top_k, backend="cpu")
        assert torch.allclose(readout, torch.tensor(mean)), top_k


def test_large_tokens_leave_the_others_as_they_are():
    torch.manual_seed(0)
    mk, qk = torch.randn(1, 16, 300), torch.randn(1, 16, 20)
    mk[..., 7], qk[..., 3] = 2e19, 2e19
    mv = torch.randn(1, 2, 5, 300)
    others = [i for i in range(300) if i != 7]
    for top_k in (None, 10):
        got = xmemk.memory_read(mk, None, mv, qk, None, top_k=top_k, backend="cpu")
        alone = xmemk.memory_read(mk[..., others], None, mv[..., others], qk, None, top_k=top_k, backend="cpu")
        assert torch.allclose(got[..., :3], alone[..., :3], atol=1e-5)
        assert torch.equal(got[..., 3], mv[..., 7])


def direct(mk, ms, mv, qk, qe, top_k):
    """Eq. 1 and 2 in the direct form, in the dtype of the inputs."""
    distance = (qe.unsqueeze(2) * (mk.unsqueeze(3) - qk.unsqueeze(2)).square()).sum(1)
    score = -distance * ms.transpose(1, 2) / math.sqrt(mk.shape[1])
    if top_k is not None:
        score = score.masked_fill(score < score.topk(top_k, dim=1).values[:, -1:], -math.inf)
    affinity = score.softmax(1)
    return mv @ affinity.unsqueeze(1), affinity.sum(2)


@pytest.mark.parametrize("offset", [3e3, 3e4])
@pytest.mark.parametrize("top_k", [None, 12])
@pytest.mark.parametrize("tokens", [150, 700])
def test_reads_and_gradients_of_clusters_far_apart(offset, top_k, tokens):
    # Steps of 1/16 are exact beside the offset, so that float64 sees the same numbers.
    torch.manual_seed(1)
    mk = (torch.randn(1, 8, tokens) * 16).round() / 16
    qk = (torch.randn(1, 8, 330) * 16).round() / 16
    mk[..., ::3] += offset
    qk[..., ::2] += offset
    mk[..., 1::7], qk[..., 1::5] = mk[..., 1::7] - offset, qk[..., 1::5] - offset
    inputs = [mk, torch.rand(1, 1, tokens) + 0.5, torch.randn(1, 2, 6, tokens), qk, torch.rand(1, 8, 330) + 0.2]
    up = torch.randn(1, 2, 6, 330), torch.randn(1, tokens)
    ours = [x.clone().requires_grad_() for x in inputs]
    truth = [x.double().requires_grad_() for x in inputs]
    got = xmemk.memory_read(*ours, top_k=top_k, return_usage=True, backend="cpu")
    wanted = direct(*truth, top_k)
    for a, b in zip(got, wanted):
        assert (a - b).abs().max() < 2e-5 * b.abs().max(), "a read"
    grads = torch.autograd.grad(got, ours, up)
    wanted_grads = torch.autograd.grad(wanted, truth, [u.double() for u in up])
    for name, a, b in zip(("mk", "ms", "mv", "qk", "qe"), grads, wanted_grads):
        assert (a - b).abs().max() < 1e-4 * b.abs().max(), name


@pytest.mark.parametrize("top_k", [None, 7])
def test_gradients_where_terms_overflow(top_k):
    mk, mv, qk = far_clusters(2e19, 300, 70)
    mk[0, 0, NEAR - 1] = 2e19 * (1 + 2.0**-22)  # another float32 number, far away as a distance
    inputs = [x.requires_grad_() for x in (mk, torch.ones(1, 1, 300), mv, qk, torch.ones(1, 1, 70))]
    readout = xmemk.memory_read(*inputs, top_k=top_k, backend="cpu")
    dk, ds, dv, dq, de = torch.autograd.grad(readout.sum(), inputs)
    read = 7 if top_k else NEAR - 1
    assert torch.allclose(dv[0, 0, 0, :read], torch.full((read,), 70 / read))
    for gradient in (dk, ds, dq, de):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("threads_used", [1, 3])
def test_the_same_bits_for_any_number_of_threads(threads, threads_used):
    torch.manual_seed(2)
    mk, qk = torch.randn(1, 16, 3000), torch.randn(1, 16, 200)
    mk[..., ::5] += 1e5
    qk[..., ::4] += 1e5
    mv = torch.randn(1, 1, 8, 3000)
    results = []
    for count in (2, threads_used):
        threads(count)
        inputs = [x.clone().requires_grad_() for x in (mk, mv, qk)]
        read = [xmemk.memory_read(inputs[0], None, *inputs[1:], None, top_k=k, backend="cpu") for k in (20, None)]
        results.append([*read, *torch.autograd.grad(sum(r.sum() for r in read), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_nothing_that_cannot_be_read_is_put_right():
    mk, mv, qk = far_clusters(2e19)
    mk[..., 2], qk[..., 1] = math.nan, math.inf
    ms = torch.ones(1, 1, 40)
    ms[..., 3] = math.inf
    for top_k in (None, NEAR - 2):
        readout, usage = xmemk.memory_read(mk, ms, mv, qk, None, top_k=top_k, return_usage=True, backend="cpu")
        wanted = (sum(range(NEAR)) - 2 - 3) / (NEAR - 2)
        assert torch.allclose(readout[..., [0, 2]], torch.tensor(wanted))
        assert readout[..., 1].isnan().all()
        assert usage[0, 2] == usage[0, 3] == 0
        assert usage.sum().item() == pytest.approx(2)


@pytest.mark.parametrize("k", [31, 33, 400, 2401, 3231, 15000])
def test_weights_of_many_tokens_sum_to_1(k):
    torch.manual_seed(0)
    n = k + k // 3
    mk, qk = torch.randint(-3, 4, (1, 1, n)).float(), torch.randint(-3, 4, (1, 1, 64)).float()
    ms = torch.tensor([0.5, 1, 2])[torch.randint(0, 3, (1, 1, n))]
    qe = torch.randint(0, 3, (1, 1, 64)).float()
    weight, index, usage = xmemk.affinity_topk(mk, ms, qk, qe, top_k=k, return_usage=True, backend="cpu")
    assert (weight.double().sum(2) - 1).abs().max() < 1e-6
    assert abs(usage.double().sum() - 64) < 64e-6
    for dtype, layout in ((torch.float32, False), (torch.float32, True), (torch.float64, False)):
        ones = torch.ones(1, 1, 3, n, dtype=dtype)
        mv = ones if layout else ones.transpose(2, 3).contiguous().transpose(2, 3)
        backend = "torch" if dtype == torch.float64 else "cpu"
        readout = xmemk.readout_topk(mv, weight.to(dtype), index, backend=backend)
        assert (readout - 1).abs().max() < 1e-6
    codes, scale = torch.ones(1, 1, 3, n, dtype=torch.int8), torch.ones(1, 1, 1, n)
    assert (xmemk.readout_topk(codes, weight, index, scale=scale, backend="cpu") - 1).abs().max() < 1e-6
