"""Every sentence of the report follows from the rows, whatever they are: peers that fail, one op alone, a GPU."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("rich")

from xmemk.benchmarks.report import conclusions, limits, page, reading
from xmemk.benchmarks.report import words as w

HEAD = {"date": "2026-01-02 03:04", "commit": "0.1.0 abc", "command": "python a.py"}
PEERS = ("tidy PyTorch", "original", "original, torch.compile", "SDPA (no usage)", "faiss, embedding_bag")
PEERS += ("STCN (another method)", "similarity product alone")
OPS = ("read", "dense", "consolidate", "select", "evict", "train", "frame", "video")

times = st.floats(1e-6, 100.0)


@st.composite
def rows(draw):
    """Ours, by one or two backends, and some peers; each may have failed or be wrong."""
    found = []
    ours = [("xmemk cpu", True), ("xmemk torch", True)][: draw(st.integers(1, 2))]
    for peer, mine in [*ours, *((peer, False) for peer in draw(st.lists(st.sampled_from(PEERS), unique=True)))]:
        if draw(st.integers(0, 3)) == 0:
            found.append({"peer": peer, "ours": mine, "seconds": [], "reason": "not installed"})
            continue
        base = draw(times)
        seconds = [base * draw(st.floats(0.8, 1.2)) for _ in range(draw(st.integers(1, 6)))]
        row = {"peer": peer, "ours": mine, "seconds": seconds, "reason": ""}
        row["error"] = None if peer in PEERS[-2:] else draw(st.sampled_from((0.0, 1e-6, 3e-2)))
        row["extra_bytes"] = draw(st.sampled_from((None, 0, 1_000, 10**9)))
        row["status"] = draw(st.sampled_from(("exact", "exact", "rounded", "WRONG")))
        found.append(row)
    return found


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
    return reading.read([path])[0]


def sentences(place):
    return [*conclusions.answer(place), *conclusions.conclusions(place), *limits.limits(place)]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=runs())
def test_sentences_are_whole(made, tmp_path_factory):
    for place in read(made, tmp_path_factory.mktemp("s") / "x.jsonl"):
        said = sentences(place)
        for sentence in [*said, conclusions.headline(place) + "."]:
            assert re.match(r"^\S.*[^ .,;:]\.$", sentence), sentence
            wrong = re.search(
                r"None|nan\b|inf\b|  |\(\)|,,| ,| ;|;,|: \.|\bof \.|\b0 of|\b1 \w+s\b (are|were|of)", sentence
            )
            assert wrong is None, (wrong, sentence)
        assert len(said) == len(set(said))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=runs())
def test_sentences_are_true(made, tmp_path_factory):
    for place in read(made, tmp_path_factory.mktemp("s") / "x.jsonl"):
        said = sentences(place)
        for op, noun in conclusions.OPS.items():
            cases = [c for c in place.cases if c.op == op and c.ours and c.rivals]
            ratios = [c.rivals[0].time / c.ours.time for c in cases]
            found = [s for s in said if s.startswith(f"{w.capital(noun)}: ")]
            assert len(found) == bool(ratios)
            if not ratios:
                continue
            (sentence,) = found
            faster = sum(r >= w.SAME for r in ratios)
            slower = sum(r <= 1 / w.SAME for r in ratios)
            if faster == len(ratios):
                assert re.search(r": [\d.,]+( to [\d.,]+)? times as fast as the fastest other", sentence)
            elif slower == len(ratios):
                assert ": slower than the fastest other" in sentence
            elif faster + slower == 0:
                assert ": about as fast as the fastest other" in sentence
            else:
                assert (f"faster in {faster}" in sentence) == (faster > 0)
                assert (f"slower in {slower} of" in sentence) == (slower > 0)
        text = " ".join(said)
        peers = {row.peer for case in place.cases for row in case.rows}
        ran = {row.peer for case in place.cases for row in case.timed}
        for peer in peers - ran:
            assert any(s.startswith("Nothing is said about") and peer in s for s in said)
        assert ("no time of its own" in text) == any(c.ours is None for c in place.cases)
        assert ("Nothing is said about" in text) == bool(peers - ran)
        unknown = any(row.status == "rounded" for case in place.cases for row in case.timed)
        assert ("rounded, not exact" in text) == unknown
        wrong = {r.peer for c in place.cases for r in c.timed if r.status == "WRONG" and not r.ours}
        assert ("gave wrong results" in text) == bool(wrong)
        slow = [
            r.time < c.ours.time
            for c in place.cases
            for r in c.timed
            if c.ours and "(no usage)" in r.peer and r.status != "WRONG"
        ]
        assert ("no faster" in text) == (bool(slow) and not any(slow))


def test_every_page_of_odd_rows_can_be_drawn(tmp_path):
    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(made=runs())
    def draw(made):
        page.write_page(tmp_path / "page.html", read(made, tmp_path / "x.jsonl"), [], ["xmemk bench"])
        assert "</html>" in (tmp_path / "page.html").read_text()

    draw()


def of(op="read", **rows):
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
    assert conclusions.headline(place) == "What was measured" and conclusions.answer(place) == []
    assert "Nothing is said about original: it was timed in no case, for the reasons given below." in limits.limits(
        place
    )


def test_another_backend_of_ours_is_named(tmp_path):
    case = of(xmemk_cpu=1.0, xmemk_torch=2.0, original=3.0)
    case["rows"][0] |= {"seconds": [], "reason": "not built"}
    said = limits.limits(place_of(tmp_path, case))
    assert (
        'In top-k memory read (480p-full, 1 object), "xmemk" is xmemk torch, since xmemk cpu has no time there.' in said
    )


def test_cases_that_differ_in_threads_are_told_apart(tmp_path):
    place = place_of(tmp_path, of(xmemk=1.0, original=2.0), {**of(xmemk=1.0, original=2.0), "threads": 1})
    assert [conclusions.title(case) for case in place.cases] == [
        "top-k memory read (480p-full, 1 object, 2 threads)",
        "top-k memory read (480p-full, 1 object, 1 thread)",
    ]


def test_points_of_two_workloads_are_two_curves(tmp_path):
    points = [
        {**of(xmemk=1e-3 * n), "axis": "N", "value": n, "workload": name}
        for name in ("480p-early", "480p-full")
        for n in (1, 10, 100)
    ]
    place = place_of(tmp_path, *points, kind="scaling")
    assert [[c.value for c in curve] for curve in place.curves] == [[1, 10, 100]] * 2
    assert sum("goes about as the power 1.00" in s for s in conclusions.conclusions(place)) == 2


def test_exactness_is_of_what_is_held_to_float64(tmp_path):
    frame, read_ = of("frame", xmemk=1.0, original=2.0), of(xmemk=1.0, original=2.0)
    frame["rows"][0]["error"] = 0.5
    assert not any("Exactness" in s for s in conclusions.conclusions(place_of(tmp_path, frame)))
    (said,) = (s for s in conclusions.conclusions(place_of(tmp_path, frame, read_)) if "Exactness" in s)
    assert "is 1.0e-06, the others' 1.0e-06; ours is the larger one in none of 1 comparison" in said


def test_each_plot_says_its_run_where_there_are_several(tmp_path):
    runs = [
        {**HEAD, "machine": {}, "results": [of(op, xmemk=1.0, original=2.0)], "date": f"2026-01-0{day} 00:00"}
        for day, op in enumerate(("read", "dense"), 1)
    ]
    (place,) = read(runs, tmp_path / "x.jsonl")
    captions = [plot.caption for plot in page._bars(place)]
    assert ["2026-01-01 00:00, 0.1.0 abc" in c for c in captions] == [True, False]
    (place,) = read(runs[:1], tmp_path / "x.jsonl")
    assert "2026" not in next(page._bars(place)).caption


def test_earlier_lines_are_passed_over(tmp_path):
    path = tmp_path / "x.jsonl"
    runs = [{**HEAD, "machine": {}, "results": [of(op, xmemk=1.0)]} for op in ("read", "dense", "evict")]
    path.write_text("\n".join(map(json.dumps, runs)))
    (place,), passed_over = reading.read([path], after=2)
    assert [case.op for case in place.cases] == ["evict"]
    assert passed_over == ["earlier runs, the first 2 lines of x.jsonl"]


def test_what_was_extrapolated_is_marked(tmp_path):
    points = [{**of(xmemk=1e-3 * n, original=1e-2 * n), "axis": "N", "value": n} for n in (10, 100, 1_000)]
    points[-1]["rows"][1] |= {"seconds": [], "reason": "would take 9 s", "extrapolated_seconds": 10.0}
    place = place_of(tmp_path, *points, kind="scaling")
    time, *_ = page._scaling(place)
    assert "extrapolated, not measured: original to 10.0 s" in time.svg and "original, extrapolated" in time.svg
    page.write_page(tmp_path / "page.html", [place], [], [])
    assert "extrapolated, not measured: would take 9 s" in (tmp_path / "page.html").read_text()
    assert not any("1,000 the fastest other" in s for s in conclusions.conclusions(place))  # no time, no ratio


def test_figures_in_words():
    assert [w.duration(s) for s in (0, 5.2e-5, 9.996e-4, 0.0399, 0.9999, 23.9, 1200)] == [
        "0 us",
        "52.0 us",
        "1.00 ms",
        "39.9 ms",
        "1.00 s",
        "23.9 s",
        "20.0 min",
    ]
    assert [w.size(b) for b in (1_000, 17_125_376, 999_999_999, 8.39e9)] == [
        "1.00 kB",
        "17.1 MB",
        "1.00 GB",
        "8.39 GB",
    ]
    assert [w.times(r) for r in (0.5, 0.979, 1.04, 3.72, 22.8, 150)] == [
        "0.50",
        "0.979",
        "1.04",
        "3.7",
        "23",
        "150",
    ]
    assert w.listed(["a", "b", "c"]) == "a, b and c"
    assert w.listed(["a", "b, with c", "d"]) == "a; b, with c; and d"
    assert [w.listed(some) for some in ([], ["a, b"], ["a", "b"])] == ["", "a, b", "a and b"]
    assert w.number(1_000_000.0) == "1,000,000"
