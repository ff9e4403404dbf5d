"""The pages of docs/ hold what they say: Python blocks run, commands exist, files are there,
figures are drawn.
"""

import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "design" not in p.parts)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if PYTHON.search(p.read_text())], ids=name_of)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": page.stem}
    for block in PYTHON.findall(page.read_text()):
        exec(compile(block, name_of(page), "exec"), names)


def test_blocks_that_are_not_run_are_python():
    for page in PAGES:
        for block in re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL):
            compile(block, name_of(page), "exec")


def test_commands_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    from xmemk.cli.app import app

    commands = {c.name or c.callback.__name__ for c in app.registered_commands}
    for page in PAGES:
        text = page.read_text()
        lines = [line for block in SHELL.findall(text) for line in block.splitlines()]
        lines += re.findall(r"`((?:make|xmemk) [^`]+)`", text)
        for line in lines:
            if made := re.match(r"make ([\w-]+)", line):
                assert made[1] in targets, f"{page.name}: {line}"
            if typed := re.match(r"xmemk ([\w-]+)", line):
                assert typed[1] in commands, f"{page.name}: {line}"


def test_every_public_name_has_its_place_in_the_api_pages():
    import xmemk

    documented = set(
        re.findall(r"^::: (xmemk\.\w+)$", "".join(p.read_text() for p in (ROOT / "docs/api").glob("*.md")), re.M)
    )
    missing = {f"xmemk.{name}" for name in xmemk.__all__ if not name.startswith("_")} - documented
    assert not missing, f"docs/api lacks {sorted(missing)}"


def test_files_that_pages_name_are_there():
    for page in PAGES:
        for path in re.findall(
            r"`((?:xmemk|tests|tools|benchmarks|examples|kernels|csrc)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_figures():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import docs_figures
    finally:
        sys.path.pop(0)
    drawn = docs_figures.figures()
    named = re.findall(r"figures/([\w-]+)\.svg", (ROOT / "docs" / "kernels.md").read_text())
    assert sorted(drawn) == sorted(named)
    for svg in drawn.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_the_site_builds_without_warnings(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install '.[docs]'")
    import subprocess

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    functions = (tmp_path / "site" / "api" / "functions" / "index.html").read_text()
    assert "memory_read" in functions
    assert ":func:" not in functions
    assert (tmp_path / "site" / "figures" / "groups.svg").exists()
