"""Things that must not drift apart: versions, package lists, licences, the bundled data."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import xmemk

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_pre_commit_and_ci_use_the_same_versions():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    for tool, repo in (("ruff", "ruff-pre-commit"), ("clang-format", "mirrors-clang-format")):
        pinned = re.search(rf'"{tool}==([\d.]+)"', PYPROJECT)[1]
        assert re.search(rf"{repo}\n\s+rev: v([\d.]+)", config)[1] == pinned
        assert f"{tool}=={pinned} " in (ROOT / "constraints.txt").read_text()
    assert re.search(r'"mypy==([\d.]+)"', PYPROJECT)[1] in (ROOT / "constraints.txt").read_text()


def test_every_package_folder_is_shipped():
    listed = set(re.findall(r'^    "(xmemk[\w.]*)",$', PYPROJECT, re.MULTILINE))
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in (ROOT / "xmemk").rglob("__init__.py")}
    for top in ("kernels", "benchmarks"):
        folders |= {
            "xmemk." + p.parent.relative_to(ROOT).as_posix().replace("/", ".")
            for p in (ROOT / top).rglob("__init__.py")
        }
    assert listed == folders


def test_requirements_of_make_are_those_of_pyproject():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "requirements.py", "dev"], capture_output=True, text=True, check=True
    )
    words = done.stdout.split()
    assert {re.split("[>=]", w)[0] for w in words} >= {
        "torch",
        "triton",
        "typer",
        "av",
        "pytest",
        "hypothesis",
        "ninja",
    }
    assert not any("xmemk" in w for w in words)
    pinned = {re.split("[=>]", line)[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if ">=" in line}
    assert {re.split("[>=]", w)[0] for w in words} <= pinned | {"torch"}


def test_make_test_expects_a_number_of_tests():
    assert 500 < int((ROOT / "tests" / "min-passed").read_text()) < 5000


def test_the_version_is_one():
    assert re.search(r'__version__ = "([^"]+)"', (ROOT / "xmemk" / "version.py").read_text())[1] == xmemk.__version__
    assert f"## {xmemk.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_bundled_clip_carries_its_attribution():
    notice = (ROOT / "xmemk" / "data" / "bunny" / "README.md").read_text()
    assert "Blender Foundation" in notice
    assert "CC BY 3.0" in notice
    for name in ("clip.mp4", "00040.png"):
        assert (ROOT / "xmemk" / "data" / "bunny" / name).stat().st_size > 1000
        assert name in notice


@pytest.mark.parametrize("suffix", ["*.py", "*.cpp", "*.h", "*.sh"])
def test_no_file_is_more_than_one_thing(suffix):
    files = [p for top in ("xmemk", "kernels", "csrc", "tools", "benchmarks") for p in (ROOT / top).rglob(suffix)]
    long = {p.name: n for p in files if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
