"""The dependency arrows of DESIGN.md, held in fresh interpreters and over the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xmemk

PACKAGE = Path(xmemk.__file__).parent
ROOT = PACKAGE.parent
# kernels/ and benchmarks/ lie beside the package and are imported as xmemk.kernels and xmemk.benchmarks.
SOURCES = {"xmemk": "xmemk", "kernels": "xmemk.kernels", "benchmarks": "xmemk.benchmarks"}


def modules():
    """Every module of the three source roots: dotted name -> (file, whether it is a package)."""
    found = {}
    for folder, package in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            is_package = inside[-1] == "__init__"
            found[".".join((package, *inside[: len(inside) - is_package]))] = path, is_package
    return found


MODULES = modules()


def arrows():
    """Which parts a part may import, from DESIGN.md."""
    block = re.search(r"## Arrows\s+.*?```\n(.*?)```", (ROOT / "DESIGN.md").read_text(), re.DOTALL)[1]
    lines = (line.split("->") for line in block.splitlines())
    return {part.strip(): {name.strip() for name in names.split(",")} - {""} for part, names in lines}


def part_of(module):
    """The room a module belongs to: a folder or file of xmemk/, kernels/, or a folder of benchmarks/."""
    names = module.split(".")[1:]
    if not names:
        return "__init__"
    if names[0] == "benchmarks" and len(names) > 1 and MODULES.get(".".join(("xmemk", *names[:2])), ("", False))[1]:
        return f"benchmarks.{names[1]}"
    return names[0]


def imported(module, source):
    """Dotted names of our modules that a source imports, wherever in the file."""
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


def violations(changed=None):
    """Imports without an arrow, as sentences. ``changed``: module -> source to read in place of the file's."""
    allowed = arrows()
    found = []
    for module, (path, _) in MODULES.items():
        part = part_of(module)
        for target in imported(module, (changed or {}).get(module) or path.read_text()):
            other = part_of(target)
            if other not in (part, *allowed.get(part, ())):
                found.append(f"{path.relative_to(ROOT)} must not import {target}: there is no arrow {part} -> {other}")
    return found


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
    source = MODULES[module][0].read_text()
    (sentence,) = violations({module: f"{source}\n{line}\n"})
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


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("xmemk", ["triton", "numpy", "typer", "rich", "av", "PIL", "matplotlib", "jinja2", "xmemk._C"]),
        ("xmemk.reference", ["triton", "numpy", "xmemk._C"]),
        ("xmemk.testing", ["triton", "numpy", "xmemk._C"]),
        ("xmemk.cli", ["triton", "av", "PIL", "matplotlib", "jinja2", "xmemk._C"]),
    ],
)
def test_importing_loads_torch_alone(module, foreign):
    # torch itself loads some of these where they are installed; what it loads is not ours to hold.
    code = (
        "import sys, torch, torch._dynamo; before = set(sys.modules); "
        f"import {module}; print([m for m in {foreign!r} if m in sys.modules and m not in before])"
    )
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_reference_needs_none_of_ours():
    # Loaded without xmemk/__init__.py, as if the rest did not exist.
    code = (
        "import importlib.util, sys; "
        f"spec = importlib.util.spec_from_file_location('oracle', {str(PACKAGE / 'reference' / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(PACKAGE / 'reference')!r}]); "
        "module = importlib.util.module_from_spec(spec); sys.modules['oracle'] = module; "
        "spec.loader.exec_module(module); import torch; "
        "print(module.evict_lfu(torch.rand(1, 5), 2).shape, [m for m in sys.modules if m.startswith('xmemk')])"
    )
    done = fresh(code)
    assert done.stdout.strip() == "torch.Size([1, 2]) []", done.stderr


def test_everything_works_without_the_extension():
    code = (
        "import sys; sys.modules['xmemk._C'] = None; import torch, xmemk; "
        "u = torch.rand(1, 9); print(xmemk.explain(xmemk.evict_lfu, u, 3).chosen, xmemk.evict_lfu(u, 3).shape)\n"
        "try: xmemk.evict_lfu(u, 3, backend='cpu')\n"
        "except ValueError as error: print(error)"
    )
    done = fresh(code)
    lines = done.stdout.splitlines()
    assert lines[0] == "torch torch.Size([1, 3])", done.stderr
    assert "not built" in lines[1]
    assert "doctor" in lines[1]


def test_the_kernels_folder_refuses_to_be_imported_by_its_bare_name():
    root = PACKAGE.parent
    if not (root / "kernels" / "__init__.py").exists():
        pytest.skip("xmemk is not installed from its source tree")
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode != 0
    assert "imported as xmemk.kernels" in done.stderr
    assert fresh("import xmemk.kernels").returncode == 0
