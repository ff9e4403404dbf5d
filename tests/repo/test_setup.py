"""What setup.py decides, and what it says when it cannot build."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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


def with_cuda(tmp_path, known, **environment):
    """setup.py where torch has CUDA and nvcc knows these architectures; prints what it would build."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\nprintf '%s\\n' {' '.join(f'compute_{a}' for a in known)}\n")
    nvcc.chmod(0o755)
    code = (
        "import os, torch; from torch.utils import cpp_extension as c; torch.version.cuda = '13.0'; "
        f"c.CUDA_HOME = {str(tmp_path)!r}; "
        "c.CUDAExtension = lambda name, sources, **k: (print('building', sources, k, os.environ"
        "['TORCH_CUDA_ARCH_LIST']), c.CppExtension(name, ['csrc/xmemk.cpp']))[1]"
    )
    return setup(code, **{"TORCH_CUDA_ARCH_LIST": "", "XMEMK_BUILD_CUDA": "", **environment})


def test_cuda_is_built_where_it_can_be(tmp_path):
    done = with_cuda(tmp_path, ["75", "80", "86", "87", "89", "90", "100", "110", "120"])
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[0]
    for source in ("cuda/select_prototypes.cu", "cuda/evict_lfu.cu", "cuda/gather_tokens.cu", "cuda/operators.cpp"):
        assert f"'csrc/{source}'" in said
    assert "'csrc/cpu/select_prototypes.cpp'" in said
    assert "('XMEMK_WITH_CUDA', None)" in said
    assert "csrc/cuda/usage_rows.cuh" in said
    assert said.endswith(" 8.0;8.6;8.9;9.0;10.0;12.0+PTX")


def test_cuda_architectures_are_those_that_nvcc_knows(tmp_path):
    said = with_cuda(tmp_path, ["50", "80", "86", "89", "90"]).stdout.splitlines()[0]
    assert said.endswith(" 8.0;8.6;8.9;9.0+PTX")


def test_cuda_architectures_can_be_chosen(tmp_path):
    said = with_cuda(tmp_path, ["80"], TORCH_CUDA_ARCH_LIST="9.0").stdout.splitlines()[0]
    assert said.endswith(" 9.0")


def test_an_nvcc_too_old_is_one_sentence(tmp_path):
    done = with_cuda(tmp_path, ["50", "60"])
    assert done.returncode != 0
    assert "knows none of the GPU architectures" in done.stderr.splitlines()[-1]


def test_a_switch_that_is_none():
    done = setup(XMEMK_BUILD_CUDA="yes")
    assert done.returncode != 0
    assert "XMEMK_BUILD_CUDA: wanted 0 or 1, got 'yes'" in done.stderr
