"""The scaling curves: axes, points that are not tried, rows that were checked."""

import json
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("rich")

from xmemk.benchmarks.harness import timing
from xmemk.benchmarks.peers.catalogue import Peer, peers_of
from xmemk.benchmarks.peers.workloads import WORKLOADS, make_case, sizes_of
from xmemk.benchmarks.report.schema import CaseResult, Measurement
from xmemk.benchmarks.studies import scaling

SMALL = {"N": (200, 400), "Q": (20, 40), "O": (1, 3), "k": (1, 20)}
LIMITS = scaling.PointLimits(4e9, rounds=2, budget=60.0)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setitem(timing.CHAIN_SECONDS, "cpu", 1e-3)
    monkeypatch.setattr(scaling, "VALUES", SMALL)
    monkeypatch.setattr(scaling, "QUICK_BASE", "tiny")
    monkeypatch.setattr(scaling, "BASES", dict.fromkeys(scaling.BASES, "tiny"))
    yield
    torch.set_num_threads(before)


MEASURED = {}


def all_of(axis):
    """The results along an axis, measured once for all tests."""
    if axis not in MEASURED:
        MEASURED[axis] = scaling.measure([axis], LIMITS)
    return MEASURED[axis]


def point_of(value, op="memory_read", axis="N", **sizes):
    w = replace(WORKLOADS["tiny"], **sizes)
    point = scaling.Point(op, w.name, 1, "float32", "cpu", 1, **sizes_of(op, w), axis=axis, value=value)
    point.of = w
    return point


def measured(point, *arguments):
    scaling.measure_point(point, *arguments)
    return point.rows


@pytest.mark.parametrize("axis", list(scaling.BASES))
def test_every_axis_has_rows_that_were_checked(axis):
    results = all_of(axis)
    values = scaling.values_of(axis, quick=False)
    assert [(r.op, r.value) for r in results] == [(op, v) for op in scaling.OPS[axis] for v in values]
    rows = [row for r in results for row in r.rows]
    assert len(rows) == 3 * len(results)
    for row in rows:
        assert row.median > 0 and len(row.seconds) == 2 and not row.reason, row
        assert row.error is not None and row.error < 1e-4
    assert {row.peer for row in rows if not row.ours} == {"tidy PyTorch", "original"}
    stored = json.loads(json.dumps([result.to_json() for result in results]))
    assert [CaseResult.from_json(result).to_json() for result in stored] == stored
    assert torch.get_num_threads() == 1


def test_the_quick_run_has_reads_alone(monkeypatch):
    monkeypatch.setattr(scaling, "QUICK", {"N": (50, 60)})
    results = scaling.measure(["N"], LIMITS, quick=True)
    assert [(r.op, r.value, r.workload) for r in results] == [
        ("memory_read", 50, "tiny"),
        ("memory_read", 60, "tiny"),
    ]
    assert scaling.values_of("threads", quick=True)[0] == 1


def test_each_axis_varies_what_it_is_named_for():
    of = {axis: all_of(axis)[0] for axis in ("N", "Q", "O", "k")}
    assert of["N"].tokens == 200 and of["N"].queries == WORKLOADS["tiny"].queries
    assert of["Q"].queries == 20 and of["Q"].tokens == WORKLOADS["tiny"].tokens
    assert of["O"].objects == 1 and of["k"].top_k == 1
    last = list(scaling.curves("N", 1, quick=False))[-1][-1]
    assert last.op == "consolidate" and last.tokens == 400 and last.top_k is None


def test_a_point_that_would_take_too_much_memory_is_a_row_and_is_not_tried(monkeypatch):
    monkeypatch.setattr(scaling, "make_case", lambda *a, **k: pytest.fail("was tried"))
    (result, _) = scaling.measure(["Q"], replace(LIMITS, bytes=1e5))[:2]
    assert all(row.reason.startswith("would take 0.") and "GB" in row.reason for row in result.rows)
    assert all(row.median is None and row.seconds == [] for row in result.rows)


def test_a_point_that_would_take_too_long_is_a_row_with_where_that_comes_from():
    point = point_of(4_000)
    assert scaling.refusal(point, "original", [(1_000, 5.0)], LIMITS) == (
        "would take 20.0 s (5.0 s at N = 1,000), more than 10"
    )
    # On the line through two points: 1 s more per 1,000 tokens.
    assert scaling.predicted(point, [(1_000, 5.0), (2_000, 6.0)]) == pytest.approx(8.0)
    assert scaling.refusal(point, "original", [(1_000, 5.0), (2_000, 6.0)], LIMITS) == ""
    threads = point_of(2, axis="threads")
    assert scaling.refusal(threads, "original", [(1, 50.0)], LIMITS) == ""


def test_the_original_at_4k_is_known_to_take_hundreds_of_gigabytes():
    point = point_of(32_400, axis="Q", tokens=301_600, queries=32_400, value_channels=512)
    assert scaling.needed_bytes(point, "original") / 1e9 == pytest.approx(197, abs=3)
    assert scaling.needed_bytes(point, "xmemk cpu") / 1e9 < 3


@pytest.mark.parametrize("op", ["memory_read", "memory_read_dense", "consolidate"])
def test_a_wrong_result_is_a_row_with_its_reason(monkeypatch, op):
    def wrong(case):
        call = peers_of(case.op, ["torch"])[0].prepare(case)
        return lambda: tuple(1.01 * t for t in call())

    def crash(case):
        raise MemoryError("no room")

    monkeypatch.setattr(scaling, "chosen", lambda op: [Peer("wrong", wrong), Peer("crash", crash)])
    rows = measured(point_of(300, op), LIMITS, {})
    assert rows[0].reason.startswith("wrong:") and not rows[0].seconds
    assert rows[1].reason == "MemoryError: no room" and rows[1].extra_bytes is None


def test_what_is_checked_is_cut_from_the_timed_result(monkeypatch):
    case = make_case("memory_read", replace(WORKLOADS["tiny"], value_channels=64), objects=2)
    result = peers_of("memory_read", ["torch"])[0].prepare(case)()
    checked = []
    monkeypatch.setattr(scaling, "verdict", lambda *arguments: checked.append(arguments))
    scaling.judge(case, result)
    thinned, (readout, usage) = checked[0]
    assert readout.shape[1:3] == thinned.inputs.mv.shape[1:3] == (1, 32)
    assert torch.equal(readout, result[0][:, :1, ::2])
    assert usage.shape == (1, 300)


def test_what_is_left_out_is_extrapolated_and_marked(monkeypatch):
    peers = [Peer(name, None) for name in "abc"]
    monkeypatch.setattr(scaling, "chosen", lambda op: peers)
    point = point_of(4_000)
    past = {"a": [(1_000, 5.0), (2_000, 6.0)], "b": [(1_000, 5.0)]}
    rows = measured(point, replace(LIMITS, bytes=1.0), past)
    assert [row.extrapolated_seconds for row in rows] == [pytest.approx(8.0), None, None]
    monkeypatch.setattr(scaling, "time_point", lambda *_: [Measurement("a", seconds=[1.0])])
    monkeypatch.setattr(scaling, "chosen", lambda op: peers[:1])
    assert measured(point, LIMITS, past)[0].extrapolated_seconds is None


def sleepy(seconds):
    def prepare(case):
        call = peers_of(case.op, ["torch"])[0].prepare(case)

        def slow():
            time.sleep(seconds * case.inputs.mk.shape[2] / 200)
            return call()

        return slow

    return prepare


def test_a_budget_is_kept_and_what_is_left_out_is_a_row(monkeypatch):
    peers = [Peer("xmemk torch", sleepy(1e-4), ours=True), Peer("original", sleepy(0.05))]
    monkeypatch.setattr(scaling, "chosen", lambda op: peers)
    monkeypatch.setattr(scaling, "VALUES", {"N": (200, 400, 20_000)})
    monkeypatch.setattr(scaling, "OPS", {"N": ("memory_read",)})
    begin = time.monotonic()
    results = scaling.measure(["N"], LIMITS, budget=4.0)
    assert time.monotonic() - begin < 25  # the last point of the slow peer alone would take 80
    assert [r.value for r in results] == [200, 400, 20_000]
    first, *_, last = ({row.peer: row for row in r.rows} for r in results)
    assert first["original"].median > 0.05 and first["xmemk torch"].median
    assert last["original"].reason.startswith(("would take", scaling.NOT_REACHED)) and not last["original"].seconds
    assert last["original"].extrapolated_seconds > 1
    nothing = scaling.measure(["N"], LIMITS, budget=1e-9)
    assert {row.reason for r in nothing for row in r.rows} == {scaling.NOT_REACHED}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_what_was_measured_before_an_interruption_is_in_the_file(monkeypatch, tmp_path, stop):
    real = scaling.measure_point

    def second_fails(point, *rest):
        if point.value == 400:
            raise stop
        real(point, *rest)

    monkeypatch.setattr(scaling, "measure_point", second_fails)
    path = tmp_path / "results.jsonl"
    with pytest.raises(stop):
        scaling.main(["--axis", "N", "--save", str(path)])
    (line,) = map(json.loads, path.read_text().splitlines())
    assert [r["value"] for r in line["results"]] == [200] and line["stopped"] == stop.__name__
