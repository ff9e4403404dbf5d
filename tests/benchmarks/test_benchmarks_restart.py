"""A peer that takes the device from its process costs the run that peer, and no other."""

import csv
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stand_in_peers

pytest.importorskip("rich")

from xmemk.benchmarks.harness import record
from xmemk.benchmarks.report import terminal
from xmemk.benchmarks.report.schema import CaseResult, Measurement, ResultLine

pytest_plugins = ("benchmark_runs",)
LOST = "RuntimeError: CUDA error: an illegal memory access was encountered"
PEERS = ("xmemk torch", "xmemk other", "bad", "last")


@pytest.fixture
def standing_in(tmp_path):
    """run.py with stand-in peers -> the run, its exit code, its number of processes, its words."""

    def call(plan, *arguments):
        log, out = tmp_path / "log", tmp_path / "out"
        command = [sys.executable, stand_in_peers.__file__, json.dumps(plan), str(log), "--try", "--rounds", "3"]
        command += ["--no-memory", "--json", "--results", str(out), "--save", str(out / "runs.jsonl"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.stdout, done.stderr
        run = json.loads(done.stdout)
        assert [run] == [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
        assert run == json.loads((out / "cpu.json").read_text())
        with (out / "cpu.csv").open() as file:
            assert len(list(csv.DictReader(file))) == sum(len(result["rows"]) for result in run["results"])
        began = log.read_text().splitlines()
        assert set(began) == {"began"}
        return run, done.returncode, len(began), done.stderr

    return call


def rows_of(run):
    return {result["op"]: {row["peer"]: row for row in result["rows"]} for result in run["results"]}


def test_a_fresh_process_measures_the_others(standing_in):
    plan = {
        "select_prototypes": {"bad": "check"},
        "evict_lfu": {"xmemk other": "rounds"},
        "consolidate": {"compiled": "check"},
    }
    arguments = ("--suite", "gpu", "--op", "select_prototypes", "evict_lfu", "consolidate", "memory_read_train")
    arguments += ("--seconds", "500", "--budget", "500")
    run, code, processes, said = standing_in(plan, *arguments)
    assert processes == 4
    assert [(loss["op"], loss["peer"], loss["ours"]) for loss in run["losses"]] == [
        ("select_prototypes", "bad", False),
        ("evict_lfu", "xmemk other", True),
        ("consolidate", "compiled", False),
    ]
    assert code == 1  # ours did it once
    rows = rows_of(run)
    assert set(rows) == {"select_prototypes", "evict_lfu", "consolidate", "memory_read_train"}
    for op, found in rows.items():
        assert tuple(found) == (*PEERS, "compiled")
        for name, row in found.items():
            if name in plan.get(op, {}):
                assert row["reason"] == LOST and not row["seconds"] and row["median"] is None
            else:
                assert row["reason"] == "" and len(row["seconds"]) == 3 and row["status"] == "exact"
                assert row["ratio"] > 0
    assert run["command"].startswith("python benchmarks/run.py --try") and record.OPTION not in run["command"]
    assert f"bad of select_prototypes: {LOST}; a fresh process goes on" in said


def test_what_was_measured_is_kept_and_the_third_fresh_process_is_the_last(standing_in):
    plan = {"select_prototypes": {"xmemk torch": "after"}, "memory_read": {"bad": "after"}}
    plan |= {"evict_lfu": {"bad": "check"}, "consolidate": {"bad": "check", "last": "check"}}
    run, code, processes, _ = standing_in(plan, "--op", *plan, "memory_read_dense")
    assert processes == record.MOST_RESTARTS + 1 and len(run["losses"]) == record.MOST_RESTARTS + 1
    assert code == 1
    rows = rows_of(run)
    # The last process has prepared select's peers for the second sweep when it does so for the
    # third.
    assert [loss["op"] for loss in run["losses"]] == ["evict_lfu", "consolidate", "consolidate", "select_prototypes"]
    assert rows["select_prototypes"]["xmemk torch"]["reason"] == LOST
    for op, name in (("evict_lfu", "bad"), ("consolidate", "bad"), ("consolidate", "last")):
        assert rows[op][name]["reason"] == LOST and not rows[op][name]["seconds"]
    for op in ("select_prototypes", "memory_read", "memory_read_dense"):
        assert all(len(rows[op][name]["seconds"]) == 2 for name in PEERS)
    assert rows["consolidate"]["xmemk other"]["seconds"]


def test_a_later_sweep_goes_on_where_it_was_left(standing_in):
    run, code, processes, _ = standing_in(
        {"evict_lfu": {"bad": "after"}}, "--op", "select_prototypes", "evict_lfu", "memory_read"
    )
    assert processes == 2 and code == 0
    for op, found in rows_of(run).items():
        for name in PEERS:
            lost = (op, name) == ("evict_lfu", "bad")
            assert len(found[name]["seconds"]) == (1 if lost else 3)
            assert found[name]["reason"] == (LOST if lost else "")
            assert found[name]["of_roof"] > 0 and found[name]["ratio"] > 0
        assert len(found["compiled"]["seconds"]) == 1  # it does not compile again


def test_where_no_process_can_be_replaced_the_rest_are_rows_with_the_reason(tiny_run, monkeypatch):
    device = stand_in_peers.put_in_place(monkeypatch.setattr, {"select_prototypes": {"bad": "check"}})
    run, code = tiny_run("--op", "evict_lfu", "select_prototypes", "memory_read")
    assert device.broken and code == 0
    rows = rows_of(run)
    assert all(row["seconds"] for row in rows["evict_lfu"].values())
    assert rows["select_prototypes"]["bad"]["reason"] == LOST
    others = [
        row
        for op in ("select_prototypes", "memory_read")
        for name, row in rows[op].items()
        if (op, name) != ("select_prototypes", "bad")
    ]
    assert {row["reason"] for row in others} == {f"not measured: bad of select_prototypes ended with {LOST}"}


def test_inputs_that_take_the_device_are_the_reason_of_their_case(tiny_run, monkeypatch):
    device = stand_in_peers.put_in_place(monkeypatch.setattr, {})
    real = stand_in_peers.cases.make
    monkeypatch.setattr(
        stand_in_peers.cases,
        "make",
        lambda asked: device.break_() if asked["op"] == "select_prototypes" else real(asked),
    )
    run, _ = tiny_run("--op", "evict_lfu", "select_prototypes", "memory_read")
    assert run["losses"][0]["peer"] == ""
    rows = rows_of(run)
    assert {row["reason"] for row in rows["select_prototypes"].values()} == {LOST}
    assert {row["reason"] for row in rows["memory_read"].values()} == {
        f"not measured: the inputs of select_prototypes ended with {LOST}"
    }


def test_the_time_that_is_left_is_that_of_the_run(tiny_run, monkeypatch, tmp_path):
    stand_in_peers.put_in_place(monkeypatch.setattr, {})
    path = tmp_path / "state"
    run = ResultLine("ops", "today", "0", {"GPU": "A"})
    path.write_bytes(pickle.dumps(record.RunState(run, {"evict_lfu": True}, time.time() - 3600)))
    done, _ = tiny_run("--op", "evict_lfu", "--seconds", "3600", record.OPTION, str(path))
    assert {row["reason"] for row in done["results"][0]["rows"]} == {"not reached in the time given"}
    assert done["date"] == "today" and not path.exists()


def test_the_csv_of_a_run_that_lost_the_device(tmp_path):
    result = CaseResult("evict_lfu", "tiny", 1, "float32", "cpu", 1, [Measurement("a", reason=LOST)])
    terminal.write(ResultLine("ops", "", "", {}, [result], losses=[{}]), Path(tmp_path), "gpu")
    assert LOST in (tmp_path / "gpu.csv").read_text()
