"""The README's code does what it says, and its links lead somewhere."""

import json
import re
from pathlib import Path

import pytest
import torch
from xmemk.benchmarks import readme
from xmemk.benchmarks.report import result_files

import xmemk
from xmemk import backends
from xmemk.network import NetworkConfig
from xmemk.testing import compare_close, make_inputs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))


def code(containing):
    """The Python block of the README that has these words."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in b)
    return block


def test_the_frame_loop_runs(monkeypatch):
    small = NetworkConfig(key_dim=8, value_dim=16, width=4, key_blocks=(1, 1, 1), decoder_dim=8)
    monkeypatch.setattr(xmemk.XMem, "from_checkpoint", lambda path: xmemk.XMem(small))
    labels = torch.zeros(40, 50, dtype=torch.int64)
    labels[10:30, 10:30] = 2
    names = {"xmemk": xmemk, "image": torch.rand(3, 40, 50), "next_image": torch.rand(3, 40, 50), "labels": labels}
    exec(code("Tracker("), names)
    assert names["probability"].shape == (2, 40, 50)


def test_the_formula_is_the_function():
    ours, formula = code("xmemk.memory_read("), code("affinity = ")
    x = make_inputs(80, 20, objects=2, value_channels=6)
    x.mk, x.ms, x.mv, x.qk, x.qe = x.double().read
    names = {name: getattr(x, name) for name in ("mk", "ms", "mv", "qk", "qe")} | {"CK": 64, "top_k": 30}
    exec(ours, names)
    readout, usage = names["readout"], names["usage"]
    exec(formula, names)
    compare_close("readout", readout, names["readout"], 1e-12).check()
    compare_close("usage", usage, names["usage"], 1e-12).check()


def test_the_memory_remembers():
    x = make_inputs(35, 35, objects=2, value_channels=6)
    names = {
        "xmemk": xmemk,
        "key": x.mk.unflatten(2, (5, 7)),
        "shrinkage": x.ms.unflatten(2, (5, 7)),
        "value": x.mv.unflatten(3, (5, 7)),
        "selection": x.me.unflatten(2, (5, 7)),
        "query_key": x.qk.unflatten(2, (5, 7)),
        "query_selection": x.qe.unflatten(2, (5, 7)),
    }
    exec(code("xmemk.Memory("), names)
    expected = xmemk.memory_read(*x.read, top_k=30)
    compare_close("readout", names["readout"].flatten(3), expected, 1e-5).check()


def test_every_public_function_is_in_the_table():
    for name in xmemk.__all__:
        if callable(getattr(xmemk, name)):
            assert f"`{name}(" in README or f"{name}(" in README


def test_links():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_table_of_backends_is_that_of_the_code():
    block = re.search(r"<!-- backends: .*? -->\n(.*?)\n<!-- end of backends -->", README, re.DOTALL)[1]
    assert block == backends.markdown().rstrip(), "put what xmemk.backends.markdown() prints there"


def test_the_table_of_backends_is_true():
    x = make_inputs(9, 3, value_channels=2)
    calls = {
        "memory_read": x.read,
        "affinity_topk": (x.mk, x.ms, x.qk, x.qe),
        "similarity": (x.mk, x.ms, x.qk, x.qe),
        "select_prototypes": (x.usage, 3),
        "consolidate": (x.mk, x.ms, x.me, x.mv, x.usage, 3),
        "evict_lfu": (x.usage, 3),
    }
    rows = {name: "".join(re.findall(rf"^\| `{name}` \|.*$", README, re.MULTILINE)) for name in ("cpu", "triton")}
    for op, arguments in calls.items():
        why = {**xmemk.explain(op, *arguments).refusals}.get("cpu", "")
        assert ("no kernel" in why) == (f"`{op}`" not in rows["cpu"]), (op, why)
    for op in backends.OPS:
        why = backends.refusal("triton", backends.Call(op, "cuda", False), {})
        assert (why is not None) == (f"`{op}`" not in rows["triton"]), (op, why)
    assert torch.equal(xmemk.evict_lfu(x.usage, 3), xmemk.reference.evict_lfu(x.usage, 3))


def test_the_figures_are_those_of_the_result_files():
    assert readme.with_figures(README, RESULTS) == README, "run python benchmarks/readme.py"


def test_other_figures_would_be_noticed(tmp_path):
    """A changed figure in README or in a result file makes the two differ; so do missing marks."""
    ours = re.search(r"\| memory_read top-k \(480p-full, 1 object\) \| ([\d.]+) (?:us|ms|s) \|", README)
    changed = README[: ours.start(1)] + "1.23" + README[ours.end(1) :]
    assert readme.with_figures(changed, RESULTS) == README
    places, _ = result_files.read(RESULTS)
    source = next(case for place in places if (case := place.case("memory_read", "480p-full"))).source
    run = json.loads((RESULTS[0].parent / source.file).read_text().splitlines()[source.line - 1])
    run["date"] = "2999-01-01 00:00"
    (tmp_path / "later.jsonl").write_text(json.dumps(run) + "\n")
    assert readme.with_figures(README, [*RESULTS, tmp_path / "later.jsonl"]) != README
    with pytest.raises(ValueError, match="the marks"):
        readme.with_figures("# no marks", RESULTS)
