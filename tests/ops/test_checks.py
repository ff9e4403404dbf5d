"""Bad input: the error names the argument, what was wanted and what came."""

import pytest
import torch

import xmemk
from xmemk.testing import make_inputs


@pytest.fixture
def x():
    return make_inputs(12, 5, objects=2, value_channels=3, key_channels=4, batch=2)


def read(x, **changed):
    arguments = {name: getattr(x, name) for name in ("mk", "ms", "mv", "qk", "qe")}
    options = {"top_k": changed.pop("top_k", 3), "backend": changed.pop("backend", "auto")}
    return xmemk.memory_read(**(arguments | changed), **options)


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("mk", lambda t: t[:, :3], ValueError, r"mk: wanted \[B=2, CK=4, N\].*got \[2, 3, 12\]"),
        ("mk", lambda t: t[0], ValueError, r"mk: wanted \[B, CK, N\], got \[4, 12\]"),
        ("mk", lambda t: t.double(), TypeError, "mk: wanted torch.float32 as qk, got torch.float64"),
        ("mk", lambda t: t.int(), TypeError, "mk: wanted float32, float16, bfloat16 or float64, got torch.int32"),
        ("mk", lambda t: t.numpy(), TypeError, "mk: wanted a tensor or a list of tensors, got ndarray"),
        ("mk", lambda t: t[..., :0], ValueError, r"ms: wanted \[B=2, 1, N=0\]"),
        ("mk", lambda t: [], ValueError, "mk: wanted at least one segment"),
        ("mk", lambda t: [t, None], TypeError, r"mk\[1\]: wanted a tensor"),
        ("mk", lambda t: [t, t], ValueError, "ms: wanted 2 segments as in mk, got 1"),
        ("mk", lambda t: t.to("meta"), ValueError, "mk: wanted device cpu as qk, got meta"),
        ("ms", lambda t: t[..., :5], ValueError, r"ms: wanted \[B=2, 1, N=12\] as in mk, got \[2, 1, 5\]"),
        ("ms", lambda t: t.expand(2, 4, 12), ValueError, "ms: wanted"),
        ("ms", lambda t: t.to("meta"), ValueError, "ms: wanted device cpu"),
        ("mv", lambda t: t[..., :5], ValueError, r"mv: wanted \[B=2, O, CV, N=12\] as in mk, got \[2, 2, 3, 5\]"),
        ("mv", lambda t: t[:1], ValueError, "mv: wanted"),
        ("mv", lambda t: None, TypeError, "mv: wanted a tensor or a list"),
        ("mv", lambda t: t.to("meta"), ValueError, "mv: wanted device cpu"),
        ("qk", lambda t: t.long(), TypeError, "qk: wanted float32"),
        ("qk", lambda t: t[None], ValueError, r"qk: wanted \[B, CK, Q\]"),
        ("qk", lambda t: t[:, :0], ValueError, r"qk: wanted CK >= 1, got \[2, 0, 5\]"),
        ("qe", lambda t: t[..., :2], ValueError, r"qe: wanted \[2, 4, 5\] as qk, got \[2, 4, 2\]"),
        ("qe", lambda t: t.half(), TypeError, "qe: wanted torch.float32 as qk, got torch.float16"),
        ("top_k", lambda _: 0, ValueError, "top_k: wanted at least 1, got 0"),
        ("top_k", lambda _: -3, ValueError, "top_k: wanted at least 1, got -3"),
        ("top_k", lambda _: 2.0, TypeError, "top_k: wanted an int, got float"),
        ("top_k", lambda _: True, TypeError, "top_k: wanted an int, got bool"),
        ("backend", lambda _: "metal", ValueError, "backend: wanted 'auto' or one of .*, got 'metal'"),
    ],
)
def test_memory_read(x, name, change, error, words):
    with pytest.raises(error, match=words):
        read(x, **{name: change(getattr(x, name, None))})


def test_an_empty_memory_is_an_error(x):
    empty = {name: getattr(x, name)[..., :0] for name in ("mk", "ms", "mv")}
    with pytest.raises(ValueError, match="the memory is empty"):
        read(x, **empty)
    with pytest.raises(ValueError, match="the memory is empty"):
        read(x, **{name: [t, t] for name, t in empty.items()})
    with pytest.raises(ValueError, match="the memory is empty"):
        xmemk.affinity_topk(empty["mk"], None, x.qk, x.qe, top_k=3)
    with pytest.raises(ValueError, match="the memory is empty"):
        xmemk.similarity(empty["mk"], None, x.qk, x.qe)


def test_segments_that_do_not_fit(x):
    with pytest.raises(ValueError, match=r"mk\[1\]: wanted"):
        read(x, mk=[x.mk, x.mk[:, :2]], ms=None, mv=[x.mv, x.mv])
    with pytest.raises(ValueError, match=r"mv\[1\]: wanted the O and CV"):
        read(x, mk=[x.mk, x.mk], ms=None, mv=[x.mv, x.mv[:, :1]])
    with pytest.raises(TypeError, match=r"mv\[1\]: wanted torch.float32"):
        read(x, mk=[x.mk, x.mk], ms=None, mv=[x.mv, x.mv.half()])


def test_readout_topk(x):
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=3)
    with pytest.raises(TypeError, match="index: wanted an int64 tensor"):
        xmemk.readout_topk(x.mv, weight, index.int())
    with pytest.raises(ValueError, match=r"index: wanted \[2, 5, 3\] as weight, got \[2, 5, 2\]"):
        xmemk.readout_topk(x.mv, weight, index[..., :2])
    with pytest.raises(ValueError, match="mv: wanted"):
        xmemk.readout_topk(x.mv[:1], weight, index)
    with pytest.raises(ValueError, match="the memory is empty"):
        xmemk.readout_topk(x.mv[..., :0], weight, index)
    for outside in (12, -1):
        bad = index.clone()
        bad[1, 2, 0] = outside
        with pytest.raises(IndexError, match=rf"index: wanted 0 to 11 \(N = 12 tokens\), got {outside}"):
            xmemk.readout_topk(x.mv, weight, bad)
        with pytest.raises(IndexError, match="index: wanted 0 to 11"):
            xmemk.readout_topk([x.mv[..., :5], x.mv[..., 5:]], weight, bad)


@pytest.mark.parametrize("function", [xmemk.select_prototypes, xmemk.evict_lfu])
def test_usage(function):
    usage = torch.rand(2, 6)
    for count in (-1, 7):
        with pytest.raises(ValueError, match=rf"wanted 0 to N = 6 .*got {count}"):
            function(usage, count)
    with pytest.raises(TypeError, match="wanted an int"):
        function(usage, 2.0)
    with pytest.raises(ValueError, match=r"usage: wanted \[B, N\]"):
        function(usage[0], 2)
    with pytest.raises(TypeError, match="usage: wanted float32"):
        function(usage.long(), 2)


def test_consolidate(x):
    arguments = {name: getattr(x, name) for name in ("mk", "ms", "me", "mv", "usage")}
    for changed, words in (
        ({"num_prototypes": 13}, "num_prototypes: wanted 0 to N = 12"),
        ({"usage": x.usage[:, :4]}, "num_prototypes: wanted 0 to N = 4"),
        ({"usage": torch.rand(2, 40)}, r"usage: wanted \[B=2, N=12\] as in mk"),
        ({"me": x.me[..., :3]}, r"me: wanted \[2, 4, 12\] as mk, got \[2, 4, 3\]"),
        ({"mv": x.mv[..., :3]}, "mv: wanted"),
    ):
        with pytest.raises(ValueError, match=words):
            xmemk.consolidate(**({"num_prototypes": 5} | arguments | changed))
    with pytest.raises(ValueError, match=r"mv: wanted 2 segments as in mk, got 1"):
        cut = {name: [arguments[name][..., :3], arguments[name][..., 3:]] for name in ("mk", "ms")}
        xmemk.consolidate(**(arguments | cut | {"num_prototypes": 5}))
    with pytest.raises(ValueError, match=r"me: wanted 1 segments as in mk, got 2"):
        xmemk.consolidate(**(arguments | {"me": [x.me, x.me], "num_prototypes": 5}))


def test_inputs_are_left_as_they_were(x):
    before = [t.clone() for t in (*x.read, x.me, x.usage)]
    for top_k in (None, 3):
        xmemk.memory_read(*x.read, top_k=top_k, return_usage=True)
    xmemk.consolidate(x.mk, x.ms, x.me, x.mv, x.usage, 5)
    xmemk.evict_lfu(x.usage, 5)
    assert all(torch.equal(a, b) for a, b in zip(before, (*x.read, x.me, x.usage)))
