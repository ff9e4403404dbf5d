"""The choice of backend: a pure function, and what explain() says of it."""

import itertools

import pytest
import torch

import xmemk
from xmemk import backends
from xmemk.backends import BACKENDS, OPS, Call, choose, explain
from xmemk.testing import make_inputs

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NOT_BUILT = {"cpu": "the C++ extension is not built", "cuda": "the C++ extension is not built"}
WITHOUT_CUDA = {"cuda": "the C++ extension is built without CUDA"}


def test_auto_prefers_native_code_and_always_finds_something():
    assert choose(Call("evict_lfu", "cpu", False), "auto", {}) == "cpu"
    assert choose(Call("evict_lfu", "cpu", False), "auto", NOT_BUILT) == "torch"
    for op in ("select_prototypes", "evict_lfu"):
        assert choose(Call(op, "cuda", False, torch.float64), "auto", {}) == "cuda"
        assert choose(Call(op, "cuda", False), "auto", WITHOUT_CUDA) == "torch"
    assert choose(Call("consolidate", "cuda", True), "auto", {}) == "torch"
    assert choose(Call("evict_lfu", "cpu", False), "auto", WITHOUT_CUDA) == "cpu"
    assert choose(Call("consolidate", "cpu", True), "auto", {}) == "torch"
    assert choose(Call("memory_read", "cpu", False), "auto", {}) == "cpu"
    assert choose(Call("memory_read", "cpu", True), "auto", {}) == "cpu"
    assert choose(Call("readout_topk", "cpu", True), "auto", {}) == "torch"
    assert choose(Call("consolidate", "cpu", False, torch.float64), "auto", {}) == "cpu"
    for device in ("cpu", "cuda", "mps", "meta"):
        for op in ("memory_read", "affinity_topk", "readout_topk", "similarity", "consolidate"):
            assert choose(Call(op, device, True), "auto", NOT_BUILT) in BACKENDS


@pytest.mark.parametrize(
    ("call", "errors", "words"),
    [
        (Call("similarity", "cpu", False), {}, "'cpu' has no kernel for similarity.*Would do: 'torch'"),
        (Call("memory_read", "cpu", False, torch.float64), {}, "'cpu' has no float64 kernel.*Would do: 'torch'"),
        (Call("readout_topk", "cpu", True), {}, "'cpu' has no gradient for readout_topk"),
        (Call("memory_read", "cpu", True, torch.float64), {}, "'cpu' has no float64 kernel"),
        (Call("evict_lfu", "cuda", False), {}, "'cpu' needs cpu tensors, these are on cuda"),
        (Call("consolidate", "cpu", True), {}, "'cpu' has no gradient for consolidate"),
        (Call("evict_lfu", "cpu", False), NOT_BUILT, "not built; `xmemk doctor` says how"),
    ],
)
def test_a_backend_asked_for_by_name_never_falls_back(call, errors, words):
    with pytest.raises(ValueError, match=words):
        choose(call, "cpu", errors)


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
        choose(call, "cuda", WITHOUT_CUDA)
    with pytest.raises(ValueError, match=r"'cuda' needs cuda tensors, these are on cpu"):
        choose(Call("evict_lfu", "cpu", False), "cuda", {})
    with pytest.raises(ValueError, match=r"'cuda' has no gradient for consolidate"):
        choose(Call("consolidate", "cuda", True), "cuda", {})
    with pytest.raises(ValueError, match=r"'cuda' has no kernel for similarity"):
        choose(Call("similarity", "cuda", False), "cuda", {})
    assert "built without CUDA" in explain(call, "auto", WITHOUT_CUDA).refusals["cuda"]


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


def test_every_op_of_the_table_is_public_and_ends_with_plain_pytorch():
    assert set(backends.TABLE) <= {*xmemk.__all__, "readout_topk_scaled"}
    assert BACKENDS == ("triton", "cuda", "cpu", "torch")
    for op, rows in backends.TABLE.items():
        assert list(rows) == [name for name in BACKENDS if name in rows]
        assert rows["torch"].device is rows["torch"].dtypes is None
        assert all(row.device is not None for name, row in rows.items() if name != "torch")
        # Ops that select have no gradient anywhere; plain PyTorch has those of all others.
        assert (rows["torch"].run_with_gradient is not None) == (op in backends.DIFFERENTIABLE)


def test_the_table_for_people_says_what_the_choice_does():
    lines = backends.markdown().splitlines()[2:]
    kernels = [row for op in OPS for row in backends.TABLE[op].values()]
    for row, dtype, gradient in itertools.product(kernels, DTYPES, (False, True)):
        (line,) = [text for text in lines if text.startswith(f"| `{row.backend}` |") and f"`{row.op}`" in text]
        has_gradient = f"`{row.op}` (with gradients" in line or row.op not in backends.DIFFERENTIABLE
        promised = str(dtype).removeprefix("torch.") in line.split("|")[-2] and (has_gradient or not gradient)
        call = Call(row.op, row.device or "cpu", gradient, dtype)
        assert (backends.refusal(row.backend, call, {}) is None) == promised, (line, call)


def test_explain_of_a_pure_call_needs_no_tensor_of_that_device():
    assert explain(Call("evict_lfu", "cuda", False), "auto", {}).chosen == "cuda"
