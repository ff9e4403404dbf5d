"""The dependency arrows of DESIGN.md, held in fresh interpreters and over the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xmemk

PACKAGE = Path(xmemk.__file__).parent


def arrows():
    """What each part may import of ours, from DESIGN.md; a part that is not in the list may import nothing."""
    block = re.search(r"## Arrows\s+```\n(.*?)```", (PACKAGE.parent / "DESIGN.md").read_text(), re.DOTALL)[1]
    lines = (line.split("->") for line in block.splitlines())
    return {part.strip(): {name.strip() for name in names.split(",")} for part, names in lines}


def imported(path):
    """Names of the parts of xmemk that a file imports, wherever in the file."""
    inside = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            # The package that ``level`` dots reach; __init__ counts as its own package.
            base = list(inside[: len(inside) - node.level])
            names = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            yield from (base[0] if base else name for name in names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "xmemk":
            rest = node.module.split(".")[1:]
            yield from [rest[0]] if rest else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("xmemk."))


def test_every_import_follows_an_arrow():
    allowed = arrows()
    parts = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        parts.add(part)
        for name in imported(path):
            if name != part and (PACKAGE / name).exists() | (PACKAGE / f"{name}.py").exists():
                assert name in allowed.get(part, ()), f"{path.relative_to(PACKAGE)} must not import xmemk.{name}"
    assert set(allowed) <= parts


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
