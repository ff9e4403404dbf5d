"""Peers are checked before they are timed; what goes wrong with one is a row with its reason."""

import contextlib
import csv
import json
import signal
import sys
import time
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
from xmemk.benchmarks import run
from xmemk.benchmarks.harness import cases, costs, processes, timing
from xmemk.benchmarks.peers import video
from xmemk.benchmarks.peers.catalogue import Peer, Unavailable, peers_of
from xmemk.benchmarks.peers.verdicts import relative_error, status, verdict
from xmemk.benchmarks.peers.workloads import ALL_OPS, FRAME_OPS, OPS, WORKLOADS, make_case
from xmemk.benchmarks.report import terminal
from xmemk.benchmarks.report.schema import Measurement

from xmemk.testing import Comparison

pytest_plugins = ("benchmark_runs",)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_rows_that_were_checked(tiny_run, op):
    done, code = tiny_run("--op", op, "--backend", "torch")
    assert code == 0
    (result,) = done["results"]
    rows = {row["peer"]: row for row in result["rows"]}
    ours = rows["xmemk torch"]
    assert ours["ours"] and ours["median"] > 0 and ours["status"] == "exact" and ours["ratio"] == 1
    assert ours["of_roof"] > 0
    for row in rows.values():
        assert len(row["seconds"]) == 3 or row["reason"], row
        assert row["status"] in ("exact", "rounded", "")
        assert (row["ratio"] is None) == (row["median"] is None)
        assert row["device_seconds"] is None and row["host_seconds"] is None
    assert sum(row["median"] is not None for row in rows.values()) > 1
    assert done["kind"] == "ops" and done["commit"] and done["machine"]["processor"] and done["roof"]["gflops"] == 100
    assert done["command"].startswith("python benchmarks/run.py --try")
    assert result["tested"] is True and result["bytes"] > 0
    assert result["tokens"] == (
        150 if op in ("consolidate", "select_prototypes") else 200 if op == "evict_lfu" else 300
    )


def test_what_multiplies_in_16_bits_is_rounded_and_the_others_exact(tiny_run):
    both = ("original", "original, autocast")
    done, code = tiny_run("--op", "memory_read", "--dtype", "float16", "--backend", "cpu", "torch", "--only", *both)
    assert code == 0
    (result,) = done["results"]
    found = {row["peer"]: row["status"] for row in result["rows"]}
    assert found == dict.fromkeys(("xmemk cpu", "xmemk torch", "original"), "exact") | {both[1]: "rounded"}
    assert 1e-5 < result["rows"][-1]["relative_error"] < 0.1


def test_a_wrong_a_crashing_and_a_missing_peer_are_rows_with_reasons():
    def crash():
        raise MemoryError("no room")

    def refuse(case):
        raise Unavailable("not for this case")

    case = make_case("memory_read", WORKLOADS["tiny"])
    x = case.inputs
    peers = [
        Peer("wrong", lambda c: lambda: (x.mv.new_zeros(1, 1, 32, 40), None)),
        Peer("crash", lambda c: crash),
        Peer("refused", refuse),
        Peer("missing", refuse, package="flash-attn"),
        *peers_of("memory_read", ["torch"])[:1],
    ]
    rows = {row.peer: row for row in timing.time_peers(case, peers, rounds=2, budget=10)}
    assert rows["wrong"].reason.startswith("wrong: readout") and not rows["wrong"].seconds
    assert rows["wrong"].status == "WRONG"
    assert rows["crash"].reason == "MemoryError: no room"
    assert rows["refused"].reason == "not for this case"
    assert rows["missing"].reason == "not installed (pip install flash-attn)"
    assert len(rows["xmemk torch"].seconds) == 2


def test_a_peer_that_fails_later_keeps_what_was_measured(monkeypatch):
    monkeypatch.setitem(timing.CHAIN_SECONDS, "cpu", 1e-3)
    case = make_case("evict_lfu", WORKLOADS["tiny"])
    (ours,) = peers_of("evict_lfu", ["torch"])[:1]
    calls = iter(range(10**9))

    def prepare(case):
        call = ours.prepare(case)

        def late():
            if next(calls) > 600:
                raise RuntimeError("worn out")
            return call()

        return late

    peers = [Peer("late", prepare), ours]
    rows = {row.peer: row for row in timing.time_peers(case, peers, rounds=30, budget=60)}
    assert 0 < len(rows["late"].seconds) < 30
    assert rows["late"].reason == "RuntimeError: worn out"
    assert len(rows["xmemk torch"].seconds) == 30


@pytest.mark.parametrize(
    "op",
    [
        "memory_read",
        "memory_read_dense",
        "memory_read_train",
        "memory_read_dense_backward",
        "consolidate",
        "select_prototypes",
        "evict_lfu",
    ],
)
def test_a_wrong_result_of_any_op_is_found(op):
    case = make_case(op, WORKLOADS["tiny"])
    right = peers_of(op, ["torch"])[0].prepare(case)()
    assert verdict(case, right).passed
    assert relative_error(case, right) < 1e-4
    wrong = right.flip(1) * 0 if isinstance(right, torch.Tensor) else tuple(1.01 * t for t in right)
    compared = verdict(case, wrong)
    assert not compared.passed
    assert relative_error(case, wrong) > 0.009
    assert status(compared, 0.01, rounded=False) == "WRONG"
    assert status(compared, 0.01, rounded=True) == "rounded"
    assert status(compared, 0.2, rounded=True) == status(compared, None, rounded=True) == "WRONG"


def test_a_peer_that_has_used_up_its_budget_is_left_out_of_later_rounds():
    case = make_case("memory_read", WORKLOADS["tiny"])
    peers = peers_of("memory_read", ["torch"])[:1]
    (row,) = timing.time_peers(case, peers, rounds=4, budget=0)
    assert len(row.seconds) == 1


def test_peers_take_turns_in_an_order_that_changes():
    orders = [timing.order(3, i) for i in range(6)]
    assert all(sorted(one) == [0, 1, 2] for one in orders)
    before = {(one[i], one[i + 1]) for one in orders for i in range(2)}
    assert len(before) == 6  # each comes after each other one
    case = make_case("evict_lfu", WORKLOADS["tiny"])
    rows = [Measurement("a", ours=True, seconds=[1.0, 2.0, 4.0]), Measurement("b", seconds=[3.0, 4.0, 12.0])]
    timing.compare_with_ours(rows, [row.seconds for row in rows])
    assert [row.ratio for row in rows] == [1, 3]  # of the rounds' ratios 3, 2, 3
    assert case.matrix == 200


def test_the_order_goes_on_from_sweep_to_sweep(monkeypatch):
    turns, order = [], timing.order
    monkeypatch.setattr(timing, "order", lambda count, turn: turns.append(turn) or order(count, turn))
    case = make_case("evict_lfu", WORKLOADS["tiny"])
    peers = peers_of("evict_lfu", ["torch"])
    rows = timing.time_peers(case, peers, rounds=2, budget=10)
    for _ in range(2):
        timing.time_peers(case, peers, rounds=1, budget=10, earlier={row.peer: row for row in rows})
    assert turns == [0, 1, 2, 3]
    assert all(len(row.seconds) == len(row.ratios) == 4 for row in rows if not row.reason)


def test_ratios_are_to_one_row_alone():
    ours, spare = Measurement("a", ours=True, seconds=[1.0]), Measurement("b", ours=True, seconds=[3.0])
    timing.compare_with_ours([ours, spare], [[1.0], [3.0]])
    timing.compare_with_ours([ours, spare], [[], [3.0]])  # ours is not part of this sweep
    assert (ours.ratio, spare.ratio) == (1, 3)


def test_a_graph_whose_capture_fails_is_kept_and_its_stream_left(monkeypatch):
    graphs, streams, calls = [], [], []

    @contextlib.contextmanager
    def stream(new):
        streams.append(new)
        try:
            yield
        finally:
            streams.remove(new)

    @contextlib.contextmanager
    def capture(graph, stream):
        assert streams == [stream]
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    def call():
        calls.append(len(streams))

    for name, fake in (("Stream", mock.Mock), ("current_stream", mock.Mock), ("stream", stream), ("graph", capture)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append(object()) or graphs[-1])
    monkeypatch.setattr(timing, "_FAILED", [])
    with pytest.raises(RuntimeError, match="previous error"):
        timing._captured(call)
    assert graphs == timing._FAILED and len(graphs) == 1
    assert calls == [1, 1] and streams == []


def test_what_the_time_does_not_suffice_for_is_a_row(tiny_run):
    done, code = tiny_run("--suite", "gpu", "--seconds", "-1")
    assert code == 0
    reasons = {row["reason"] for result in done["results"] for row in result["rows"]}
    assert reasons == {"not reached in the time given"}
    assert {result["op"] for result in done["results"]} == {item.op for item in cases.SUITES["gpu"].items}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory can be measured on Linux alone")
def test_memory_is_measured_in_a_fresh_process():
    arguments = {"op": "memory_read", "workload": "480p-early", "objects": 1, "dtype": "float32", "device": "cpu"}
    arguments |= {"threads": 1, "peer": "tidy PyTorch"}
    peak, why = processes.in_fresh_process(arguments, timeout=120)
    assert peak > 1_620 * 8_100 * 4  # it holds the N x Q similarity
    assert why == ""
    peak, why = processes.in_fresh_process(arguments | {"peer": "nobody"}, timeout=120)
    assert peak is None and why.startswith("its process failed")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", "its process was killed by SIGSEGV"),
        ("import time; time.sleep(60)", "it did not end within 1 s"),
        ("print('nothing of ours')", "its process ended without a result"),
        ("raise OSError('no\\n room')", "its process failed with 1: OSError: no"),
    ],
)
def test_a_process_that_crashes_or_hangs_is_a_reason(monkeypatch, code, said):
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", code))
    begin = time.monotonic()
    assert processes.in_fresh_process({}, timeout=1 if "sleep" in code else 60) == (None, said)
    assert time.monotonic() - begin < 60


def test_a_chatty_process_does_not_block(monkeypatch):
    code = "import sys; sys.stderr.write(('x' * 99 + '\\n') * 20_000); print('{\"extra_bytes\": 7, \"reason\": \"\"}')"
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", code))
    assert processes.in_fresh_process({}, timeout=60) == (7, "")


def test_what_may_not_fit_is_tried_in_a_process_of_its_own(monkeypatch):
    case = make_case("memory_read", WORKLOADS["tiny"])
    peers = peers_of("memory_read", ["torch"])[:2]
    tried = []

    def trial(peer):
        tried.append(peer.name)
        return None, "its process was killed by SIGKILL, as when memory runs out"

    assert not timing.doubtful(case, peers[1])
    monkeypatch.setattr(type(case), "matrix", 10**15)
    rows = timing.time_peers(case, peers, rounds=1, budget=1, trial=trial)
    assert tried == ["tidy PyTorch"]  # ours builds no such matrix
    assert "SIGKILL" in rows[1].reason and not rows[1].seconds and rows[0].seconds


def test_ours_being_wrong_turns_the_run_red(tiny_run, monkeypatch):
    wrong = Peer("xmemk torch", lambda case: lambda: torch.zeros(1, 184, dtype=torch.int64), ours=True)
    monkeypatch.setattr(cases, "peers", lambda *_: [wrong])
    done, code = tiny_run("--op", "evict_lfu")
    assert code == 1
    (row,) = done["results"][0]["rows"]
    assert row["status"] == "WRONG" and row["median"] is None


def test_runs_are_appended_to_a_file_and_written_beside_it(tiny_run, tmp_path):
    here = tmp_path / "here"
    options = ("--op", "evict_lfu", "select_prototypes", "--backend", "torch", "--only", "torch.topk")
    for _ in range(2):
        tiny_run(*options, "--save", str(here / "cpu.jsonl"), "--results", str(here))
    lines = (here / "cpu.jsonl").read_text().splitlines()
    assert [json.loads(line)["results"][0]["op"] for line in lines] == ["evict_lfu", "evict_lfu"]
    report = json.loads((here / "cpu.json").read_text())
    rows = [row for result in report["results"] for row in result["rows"]]
    with (here / "cpu.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["peer"] for row in rows] == ["xmemk torch", "xmemk torch", "torch.topk"]
    assert [row["peer"] for row in table] == [row["peer"] for row in rows]
    assert float(table[2]["ratio"]) == pytest.approx(rows[2]["ratio"])


def test_how_far_two_runs_agree(tmp_path, capsys):
    def line(ratio, **more):
        rows = [{"peer": p, "ours": p == "a", "ratio": r} for p, r in (("a", 1.0), ("b", ratio), ("c", None))]
        result = dict.fromkeys(("op", "workload", "objects", "dtype", "device", "threads"), "x") | {"rows": rows}
        run = {"date": "today", "commit": "0", "machine": {}, "results": [result]}
        return json.dumps(run | more) + "\n"

    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text(line(9.0) + line(2.0) + line(7.0, kind="scaling"))
    other.write_text(line(2.3, kind="ops"))
    a, b = terminal.last_runs([one, other])
    assert [(round(d[0], 3), d[2:]) for d in terminal.disagreements(a, b)] == [(0.15, (2.0, 2.3))]
    assert run.main(["--agree", str(one), str(other)]) == 1
    other.write_text(line(2.1))
    assert run.main(["--agree", str(one), str(other)]) == 0
    assert "5.0 %" in capsys.readouterr().err
    assert terminal.agree([one]) == 1
    for files, said in (
        ([other], "wanted a file with two runs of kind ops, or two files with one"),
        ([other] * 3, "wanted a file with two runs"),
        ([tmp_path / "no"], "no"),
    ):
        assert terminal.agree(files) == 1
        assert said in " ".join(capsys.readouterr().err.split())


def test_costs_by_hand():
    w = WORKLOADS["tiny"]  # Q 40, N 300, C 64, V 32, k 30, P 16
    product = 2 * 40 * 300 * 129
    assert costs.cost_of(make_case("memory_read", w)).flops == product + 2 * 40 * 30 * 32
    assert costs.cost_of(make_case("memory_read_dense", w)).flops == product + 2 * 40 * 300 * 32
    assert costs.cost_of(make_case("memory_read_dense_train", w)).flops == product + 2 * 40 * 300 * (3 * 32 + 2 * 129)
    assert costs.cost_of(make_case("consolidate", w)).flops == 2 * 16 * 150 * (129 + 33)
    assert costs.cost_of(make_case("select_prototypes", w)) == (0, 150 * 4 + 16 * 8)
    assert costs.cost_of(make_case("evict_lfu", w)) == (0, 200 * 4 + 184 * 8)
    read = costs.cost_of(make_case("memory_read", w, objects=2, dtype=torch.float16))
    # All queries may choose the same 30 tokens.
    assert read.bytes == 300 * (64 * 2 + 4) + 30 * 64 * 2 + 2 * 40 * 64 * 2 + 40 * 64 * 2 + 4 * 300
    once = 300 * (64 * 4 + 4) + 300 * 32 * 4 + 2 * 40 * 64 * 4  # keys, shrinkage, values, queries
    train = costs.cost_of(make_case("memory_read_dense_train", w)).bytes
    assert train == 2 * once + 2 * 40 * 32 * 4  # read, and a gradient of each; readout and its gradient
    consolidated = costs.cost_of(make_case("consolidate", w)).bytes
    assert consolidated == 150 * (64 * 4 + 4 + 32 * 4 + 4) + 16 * (2 * 64 * 4 + 33 * 4)
    assert costs.OpCost(200, 10).seconds_at(costs.Roof(1e-7, 1e-9)) == 10


def test_the_roof_is_measured():
    roof = costs.measure_roof("cpu", torch.float32, (40, 300, 129), seconds=0.05)
    assert 1 < roof.gflops < 1e5 and 0.1 < roof.gbytes_per_s < 1e4


def test_frames_and_videos_are_plugged_in(tiny_run, monkeypatch):
    """video.py's interface, by a stand-in."""
    case = types.SimpleNamespace(
        device=torch.device("cpu"),
        mask=torch.zeros(48, 64),
        grid=(3, 4),
        images=[None],
        config=types.SimpleNamespace(top_k=30),
    )
    peers = [
        Peer("xmemk", lambda c: lambda: torch.ones(2), ours=True),
        Peer("original", lambda c: lambda: torch.full((2,), 2.0)),
        Peer("STCN", lambda c: lambda: None),
    ]
    judged = {1.0: Comparison("p", 0.0, 0.0), 2.0: Comparison("p", 0.0, 2.0)}
    monkeypatch.setattr(video, "VIDEO_PEERS", peers)
    monkeypatch.setattr(video, "make_video_case", lambda op, network, device: case)
    monkeypatch.setattr(video, "video_verdict", lambda c, r: None if r is None else judged[float(r[0])])
    done, code = tiny_run("--op", "frame", sizes="--network=small")
    assert code == 0
    (result,) = done["results"]
    assert (result["workload"], result["queries"], result["height"], result["flops"]) == ("small", 12, 48, None)
    ours, original, stcn = result["rows"]
    assert ours["status"] == "exact" and ours["ratio"] == 1 and ours["of_roof"] is None
    assert original["status"] == "WRONG" and stcn["status"] == "" and stcn["median"] > 0


def test_presets_ask_for_what_there_is():
    for suite in cases.SUITES.values():
        for item in suite.items:
            assert item.op in ALL_OPS
            assert item.workload in (video.NETWORKS if item.op in FRAME_OPS else WORKLOADS)
    names = {p.name for op in OPS for p in peers_of(op, ["cpu"])}
    assert set(cases.SUITES["quick"].left_out) <= names
