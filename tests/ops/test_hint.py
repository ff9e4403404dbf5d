"""hint: tokens that are likely to be among the best. It changes no bit, on any backend."""

import pytest
import torch
from extension import CPU_BACKENDS

import xmemk
from xmemk import reference
from xmemk.testing import make_inputs

N, Q, K = 2500, 70, 30


def affinity(x, backend, **options):
    if backend == "reference":
        return reference.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=K, return_usage=True, **options)
    return xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=K, return_usage=True, backend=backend, **options)


def read(x, backend, top_k=K, **options):
    if backend == "reference":
        return reference.memory_read(*x.read, top_k=top_k, return_usage=True, **options)
    return xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend, **options)


@pytest.mark.parametrize("backend", ["reference", "auto", *CPU_BACKENDS])
def test_a_hint_changes_no_bit(backend):
    x = make_inputs(N, Q, objects=2, value_channels=7)
    weight, index, usage = affinity(x, backend)
    plain = {k: read(x, backend, k) for k in (K, None, N)}
    hints = (
        index, index.flip(2), index.roll(1, 1), (index + 1) % N, index[..., :3], index[..., :0],
        torch.zeros_like(index), torch.cat([index, index], 2), index.int().long().contiguous()[:, :, ::2],
    )  # fmt: skip
    for hint in hints:
        assert all(torch.equal(a, b) for a, b in zip(affinity(x, backend, hint=hint), (weight, index, usage)))
        for top_k, result in plain.items():
            assert all(torch.equal(a, b) for a, b in zip(read(x, backend, top_k, hint=hint), result))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_gradients_take_a_hint(backend):
    x = make_inputs(N, Q, objects=1, value_channels=5)
    hint = affinity(x, backend)[1]
    grads = []
    for given in (None, hint, (hint * 7) % N):
        inputs = [t.clone().requires_grad_() for t in x.read]
        out = xmemk.memory_read(*inputs, top_k=K, hint=given, backend=backend)
        grads.append(torch.autograd.grad(out.square().sum(), inputs))
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other))


@pytest.mark.parametrize("call", [affinity, read])
@pytest.mark.parametrize("backend", ["reference", *CPU_BACKENDS])
def test_a_bad_hint_is_one_sentence(call, backend):
    x = make_inputs(40, 3, value_channels=2)
    x.mk = x.mk[..., :40]
    good = torch.zeros(1, 3, 5, dtype=torch.int64)
    for hint, error, sentence in (
        (good[0], ValueError, r"hint: wanted \[B=1, Q=3, k\] to go with qk \[1, 64, 3\], got \[3, 5\]"),
        (good[:, :2], ValueError, r"hint: wanted \[B=1, Q=3, k\].*got \[1, 2, 5\]"),
        (good.expand(2, 3, 5), ValueError, r"got \[2, 3, 5\]"),
        (good.int(), TypeError, "hint: wanted an int64 tensor"),
        (good.float(), TypeError, "hint: wanted an int64 tensor"),
        ([0, 1], TypeError, "hint: wanted an int64 tensor"),
        (good + 40, IndexError, r"hint: wanted 0 to 39 \(N = 40 tokens\), got 40"),
        (good - 1, IndexError, "hint: wanted 0 to 39 .* got -1"),
        (good.to("meta"), ValueError, "hint: wanted device cpu"),
    ):
        with pytest.raises(error, match=sentence) as raised:
            call(x, backend, hint=hint)
        assert "\n" not in str(raised.value)
