"""What a release is made of does not drift from the rest: workflows, citation, lists of files,
extras.
"""

import ast
import re
from pathlib import Path

import pytest

import xmemk

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYPROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / ".github" / "dependabot.yml"], ids=lambda path: path.name)
def test_yaml(path):
    yaml = pytest.importorskip("yaml")
    loaded = yaml.safe_load(path.read_text())
    for job in loaded.get("jobs", {}).values():
        assert job["runs-on"]
        assert all("uses" in step or "run" in step for step in job["steps"])


def test_workflows_say_that_they_have_not_run_and_type_what_there_is():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in WORKFLOWS:
        text = path.read_text()
        assert "UNTESTED" in text.split("name:")[0], path.name
        assert set(re.findall(r"run: make ([\w-]+)", text)) <= targets, path.name
        assert all((ROOT / script).exists() for script in re.findall(r"tools/[\w.]+", text)), path.name


def test_issue_forms():
    yaml = pytest.importorskip("yaml")
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert path.name == "config.yml" or {"name", "description", "body"} <= form.keys(), path.name


def test_the_citation_is_of_this_version():
    assert f"\nversion: {xmemk.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_folder_of_the_repository_is_in_the_sdist():
    manifest = (ROOT / "MANIFEST.in").read_text()
    for name in (".ci", ".github", "benchmarks", "csrc", "docs", "examples", "kernels", "tests", "tools"):
        assert f"graft {name}\n" in manifest
    for path in ROOT.glob("*.*"):
        if path.suffix in (".md", ".cff", ".yml") and path.name != "README.md":
            assert path.name in manifest, path.name


def test_interpreters_are_those_of_the_workflows():
    listed = set(re.findall(r"Python :: (3\.\d+)", PYPROJECT))
    assert listed == set(re.findall(r'python: \[?"(3\.\d+)"', (ROOT / ".github/workflows/ci.yml").read_text())) | {
        f"3.{minor}"
        for minor in map(int, re.findall(r"cp3(\d\d)-", (ROOT / ".github/workflows/wheels.yml").read_text()))
    }


def test_extras_that_errors_name_exist():
    extras = set(re.findall(r"^(\w+) = \[", PYPROJECT, re.MULTILINE))
    for path in (ROOT / "xmemk").rglob("*.py"):
        strings = (n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant))
        for text in strings:
            if isinstance(text, str):
                assert set(re.findall(r"pip install 'xmemk\[(\w+)\]'", text)) <= extras, path.name
