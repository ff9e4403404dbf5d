"""Peers that need other packages, with stand-ins for them, and attention on augmented keys."""

import importlib.machinery
import importlib.util
import math
import sys
import types

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from xmemk.benchmarks.harness import timing
from xmemk.benchmarks.peers import catalogue as peers
from xmemk.benchmarks.peers.catalogue import peers_of
from xmemk.benchmarks.peers.verdicts import verdict
from xmemk.benchmarks.peers.workloads import Workload, make_case

WIDE = Workload("wide", queries=30, tokens=200, candidates=100, prototypes=16)  # 512 value channels


class Lazy:
    """pykeops.torch.LazyTensor on a small scale: everything is a dense tensor [Q, N, channels]."""

    def __init__(self, dense):
        self.dense = dense

    def __sub__(self, other):
        return Lazy(self.dense - other.dense)

    def __mul__(self, other):
        return Lazy(self.dense * other.dense)

    def __pow__(self, power):
        return Lazy(self.dense**power)

    def __neg__(self):
        return Lazy(-self.dense)

    def exp(self):
        return Lazy(self.dense.exp())

    def sum(self, axis=None, dim=None):
        return Lazy(self.dense.sum(-1, keepdim=True)) if axis == -1 else self.dense.sum(dim)

    def argKmin(self, k, dim):
        return self.dense[..., 0].topk(k, dim=dim, largest=False).indices

    def logsumexp(self, dim):
        return self.dense.logsumexp(dim)

    def sumsoftmaxweight(self, values, dim):
        return (self.dense.softmax(dim) * values.dense).sum(dim)


class FlatIndex:
    """faiss.IndexFlatIP: numpy in, numpy out."""

    def __init__(self, channels):
        self.channels = channels

    def add(self, tokens):
        assert tokens.shape[1] == self.channels
        self.tokens = torch.from_numpy(tokens)

    def search(self, query, k):
        return tuple(t.numpy() for t in (torch.from_numpy(query) @ self.tokens.T).topk(k, dim=1))


def flash_attn_func(q, k, v, softmax_scale):
    """[B, tokens, heads, channels], as FlashAttention: one width for all three, at most 256."""
    assert q.shape[3] == k.shape[3] == v.shape[3] <= 256
    return attend(q, k, v, softmax_scale)


def attend(q, k, v, scale):
    return scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), scale=scale).transpose(1, 2)


STAND_INS = {
    "pykeops": {"pykeops": {}, "pykeops.torch": {"LazyTensor": Lazy}},
    "faiss-cpu": {"faiss": {"IndexFlatIP": FlatIndex, "omp_set_num_threads": lambda n: None}},
    "flash-attn": {"flash_attn": {"flash_attn_func": flash_attn_func}},
    "xformers": {
        "xformers": {},
        "xformers.ops": {"memory_efficient_attention": lambda q, k, v, scale: attend(q, k, v, scale)},
    },
}
PACKAGE_PEERS = [
    (op, p.name, p.package)
    for op in ("memory_read", "memory_read_dense", "memory_read_dense_train")
    for p in peers_of(op, [])
    if p.package
]


@pytest.fixture
def stand_in(monkeypatch):
    def put(package):
        for name, attributes in STAND_INS[package].items():
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            vars(module).update(attributes)
            monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize(("op", "name", "package"), PACKAGE_PEERS)
def test_a_package_that_is_there_is_used_rightly(stand_in, op, name, package, objects):
    stand_in(package)
    case = make_case(op, WIDE, objects=objects)
    chosen = [p for p in peers_of(op, ["torch"]) if p.ours or p.name == name]
    rows = timing.time_peers(case, chosen, rounds=2, budget=1e6)
    row = next(r for r in rows if r.peer == name)
    assert row.status == "exact", row.reason
    assert len(row.seconds) == 2 and row.ratio > 0
    assert row.error < 1e-3


@pytest.mark.parametrize("package", STAND_INS)
def test_a_package_that_is_not_there_says_what_to_install(monkeypatch, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (peer, *_) = (p for op in ("memory_read", "memory_read_dense") for p in peers_of(op, []) if p.package == package)
    assert peers.missing(peer) == f"not installed (pip install {package})"
    assert peer.risky


def test_a_package_that_refuses_or_is_broken_is_a_row(stand_in):
    stand_in("xformers")

    def refuse(*_, **__):
        raise NotImplementedError(
            "No operator found for `memory_efficient_attention_forward` with inputs:\n  query ..."
        )

    sys.modules["xformers.ops"].memory_efficient_attention = refuse
    case = make_case("memory_read_dense", WIDE)
    (peer,) = (p for p in peers_of("memory_read_dense", []) if p.package == "xformers")
    (row,) = timing.time_peers(case, [peer], rounds=2, budget=10)
    assert row.reason.startswith("NotImplementedError: No operator found") and "\n" not in row.reason


def test_a_trial_that_fails_keeps_a_package_out_of_this_process(stand_in):
    stand_in("faiss-cpu")

    def crash(*_):
        raise AssertionError("must not be called here")

    sys.modules["faiss"].IndexFlatIP = crash
    case = make_case("memory_read", WIDE)
    (peer,) = (p for p in peers_of("memory_read", []) if p.package == "faiss-cpu")
    rows = timing.time_peers(
        case, [peer], rounds=2, budget=10, trial=lambda p: (None, "its process was killed by SIGSEGV")
    )
    assert rows[0].reason == "its process was killed by SIGSEGV" and not rows[0].seconds


@pytest.mark.parametrize("name", ["flash", "math"])
@pytest.mark.parametrize("op", ["memory_read_dense", "memory_read_dense_train"])
def test_attention_on_augmented_keys(name, op):
    case = make_case(op, WIDE, objects=2)
    (peer,) = (p for p in peers_of(op, []) if p.name == f"SDPA {name} (no usage)")
    compared = verdict(case, peer.prepare(case)())
    assert compared.passed, str(compared)


@pytest.mark.parametrize("name", ["efficient", "cuDNN"])
def test_attention_that_the_device_does_not_have_is_a_reason(name):
    case = make_case("memory_read_dense", WIDE)
    (peer,) = (p for p in peers_of("memory_read_dense", []) if p.name == f"SDPA {name} (no usage)")
    (row,) = timing.time_peers(case, [peer], rounds=2, budget=10)
    assert row.reason and not row.seconds


def test_flex_attention_is_right(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    case = make_case("memory_read_dense", WIDE, objects=2)
    (peer,) = (p for p in peers_of("memory_read_dense", []) if p.name.startswith("FlexAttention"))
    compared = verdict(case, peer.prepare(case)())
    assert compared.passed, str(compared)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["memory_read", "memory_read_dense"])
@pytest.mark.parametrize("package", ["pykeops", "faiss-cpu"])
def test_the_real_package_where_it_is_installed(op, package):
    wanted = [p for p in peers_of(op, []) if p.package == package]
    if not wanted or peers.missing(wanted[0]):
        pytest.skip(f"{package} is not installed, or has no part in {op}")
    case = make_case(op, WIDE)
    compared = verdict(case, wanted[0].prepare(case)())
    assert compared.passed and compared.error < math.inf
