"""A peer that takes the device from its process costs the run that peer, and no other."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stand_in_peers

pytest.importorskip("rich")

from xmemk.benchmarks.harness import afresh, tables

pytest_plugins = ("benchmark_runs",)
LOST = "RuntimeError: CUDA error: an illegal memory access was encountered"
PEERS = ("xmemk torch", "xmemk other", "bad", "last")


@pytest.fixture
def standing_in(tmp_path):
    """run.py with stand-in peers, as a program -> the run, its exit code, the number of its processes, its words."""

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
    plan = {"select": {"bad": "check"}, "evict": {"xmemk other": "rounds"}, "consolidate": {"compiled": "check"}}
    arguments = ("--suite", "gpu", "--op", "select", "evict", "consolidate", "train")
    arguments += ("--seconds", "500", "--budget", "500")
    run, code, processes, said = standing_in(plan, *arguments)
    assert processes == 4
    assert [(loss["op"], loss["peer"], loss["ours"]) for loss in run["losses"]] == [
        ("select", "bad", False),
        ("evict", "xmemk other", True),
        ("consolidate", "compiled", False),
    ]
    assert code == 1  # ours did it once
    rows = rows_of(run)
    assert set(rows) == {"select", "evict", "consolidate", "train"}
    for op, found in rows.items():
        assert tuple(found) == (*PEERS, "compiled")
        for name, row in found.items():
            if name in plan.get(op, {}):
                assert row["reason"] == LOST and not row["seconds"] and row["median"] is None
            else:
                assert row["reason"] == "" and len(row["seconds"]) == 3 and row["status"] == "exact"
                assert row["ratio"] > 0
    assert run["command"].startswith("python benchmarks/run.py --try") and afresh.OPTION not in run["command"]
    assert f"bad of select: {LOST}; a fresh process goes on" in said


def test_what_was_measured_is_kept_and_the_third_fresh_process_is_the_last(standing_in):
    plan = {"select": {"xmemk torch": "after"}, "read": {"bad": "after"}}
    plan |= {"evict": {"bad": "check"}, "consolidate": {"bad": "check", "last": "check"}}
    run, code, processes, _ = standing_in(plan, "--op", *plan, "dense")
    assert processes == afresh.MOST + 1 and len(run["losses"]) == afresh.MOST + 1
    assert code == 1
    rows = rows_of(run)
    # The last process has prepared select's peers for the second sweep when it does so for the third.
    assert [loss["op"] for loss in run["losses"]] == ["evict", "consolidate", "consolidate", "select"]
    assert rows["select"]["xmemk torch"]["reason"] == LOST
    for op, name in (("evict", "bad"), ("consolidate", "bad"), ("consolidate", "last")):
        assert rows[op][name]["reason"] == LOST and not rows[op][name]["seconds"]
    for op in ("select", "read", "dense"):
        assert all(len(rows[op][name]["seconds"]) == 2 for name in PEERS)
    assert rows["consolidate"]["xmemk other"]["seconds"]


def test_a_later_sweep_goes_on_where_it_was_left(standing_in):
    run, code, processes, _ = standing_in({"evict": {"bad": "after"}}, "--op", "select", "evict", "read")
    assert processes == 2 and code == 0
    for op, found in rows_of(run).items():
        for name in PEERS:
            lost = (op, name) == ("evict", "bad")
            assert len(found[name]["seconds"]) == (1 if lost else 3)
            assert found[name]["reason"] == (LOST if lost else "")
            assert found[name]["of_roof"] > 0 and found[name]["ratio"] > 0
        assert len(found["compiled"]["seconds"]) == 1  # it does not compile again


def test_where_no_process_can_be_replaced_the_rest_are_rows_with_the_reason(tiny_run, monkeypatch):
    device = stand_in_peers.put_in_place(monkeypatch.setattr, {"select": {"bad": "check"}})
    run, code = tiny_run("--op", "evict", "select", "read")
    assert device.broken and code == 0
    rows = rows_of(run)
    assert all(row["seconds"] for row in rows["evict"].values())
    assert rows["select"]["bad"]["reason"] == LOST
    others = [row for op in ("select", "read") for name, row in rows[op].items() if (op, name) != ("select", "bad")]
    assert {row["reason"] for row in others} == {f"not measured: bad of select ended with {LOST}"}


def test_inputs_that_take_the_device_are_the_reason_of_their_case(tiny_run, monkeypatch):
    device = stand_in_peers.put_in_place(monkeypatch.setattr, {})
    real = stand_in_peers.ops.make
    monkeypatch.setattr(
        stand_in_peers.ops, "make", lambda asked: device.break_() if asked["op"] == "select" else real(asked)
    )
    run, _ = tiny_run("--op", "evict", "select", "read")
    assert run["losses"][0]["peer"] == ""
    rows = rows_of(run)
    assert {row["reason"] for row in rows["select"].values()} == {LOST}
    assert {row["reason"] for row in rows["read"].values()} == {f"not measured: the inputs of select ended with {LOST}"}


def test_a_state_is_taken_up_once_and_its_time_runs_on(tmp_path):
    path = tmp_path / "state.json"
    told = {"run": {"results": []}, "green": {"read": True}, "seconds": 8.0, "written": time.time() - 10}
    path.write_text(json.dumps(told | {"at": [1, 0, 2], "entries": [{"rows": []}]}))
    state = afresh.take_up(path)
    assert state.at == (1, 0, 2) and state.green == {"read": True} and not path.exists()
    assert -60 < state.seconds_left <= -2
    assert afresh.State({}, {}, None, time.time()).seconds_left is None


def test_the_time_that_is_left_is_that_of_the_run(tiny_run, monkeypatch, tmp_path):
    stand_in_peers.put_in_place(monkeypatch.setattr, {})
    path = tmp_path / "state.json"
    run = {"kind": "ops", "date": "today", "commit": "0", "command": "x", "machine": {"GPU": "A"}, "results": []}
    told = {"run": run, "green": {"evict": True}, "seconds": 3600, "written": time.time() - 7200}
    path.write_text(json.dumps(told | {"at": [0, 0, 0], "entries": []}))
    done, _ = tiny_run("--op", "evict", "--seconds", "3600", afresh.OPTION, str(path))
    assert {row["reason"] for row in done["results"][0]["rows"]} == {"not reached in the time given"}
    assert done["date"] == "today"


def test_a_command_line_goes_on_from_one_file():
    given = ["-m", "xmemk.benchmarks.run", "--op", "read"]
    assert afresh.again([*given, afresh.OPTION, "a.json"]) == afresh.again(given) == given


def test_the_csv_of_a_run_that_lost_the_device(tmp_path):
    row = {"peer": "a", "seconds": [], "reason": LOST}
    result = dict.fromkeys(tables.KEY, "x") | {"rows": [row]}
    tables.write({"date": "", "commit": "", "results": [result], "losses": [{}]}, Path(tmp_path), "gpu")
    assert LOST in (tmp_path / "gpu.csv").read_text()
