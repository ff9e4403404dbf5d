"""The report: what is read from result files, sentences that follow the figures, a page that stands alone."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("typer")

from rich.console import Console
from xmemk.benchmarks import bench
from xmemk.benchmarks.report import conclusions, limits, page, reading

from xmemk.cli.app import run as xmemk

ROOT = Path(__file__).parents[2]
MACHINE = {"processor": "A processor", "threads": "2", "cores": "2", "system": "a system", "versions": "Python, torch"}
HEAD = {"date": "2026-01-02 03:04", "commit": "0.1.0 abc", "command": "python a.py --b", "machine": MACHINE}


def row(peer, seconds, *, ours=False, error=1e-6, extra=None, reason="", **more):
    taken = [] if seconds is None else [0.9 * seconds, 0.95 * seconds, seconds, seconds, 1.05 * seconds]
    error = error if seconds else None
    return {"peer": peer, "ours": ours, "seconds": taken, "error": error, "reason": reason, "extra_bytes": extra} | more


def case(op="read", rows=(), **more):
    sizes = {"tokens": 24580, "queries": 1620, "top_k": 30, "flops": 1e10, "bytes": 1e8, "tested": True}
    named = {"op": op, "workload": "480p-full", "objects": 1, "dtype": "float32", "device": "cpu", "threads": 2}
    return {**named, **sizes, "rows": list(rows), **more}


def usual(ours=0.040, tidy=0.150, original=0.9, product=0.08, sdpa=0.5):
    return [
        row("xmemk cpu", ours, ours=True, extra=17e6),
        row("tidy PyTorch", tidy, extra=195e6),
        row("original", original, extra=542e6),
        row("SDPA (no usage)", sdpa, extra=300e6),
        row("similarity product alone", product, error=None),
        row("<KeOps>", None, reason="not installed (pip install pykeops)"),
    ]


def lines():
    """A run of every kind."""
    scaling = [
        case(axis="N", value=n, tokens=n, rows=usual(4e-6 * n, 1.5e-5 * n, 9e-5 * n if n < 1e5 else None))
        for n in (1_000, 10_000, 100_000, 1_000_000)
    ]
    points = [{"frame": f, "seconds": 0.02, "bytes": 150_000_000, "tokens": 10_000} for f in (100, 1_000, 10_000)]
    growing = [{"frame": f, "seconds": 1e-4 * f, "bytes": 750_000 * f, "tokens": 320 * f} for f in (100, 1_000)]
    features = {"height": 30, "width": 54, "key_channels": 64, "value_channels": 512, "objects": 1}
    length = [
        {"protocol": "fig1", "method": "xmemk", "ours": True, "features": features, "points": points, "computed": []},
        {"protocol": "fig1", "method": "STCN", "features": features, "points": growing, "reason": "a frame took 2 s"},
        {
            "protocol": "fig5",
            "method": "STCN",
            "features": features,
            "points": [{**p, "quality": 0.8} for p in points],
        },
    ]
    length[1]["computed"] = [{"frame": 10_000, "bytes": 7_500_000_000}]
    claim = {
        "claim": "compression",
        "paper": "> 6000 %",
        "measured": 6328,
        "unit": "%",
        "how": "counted",
        "holds": True,
    }
    return [
        {"kind": "ops", **HEAD, "roof": {"gflops": 500.0, "gbytes_per_s": 20.0}, "results": [case(rows=usual())]},
        {"kind": "scaling", **HEAD, "results": scaling},
        {"kind": "length", **HEAD, "results": length},
        {"kind": "claims", **HEAD, "results": [claim]},
    ]


@pytest.fixture
def written(tmp_path):
    """Writes runs to a file and reads them back: (places, what was passed over)."""

    def write(runs):
        path = tmp_path / "made.jsonl"
        path.write_text("\n".join(map(json.dumps, runs)) + "\n")
        return reading.read([path])

    return write


@pytest.fixture
def place(written):
    """The one machine of some cases."""
    return lambda *cases: written([{**HEAD, "kind": "ops", "results": list(cases)}])[0][0]


def test_the_last_run_of_a_case_counts_and_names_its_line(written):
    runs = [
        {**HEAD, "results": [case(rows=usual(ours=s))], "date": f"2026-01-0{d} 00:00"}
        for d, s in ((1, 3), (3, 1), (2, 2))
    ]
    ((place,), _) = written(runs)
    assert place.case("read", "480p-full").ours.median == 1
    assert [source.place for source in place.sources] == ["made.jsonl:2"]
    other = {**HEAD, "machine": {**MACHINE, "GPU": "a GPU"}, "results": [case(rows=usual(), device="cuda")]}
    places, _ = written([*runs, other])
    assert [place.name for place in places] == ["A processor", "a GPU"]


def test_what_is_no_result_file_is_an_error_that_names_the_line(tmp_path, written):
    path = tmp_path / "bad.jsonl"
    good = json.dumps(lines()[0])
    for bad in ("{", "[]", json.dumps({**HEAD, "results": [{"op": "read"}]}), '{"date": 1}'):
        path.write_text(f"{good}\n{bad}\n")
        with pytest.raises(ValueError, match=r"bad\.jsonl(, line |:)2"):
            reading.read([path])
    path.write_text("\n")
    with pytest.raises(ValueError, match="no results"):
        reading.read([path])
    places, passed_over = written([lines()[0], {**HEAD, "kind": "weather", "results": [1]}])
    assert len(places) == 1
    assert passed_over == ["made.jsonl:2 holds 'weather', which this version does not know"]


def test_the_committed_results_can_be_read():
    places, _ = reading.read(sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")))
    for place in places:
        assert place.cases
        assert conclusions.answer(place)


@pytest.mark.parametrize(
    ("tidy", "said"),
    [
        (0.150, "3.8 times as fast as"),
        (0.041, "about as fast as"),
        (0.020, "slower than a short plain PyTorch, which takes 0.50 of xmemk's time"),
    ],
)
def test_headline_and_answer_follow_the_figures(place, tidy, said):
    found = place(case(rows=usual(tidy=tidy)))
    assert said in conclusions.headline(found)
    speed, memory, throughout = conclusions.answer(found)
    assert said in speed
    assert "40.0 ms" in speed
    assert "8.7 % of the 195 MB" in memory
    assert ("slower in the one case measured" in throughout) == (tidy == 0.020)
    assert ("faster in the one case measured" in throughout) == (tidy == 0.150)


def test_where_ours_is_slower_or_larger_is_said(place):
    rows = usual()
    rows[1]["extra_bytes"] = 8.5e6
    worse = case("evict", [row("xmemk cpu", 4e-5, ours=True), row("topk and sort", 2e-5)])
    found = place(case(rows=rows), worse)
    _, memory, throughout = conclusions.answer(found)
    assert "2.0 times the 8.50 MB" in memory
    assert "faster in 1 of 2 cases" in throughout
    assert "slower in 1 of 2 cases, in the eviction (480p-full), where topk and sort takes 0.50" in throughout
    said = conclusions.conclusions(found)
    assert any(s.startswith("Eviction: slower than the fastest other (topk and sort)") for s in said)
    assert any("others take less than ours in 1 of 2 comparisons" in s for s in said if s.startswith("Memory"))


def test_the_fastest_rival_is_named_beside_the_usual_ones(place):
    found = place(case(rows=[*usual(), row("quick PyTorch", 0.1)]))
    assert [r.peer for r in conclusions.beside(found.cases[0])] == ["quick PyTorch", "tidy PyTorch", "original"]
    assert conclusions.headline(found).startswith("Top-k memory read: 2.5 times as fast as quick PyTorch, 3.8 times")


@pytest.mark.parametrize(("processor", "device", "said"), [("AMD x", "cpu", 1), ("AMD x", "cuda", 0), ("x", "cpu", 0)])
def test_slow_products_are_told_of_on_amd_alone(written, processor, device, said):
    machine = {**MACHINE, "processor": processor}
    ((found,), _) = written([{**HEAD, "machine": machine, "results": [case(rows=usual(), device=device)]}])
    assert sum("MKL" in sentence for sentence in limits.limits(found)) == said


def test_a_difference_within_the_spread_is_called_so(place):
    (said,) = (s for s in conclusions.conclusions(place(case(rows=usual(tidy=0.043)))) if s.startswith("Top-k"))
    assert "within the spread" in said


@pytest.mark.parametrize(("power", "said"), [(1.0, "1.00"), (1.5, "1.50")])
def test_the_power_that_time_goes_with(written, power, said):
    points = [case(axis="N", value=n, rows=usual(ours=1e-6 * n**power)) for n in (1_000, 10_000, 100_000)]
    ((found,), _) = written([{**HEAD, "kind": "scaling", "results": points}])
    assert any(
        f"memory tokens from 1,000 to 100,000: our time goes about as the power {said}" in s
        for s in conclusions.conclusions(found)
    )


def test_limits_follow_the_figures(place):
    usual_limits = " ".join(limits.limits(place(case(rows=usual()))))
    assert "nothing here tells how fast anything is on a GPU" in usual_limits
    assert "medians of 5 rounds" in usual_limits
    assert "Nothing is said about <KeOps>" in usual_limits
    assert "SDPA (no usage) returns no usage" in usual_limits
    assert "it does less than xmemk, and is no faster" in usual_limits
    assert "not tested" not in usual_limits
    rows = usual(sdpa=0.01)[:4]
    other = " ".join(limits.limits(place(case(rows=rows, device="cuda", tested="no checkout"))))
    assert "how fast anything is on a CPU" in other
    assert "faster than xmemk is SDPA (no usage) in top-k memory read (480p-full, 1 object)" in other
    assert "not tested first: no checkout" in other
    assert "KeOps" not in other


def test_a_wrong_result_is_nobody_to_be_compared_with(place):
    rows = usual()
    rows[1] |= {"status": "WRONG"}
    found = place(case(rows=rows))
    assert [r.peer for r in found.cases[0].rivals] == ["original"]
    assert "short plain" not in conclusions.headline(found)


class Balanced(HTMLParser):
    """Every element that is opened is closed, ids are unique, and nothing comes from elsewhere."""

    VOID = ("meta", "link", "br", "hr", "img", "path", "use", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.text, self.labels = [], [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert tag not in ("script", "link", "iframe", "img")
        assert not {"src", "onload", "onclick"} & set(given)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "svg":
            self.labels.append(given["aria-label"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def made(written, tmp_path):
    """The page of a run of every kind: its source and what a reader of the text gets."""
    places, passed_over = written(lines())
    page.write_page(tmp_path / "page.html", places, passed_over, ["xmemk bench --this"])
    html = (tmp_path / "page.html").read_text()
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    text = " ".join(" ".join(parser.text).split())
    for place in places:
        for sentence in (*conclusions.answer(place), *conclusions.conclusions(place), *limits.limits(place)):
            assert sentence in text
    return html, text, parser


def test_the_page_stands_alone(made):
    html, _, parser = made
    assert len(parser.ids) == len(set(parser.ids))
    for target in re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', html):
        assert "".join(target) in parser.ids
    outside = set(re.findall(r'(?:https?:)?//[^\s"\'<)]+', html))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "#010101" not in html  # a stand-in for a colour that was not replaced


def test_the_page_has_every_figure_and_reason(made):
    _, text, parser = made
    for said in ("40.0 ms", "150 ms", "900 ms", "17.0 MB", "542 MB", "1.0e-06", "50 %", "a part of the work"):
        assert said in text, said
    for said in ("<KeOps>", "not installed (pip install pykeops)", "a frame took 2 s", "xmemk bench --this"):
        assert said in text, said
    for said in (
        "made.jsonl:1",
        "python a.py --b",
        "0.1.0 abc",
        "A processor",
        "500 GFLOP/s",
        "6,328 %",
        "Compression: > 6000 % in the paper, 6,328 % measured; it holds.",
    ):
        assert said in text, said
    assert any("xmemk cpu 40.0 ms" in label for label in parser.labels)
    assert any("STCN from 75.0 MB to 750 MB" in label for label in parser.labels)
    assert "STCN, computed" in text


def test_a_line_ends_where_a_peer_could_not_go_on(made):
    _, _, parser = made
    (label,) = (x for x in parser.labels if x.startswith("Lines") and "4.00 s" in x)
    assert "xmemk cpu from 4.00 ms to 4.00 s" in label
    assert "original from 90.0 ms to 900 ms" in label


def test_bench_draws_result_files(tmp_path, capsys):
    path = tmp_path / "made.jsonl"
    path.write_text("\n".join(map(json.dumps, lines())))
    out = tmp_path / "deeper" / "page.html"
    assert xmemk(["bench", "--results", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "3.8 times as fast as a short plain PyTorch" in said
    assert re.search(r"read 480p-full\s+40\.0 ms\s+.*tidy", said)
    assert "Top-k memory read" in out.read_text()
    spaced = tmp_path / "with spaces.jsonl"
    spaced.write_bytes(path.read_bytes())
    assert xmemk(["bench", "--results", str(spaced), "--out", str(out)]) == 0
    assert f"xmemk bench --results &#39;{spaced}&#39;" in out.read_text()
    capsys.readouterr()
    assert xmemk(["bench", "--results", str(tmp_path / "none.jsonl"), "--out", str(out)]) == 1
    assert "none.jsonl" in capsys.readouterr().err
    assert xmemk(["bench", "--device", "abacus"]) == 1
    assert "--device: wanted" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_in_the_terminal_breaks_between_words_alone(width):
    places, _ = reading.read([ROOT / "benchmarks" / "results" / "cpu.jsonl"])
    written = io.StringIO()
    Console(file=written, width=width, soft_wrap=True).print(bench.summary(places[0]))
    said = written.getvalue()
    assert max(map(len, said.splitlines())) <= width
    shown = said.split()
    for case in places[0].cases:
        for word in (case.op, *case.workload.split(), *(case.rivals[0].peer.split() if case.rivals else ())):
            assert word in shown or f"{word}," in shown


def test_a_step_that_fails_leaves_the_others_and_is_told(tmp_path, capsys, monkeypatch):
    steps = [bench.Step("the first", "absent", ()), bench.Step("the second", "run", ("--op", "evict"))]
    began = []

    def execute(command, **_):
        began.append(command[2])
        if "absent" in command[2]:
            return 3
        with open(command[command.index("--save") + 1], "a") as file:
            file.write(json.dumps(lines()[0]) + "\n")
        return 0

    monkeypatch.setattr(bench, "steps", lambda full, device: steps)
    monkeypatch.setattr(bench.run, "__defaults__", (execute,))
    assert xmemk(["bench", "--out", str(tmp_path / "page.html"), "--device", "cpu"]) == 1
    assert began[:2] == ["xmemk.benchmarks.absent", "xmemk.benchmarks.run"]
    said = capsys.readouterr().out
    assert "the first ended with exit code 3" in said
    html = (tmp_path / "page.html").read_text()
    assert "Not shown: the first ended with exit code 3" in html
    assert "python -m xmemk.benchmarks.run --op evict --save" in html
    assert "earlier runs" not in html
    assert xmemk(["bench", "--out", str(tmp_path / "page.html"), "--device", "cpu"]) == 1
    html = (tmp_path / "page.html").read_text()  # of one run, the last
    assert "page.jsonl:1" not in html and "page.jsonl:2" in html
    assert "Not shown: earlier runs, the first line of page.jsonl" in html
    earlier = (tmp_path / "page.jsonl").read_text()
    monkeypatch.setattr(bench, "steps", lambda full, device: steps[:1])
    assert xmemk(["bench", "--out", str(tmp_path / "page.html"), "--device", "cpu"]) == 1
    assert "the first ended with exit code 3" in capsys.readouterr().err
    assert (tmp_path / "page.jsonl").read_text() == earlier
    assert xmemk(["bench", "--out", str(tmp_path / "page.jsonl"), "--device", "cpu"]) == 1
    assert "--out: wanted a page" in capsys.readouterr().err
    assert (tmp_path / "page.jsonl").read_text() == earlier


@pytest.mark.parametrize("full", [False, True])
def test_every_step_is_a_program_that_takes_its_arguments(full):
    import importlib

    for step in bench.steps(full, "cpu"):
        module = importlib.import_module(f"xmemk.benchmarks.{step.module}")
        assert callable(module.main)


def test_the_page_travels_with_the_wheel():
    assert '"xmemk.benchmarks.report" = ["*.html"]' in (ROOT / "pyproject.toml").read_text()
    assert Path(page.__file__).with_name("page.html").exists()
