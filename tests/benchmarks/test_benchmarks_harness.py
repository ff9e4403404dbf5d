"""What the scripts share: processes of their own and how they end, command lines, lines of result files."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("rich")

from xmemk.benchmarks.harness import record, revision_worker, revisions
from xmemk.benchmarks.harness.line_process import LineProcess, ending
from xmemk.benchmarks.report.schema import Claim


def python(code):
    return LineProcess([sys.executable, "-c", code])


def test_a_chatty_child_does_not_block():
    """More on standard error than a pipe holds, before and after each answer."""
    chatty = "import sys\nfor line in sys.stdin:\n sys.stderr.write('x' * 99 + '\\n') if 0 else "
    chatty += "sys.stderr.write(('x' * 99 + '\\n') * 20_000)\n print('answer', flush=True)"
    with python(chatty) as child:
        for _ in range(3):
            child.write("order")
            assert child.read(60) == "answer\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no, and\\n why')", "its process failed with 1: ValueError: no, and; why"),
        ("import sys; sys.stderr.write('a\\nb\\n\\nc\\nd\\n'); sys.exit(3)", "its process failed with 3: b; c; d"),
        ("import os; os.kill(os.getpid(), 11)", "its process was killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", "its process was killed by SIGKILL, as when memory runs out"),
        ("", ""),
    ],
)
def test_how_a_child_ended_is_a_reason(code, said):
    with python(code) as child:
        assert child.read(60) is None and child.read(60) is None
        assert child.end()[1] == said


def test_a_child_that_hangs_is_ended():
    begin = time.monotonic()
    with python("import time; time.sleep(60)") as child, pytest.raises(TimeoutError, match="did not end within 1 s"):
        list(child.lines(1))
    assert time.monotonic() - begin < 30
    assert child.end()[0] == -signal.SIGKILL
    assert ending(-250, []) == "its process was killed by signal 250"


@pytest.mark.parametrize(
    ("error", "spoilt"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."), True),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling"), True),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GB"), False),
        (ValueError("top_k: wanted"), False),
    ],
)
def test_an_error_of_cudas_spoils_a_process(error, spoilt):
    answer = revision_worker.refusal(error)
    assert answer.get("spoilt", False) is spoilt
    assert answer["reason"] == f"{type(error).__name__}: {str(error).splitlines()[0]}"


def test_after_a_spoilt_answer_another_process_is_asked(tmp_path):
    asked = revisions.RevisionProcess(revisions.SourceTree(tmp_path, ""), threads=1, limit=60)
    answer = "{'reason': 'CUDA error: x', 'spoilt': order['chain'] == 2, 'process': os.getpid()}"
    code = f"import json, os, sys\nfor line in sys.stdin:\n order = json.loads(line)\n answer = {answer}\n"
    code += " if order['chain'] == 0: del answer['reason']\n print(json.dumps(answer), flush=True)"
    asked._command = [sys.executable, "-c", code]
    first = asked.ask(chain=0)["process"]
    for chain, same in ((1, True), (2, False)):
        with pytest.raises(RuntimeError, match="CUDA error: x"):
            asked.ask(chain=chain)
        assert (asked.ask(chain=0)["process"] == first) is same
    asked.close()


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("studies.length", ["--protocol", "fig9"], "--protocol: wanted one of fig1, fig5, got 'fig9'"),
        ("studies.length", ["--device", "cuda"], "unrecognized arguments: --device cuda"),
        ("studies.length", ["--budget", "0"], "--budget: wanted a number above 0, got '0'"),
        ("studies.scaling", ["--axis", "M"], "--axis: wanted one of N, Q, O, k, threads, got 'M'"),
        ("studies.scaling", ["--gb", "much"], "--gb: wanted a number above 0, got 'much'"),
        ("studies.scaling", ["--seconds", "nan"], "--seconds: wanted a number above 0, got 'nan'"),
        ("studies.claims", ["--threads", "0"], "--threads: wanted a whole number above 0, got '0'"),
        ("run", ["--device", "foo"], "--device: wanted cpu, cuda or cuda:INDEX, got 'foo'"),
        ("run", ["--rounds", "0"], "--rounds: wanted a whole number above 0, got '0'"),
        ("readme", ["--op", "foo"], "unrecognized arguments: --op foo"),
    ],
)
def test_what_is_wrong_on_a_command_line_is_one_sentence(capsys, script, arguments, said):
    module = importlib.import_module(f"xmemk.benchmarks.{script}")
    with pytest.raises(SystemExit) as ended:
        module.main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.split(": ", 1)[1] == said


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
    code += f"with record.recorded('length', Path({str(path)!r})) as r:\n r.append(Claim('a', 'b'))\n print(flush=True)\n time.sleep(60)"
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
