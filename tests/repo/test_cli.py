"""The command line: its output, its exit codes, and errors of one sentence."""

import json
import runpy
import sys

import pytest

pytest.importorskip("typer")

from xmemk import __version__
from xmemk.cli import main
from xmemk.cli.app import run


def test_help_and_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert run(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(command in output for command in ("demo", "validate", "doctor"))
    for command in ("demo", "validate", "doctor"):
        assert run([command, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


def test_wrong_words_exit_with_2(capsys):
    assert run(["dance"]) == 2
    assert run(["validate", "--speed"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_doctor(capsys):
    code = run(["doctor"])
    output = capsys.readouterr().out
    assert code in (0, 1)
    assert "C++ extension" in output
    assert "memory_read" in output


def test_doctor_as_json(capsys):
    run(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    names = {finding["name"] for finding in report["findings"]}
    assert {"xmemk", "torch", "C++ extension", "CUDA", "triton"} <= names
    for finding in report["findings"]:
        assert finding["state"] == "ok" or finding["remedy"]
    assert report["backends"]["memory_read"]["torch"] == "yes"


def test_doctor_says_how_to_get_a_missing_extension(monkeypatch, capsys):
    from xmemk.operators import native

    monkeypatch.setattr(native, "_native_error", "the C++ extension is not built")
    assert run(["doctor"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "plain PyTorch" in output
    assert "--no-build-isolation" in output


def test_doctor_fails_on_what_is_broken(monkeypatch, capsys):
    from xmemk.operators import native

    monkeypatch.setattr(native, "_native_error", "the C++ extension does not load: undefined symbol")
    assert run(["doctor"]) == 1
    assert "undefined symbol" in " ".join(capsys.readouterr().out.split())


def test_validate_as_json(capsys, monkeypatch):
    from xmemk import validate

    monkeypatch.setattr(validate, "QUICK", validate.QUICK[:2])
    assert run(["validate", "--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert all(row["worst"] <= 1 for row in report["rows"] if not row["unavailable"])


def test_validate_exits_with_1_when_something_fails(capsys, monkeypatch):
    from xmemk import api, validate

    monkeypatch.setattr(validate, "QUICK", validate.QUICK[:2])
    right = api.similarity
    monkeypatch.setattr(api, "similarity", lambda *a, **o: 2 * right(*a, **o))
    assert run(["validate", "--quick", "--backend", "torch"]) == 1
    output = capsys.readouterr().out
    assert "FAILED" in output
    assert "passed" in output


def test_errors_are_one_sentence(capsys):
    assert run(["validate", "--backend", "metal"]) == 1
    output = capsys.readouterr().err
    assert output.startswith("xmemk: error: --backend: wanted one of")
    assert len(output.strip().splitlines()) == 1
    assert run(["--debug", "validate", "--backend", "metal"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_says_how_to_see_more(capsys, monkeypatch):
    from xmemk import doctor

    def broken():
        raise KeyError("surprise")

    monkeypatch.setattr(doctor, "examine", broken)
    assert run(["doctor"]) == 1
    output = capsys.readouterr().err
    assert "unexpected KeyError" in output
    assert "--debug" in output


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    from xmemk import doctor

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert run(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_as_a_module(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["xmemk", "--version"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("xmemk", run_name="__main__")  # python -m xmemk
    assert exit.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def test_without_typer_one_sentence(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    assert capsys.readouterr().err.strip() == "xmemk: the command line needs typer: pip install 'xmemk[cli]'"
