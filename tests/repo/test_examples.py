"""Every example runs as it stands, says what its text promises, and stays short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "first_steps.ipynb"
MOST_LINES = 60


def run(name, tmp_path):
    """The lines that an example prints, in a folder of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, EXAMPLES / name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_read(tmp_path):
    said = run("read.py", tmp_path)
    assert "readout [1, 2, 512, 1620], usage [1, 9720]" in said
    assert "usage adds up to 1620.0 for 1620 queries" in said


def test_track(tmp_path):
    pytest.importorskip("av")
    said = run("track.py", tmp_path)
    assert said.count("% of the picture") == 12
    assert "consolidations=1" in said or "consolidations=2" in said
    assert (tmp_path / "last_mask.png").stat().st_size > 50


def test_drop_in_cutie(tmp_path):
    pytest.importorskip("cutie")
    said = run("drop_in_cutie.py", tmp_path)
    assert float(re.search(r"largest difference of a probability: (\S+)", said)[1]) < 1e-4


def test_train(tmp_path):
    first, last = map(float, re.findall(r"(\d\.\d+) over the", run("train.py", tmp_path)))
    assert last < 0.8 * first


def test_your_kernel(tmp_path):
    right, wrong = run("your_kernel.py", tmp_path).split("my_wrong_read")
    assert right.count("passed") == 6 and "FAILED" not in right
    assert wrong.count("FAILED") >= 3


def test_the_notebook(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # pictures are made, not committed
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2


def test_all_are_here_and_short():
    tested = {"read.py", "track.py", "drop_in_cutie.py", "train.py", "your_kernel.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < MOST_LINES, path.name
