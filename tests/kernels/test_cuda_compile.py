"""csrc/cuda compiled by nvcc, where there is one, and its assembler's report; nothing is run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from once import once

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "csrc" / "cuda"
ARCHITECTURES = ["80", "90", "100"]
ROW_KERNELS = ("select_prototypes_kernel", "evict_lfu_kernel")


def find_nvcc():
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin" if home else "/usr/local/cuda/bin")


NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not here")


def nvcc(name, source, folder, *options):
    """Status and messages of a compilation, made once for these sources, this nvcc and torch."""
    command = [NVCC, *options, source.relative_to(ROOT), "-o", folder / f"{source.stem}.out"]
    version = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout

    def compiled():
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return done.returncode, done.stderr

    files = [path for path in (ROOT / "csrc").rglob("*.*") if path.is_file()]
    return once(f"nvcc-{name}", files, [version, torch.__version__, *map(str, command[1:-1])], compiled)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What ptxas says of each kernel: {(architecture, mangled name): its lines}."""
    said = {}
    folder = tmp_path_factory.mktemp("fatbin")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    options = ("-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas=-v", "-fatbin", *targets)
    for source in sorted(CUDA.glob("*.cu")):
        status, messages = nvcc(source.stem, source, folder, *options)
        assert status == 0, messages
        pieces = re.split(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", messages)
        for name, architecture, text in zip(pieces[1::3], pieces[2::3], pieces[3::3]):
            said[architecture, name] = text
    return said


def number(pattern, text):
    return int(re.search(pattern, text)[1])


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_is_there_for_every_dtype(report, architecture):
    names = [name for a, name in report if a == architecture]
    for kernel in ROW_KERNELS:
        assert sum(kernel in name for name in names) == 4
    assert sum("gather_tokens_kernel" in name for name in names) == 3
    assert len(names) == 11


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_no_local_memory_and_room_for_a_block(report, architecture):
    for (a, name), text in report.items():
        if a != architecture:
            continue
        assert re.search(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", text), (name, text)
        threads = 1024 if any(kernel in name for kernel in ROW_KERNELS) else 256
        assert number(r"Used (\d+) registers", text) * threads <= 65536, (name, text)
        assert number(r"(\d+) bytes smem", text) <= 48 * 1024, (name, text)


@needs_nvcc
def test_the_binding_compiles_against_torch(tmp_path):
    """Compiled, not linked: a torch without CUDA has the headers, but not the libraries."""
    include = Path(torch.__file__).parent / "include"
    for wanted in ("c10/cuda/CUDAStream.h", "c10/cuda/CUDAGuard.h"):
        if not (include / wanted).exists():
            pytest.skip(f"this torch has no header {wanted}")
    # By nvcc, which finds CUDA's own headers; -x c++ is the host's compiler.
    options = ["-x", "c++", "-std=c++20", "-c", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", "-Xcompiler=-Wall,-fPIC"]
    options += ["-isystem", include, "-isystem", include / "torch" / "csrc" / "api" / "include"]
    status, messages = nvcc("operators", CUDA / "operators.cpp", tmp_path, *options)
    assert status == 0, messages
    assert "csrc/cuda" not in messages, messages  # no warning either


def test_kernels_need_no_torch():
    for path in [*CUDA.glob("*.cu"), *CUDA.glob("*.cuh"), *CUDA.glob("*.h")]:
        assert not re.search(r"#include\s*[<\"](ATen|c10|torch|\.\./)", path.read_text()), path.name
