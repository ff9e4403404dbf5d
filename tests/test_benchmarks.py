"""The harness: peers are checked before they are timed, and whatever goes wrong with one is a row with its reason."""

import json
import sys
from pathlib import Path

import pytest
import torch
from xmemk.benchmarks import measure, run
from xmemk.benchmarks.peers import Peer, Unavailable, peers_of, verdict
from xmemk.benchmarks.workloads import WORKLOADS, make_case


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", "--workload", "tiny", "--rounds", "3", "--json", *arguments])
    run.main()
    return json.loads(capsys.readouterr().out)


OPS = ("read", "dense", "train", "backward", "train-dense", "backward-dense", "consolidate", "select", "evict")


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_rows_that_were_checked(monkeypatch, capsys, op):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)  # takes long, and is not ours
    done = run_main(monkeypatch, capsys, "--op", op, "--backend", "torch", "--no-memory")
    (result,) = done["results"]
    rows = {row["peer"]: row for row in result["rows"]}
    assert rows["xmemk torch"]["ours"] and rows["xmemk torch"]["median"] > 0
    assert len(rows) > 1
    for row in rows.values():
        assert len(row["seconds"]) == 3 or row["reason"], row
        assert not row["reason"].startswith("wrong")
    assert sum(row["median"] is not None for row in rows.values()) > 1
    assert done["commit"] and done["machine"]["processor"]


def test_a_wrong_a_crashing_and_a_missing_peer_are_rows_with_reasons():
    def crash():
        raise MemoryError("no room")

    def refuse(case):
        raise Unavailable("not installed")

    case = make_case("read", WORKLOADS["tiny"])
    x = case.inputs
    peers = [
        Peer("wrong", lambda c: lambda: (x.mv.new_zeros(1, 1, 32, 40), None)),
        Peer("crash", lambda c: crash),
        Peer("missing", refuse),
        *peers_of("read", ["torch"])[:1],
    ]
    rows = {row.peer: row for row in measure.time_peers(case, peers, rounds=2, budget=10)}
    assert rows["wrong"].reason.startswith("wrong: readout") and not rows["wrong"].seconds
    assert rows["crash"].reason == "MemoryError: no room"
    assert rows["missing"].reason == "not installed"
    assert len(rows["xmemk torch"].seconds) == 2


@pytest.mark.parametrize("op", ["train", "consolidate", "select", "evict"])
def test_a_wrong_result_of_any_op_is_found(op):
    case = make_case(op, WORKLOADS["tiny"])
    right = peers_of(op, ["torch"])[0].prepare(case)()
    assert verdict(case, right).passed
    wrong = right.flip(1) * 0 if isinstance(right, torch.Tensor) else tuple(1.01 * t for t in right)
    assert not verdict(case, wrong).passed


def test_a_peer_that_has_used_up_its_budget_is_left_out_of_later_rounds():
    case = make_case("read", WORKLOADS["tiny"])
    peers = peers_of("read", ["torch"])[:1]
    (row,) = measure.time_peers(case, peers, rounds=4, budget=0)
    assert len(row.seconds) == 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory can be measured on Linux alone")
def test_memory_is_measured_in_a_fresh_process():
    arguments = {"op": "read", "workload": "480p-early", "objects": 1, "dtype": "float32", "device": "cpu"}
    arguments |= {"threads": 1, "peer": "tidy PyTorch"}
    peak = measure.peak_in_fresh_process(arguments, timeout=120)
    assert peak > 1_620 * 8_100 * 4  # it holds the N x Q similarity
    said = measure.peak_in_fresh_process(arguments | {"peer": "nobody"}, timeout=120)
    assert said.startswith("the process that measures memory failed")


def test_runs_are_appended_to_a_file(monkeypatch, capsys, tmp_path):
    arguments = (
        "--op",
        "evict",
        "--backend",
        "torch",
        "--only",
        "topk",
        "--save",
        str(tmp_path / "here" / "cpu.jsonl"),
    )
    for _ in range(2):
        run_main(monkeypatch, capsys, *arguments)
    lines = (tmp_path / "here" / "cpu.jsonl").read_text().splitlines()
    assert [json.loads(line)["results"][0]["op"] for line in lines] == ["evict", "evict"]
