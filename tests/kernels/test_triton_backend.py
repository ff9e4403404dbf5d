"""When backend "triton" serves a call, and what it says when it does not."""

import os
import subprocess
import sys

import pytest
import torch
from interpreter import find_kernels, interpreted

import xmemk
from xmemk import operators as ops
from xmemk.backends import BACKENDS, OPS, Call, choose, for_upkeep, refusal
from xmemk.testing import make_inputs

find_kernels()


def on_gpu(op="memory_read", **more):
    return Call(op, "cuda", more.pop("gradient", False), **more)


def test_auto_takes_it_on_a_gpu():
    for op in ("memory_read", "affinity_topk", "readout_topk", "consolidate"):
        assert choose(on_gpu(op), "auto", {"cpu": "not built", "cuda": "not built"}) == "triton"
    assert choose(on_gpu(gradient=True), "auto", {}) == "triton"
    assert choose(on_gpu(top_k=256, key_channels=128), "auto", {}) == "triton"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (on_gpu("similarity"), "has no kernel for similarity"),
        (on_gpu(dtype=torch.float64), "has no float64 kernel for memory_read"),
        (on_gpu("consolidate", dtype=torch.float64), "has no float64 kernel for consolidate"),
        (on_gpu("consolidate", gradient=True), "has no gradient for consolidate"),
        (on_gpu("readout_topk", gradient=True), "has no gradient for readout_topk"),
        (on_gpu(top_k=257), "no kernel for top_k above 256, this is 257"),
        (on_gpu(key_channels=129), "no kernel for CK above 128, this is 129"),
        (Call("memory_read", "cpu", False), "needs cuda tensors, these are on cpu"),
        (Call("memory_read", "mps", False), "needs cuda tensors, these are on mps"),
    ],
)
def test_it_says_what_it_lacks_and_auto_goes_on(call, words):
    refused(call, {}, words)


def test_a_triton_that_is_missing_is_a_reason_as_any_other():
    refused(on_gpu(), {"triton": "needs Triton, which is not installed"}, "not installed")


def refused(call, errors, words):
    assert words in refusal("triton", call, errors)
    with pytest.raises(ValueError, match=r"backend: 'triton'.*Would do: .*'torch'"):
        choose(call, "triton", errors)
    assert choose(call, "auto", {**errors, "cpu": "not built", "cuda": "not built"}) == "torch"


@interpreted
def test_interpreted_it_serves_cpu_tensors_when_asked_for_by_name_alone():
    call = Call("memory_read", "cpu", False)
    assert choose(call, "triton", {}) == "triton"
    assert choose(call, "auto", {}) == "cpu"
    assert choose(call, "auto") == "torch"


def test_explain_knows_sizes():
    x = make_inputs(9, 3, key_channels=130, value_channels=2, device="meta")
    said = xmemk.explain(xmemk.memory_read, *x.read, top_k=300, backend="triton")
    assert said.chosen is None
    assert ops.triton_error("cpu") is None or "Triton" in ops.triton_error("cpu")


def test_an_old_gpu_and_a_missing_triton_are_named(monkeypatch):
    from xmemk import kernels

    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'xmemk[gpu]'" in kernels.error("cuda")
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert "8.0 or newer, this GPU has 7.5" in kernels.error("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (12, 1))
    assert kernels.error("cuda") is None


def test_importing_the_kernels_loads_no_triton():
    code = "import sys; import xmemk.kernels; xmemk.kernels.error('cpu'); print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "No module named 'xmemk.kernels'" in done.stderr:
        pytest.skip("xmemk is not installed")
    assert done.stdout.strip() == "False", done.stderr


@interpreted
def test_the_worker_interprets_and_asks_for_it_by_name():
    assert os.environ["TRITON_INTERPRET"] == "1"
    x = make_inputs(9, 2, key_channels=4, value_channels=3)
    assert xmemk.explain(xmemk.memory_read, *x.read).chosen != "triton"
    assert xmemk.explain(xmemk.memory_read, *x.read, backend="triton").chosen == "triton"
    with pytest.raises(ValueError, match="float64"):
        xmemk.memory_read(*x.double().read, backend="triton")
    with pytest.raises(ValueError, match="top_k above 256"):
        xmemk.memory_read(*x.read, top_k=999, backend="triton")


def test_a_memory_leaves_upkeep_without_a_kernel_to_auto_and_nothing_else():
    given = {(op, name): for_upkeep(op, name) for op in OPS for name in (*BACKENDS, "auto", "unknown")}
    changed = {key for key, asked in given.items() if asked != key[1]}
    assert changed == {("select_prototypes", "triton"), ("evict_lfu", "triton")}
    assert {given[key] for key in changed} == {"auto"}
    said = xmemk.explain("evict_lfu", torch.ones(1, 9), 3, backend="triton")
    assert said.chosen is None
    assert "a memory with backend='triton' leaves it to 'auto'" in str(said)
    with pytest.raises(ValueError, match="backend: 'triton' has no kernel for evict_lfu"):
        xmemk.evict_lfu(torch.ones(1, 9), 3, backend="triton")


@interpreted
@pytest.mark.parametrize("groups", ["exact", "xmem"])
def test_a_memory_on_it_by_name_consolidates_and_evicts(groups):
    from memory_videos import run, small

    config = small(groups, max_mid_term_frames=4, num_prototypes=2, max_long_term_elements=4)
    memories = [xmemk.Memory(config, backend=name) for name in ("triton", "torch")]
    mine, plain = (run(memory, 0, 9, {1: 0, 2: 3}) for memory in memories)
    assert memories[0].evictions == memories[1].evictions > 0
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@interpreted
def test_autocast_changes_nothing():
    x = make_inputs(40, 2, key_channels=8, value_channels=3)
    wanted = xmemk.memory_read(*x.read, backend="triton")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(xmemk.memory_read(*x.read, backend="triton"), wanted)
