"""Every table of the report follows from the rows, whatever they are."""

import base64
import io
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("rich")

from rich.console import Console
from xmemk.benchmarks.report import formatting as f
from xmemk.benchmarks.report import page, result_files, tables, terminal

HEAD = {"date": "2026-01-02 03:04", "commit": "0.1.0 abc", "command": "python a.py"}
PEERS = ("tidy PyTorch", "original", "original, torch.compile", "SDPA (no usage)", "faiss, embedding_bag")
PEERS += ("STCN (another method)", "similarity product alone")
OPS = ("memory_read", "dense", "consolidate", "select_prototypes", "evict", "memory_read_train", "frame", "video")

times = st.floats(1e-6, 100.0)


@st.composite
def rows(draw):
    """Ours, by one or two backends, and some peers; each may have failed or be wrong."""
    rows_made = []
    ours = [("xmemk cpu", True), ("xmemk torch", True)][: draw(st.integers(1, 2))]
    for peer, mine in [*ours, *((peer, False) for peer in draw(st.lists(st.sampled_from(PEERS), unique=True)))]:
        if draw(st.integers(0, 3)) == 0:
            rows_made.append({"peer": peer, "ours": mine, "seconds": [], "reason": "not installed"})
            continue
        base = draw(times)
        seconds = [base * draw(st.floats(0.8, 1.2)) for _ in range(draw(st.integers(1, 6)))]
        row = {"peer": peer, "ours": mine, "seconds": seconds, "reason": ""}
        row["error"] = None if peer in PEERS[-2:] else draw(st.sampled_from((0.0, 1e-6, 3e-2)))
        row["extra_bytes"] = draw(st.sampled_from((None, 0, 1_000, 10**9)))
        row["status"] = draw(st.sampled_from(("exact", "exact", "rounded", "WRONG")))
        rows_made.append(row)
    return rows_made


@st.composite
def runs(draw):
    made = []
    for kind in draw(st.lists(st.sampled_from(("ops", "ops", "scaling", "length", "claims")), min_size=1, max_size=4)):
        device = draw(st.sampled_from(("cpu", "cuda:0")))
        machine = {"processor": draw(st.sampled_from(("AMD x", "y"))), "GPU": "a GPU"}
        named = {"workload": "480p-full", "objects": 1, "dtype": "float32", "device": device}
        results = []
        for op in draw(st.lists(st.sampled_from(OPS), min_size=1, max_size=4)):
            case = {**named, "op": op, "threads": draw(st.integers(1, 2)), "rows": draw(rows())}
            case["tested"] = draw(st.sampled_from((True, None, "no checkout", False)))
            results.append(case)
        if kind == "scaling":
            results = [{**case, "axis": "N", "value": 10**i} for i, case in enumerate(results, 2)]
        if kind == "length":
            frames = draw(st.lists(st.integers(1, 10**5), unique=True, max_size=3))
            points = [{"frame": f, "seconds": draw(times), "bytes": draw(st.integers(0, 10**9))} for f in frames]
            points = [{**p, "quality": 0.5} for p in points]
            results = [
                {"protocol": protocol, "method": "STCN", "points": points, "reason": draw(st.sampled_from(("", "why")))}
                for protocol in ("fig1", "fig5")
            ]
        if kind == "claims":
            claim = {"claim": "frames, of us", "paper": "up to 3", "unit": "frames", "how": "so"}
            results = [{**claim, "measured": draw(st.sampled_from((None, 3, 0.5))), "holds": None}]
        roof = draw(st.sampled_from((None, {"gflops": 100.0, "gbytes_per_s": 10.0})))
        made.append({**HEAD, "kind": kind, "machine": machine, "roof": roof, "results": results})
    return made


def read(runs, path):
    path.write_text("\n".join(map(json.dumps, runs)))
    return result_files.read([path])[0]


def tables_of(place):
    whole = [tables.summary(place.cases), tables.claims(place.claims), tables.tracks(place.tracks)]
    whole += [tables.growth(place), tables.curve_points(place), tables.track_points(place.tracks), tables.limits(place)]
    return [*whole, tables.reasons(place), tables.runs(place), *map(tables.figures, place.cases)]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=runs())
def test_tables_are_whole(made, tmp_path_factory):
    for place in read(made, tmp_path_factory.mktemp("s") / "x.jsonl"):
        for table in tables_of(place):
            assert len(table.columns) == len(table.align)
            for row in table.rows:
                assert len(row) == len(table.columns)
                for cell in row:
                    wrong = re.search(r"None|nan\b|inf\b|  |\(\)|,,| ,| ;|;,|: \.|^[,;] |[,;]$", cell)
                    assert wrong is None, (wrong, cell)
            if table.title.startswith(("What", "Who")):
                assert len(set(map(tuple, table.rows))) == len(table.rows)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=runs())
def test_tables_are_true(made, tmp_path_factory):
    for place in read(made, tmp_path_factory.mktemp("s") / "x.jsonl"):
        summary = tables.summary(place.cases)
        for case, row in zip((case for case in place.cases if case.timed), summary.rows, strict=True):
            assert row[0] == tables.title(case)
            assert row[1] == (f.duration(case.ours.median) if case.ours else "-")
            if not case.rivals:
                assert row[2] == ""
                continue
            fastest = min(case.rivals, key=lambda r: r.median)
            assert row[2].startswith(f"{fastest.peer}: {f.duration(fastest.median)}")
            if case.ours:
                assert row[2].endswith(f"({f.times(fastest.median / case.ours.median)})")
        limits = dict(tables.limits(place).rows)
        assert ("rounds" in limits) == any(case.timed for case in place.cases)
        wrong = {r.peer for c in place.cases for r in c.timed if r.status == "WRONG"}
        assert ("wrong results" in limits) == bool(wrong)
        for case in place.cases:
            for row, cells in zip(case.timed, tables.figures(case).rows):
                kind = cells[-1]
                assert (kind == "rounded") == (row.status == "rounded" and row.kind == "rounded")
                assert (kind == "WRONG") == (row.status == "WRONG" and "another method" not in row.peer)
                assert (kind == "no usage") == ("(no usage)" in row.peer and row.status != "WRONG")


def test_every_page_of_odd_rows_can_be_drawn(tmp_path):
    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(made=runs())
    def draw(made):
        page.write_page(tmp_path / "page.html", read(made, tmp_path / "x.jsonl"), [], ["xmemk bench"])
        assert "</html>" in (tmp_path / "page.html").read_text()

    draw()


def of(op="memory_read", **rows):
    """A case of peers by name and seconds."""
    told = [
        {"peer": peer.replace("_", " "), "ours": peer.startswith("xmemk"), "seconds": [s], "error": 1e-6}
        for peer, s in rows.items()
    ]
    named = {"op": op, "workload": "480p-full", "objects": 1, "dtype": "float32", "device": "cpu", "threads": 2}
    return {**named, "rows": told}


def place_of(tmp_path, *cases, **more):
    run = {**HEAD, "kind": "ops", "machine": {"processor": "p"}, "results": list(cases), **more}
    (place,) = read([run], tmp_path / "x.jsonl")
    return place


def test_where_all_peers_failed_nothing_is_compared(tmp_path):
    case = of(xmemk_cpu=1.0)
    case["rows"].append({"peer": "original", "ours": False, "seconds": [], "reason": "MemoryError: no room"})
    place = place_of(tmp_path, case)
    assert tables.summary(place.cases).rows[0][2] == ""
    assert tables.reasons(place).rows[0][0] == "original"


def test_two_lines_of_the_same_case_give_each_limit_once(tmp_path):
    wrong = of(xmemk_cpu=1.0, original=2.0)
    wrong["rows"][1]["status"] = "WRONG"
    place = place_of(tmp_path, {**wrong, "device": "cpu"}, {**wrong, "op": "read"})
    rows = tables.limits(place).rows
    assert len(set(rows)) == len(rows)


def test_what_was_not_measured_has_no_place(tmp_path):
    """Neither in the terminal nor on the page: cases without a time, plots of one point."""
    late = {**of("evict_lfu"), "rows": [{"peer": "xmemk cpu", "ours": True, "reason": "not reached in the time given"}]}
    place = place_of(tmp_path, of(xmemk_cpu=1.0, original=2.0), late)
    place.scaling = place_of(tmp_path, point("memory_read"), kind="scaling").scaling
    page.write_page(tmp_path / "page.html", [place], [], [])
    html = (tmp_path / "page.html").read_text()
    assert "How time and memory grow" not in html and "<img" not in html and "along a video" not in html.lower()
    headings = re.findall(r"<h[23]>(.*?)</h[23]>", html)
    assert not any("evict_lfu" in heading or "claims" in heading for heading in headings)
    assert "not reached in the time given" in html
    written = io.StringIO()
    for table in terminal.summaries(place, 80):
        Console(file=written, width=80).print(table)
    assert "memory_read" in written.getvalue() and "evict_lfu" not in written.getvalue()


def test_cases_that_differ_in_threads_are_told_apart(tmp_path):
    place = place_of(tmp_path, of(xmemk=1.0, original=2.0), {**of(xmemk=1.0, original=2.0), "threads": 1})
    assert [tables.title(case) for case in place.cases] == [
        "memory_read top-k (480p-full, 1 object, 2 threads)",
        "memory_read top-k (480p-full, 1 object, 1 thread)",
    ]


def test_points_of_two_workloads_are_two_curves(tmp_path):
    points = [
        {**of(xmemk=1e-3 * n), "axis": "N", "value": n, "workload": name}
        for name in ("480p-early", "480p-full")
        for n in (1, 10, 100)
    ]
    place = place_of(tmp_path, *points, kind="scaling")
    assert [[c.value for c in curve] for curve in place.curves] == [[1, 10, 100]] * 2
    assert [row[4] for row in tables.growth(place).rows] == ["1.00"] * 2


def point(op):
    return {**of(op, xmemk=1.0, original=2.0), "axis": "N", "value": 10}


def test_each_plot_says_its_run_where_there_are_several(tmp_path):
    runs = [
        {
            **HEAD,
            "kind": "scaling",
            "machine": {},
            "results": [point(op), {**point(op), "value": 20}],
            "date": f"2026-01-0{day} 00:00",
        }
        for day, op in enumerate(("memory_read", "memory_read_dense"), 1)
    ]
    (place,) = read(runs, tmp_path / "x.jsonl")
    captions = [plot.caption for plot in page.growth_plots(place)]
    assert ["2026-01-01 00:00, 0.1.0 abc" in c for c in captions] == [True, False]
    (place,) = read(runs[:1], tmp_path / "x.jsonl")
    assert "2026" not in page.growth_plots(place)[0].caption
    assert "2026-01-01 00:00, 0.1.0 abc" in tables.figures(place.scaling[0]).about


def test_earlier_lines_are_passed_over(tmp_path):
    path = tmp_path / "x.jsonl"
    runs = [
        {**HEAD, "machine": {}, "results": [of(op, xmemk=1.0)]}
        for op in ("memory_read", "memory_read_dense", "evict_lfu")
    ]
    path.write_text("\n".join(map(json.dumps, runs)))
    (place,), passed_over = result_files.read([path], after=2)
    assert [case.op for case in place.cases] == ["evict_lfu"]
    assert passed_over == ["earlier runs, the first 2 lines of x.jsonl"]


def test_what_was_extrapolated_is_marked(tmp_path):
    points = [{**of(xmemk=1e-3 * n, original=1e-2 * n), "axis": "N", "value": n} for n in (10, 100, 1_000)]
    points[-1]["rows"][1] |= {"seconds": [], "reason": "would take 9 s", "extrapolated_seconds": 10.0}
    place = place_of(tmp_path, *points, kind="scaling")
    time, *_ = page.growth_plots(place)
    assert "extrapolated, not measured: original to 10.0 s" in time.words
    assert "original, extrapolated" in base64.b64decode(time.image.partition(",")[2]).decode()
    page.write_page(tmp_path / "page.html", [place], [], [])
    assert "extrapolated, not measured: would take 9 s" in (tmp_path / "page.html").read_text()
    assert tables.growth(place).rows[0][6] == "no other has a time"


def test_figures_in_words():
    assert [f.duration(s) for s in (0, 5.2e-5, 9.996e-4, 0.0399, 0.9999, 23.9, 1200)] == [
        "0 us",
        "52.0 us",
        "1.00 ms",
        "39.9 ms",
        "1.00 s",
        "23.9 s",
        "20.0 min",
    ]
    assert [f.size(b) for b in (1_000, 17_125_376, 999_999_999, 8.39e9)] == [
        "1.00 kB",
        "17.1 MB",
        "1.00 GB",
        "8.39 GB",
    ]
    assert [f.times(r) for r in (0.5, 0.979, 1.04, 3.72, 22.8, 150)] == [
        "0.50",
        "0.979",
        "1.04",
        "3.7",
        "23",
        "150",
    ]
    assert [f.percent(x) for x in (None, 0.0431, 1.2)] == ["", "4.3 %", "120 %"]
    assert [f.exponent(x) for x in (None, 1.4e-6)] == ["", "1.4e-06"]
    assert [f.counted(n, "query", "queries") for n in (1, 1_620)] == ["1 query", "1,620 queries"]
    assert f.number(1_000_000.0) == "1,000,000"
