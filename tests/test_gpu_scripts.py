"""The scripts of `make gpu`, tried without a GPU: the benchmark on small sizes, the steps of the shell."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def gpu_read(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)  # the compiler's time is not what is tried
    from xmemk.benchmarks import gpu_read

    monkeypatch.setattr(gpu_read, "ROUNDS", 2)
    return gpu_read


def run(gpu_read, folder, *options):
    status = gpu_read.main(["--device", "cpu", "--quick", "--results", str(folder), *options])
    report = json.loads((folder / "cpu.json").read_text())
    with (folder / "cpu.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(report["rows"])
    assert report["versions"]["torch"] == torch.__version__
    return status, report["rows"]


@pytest.mark.parametrize("objects", [1, 5])
def test_benchmark_of_topk_reads(gpu_read, tmp_path, capsys, objects):
    status, rows = run(gpu_read, tmp_path, "--only", f"top-30 480p-early N=200 Q=50 O={objects}")
    assert status == 0
    by_peer = {row["peer"]: row for row in rows}
    assert set(by_peer) >= {"xmemk torch", "original float32", "original autocast", "tidy", "tidy compiled"}
    for name in ("xmemk cpu", "xmemk torch", "original float32", "tidy"):
        assert by_peer[name]["status"] == "exact"
        assert by_peer[name]["warm_us"] > 0
    assert by_peer["original autocast"]["status"] == "rounded"
    assert "tidy compiled" in capsys.readouterr().out


@pytest.mark.parametrize("objects", [1, 5])
def test_benchmark_of_dense_reads(gpu_read, tmp_path, objects):
    status, rows = run(gpu_read, tmp_path, "--only", f"dense 480p-early N=200 Q=50 O={objects}")
    assert status == 0
    by_peer = {row["peer"]: row for row in rows}
    for name in ("xmemk cpu", "xmemk torch", "original float32", "tidy", "sdpa math", "flex"):
        assert by_peer[name]["status"] == "exact"
    assert by_peer["sdpa cudnn"]["status"].startswith("fails: RuntimeError")
    assert by_peer["sdpa cudnn"]["warm_us"] is None


@pytest.mark.parametrize("only", ["select_prototypes", "evict_lfu", "consolidate"])
def test_benchmark_of_upkeep(gpu_read, tmp_path, only):
    status, rows = run(gpu_read, tmp_path, "--only", only)
    assert status == 0
    assert all(row["status"] == "exact" and row["warm_us"] > 0 for row in rows)
    assert len(rows) >= 2


def test_a_wrong_peer_is_not_timed_and_ours_turns_the_run_red(gpu_read, tmp_path, monkeypatch):
    from xmemk.benchmarks import gpu_peers

    found = gpu_peers.selections("evict_lfu", torch.rand(1, 500), 372)
    wrong = {"xmemk torch": lambda: lambda: (torch.zeros(1, 372, dtype=torch.int64),)}
    monkeypatch.setattr(gpu_peers, "selections", lambda *_: found | wrong)
    status, rows = run(gpu_read, tmp_path, "--only", "evict_lfu")
    assert status == 1
    assert {row["peer"]: row["status"] for row in rows}["xmemk torch"] == "WRONG"
    assert {row["peer"]: row["warm_us"] for row in rows}["xmemk torch"] is None


def test_what_the_time_does_not_suffice_for_is_a_row(gpu_read, tmp_path):
    status, rows = run(gpu_read, tmp_path, "--seconds", "-1")
    assert status == 0
    assert len(rows) == 14
    assert {row["status"] for row in rows} == {"not reached in the time given"}


def shell(tmp_path, *arguments, steps="evict"):
    return subprocess.run(
        ["sh", ROOT / "tools" / "gpu.sh", *arguments],
        capture_output=True,
        text=True,
        env={
            "PATH": "/usr/bin:/bin:/usr/local/bin",
            "PYTHONPATH": str(ROOT),
            "STEPS": steps,
            "LOGS": str(tmp_path / "logs"),
            "RESULTS": str(tmp_path / "results"),
        },
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_steps(tmp_path):
    done = shell(tmp_path, sys.executable, "--try", steps="validate benchmark")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validate: ok" in done.stdout
    assert "benchmark: ok" in done.stdout
    assert "evict_lfu          torch   float16   0.000 of what is allowed  ok" in done.stdout
    assert (tmp_path / "results" / "cpu.csv").exists()
    assert "validate: ok" in (tmp_path / "logs" / "summary.txt").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_step_that_fails_is_said_and_the_next_one_runs(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *xmemk*) exit 3;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = shell(tmp_path, python, "--try", steps="validate benchmark")
    assert done.returncode == 1
    assert "validate: FAILED, status 3" in done.stdout
    assert "benchmark: ok" in done.stdout
    assert "wanted some of build" in shell(tmp_path, python, "--try", steps="vaildate").stderr


@pytest.mark.skipif(
    sys.platform == "win32" or torch.cuda.is_available(), reason="a shell script, where there is no GPU"
)
def test_without_a_gpu_it_says_so_at_once(tmp_path):
    done = shell(tmp_path, sys.executable)
    assert done.returncode == 1
    assert "sees an NVIDIA GPU" in done.stderr


def test_make_gpu_expects_most_of_the_gpu_tests():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "--collect-only",
            "-q",
            "test_gpu_memory_graph.py",
            "test_gpu_read.py",
            "test_gpu_selection.py",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT / "tests",
        check=False,
    )
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    without_triton = [line for line in tests if "triton" not in line]
    least = int((ROOT / "tests" / "min-passed-gpu").read_text())
    assert 0.85 * len(without_triton) < least < len(without_triton)
