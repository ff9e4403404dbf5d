"""What the scripts share: processes and how they end, command lines, lines of result files."""

import importlib
import io
import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("rich")

from xmemk.benchmarks.harness import processes, record
from xmemk.benchmarks.report.schema import Claim


@pytest.mark.parametrize(
    ("code", "messages", "said"),
    [
        (
            1,
            b"Traceback (most recent call last):\n  File ...\nValueError: no\n  why\n",
            "failed with 1: ValueError: no",
        ),
        (3, b"a\n\nb\n", "failed with 3: b"),
        (-11, b"", "was killed by SIGSEGV"),
        (-9, b"", "was killed by SIGKILL, as when memory runs out"),
        (-250, b"", "was killed by signal 250"),
    ],
)
def test_how_a_process_ended_is_a_reason(code, messages, said):
    assert processes.ending(code, io.BytesIO(messages)) == f"its process {said}"
    assert processes.ending(0, io.BytesIO(messages)) == ""


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("studies.length", ["--protocol", "fig9"], "argument --protocol: invalid choice: 'fig9'"),
        ("studies.length", ["--device", "cuda"], "unrecognized arguments: --device cuda"),
        ("studies.length", ["--budget", "0"], "argument --budget: wanted a number above 0, got '0'"),
        ("studies.scaling", ["--axis", "M"], "argument --axis: invalid choice: 'M'"),
        ("studies.scaling", ["--gb", "much"], "argument --gb: wanted a number above 0, got 'much'"),
        ("studies.scaling", ["--seconds", "nan"], "argument --seconds: wanted a number above 0, got 'nan'"),
        ("studies.claims", ["--threads", "0"], "argument --threads: wanted a whole number above 0, got '0'"),
        ("run", ["--device", "foo"], "argument --device: wanted cpu, cuda or cuda:INDEX, got 'foo'"),
        ("run", ["--rounds", "0"], "argument --rounds: wanted a whole number above 0, got '0'"),
        ("readme", ["--op", "foo"], "unrecognized arguments: --op foo"),
    ],
)
def test_what_is_wrong_on_a_command_line_is_its_last_line(capsys, script, arguments, said):
    module = importlib.import_module(f"xmemk.benchmarks.{script}")
    with pytest.raises(SystemExit) as ended:
        module.main(arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.split("error: ", 1)[1].startswith(said)


def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    from xmemk.benchmarks.studies import scaling

    monkeypatch.setattr(scaling, "measure", lambda *_, **__: pytest.fail("was begun"))
    for path in (tmp_path, tmp_path / "file" / "deeper.jsonl"):
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit):
            scaling.main(["--save", str(path)])
        assert "--save: wanted a file to append to, got" in capsys.readouterr().err


def test_a_recorded_command_has_no_path_of_the_machine():
    inside = record.ROOT / "benchmarks" / "results" / "cpu.jsonl"
    for given, said in {
        str(inside): "benchmarks/results/cpu.jsonl",
        f"--save={inside}": "--save=benchmarks/results/cpu.jsonl",
        "/a/home of/mine.jsonl": "mine.jsonl",
        "../../mine.jsonl": "mine.jsonl",
        "out/it.jsonl": "out/it.jsonl",
        "tidy PyTorch": "'tidy PyTorch'",
        str(record.ROOT): record.ROOT.name,
    }.items():
        assert record.command("run.py", ["--x", given]) == f"python benchmarks/run.py --x {said}"


def test_a_line_is_written_however_a_run_ends(tmp_path):
    path = tmp_path / "deeper" / "x.jsonl"
    with record.recorded("scaling", path):
        pass
    assert not path.exists()  # nothing was measured
    with record.recorded("scaling", path) as results:
        results.append(Claim("a", "b"))
    code = "import sys, time; from pathlib import Path; from xmemk.benchmarks.harness import record\n"
    code += "from xmemk.benchmarks.report.schema import Claim\n"
    code += f"with record.recorded('length', Path({str(path)!r})) as r:\n r.append(Claim('a', 'b'))\n"
    code += " print(flush=True)\n time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    process.stdout.close()
    first, second = map(json.loads, path.read_text().splitlines())
    assert first["results"][0]["claim"] == "a" and first["kind"] == "scaling" and "stopped" not in first
    assert len(second["results"]) == 1 and second["stopped"] == "SystemExit"


def test_the_revision_is_that_of_a_checkout_alone(tmp_path, monkeypatch):
    import xmemk

    assert record.revision().startswith(xmemk.__version__)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.revision() == xmemk.__version__
