"""`import xmemk` and the help of commands cost nothing: names are imported when they are used."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import xmemk

COMMANDS = ("demo", "weights", "segment", "eval", "bench", "validate", "doctor")
LIMIT = 0.3  # seconds of processor time, the interpreter's own start included


def fresh(code, *arguments):
    """What a program prints, as JSON, in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


HELP = """
import sys
from xmemk.cli.app import run
code = run(sys.argv[1:])
import json, time
print(json.dumps([code, time.process_time(), [name for name in ("torch", "numpy", "av") if name in sys.modules]]))
"""


@pytest.mark.parametrize("words", ["--version", "--help", *(f"{name} --help" for name in COMMANDS)])
def test_version_and_help_load_no_torch_and_take_little_time(words):
    pytest.importorskip("typer")
    for _ in range(4):  # processor time grows when others use the machine
        code, seconds, loaded = fresh(HELP, *words.split())
        assert (code, loaded) == (0, [])
        if seconds < LIMIT:
            break
    assert seconds < LIMIT


def test_importing_loads_nothing_but_the_standard_library():
    code = (
        "import json, sys; before = set(sys.modules); import xmemk; from xmemk import __version__\n"
        "new = sorted(set(sys.modules) - before)\n"
        "print(json.dumps([name for name in new if name.split('.')[0] not in sys.stdlib_module_names]))"
    )
    assert fresh(code) == ["xmemk", "xmemk.renamed", "xmemk.version"]


def test_every_name_can_be_had():
    namespace = {}
    exec("from xmemk import *", namespace)
    assert set(xmemk.__all__) <= set(namespace) & set(dir(xmemk))
    for name in xmemk.__all__:
        assert getattr(xmemk, name) is namespace[name]
        if name != "__version__":
            assert namespace[name].__name__ == name


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(xmemk.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = {alias.name: line.module for line in block.body for alias in line.names}
    assert imports == xmemk._MODULES
    assert {*imports, "__version__"} == set(xmemk.__all__)


def test_submodules_are_names():
    code = (
        "import json, xmemk\n"
        "print(json.dumps([xmemk.testing.compare_read.__name__, xmemk.compat.xmem.MemoryManager.__module__]))"
    )
    assert fresh(code) == ["compare_read", "xmemk.compat.xmem"]


def test_names_that_are_none():
    for name in ("memory_reads", "_hidden", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'xmemk' has no attribute '{name}'"):
            getattr(xmemk, name)


def test_what_a_submodule_lacks_is_not_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("xmemk.doctor")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(xmemk), "doctor", raising=False)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        xmemk.doctor  # noqa: B018


def test_the_first_use_may_be_inside_a_compiled_function():
    code = """
import json
import torch
import xmemk
read = torch.compile(lambda *x: xmemk.memory_read(*x, top_k=3), fullgraph=True, backend="eager")
x = torch.rand(1, 4, 9), None, torch.rand(1, 1, 2, 9), torch.rand(1, 4, 5), None
print(json.dumps(torch.allclose(read(*x), xmemk.memory_read(*x, top_k=3))))
"""
    assert fresh(code) is True
