"""The choice of backend: a pure function, and what explain() says of it."""

import pytest
import torch

import xmemk
from xmemk import backends
from xmemk.backends import BACKENDS, Call, choose, explain
from xmemk.testing import make_inputs


def test_auto_prefers_native_code_and_always_finds_something():
    assert choose(Call("evict_lfu", "cpu", False), "auto", None) == "cpu"
    assert choose(Call("evict_lfu", "cpu", False), "auto", "the C++ extension is not built") == "torch"
    for op in ("select_prototypes", "evict_lfu"):
        assert choose(Call(op, "cuda", False, torch.float64), "auto", None) == "cuda"
        assert choose(Call(op, "cuda", False), "auto", None, "built without CUDA") == "torch"
    assert choose(Call("consolidate", "cuda", True), "auto", None) == "torch"
    assert choose(Call("evict_lfu", "cpu", False), "auto", None, "built without CUDA") == "cpu"
    assert choose(Call("consolidate", "cpu", True), "auto", None) == "torch"
    assert choose(Call("memory_read", "cpu", False), "auto", None) == "cpu"
    assert choose(Call("memory_read", "cpu", True), "auto", None) == "cpu"
    assert choose(Call("readout_topk", "cpu", True), "auto", None) == "torch"
    assert choose(Call("consolidate", "cpu", False, torch.float64), "auto", None) == "cpu"
    for device in ("cpu", "cuda", "mps", "meta"):
        for op in ("memory_read", "affinity_topk", "readout_topk", "similarity", "consolidate"):
            assert choose(Call(op, device, True), "auto", "not built") in BACKENDS


@pytest.mark.parametrize(
    ("call", "native_error", "words"),
    [
        (Call("similarity", "cpu", False), None, "'cpu' has no kernel for similarity.*Would do: 'torch'"),
        (Call("memory_read", "cpu", False, torch.float64), None, "'cpu' has no float64 kernel.*Would do: 'torch'"),
        (Call("readout_topk", "cpu", True), None, "'cpu' has no gradient for readout_topk"),
        (Call("memory_read", "cpu", True, torch.float64), None, "'cpu' has no float64 kernel"),
        (Call("evict_lfu", "cuda", False), None, "'cpu' needs cpu tensors, these are on cuda"),
        (Call("consolidate", "cpu", True), None, "'cpu' has no gradient for consolidate"),
        (Call("evict_lfu", "cpu", False), "the C++ extension is not built", "not built; `xmemk doctor` says how"),
    ],
)
def test_a_backend_asked_for_by_name_never_falls_back(call, native_error, words):
    with pytest.raises(ValueError, match=words):
        choose(call, "cpu", native_error)


def test_explain_gives_the_choice_and_every_reason():
    x = make_inputs(9, 3, value_channels=2)
    said = xmemk.explain(xmemk.similarity, x.mk, x.ms, x.qk, x.qe)
    assert said.chosen == "torch"
    assert set(said.refusals) == set(BACKENDS) - {"torch"}
    assert "has no kernel for similarity" in str(said)
    assert xmemk.explain(xmemk.memory_read, *x.double().read, top_k=3).chosen == "torch"
    refused = xmemk.explain("memory_read", *x.read, backend="triton")
    assert refused.chosen is None
    assert "refused" in str(refused)
    with pytest.raises(ValueError, match="function: wanted one of"):
        xmemk.explain(torch.topk, x.mk)
    with pytest.raises(ValueError, match="backend: wanted"):
        xmemk.explain(xmemk.memory_read, *x.read, backend="metal")
    with pytest.raises(ValueError, match="at least one tensor"):
        xmemk.explain(xmemk.memory_read)


def test_why_not_cuda():
    call = Call("select_prototypes", "cuda", False)
    with pytest.raises(ValueError, match=r"'cuda' the C\+\+ extension is built without CUDA; `xmemk doctor`.*'torch'"):
        choose(call, "cuda", None, "the C++ extension is built without CUDA")
    with pytest.raises(ValueError, match=r"'cuda' needs cuda tensors, these are on cpu"):
        choose(Call("evict_lfu", "cpu", False), "cuda", None)
    with pytest.raises(ValueError, match=r"'cuda' has no gradient for consolidate"):
        choose(Call("consolidate", "cuda", True), "cuda", None)
    with pytest.raises(ValueError, match=r"'cuda' has no kernel for similarity"):
        choose(Call("similarity", "cuda", False), "cuda", None)
    assert "built without CUDA" in explain(call, "auto", None, "the extension is built without CUDA").refusals["cuda"]


@pytest.mark.parametrize("gradient", [False, True])
def test_explain_agrees_with_what_the_call_does(gradient):
    x = make_inputs(20, 3, value_channels=2)
    for t in x.read:
        t.requires_grad_(gradient)
    calls = {
        xmemk.memory_read: x.read,
        xmemk.select_prototypes: (x.usage, 3),
        xmemk.evict_lfu: (x.usage, 3),
        xmemk.consolidate: (x.mk, x.ms, x.me, x.mv, x.usage, 3),
        xmemk.similarity: (x.mk, x.ms, x.qk, x.qe),
    }
    for function, arguments in calls.items():
        for name in BACKENDS:
            said = xmemk.explain(function, *arguments, backend=name)
            if said.chosen is None:
                with pytest.raises(ValueError, match="backend:"):
                    function(*arguments, backend=name)
            else:
                function(*arguments, backend=name)


def test_usage_that_requires_grad_does_not_keep_consolidation_from_native_code():
    x = make_inputs(20, 3, value_channels=2)
    x.usage.requires_grad_()
    arguments = (x.mk, x.ms, x.me, x.mv, x.usage, 3)
    assert xmemk.explain(xmemk.consolidate, *arguments).chosen == xmemk.explain("evict_lfu", x.usage, 3).chosen
    xmemk.consolidate(*arguments)


def test_meta_tensors_have_shapes_to_offer():
    x = make_inputs(20, 3, value_channels=2, device="meta")
    assert xmemk.memory_read(*x.read, top_k=5).shape == (1, 1, 2, 3)


def test_every_backend_has_a_device_and_a_set_of_ops():
    assert set(backends._KERNELS) == set(backends._DEVICE) == set(BACKENDS) - {"torch"}
    assert set().union(*backends._KERNELS.values()) <= {*xmemk.__all__, "readout_topk_scaled"}


def test_explain_of_a_pure_call_needs_no_tensor_of_that_device():
    assert explain(Call("evict_lfu", "cuda", False), "auto", None).chosen == "cuda"
