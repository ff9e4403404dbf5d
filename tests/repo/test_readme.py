"""The README and the pages beside it say what the code and the result files say."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from xmemk.benchmarks import readme
from xmemk.benchmarks.report import headline, result_files

import xmemk
from xmemk import backends, weights
from xmemk.testing import make_inputs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
FIGURES = (ROOT / "docs" / "benchmarks.md").read_text()
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))


def test_every_public_function_is_in_the_table():
    for name in xmemk.__all__:
        if callable(getattr(xmemk, name)):
            assert f"`{name}(" in README or f"{name}(" in README


def test_the_table_of_backends_is_that_of_the_code():
    block = re.search(r"<!-- backends: .*? -->\n(.*?)\n<!-- end of backends -->", GUIDE, re.DOTALL)[1]
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
    rows = {name: "".join(re.findall(rf"^\| `{name}` \|.*$", GUIDE, re.MULTILINE)) for name in ("cpu", "triton")}
    for op, arguments in calls.items():
        why = {**xmemk.explain(op, *arguments).refusals}.get("cpu", "")
        assert ("no kernel" in why) == (f"`{op}`" not in rows["cpu"]), (op, why)
    for op in backends.OPS:
        why = backends.refusal("triton", backends.Call(op, "cuda", False), {})
        assert (why is not None) == (f"`{op}`" not in rows["triton"]), (op, why)
    assert torch.equal(xmemk.evict_lfu(x.usage, 3), xmemk.reference.evict_lfu(x.usage, 3))


def test_figures_and_chart_are_those_of_the_result_files():
    for name, right in readme.files(RESULTS).items():
        assert (ROOT / name).read_text() == right, f"{name}: run python benchmarks/readme.py"


def test_other_figures_would_be_noticed(tmp_path, monkeypatch):
    """A changed figure in a page or in a result file makes the two differ; so do missing marks."""
    for name in ("README.md", "docs/benchmarks.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text().replace("577 ms", "1.23 ms"))
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    right = readme.files(RESULTS)
    assert (right["README.md"], right["docs/benchmarks.md"]) == (README, FIGURES)
    places, _ = result_files.read(RESULTS)
    source = next(case for place in places if (case := place.case("memory_read", "1080p-full"))).source
    run = json.loads((RESULTS[0].parent / source.file).read_text().splitlines()[source.line - 1])
    run["date"] = "2999-01-01 00:00"
    (tmp_path / "later.jsonl").write_text(json.dumps(run) + "\n")
    later = readme.files([*RESULTS, tmp_path / "later.jsonl"])
    assert "Medians of 2999-01-01" in later["README.md"]
    assert later["docs/benchmarks.md"] != FIGURES
    (tmp_path / "README.md").write_text("# no marks")
    with pytest.raises(ValueError, match=r"README\.md: wanted the marks"):
        readme.files(RESULTS)


def test_the_chart_is_drawn_to_scale():
    (machine,) = result_files.read(RESULTS)[0]
    case = machine.case(*headline.READ)
    seconds = [case.ours.median, *(case.row(name).median for name in reversed(headline.NAMES))]
    for scheme in headline.SCHEMES:
        svg = ElementTree.fromstring(headline.chart(machine, scheme))
        widths = [float(box.get("width")) for box in svg.iter("{http://www.w3.org/2000/svg}rect")]
        assert len(widths) == 2 * len(seconds)
        for width, value in zip(widths, seconds):
            assert width == pytest.approx(max(2, max(widths) * value / max(seconds)), abs=0.2)


def test_the_first_screen():
    lines = README.splitlines()
    assert len(lines) <= 180
    first = "\n".join(lines[:40])
    assert "docs/pictures/bunny.webp" in first and "prefers-color-scheme: dark" in first
    assert "No kernel has run on a GPU yet" in first
    assert 10_000 < (ROOT / "docs/pictures/bunny.webp").stat().st_size < 1_000_000


def test_the_address_and_checksum_of_the_weights():
    release = weights.RELEASES["XMem"]
    assert f"{weights.ADDRESS}/{release.file}" in README
    assert release.sha256 in README
    assert f"{release.size / 1e6:.0f} MB" in README
