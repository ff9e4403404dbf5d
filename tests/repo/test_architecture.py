"""The dependency arrows of DESIGN.md, checked over the source and in fresh interpreters."""

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xmemk

PACKAGE = Path(xmemk.__file__).resolve().parent
ROOT = PACKAGE.parent
# kernels/ and benchmarks/ are imported as xmemk.kernels and xmemk.benchmarks.
SOURCES = {"xmemk": "xmemk", "kernels": "xmemk.kernels", "benchmarks": "xmemk.benchmarks"}


def modules():
    """Every module of the three source roots: dotted name -> (file, whether it is a package)."""
    paths = {}
    for folder, package in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            is_package = inside[-1] == "__init__"
            paths[".".join((package, *inside[: len(inside) - is_package]))] = path, is_package
    return paths


MODULES = modules()


def arrows():
    """Which parts a part may import, from DESIGN.md."""
    block = re.search(r"## Arrows\s+.*?```\n(.*?)```", (ROOT / "DESIGN.md").read_text(), re.DOTALL)[1]
    lines = (line.split("->") for line in block.splitlines())
    return {part.strip(): {name.strip() for name in names.split(",")} - {""} for part, names in lines}


def part_of(module):
    """The part of a module: a folder or file of xmemk/, kernels/, or a folder of benchmarks/."""
    names = module.split(".")[1:]
    if not names:
        return "__init__"
    if names[0] == "benchmarks" and len(names) > 1 and MODULES.get(".".join(("xmemk", *names[:2])), ("", False))[1]:
        return f"benchmarks.{names[1]}"
    return names[0]


@functools.cache
def imported(module, planted=""):
    """Dotted names of our modules that a module imports, wherever in its file or in ``planted``."""
    return tuple(_imported(module, planted or MODULES[module][0].read_text()))


def _imported(module, source):
    package = module.split(".") if MODULES[module][1] else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "xmemk")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join(base + (node.module.split(".") if node.module else []))
            if target.split(".")[0] == "xmemk":
                for alias in node.names:
                    full = f"{target}.{alias.name}"
                    yield full if full in MODULES else target


def violations(planted=None):
    """Imports without an arrow, as sentences. planted: module -> lines to read after its file."""
    allowed = arrows()
    sentences = []
    for module, (path, _) in MODULES.items():
        part = part_of(module)
        for target in (*imported(module), *((imported(module, planted[module])) if module in (planted or ()) else ())):
            other = part_of(target)
            if other not in (part, *allowed.get(part, ())):
                sentences.append(
                    f"{path.relative_to(ROOT)} must not import {target}: there is no arrow {part} -> {other}"
                )
    return sentences


def test_every_import_follows_an_arrow():
    assert violations() == []
    assert set(arrows()) <= {part_of(module) for module in MODULES}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("xmemk.memory.exact", "from xmemk.benchmarks import run"),
        ("xmemk.memory.exact", "import xmemk.benchmarks.peers.catalogue"),
        ("xmemk.memory.exact", "def f():\n    from ..video import tracker"),
        ("xmemk.kernels.tiles", "from xmemk import reference"),
        ("xmemk.kernels.tiles", "from xmemk.memory import Memory"),
        ("xmemk.kernels.tiles", "import xmemk.compat.xmem"),
        ("xmemk.kernels.tiles", "import xmemk"),
        ("xmemk.kernels.tiles", "from .. import plain"),
        ("xmemk.reference.ops", "from ..plain import read"),
        ("xmemk.benchmarks.peers.workloads", "from xmemk.benchmarks.harness import sweeps"),
    ],
)
def test_a_planted_import_is_found(module, line):
    (sentence,) = violations({module: f"{line}\n"})
    assert "must not import" in sentence
    assert MODULES[module][0].name in sentence


def test_arrows_make_no_circle():
    remaining = arrows()
    while remaining:
        leaves = [part for part, names in remaining.items() if not names & set(remaining)]
        assert leaves, f"a circle among {sorted(remaining)}"
        remaining = {part: names for part, names in remaining.items() if part not in leaves}


def fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)


FOREIGN = {
    "xmemk": ["triton", "numpy", "typer", "rich", "av", "PIL", "matplotlib", "jinja2", "xmemk._C"],
    "xmemk.reference": ["triton", "numpy", "xmemk._C"],
    "xmemk.testing": ["triton", "numpy", "xmemk._C"],
    "xmemk.cli": ["triton", "av", "PIL", "matplotlib", "jinja2", "xmemk._C"],
}


@pytest.fixture(scope="module")
def loaded_by():
    """Of each module in FOREIGN: what is loaded after it is imported, in one fresh interpreter.

    Importing them one after another shows no less than importing each alone: nothing is unloaded.
    What torch itself loads where it is installed is not ours to hold, and not listed.
    """
    code = (
        "import importlib, json, sys, torch, torch._dynamo\n"
        "before, loaded = set(sys.modules), {}\n"
        f"for module in {list(FOREIGN)!r}:\n"
        "    importlib.import_module(module)\n"
        "    loaded[module] = sorted(set(sys.modules) - before)\n"
        "import xmemk.kernels\n"
        "print(json.dumps(loaded))"
    )
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", FOREIGN)
def test_importing_loads_torch_alone(loaded_by, module):
    assert module in loaded_by[module]
    assert [name for name in FOREIGN[module] if name in loaded_by[module]] == []


@pytest.fixture(scope="module")
def crippled():
    """Output of the oracle without the package, then of the package without the extension."""
    folder = str(PACKAGE / "reference")
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('oracle', {folder!r} + '/__init__.py', "
        f"submodule_search_locations=[{folder!r}])\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['oracle'] = module\n"
        "spec.loader.exec_module(module); import torch\n"
        "print(module.evict_lfu(torch.rand(1, 5), 2).shape, [m for m in sys.modules if m.startswith('xmemk')])\n"
        "sys.modules['xmemk._C'] = None; import xmemk\n"
        "u = torch.rand(1, 9); print(xmemk.explain(xmemk.evict_lfu, u, 3).chosen, xmemk.evict_lfu(u, 3).shape)\n"
        "try: xmemk.evict_lfu(u, 3, backend='cpu')\n"
        "except ValueError as error: print(error)"
    )
    done = fresh(code)
    assert len(done.stdout.splitlines()) == 3, done.stderr
    return done.stdout.splitlines()


def test_the_reference_needs_none_of_ours(crippled):
    assert crippled[0] == "torch.Size([1, 2]) []"  # loaded without xmemk/__init__.py


def test_everything_works_without_the_extension(crippled):
    assert crippled[1] == "torch torch.Size([1, 3])"
    assert "not built" in crippled[2]
    assert "doctor" in crippled[2]


def test_the_kernels_folder_refuses_to_be_imported_by_its_bare_name(loaded_by):
    root = PACKAGE.parent
    if not (root / "kernels" / "__init__.py").exists():
        pytest.skip("xmemk is not installed from its source tree")
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode != 0
    assert "imported as xmemk.kernels" in done.stderr
    assert loaded_by  # whose interpreter imported xmemk.kernels
