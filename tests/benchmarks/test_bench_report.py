"""The report: what is read from result files, tables of it, a page that stands alone."""

import io
import json
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("typer")

from rich.console import Console
from xmemk.benchmarks import bench
from xmemk.benchmarks.report import page, result_files, tables, terminal

from xmemk.cli.app import run as xmemk
from xmemk.measure import load

ROOT = Path(__file__).parents[2]
MACHINE = {"processor": "A processor", "threads": "2", "cores": "2", "system": "a system", "versions": "Python, torch"}
HEAD = {"date": "2026-01-02 03:04", "commit": "0.1.0 abc", "command": "python a.py --b", "machine": MACHINE}


def row(peer, seconds, *, ours=False, error=1e-6, extra=None, reason="", **more):
    taken = [] if seconds is None else [0.9 * seconds, 0.95 * seconds, seconds, seconds, 1.05 * seconds]
    error = error if seconds else None
    return {"peer": peer, "ours": ours, "seconds": taken, "error": error, "reason": reason, "extra_bytes": extra} | more


def case(op="memory_read", rows=(), **more):
    sizes = {"tokens": 24580, "queries": 1620, "top_k": 30, "flops": 1e10, "bytes": 1e8, "tested": True}
    named = {"op": op, "workload": "480p-full", "objects": 1, "dtype": "float32", "device": "cpu", "threads": 2}
    return {**named, **sizes, "rows": list(rows), **more}


def usual(ours=0.040, tidy=0.150, original=0.9, product=0.08, sdpa=0.5):
    return [
        row("xmemk cpu", ours, ours=True, extra=17e6, of_roof=0.5),
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
        return result_files.read([path])

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
    assert place.case("memory_read", "480p-full").ours.median == 1
    assert [source.place for source in place.sources] == ["made.jsonl:2"]
    other = {**HEAD, "machine": {**MACHINE, "GPU": "a GPU"}, "results": [case(rows=usual(), device="cuda")]}
    places, _ = written([*runs, other])
    assert [place.name for place in places] == ["A processor", "a GPU"]


def test_what_is_no_result_file_is_an_error_that_names_the_line(tmp_path, written):
    path = tmp_path / "bad.jsonl"
    good = json.dumps(lines()[0])
    for bad in ("{", "[]", json.dumps({**HEAD, "results": [{"op": "memory_read"}]}), '{"date": 1}'):
        path.write_text(f"{good}\n{bad}\n")
        with pytest.raises(ValueError, match=r"bad\.jsonl(, line |:)2"):
            result_files.read([path])
    path.write_text("\n")
    with pytest.raises(ValueError, match="no results"):
        result_files.read([path])
    places, passed_over = written([lines()[0], {**HEAD, "kind": "weather", "results": [1]}])
    assert len(places) == 1
    assert passed_over == ["made.jsonl:2 holds 'weather', which this version does not know"]


def test_the_committed_results_can_be_read():
    places, _ = result_files.read(sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")))
    for place in places:
        assert place.cases
        assert tables.summary(place.cases).rows


def rows_of(table):
    """By the first cell: the others, by the names of their columns."""
    return {row[0]: dict(zip(table.columns[1:], row[1:])) for row in table.rows}


READ = "memory_read top-k (480p-full, 1 object)"


@pytest.mark.parametrize(
    ("tidy", "ratio"), [(0.150, "150 ms (3.8)"), (0.041, "41.0 ms (1.02)"), (0.020, "20.0 ms (0.50)")]
)
def test_the_summary_follows_the_figures(place, tidy, ratio):
    found = place(case(rows=usual(tidy=tidy)))
    row = rows_of(tables.summary(found.cases))[READ]
    assert row["xmemk"] == "40.0 ms"
    assert row["fastest other way"] == f"tidy PyTorch: {ratio}" and row["tidy"] == ratio
    assert row["original"] == "900 ms (22)"
    assert row["memory: xmemk, tidy, original"] == "17.0 MB, 195 MB, 542 MB"
    assert row["line"] == "made.jsonl:1"


def test_where_ours_is_slower_or_larger_is_shown(place):
    rows = usual()
    rows[1]["extra_bytes"] = 8.5e6
    worse = case("evict_lfu", [row("xmemk cpu", 4e-5, ours=True), row("topk and sort", 2e-5)])
    found = rows_of(tables.summary(place(case(rows=rows), worse).cases))
    assert found["evict_lfu (480p-full)"]["fastest other way"] == "topk and sort: 20.0 us (0.50)"
    assert found[READ]["memory: xmemk, tidy, original"].startswith("17.0 MB, 8.50 MB")


def test_the_fastest_rival_is_named_beside_the_usual_ones(place):
    found = place(case(rows=[*usual(), row("quick PyTorch", 0.1)]))
    assert rows_of(tables.summary(found.cases))[READ]["fastest other way"] == "quick PyTorch: 100 ms (2.5)"


@pytest.mark.parametrize(("processor", "device", "said"), [("AMD x", "cpu", 1), ("AMD x", "cuda", 0), ("x", "cpu", 0)])
def test_slow_products_are_told_of_on_amd_alone(written, processor, device, said):
    machine = {**MACHINE, "processor": processor}
    ((found,), _) = written([{**HEAD, "machine": machine, "results": [case(rows=usual(), device=device)]}])
    assert sum("MKL" in text for _, text in tables.limits(found).rows) == said


@pytest.mark.parametrize(("power", "said"), [(1.0, "1.00"), (1.5, "1.50")])
def test_the_power_that_time_goes_with(written, power, said):
    points = [case(axis="N", value=n, rows=usual(ours=1e-6 * n**power)) for n in (1_000, 10_000, 100_000)]
    ((found,), _) = written([{**HEAD, "kind": "scaling", "results": points}])
    (row,) = tables.growth(found).rows
    assert row[2:5] == ("memory tokens", "1,000 to 100,000", said)
    assert row[5].startswith("tidy PyTorch: ")


def test_limits_follow_the_figures(place):
    found = place(case(rows=usual()))
    limits = dict(tables.limits(found).rows)
    assert limits["machine"].startswith("One machine, A processor.")
    assert limits["rounds"].startswith("Medians of 5 to 5") and limits["rounds"].endswith("fewer than five: 0")
    assert "not tested first" not in limits
    kinds = {row[0]: row[-1] for row in tables.figures(found.cases[0]).rows}
    assert kinds["SDPA (no usage)"] == "no usage" and kinds["similarity product alone"] == "part of the work"
    assert kinds["xmemk cpu"] == kinds["original"] == "exact"
    rows = usual(sdpa=0.01)[:4]
    other = dict(tables.limits(place(case(rows=rows, device="cuda", tested="no checkout"))).rows)
    assert other["not tested first"] == "no checkout"


def test_a_wrong_result_is_nobody_to_be_compared_with(place):
    rows = usual()
    rows[1] |= {"status": "WRONG"}
    found = place(case(rows=rows))
    assert [r.peer for r in found.cases[0].rivals] == ["original"]
    assert dict(tables.limits(found).rows)["wrong results"].startswith(f"tidy PyTorch in {READ}")


class Balanced(HTMLParser):
    """Every element that is opened is closed, ids are unique, and nothing comes from elsewhere."""

    VOID = ("meta", "link", "br", "hr", "img", "path", "use", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.text, self.labels = [], [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert tag not in ("script", "link", "iframe")
        assert given.get("src", "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
        assert not {"onload", "onclick"} & set(given)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "img":
            self.labels.append(given["alt"])
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
        for table in (tables.summary(place.cases), tables.limits(place), tables.claims(place.claims)):
            assert table.rows
            for cell in (cell for row in table.rows for cell in row):
                assert cell in text
    return html, text, parser


def test_the_page_stands_alone(made):
    html, _, parser = made
    assert len(parser.ids) == len(set(parser.ids))
    assert not re.search(r"https?://", html)
    assert "prefers-color-scheme: dark" in html and "--share" in html
    assert "@media print" in html


def test_the_page_has_every_figure_and_reason(made):
    html, text, parser = made
    for said in ("40.0 ms", "150 ms", "900 ms", "17.0 MB", "542 MB", "1.0e-06", "50 %", "part of the work"):
        assert said in text, said
    for said in ("<KeOps>", "not installed (pip install pykeops)", "a frame took 2 s", "xmemk bench --this"):
        assert said in text, said
    for said in (
        "made.jsonl:1",
        "python a.py --b",
        "0.1.0 abc",
        "A processor",
        "500 GFLOP/s",
        "compression > 6000 % 6,328 % yes counted",
    ):
        assert said in text, said
    assert [float(share) for share in re.findall(r"--share: ([\d.]+)", html)][:3] == [0.044, 0.167, 1.0]
    assert any("STCN from 75.0 MB to 750 MB" in label for label in parser.labels)
    assert any("computed, not measured: STCN to 7.50 GB" in label for label in parser.labels)


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
    assert re.search(r"memory_read top-k\s+40\.0 ms\s+.*tidy", said)
    assert "memory_read top-k" in out.read_text()
    spaced = tmp_path / "with spaces.jsonl"
    spaced.write_bytes(path.read_bytes())
    assert xmemk(["bench", "--results", str(spaced), "--out", str(out)]) == 0
    assert f"xmemk bench --results &#39;{spaced}&#39;" in out.read_text()
    capsys.readouterr()
    assert xmemk(["bench", "--results", str(tmp_path / "none.jsonl"), "--out", str(out)]) == 1
    assert "none.jsonl" in capsys.readouterr().err
    assert xmemk(["bench", "--device", "abacus"]) == 1
    assert "--device: wanted" in capsys.readouterr().err


def tables_of(place):
    made = [*map(tables.figures, place.cases), tables.curve_points(place), tables.track_points(place.tracks)]
    return [*made, tables.reasons(place), tables.limits(place)]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_in_the_terminal_breaks_between_words_alone(width):
    places, _ = result_files.read([ROOT / "benchmarks" / "results" / "cpu.jsonl"])
    written = io.StringIO()
    console = Console(file=written, width=width)
    for table in (*terminal.summaries(places[0], width), *(terminal.fitted(t, width) for t in tables_of(places[0]))):
        console.print(table)
    said = written.getvalue()
    assert max(map(len, said.splitlines())) <= width
    shown = set(said.split())
    for table in tables_of(places[0]):
        for word in " ".join(cell for row in table.rows for cell in row).split():
            assert {word, f"{word}:", f"{word};"} & shown, word


def test_a_step_that_fails_leaves_the_others_and_is_told(tmp_path, capsys, monkeypatch):
    steps = [bench.Step("the first", "absent", ()), bench.Step("the second", "run", ("--op", "evict_lfu"))]
    began = []

    def execute(command, seconds):
        began.append(command[2])
        if "absent" in command[2]:
            return 3
        with open(command[command.index("--save") + 1], "a") as file:
            file.write(json.dumps(lines()[0]) + "\n")
        return 0

    monkeypatch.setattr(bench, "steps", lambda full, device, seconds: steps)
    monkeypatch.setattr(bench.run, "__defaults__", (execute,))
    assert xmemk(["bench", "--out", str(tmp_path / "page.html"), "--device", "cpu"]) == 1
    assert began[:2] == ["xmemk.benchmarks.absent", "xmemk.benchmarks.run"]
    said = capsys.readouterr().out
    assert "the first ended with exit code 3" in said
    html = (tmp_path / "page.html").read_text()
    assert "Not shown: the first ended with exit code 3" in html
    assert "python -m xmemk.benchmarks.run --op evict_lfu --save" in html
    assert "earlier runs" not in html
    assert xmemk(["bench", "--out", str(tmp_path / "page.html"), "--device", "cpu"]) == 1
    html = (tmp_path / "page.html").read_text()  # of one run, the last
    assert "page.jsonl:1" not in html and "page.jsonl:2" in html
    assert "Not shown: earlier runs, the first line of page.jsonl" in html
    earlier = (tmp_path / "page.jsonl").read_text()
    monkeypatch.setattr(bench, "steps", lambda full, device, seconds: steps[:1])
    assert xmemk(["bench", "--out", str(tmp_path / "page.html"), "--device", "cpu"]) == 1
    assert "the first ended with exit code 3" in capsys.readouterr().err
    assert (tmp_path / "page.jsonl").read_text() == earlier
    assert xmemk(["bench", "--out", str(tmp_path / "page.jsonl"), "--device", "cpu"]) == 1
    assert "--out: wanted a page" in capsys.readouterr().err
    assert (tmp_path / "page.jsonl").read_text() == earlier


def test_a_step_that_takes_too_long_is_ended_and_keeps_its_results(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "OVERTIME", 1.0)
    code = "import sys, time; from pathlib import Path\nfrom xmemk.benchmarks.harness import record\n"
    code += "from xmemk.benchmarks.report.schema import Claim\n"
    code += f"with record.recorded('claims', Path({str(tmp_path / 'x.jsonl')!r})) as results:\n"
    code += " results.append(Claim('a', 'b'))\n time.sleep(600)"
    begin = time.monotonic()
    assert bench.execute([sys.executable, "-c", "import time; time.sleep(600)"], 0.0) == 0
    assert time.monotonic() - begin < 30
    monkeypatch.setattr(bench, "OVERTIME", 10.0)
    assert bench.execute([sys.executable, "-c", code], 0.0) == 0
    (line,) = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    assert line["results"][0]["claim"] == "a" and line["stopped"] == "SystemExit"
    assert bench.execute([sys.executable, "-c", "raise SystemExit(3)"], 60.0) == 3


@pytest.mark.parametrize(("full", "device"), [(False, "cpu"), (True, "cpu"), (False, "cuda")])
@pytest.mark.parametrize("seconds", [None, 20.0, 100.0, 1000.0])
def test_every_step_is_a_program_that_takes_its_arguments_and_the_time_is_shared(full, device, seconds):
    import importlib

    steps = bench.steps(full, device, seconds)
    for step in steps:
        module = importlib.import_module(f"xmemk.benchmarks.{step.module}")
        assert callable(module.main)
        words = [*step.command(Path("out/x.jsonl"))[3:], "--quiet"]
        if "--device" not in words:
            options = module.parser().parse_args(words)
            assert options.quiet
    if seconds:
        assert sum(step.seconds for step in steps) == pytest.approx(seconds, rel=0.01)
    if seconds == 20.0 and device == "cpu":
        assert [step.what for step in steps] == [bench.FUNCTIONS] and "--untested" in steps[0].arguments


def test_the_load_and_the_time_given_are_said(tmp_path, capsys, monkeypatch):
    def execute(command, seconds):
        with open(command[command.index("--save") + 1], "a") as file:
            file.write(json.dumps(lines()[0]) + "\n")
        return 0

    monkeypatch.setattr(bench.run, "__defaults__", (execute,))
    for now, said in (
        (
            load.Load(3.5, 2, 0.4),
            "other work disturbs: 2 cores, load 3.5 in the last minute, of whose time 40 % was free",
        ),
        (
            load.Load(0.1, 2, 0.99),
            "the machine is quiet: 2 cores, load 0.1 in the last minute, of whose time 99 % was free",
        ),
    ):
        monkeypatch.setattr(load, "look", lambda now=now: now)
        monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
        assert xmemk(["bench", "--out", str(tmp_path / "page.html"), "--device", "cpu", "--seconds", "30"]) == 0
        told = capsys.readouterr().out
        assert said in told and "about 30 s, as asked, and without the functions' tests" in told
        assert "1 of 1: functions beside their peers, about 30 s" in told
    html = (tmp_path / "page.html").read_text()
    assert "xmemk bench --seconds 30 --device cpu" in html and "along a video" not in html
    assert xmemk(["bench", "--seconds", "0"]) != 0


def test_the_load_is_that_of_all_cores():
    alone = load.look(0.05)
    assert 0 < alone.share <= 1 and alone.cores >= 1
    assert load.Load(None, 4, 0.5).disturbs and not load.Load(None, 4, 0.95).disturbs


def test_the_page_travels_with_the_wheel():
    assert '"xmemk.benchmarks.report" = ["*.html", "*.css"]' in (ROOT / "pyproject.toml").read_text()
    assert all(Path(page.__file__).with_name(f"page.{kind}").exists() for kind in ("html", "css"))
