"""What setup.py decides, and what it says when it cannot build."""

import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]


@pytest.fixture
def setup(monkeypatch, capsys):
    """Runs setup.py as far as a query that builds nothing -> returncode, stdout, stderr."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source tree")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--name"])

    def call(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        reason = None
        try:
            runpy.run_path("setup.py", run_name="__main__")
        except SystemExit as error:
            reason = error.code
        output = capsys.readouterr()
        return SimpleNamespace(returncode=int(bool(reason)), stdout=output.out, stderr=f"{output.err}{reason or ''}")

    return call


def test_torch_missing_is_one_sentence_with_the_way_out(setup, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = setup()
    assert done.returncode != 0
    line = done.stderr.strip().splitlines()[-1]
    assert "--no-build-isolation" in line
    assert "XMEMK_BUILD_CPP=0" in line


def test_the_pure_package_needs_no_torch(setup, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = setup(XMEMK_BUILD_CPP="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("xmemk")


def test_cuda_asked_for_where_it_cannot_be_had(setup, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    done = setup(XMEMK_BUILD_CUDA="1")
    assert done.returncode != 0
    assert "XMEMK_BUILD_CUDA=1 needs" in done.stderr
    assert "a torch built with CUDA" in done.stderr


def test_cuda_switched_off(setup):
    assert setup(XMEMK_BUILD_CUDA="0").returncode == 0


@pytest.fixture
def with_cuda(setup, monkeypatch, tmp_path):
    """setup.py where torch has CUDA and nvcc knows these architectures; prints what it builds."""

    def call(known, **environment):
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text(f"#!/bin/sh\nprintf '%s\\n' {' '.join(f'compute_{a}' for a in known)}\n")
        nvcc.chmod(0o755)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
        monkeypatch.setattr(cpp_extension, "CUDAExtension", printed)
        return setup(**{"TORCH_CUDA_ARCH_LIST": "", "XMEMK_BUILD_CUDA": "", **environment})

    return call


def printed(name, sources, **options):
    print("building", sources, options, os.environ["TORCH_CUDA_ARCH_LIST"])
    return cpp_extension.CppExtension(name, ["csrc/xmemk.cpp"])


def test_cuda_is_built_where_it_can_be(with_cuda):
    done = with_cuda(["75", "80", "86", "87", "89", "90", "100", "110", "120"])
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[0]
    for source in ("cuda/select_prototypes.cu", "cuda/evict_lfu.cu", "cuda/gather_tokens.cu", "cuda/operators.cpp"):
        assert f"'csrc/{source}'" in line
    assert "'csrc/cpu/select_prototypes.cpp'" in line
    assert "('XMEMK_WITH_CUDA', None)" in line
    assert "csrc/cuda/usage_rows.cuh" in line
    assert line.endswith(" 8.0;8.6;8.9;9.0;10.0;12.0+PTX")


def test_cuda_architectures_are_those_that_nvcc_knows(with_cuda):
    line = with_cuda(["50", "80", "86", "89", "90"]).stdout.splitlines()[0]
    assert line.endswith(" 8.0;8.6;8.9;9.0+PTX")


def test_cuda_architectures_can_be_chosen(with_cuda):
    line = with_cuda(["80"], TORCH_CUDA_ARCH_LIST="9.0").stdout.splitlines()[0]
    assert line.endswith(" 9.0")


def test_an_nvcc_too_old_is_one_sentence(with_cuda):
    done = with_cuda(["50", "60"])
    assert done.returncode != 0
    assert "knows none of the GPU architectures" in done.stderr.splitlines()[-1]


def test_a_switch_that_is_none(setup):
    done = setup(XMEMK_BUILD_CUDA="yes")
    assert done.returncode != 0
    assert "XMEMK_BUILD_CUDA: wanted 0 or 1, got 'yes'" in done.stderr
