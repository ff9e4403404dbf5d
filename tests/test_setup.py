"""What setup.py decides, and what it says when it cannot build."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def setup(code="pass", **environment):
    """Runs setup.py as far as a query that builds nothing, after ``code``."""
    prelude = f"import sys; sys.argv = ['setup.py', '--name']; {code}; exec(open('setup.py').read())"
    return subprocess.run(
        [sys.executable, "-c", prelude],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )


@pytest.fixture(autouse=True)
def source_tree():
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source tree")


def test_torch_missing_is_one_sentence_with_the_way_out():
    done = setup("sys.modules['torch'] = None")
    assert done.returncode != 0
    said = done.stderr.strip().splitlines()[-1]
    assert "--no-build-isolation" in said
    assert "XMEMK_BUILD_CPP=0" in said


def test_the_pure_package_needs_no_torch():
    done = setup("sys.modules['torch'] = None", XMEMK_BUILD_CPP="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("xmemk")


def test_cuda_asked_for_where_it_cannot_be_had():
    done = setup("import torch; torch.version.cuda = None", XMEMK_BUILD_CUDA="1")
    assert done.returncode != 0
    assert "XMEMK_BUILD_CUDA=1 needs" in done.stderr
    assert "a torch built with CUDA" in done.stderr


def test_cuda_switched_off():
    assert setup(XMEMK_BUILD_CUDA="0").returncode == 0


def test_a_switch_that_is_none():
    done = setup(XMEMK_BUILD_CUDA="yes")
    assert done.returncode != 0
    assert "XMEMK_BUILD_CUDA: wanted 0 or 1, got 'yes'" in done.stderr
