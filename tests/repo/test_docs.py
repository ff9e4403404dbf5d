"""The documentation site builds, and its figures are those that are drawn. What its pages say is
held by test_pages.py and test_links.py.
"""

import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import docs_figures
import pytest

ROOT = Path(__file__).parents[2]


def test_figures():
    drawn = docs_figures.figures()
    named = re.findall(r"pictures/([\w-]+)\.svg", (ROOT / "docs" / "kernels.md").read_text())
    assert sorted(drawn) == sorted(named)
    for name, svg in drawn.items():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert (docs_figures.PICTURES / f"{name}.svg").read_text() == svg, "run python tools/docs_figures.py"


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
    assert (tmp_path / "site" / "pictures" / "groups.svg").exists()
