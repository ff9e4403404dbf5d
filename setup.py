"""Builds the extension xmemk._C; everything else about the package is in pyproject.toml.

Environment: XMEMK_BUILD_CPP=0 builds no extension (the pure Python package). XMEMK_BUILD_CUDA=1 or
0 builds the CUDA sources or leaves them out; unset, they are built where torch has CUDA, nvcc is
found and there are CUDA sources.
"""

import os
import re
import subprocess
import sys
from glob import glob

from setuptools import setup


def switch(name):
    """True, False, or None where the variable is not set."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"{name}: wanted 0 or 1, got {value!r}")
    return None if value == "" else value == "1"


def build_cuda(torch_cuda, cuda_home, cuda_sources):
    """Decided from what is installed and never from a device: the machine that builds need not have
    one.
    """
    missing = [
        what
        for what, found in (
            ("a torch built with CUDA", torch_cuda),
            ("nvcc (set CUDA_HOME)", cuda_home),
            ("CUDA sources in csrc/cuda", cuda_sources),
        )
        if not found
    ]
    wanted = switch("XMEMK_BUILD_CUDA")
    if wanted and missing:
        sys.exit(f"XMEMK_BUILD_CUDA=1 needs {' and '.join(missing)}, which was not found")
    return not missing if wanted is None else wanted


ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


def arch_list(cuda_home):
    """Those of ours that this nvcc knows. PTX of the last covers what came after."""
    nvcc = os.path.join(cuda_home, "bin", "nvcc")
    done = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"compute_(\d+)", done.stdout))
    listed = [a for a in ARCHITECTURES if a.replace(".", "") in known]
    if not listed:
        sys.exit(f"{nvcc} knows none of the GPU architectures {', '.join(ARCHITECTURES)}: CUDA 11.8 or newer is needed")
    return ";".join(listed) + "+PTX"


def extension():
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        sys.exit(
            f"xmemk's extension is built against the installed torch, which cannot be imported ({error}): install "
            "torch first and use `pip install --no-build-isolation`, or set XMEMK_BUILD_CPP=0 for the pure Python "
            "package"
        )
    sources = ["csrc/xmemk.cpp", *glob("csrc/cpu/*.cpp")]
    cuda_sources = [*glob("csrc/cuda/*.cu"), *glob("csrc/cuda/*.cpp")]
    with_cuda = build_cuda(torch.version.cuda, cpp_extension.CUDA_HOME, cuda_sources)
    # The C++ standard is left to torch, which passes the one its own headers need.
    flags = {"cxx": ["/O2"] if sys.platform == "win32" else ["-O3", "-g0"], "nvcc": ["-O3", "--threads=4"]}
    link_flags = []
    if sys.platform.startswith("linux"):
        # at::parallel_for is a header: without this it compiles to a serial loop.
        flags["cxx"].append("-fopenmp")
        link_flags.append("-fopenmp")
    if with_cuda and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        # Unset, torch would ask the devices of this machine.
        os.environ["TORCH_CUDA_ARCH_LIST"] = arch_list(cpp_extension.CUDA_HOME)
    build = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    return {
        "ext_modules": [
            build(
                "xmemk._C",
                sorted(sources + (cuda_sources if with_cuda else [])),
                depends=sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.cuh", recursive=True)),
                define_macros=[("XMEMK_WITH_CUDA", None)] if with_cuda else [],
                extra_compile_args=flags,
                extra_link_args=link_flags,
            )
        ],
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
    }


setup(**({} if switch("XMEMK_BUILD_CPP") is False else extension()))
