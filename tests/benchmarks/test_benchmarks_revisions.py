"""Tests first, and another revision beside this one: on small repositories made for the purpose."""

import json
import subprocess
import sys

import pytest
from xmemk.benchmarks import run
from xmemk.benchmarks.harness import op_tests, revisions
from xmemk.benchmarks.peers.catalogue import Unavailable

pytest_plugins = ("benchmark_runs",)
OLD = """
import types
import torch

def explain(function, *arguments, backend, **options):
    refused = {} if backend == "torch" else {backend: "was not there yet"}
    return types.SimpleNamespace(chosen=None if refused else "torch", refusals=refused)

def evict_lfu(usage, keep, backend):
    return usage.topk(keep, dim=1, sorted=False).indices.sort(1).values
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like this repository: one test file for "evict_lfu"."""
    root = tmp_path / "checkout"
    for folder in ("xmemk", "tests"):
        (root / folder).mkdir(parents=True)
    (root / "xmemk" / "__init__.py").touch()
    nodes = {"evict_lfu": ("test_it.py::test_a",), "select_prototypes": ("test_it.py::test_b",)}
    monkeypatch.setattr(op_tests, "TESTS", {"cpu": nodes})

    def write(a, b="pass"):
        (root / "tests" / "test_it.py").write_text(
            f"import pytest\n\ndef test_a():\n    {a}\n\n"
            f"@pytest.mark.parametrize('i', [1, 2])\ndef test_b(i):\n    {b}\n"
        )
        return root

    return write


def test_green_ops_are_those_whose_tests_pass(checkout):
    both = ["evict_lfu", "select_prototypes"]
    assert op_tests.check(both, "cpu", root=checkout("pass")) == (dict.fromkeys(both, True), {})


def test_a_red_op_is_named_with_its_tests(checkout):
    root = checkout("pass", "assert i == 1")
    green, red = op_tests.check(["evict_lfu", "select_prototypes"], "cpu", root=root)
    assert green == {"evict_lfu": True}
    assert red == {"select_prototypes": ["test_it.py::test_b[2]"]}


def test_a_fixture_that_fails_makes_its_op_red_and_no_other(checkout):
    root = checkout("pass")
    path = root / "tests" / "test_it.py"
    text = path.read_text().replace("test_a()", "test_a(broken)")
    path.write_text(text + "\n@pytest.fixture\ndef broken():\n    raise OSError('no room')\n")
    assert op_tests.check(["evict_lfu", "select_prototypes"], "cpu", root=root) == (
        {"select_prototypes": True},
        {"evict_lfu": ["test_it.py::test_a"]},
    )


def test_tests_that_do_not_run_are_red(checkout):
    green, red = op_tests.check(["evict_lfu"], "cpu", root=checkout("pass\nsyntax error"))
    assert green == {} and red["evict_lfu"][0].startswith("pytest ended with exit code")


def test_skipped_is_not_passed(checkout, monkeypatch):
    root = checkout("pass", "pytest.skip()")
    said = {"evict_lfu": True, "select_prototypes": "tests not run: some of them were skipped"}
    assert op_tests.check(["evict_lfu", "select_prototypes"], "cpu", root=root) == (said, {})
    (root / "tests" / "test_other.py").write_text("import pytest\n\npytest.skip(allow_module_level=True)\n")
    nodes = {"evict_lfu": ("test_it.py::test_a",), "select_prototypes": ("test_other.py::test_b",)}
    monkeypatch.setattr(op_tests, "TESTS", {"cpu": nodes})
    assert op_tests.check(["evict_lfu", "select_prototypes"], "cpu", root=root) == (said, {})


def test_without_a_checkout_or_pytest_it_is_said(tmp_path, checkout, monkeypatch):
    assert op_tests.check(["evict_lfu"], "cpu", root=tmp_path) == ({"evict_lfu": "tests not run: no checkout"}, {})
    root = checkout("pass")
    monkeypatch.setattr(op_tests.importlib.util, "find_spec", lambda name: None)
    assert op_tests.check(["evict_lfu"], "cpu", root=root) == (
        {"evict_lfu": "tests not run: pytest is not installed"},
        {},
    )


def test_nothing_is_timed_or_written_when_tests_are_red(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        op_tests, "check", lambda *_: ({"evict_lfu": True}, {"select_prototypes": ["test_select.py::test_it"]})
    )
    monkeypatch.setattr(run.sweeps, "beside_peers", lambda *_, **__: pytest.fail("must not be reached"))
    out = tmp_path / "out"
    arguments = [
        "--try",
        "--op",
        "select_prototypes",
        "evict_lfu",
        "--save",
        str(out / "x.jsonl"),
        "--results",
        str(out),
        "--json",
    ]
    assert run.main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == "" and "select_prototypes: its tests are red: test_select.py::test_it" in said.err
    assert not list(out.glob("*"))


def test_the_tests_of_every_op_are_there():
    """Collected, not run: a renamed test would otherwise be an op that is never reported."""
    nodes = {node for by_op in op_tests.TESTS.values() for nodes in by_op.values() for node in nodes}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(nodes)],
        cwd=op_tests.ROOT / "tests",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.fixture
def revision(tmp_path, monkeypatch, tiny_run):
    """run.main --base against a repository of its own -> the run, its exit code."""
    root = tmp_path / "repository"
    (root / "xmemk").mkdir(parents=True)
    (root / "csrc").mkdir()
    (root / "csrc" / "empty.cpp").touch()
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    real = revisions.tree_of
    monkeypatch.setattr(revisions, "tree_of", lambda name: real(name, root))

    def call(package, *arguments, setup="print('built')"):
        (root / "xmemk" / "__init__.py").write_text(package)
        (root / "setup.py").write_text(setup)
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-qm", "old", "--allow-empty"], check=True)
        return tiny_run("--base", "HEAD", *arguments)

    return call


def test_another_revision_beside_this_one(revision):
    done, code = revision(OLD, "--op", "evict_lfu", "select_prototypes", "--backend", "cpu", "torch")
    assert code == 0 and done["kind"] == "base"
    evict, select = done["results"]
    sha = done["base"]["commit"]
    rows = {row["peer"]: row for row in evict["rows"]}
    ours, theirs = rows["xmemk torch"], rows[f"xmemk torch at {sha}"]
    assert ours["ours"] and not theirs["ours"] and ours["status"] == theirs["status"] == "exact"
    assert len(ours["seconds"]) == len(theirs["seconds"]) == 3 and theirs["ratio"] > 0
    assert rows[f"xmemk cpu at {sha}"]["reason"] == "ValueError: was not there yet"
    assert "select_prototypes" in select["rows"][3]["reason"]  # the old package has no such function


def test_what_is_wrong_with_a_revision_is_a_reason(revision):
    wrong = OLD.replace("usage.topk(keep, dim=1, sorted=False)", "(-usage).topk(keep, dim=1)")
    done, _ = revision(wrong, "--op", "evict_lfu", "--backend", "torch", setup="raise SystemExit('no compiler')")
    assert done["results"][0]["rows"][1]["reason"] == "wrong: choice: error 1, inf times what is allowed"
    assert "could not be built" in done["base"]["note"] and "no compiler" in done["base"]["note"]


@pytest.mark.parametrize(
    ("code", "said"),
    [("import time; time.sleep(60)", "no answer within 1 s"), ("raise SystemExit(3)", "failed with 3")],
)
def test_a_worker_that_hangs_or_dies_is_a_reason(tmp_path, code, said):
    worker = revisions.RevisionProcess(
        revisions.SourceTree(tmp_path, ""), threads=1, limit=1 if "sleep" in code else 60
    )
    worker._command = [sys.executable, "-c", code]
    for _ in range(2):  # and may be asked again
        with pytest.raises(Unavailable, match=said):
            worker.ask(chain=1)


def test_a_frame_is_not_compared_and_a_red_op_is_a_row_with_its_reason(revision, monkeypatch):
    real = op_tests.check
    monkeypatch.setattr(
        op_tests,
        "check",
        lambda ops, *rest: ({"evict_lfu": True}, {"select_prototypes": ["test_it"]}) if rest else real(ops),
    )
    items = (("frame", "small"), ("select_prototypes", "tiny"), ("evict_lfu", "tiny"))
    monkeypatch.setitem(run.SUITES, "gpu", run.Suite(tuple(run.SuiteItem(*item) for item in items), rounds=3))
    done, code = revision(OLD, "--suite", "gpu", "--backend", "torch")
    assert code == 1
    select, evict = done["results"]
    assert [row["reason"] for row in select["rows"]] == ["refused: the tests of this op are red"] * 2
    assert select["tested"] == "tests are red"
    assert all(row["median"] > 0 for row in evict["rows"])


def test_after_a_failure_another_process_is_asked(tmp_path):
    """A process that hangs or has lost its GPU is of no use any more."""
    asked = revisions.RevisionProcess(revisions.SourceTree(tmp_path, ""), threads=1, limit=60)
    answer = "{'process': os.getpid()} | ({} if order['chain'] else {'reason': 'CUDA error: x'})"
    code = f"import json, os, sys\nfor line in sys.stdin:\n order = json.loads(line)\n answer = {answer}\n"
    code += " sys.stderr.write(('x' * 99 + '\\n') * 20_000)\n print(json.dumps(answer), flush=True)"
    asked._command = [sys.executable, "-c", code]
    first = asked.ask(chain=1)["process"]
    assert asked.ask(chain=1)["process"] == first
    with pytest.raises(Unavailable, match="CUDA error: x"):
        asked.ask(chain=0)
    assert asked.ask(chain=1)["process"] != first
    asked.close()


def test_a_revision_that_is_not_there(tiny_run):
    said, code = tiny_run("--base", "no-such-revision", "--op", "evict_lfu")
    assert code == 1 and "wanted a revision" in said


def test_a_worker_takes_the_kernels_of_its_own_tree(tmp_path):
    """An editable install has a finder that knows another folder for xmemk.kernels."""
    for folder in ("xmemk", "kernels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(f"where = {str(tmp_path)!r}")
    script = revisions.__file__.replace("revisions.py", "revision_worker.py")
    code = (
        "import json, pathlib, sys, importlib.util; "
        f"spec = importlib.util.spec_from_file_location('worker', {script!r}); "
        "worker = importlib.util.module_from_spec(spec); spec.loader.exec_module(worker); "
        f"worker.load(pathlib.Path({str(tmp_path)!r})); import xmemk.kernels; "
        "print(json.dumps([xmemk.where, xmemk.kernels.where]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert json.loads(done.stdout) == [str(tmp_path)] * 2, done.stderr
