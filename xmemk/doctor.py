"""What is installed, built and usable on this machine, what is not, and how to get it.

Printed by ``xmemk doctor``.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from . import operators
from .backends import BACKENDS, OPS, Call, refusal
from .version import __version__

State = Literal["ok", "missing", "broken"]

_BUILD = "pip install --no-build-isolation -e . (in a checkout; needs a C++ compiler, ninja and this torch)"

# Packages beyond torch: what each is for, and the extra that brings it.
_PACKAGES = {
    "typer": ("the command line", "cli"),
    "rich": ("the command line", "cli"),
    "av": ("reading and writing video", "demo"),
    "numpy": ("images and video frames", "demo"),
    "pillow": ("masks and pictures", "demo"),
    "matplotlib": ("the plots of the demo's page", "demo"),
    "jinja2": ("the demo's page", "demo"),
    "vos-benchmark": ("J and F of xmemk eval", "eval"),
    "pytest": ("the tests", "dev"),
    "hypothesis": ("the tests", "dev"),
    "ninja": ("building the C++ extension", "dev"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``remedy`` says how to get what is missing or broken."""

    name: str
    state: State
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine() -> list[Finding]:
    """Looks at this machine and changes nothing. Devices are asked for their names alone."""
    return [*_core(), _extension(), *_cuda(), *_packages()]


def backends() -> dict[str, dict[str, str]]:
    """For each op and backend on this machine's best device: "yes", or why not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {op: {b: refusal(b, Call(op, device, False)) or "yes" for b in BACKENDS} for op in OPS}


def _core() -> list[Finding]:
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        Finding("xmemk", "ok", f"{__version__} in {Path(__file__).parent}"),
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        Finding("torch", "ok", f"{torch.__version__}, {capability}, {torch.get_num_threads()} threads"),
    ]


def _extension() -> Finding:
    error = operators.native_error()
    if error is None:
        import xmemk._C as extension

        info = extension.build_info()
        built = info["torch"]
        if built.split("+")[0] != torch.__version__.split("+")[0]:
            detail = f"built for torch {built}, running with {torch.__version__}"
            return Finding("C++ extension", "broken", detail, f"build it anew: {_BUILD}")
        cuda = "with" if info["cuda"] else "without"
        return Finding("C++ extension", "ok", f"built for torch {built} by {info['compiler']}, {cuda} CUDA kernels")
    compiler = next((c for c in ("c++", "g++", "clang++", "cl") if shutil.which(c)), None)
    remedy = (
        _BUILD if compiler else f"first a C++ compiler (none of c++, g++, clang++, cl is on the PATH), then {_BUILD}"
    )
    state: State = "missing" if "not built" in error else "broken"
    detail = f"{error}; everything still runs in plain PyTorch"
    return Finding("C++ extension", state, detail, remedy)


def _cuda() -> list[Finding]:
    version = torch.version.cuda
    if version is None:
        gpu = Finding(
            "CUDA", "missing", "this torch has no CUDA", "a CUDA build of torch, where there is an NVIDIA GPU"
        )
    elif not torch.cuda.is_available():
        gpu = Finding("CUDA", "missing", f"torch has CUDA {version}, but sees no GPU", "an NVIDIA GPU and its driver")
    else:
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        gpu = Finding("CUDA", "ok", f"{version}: {names}")
    triton = _version("triton")
    if triton is None:
        return [gpu, Finding("triton", "missing", "kernels for GPUs", "comes with CUDA builds of torch")]
    return [gpu, Finding("triton", "ok", triton)]


def _packages() -> list[Finding]:
    findings = []
    for name, (purpose, extra) in _PACKAGES.items():
        version = _version(name)
        if version:
            findings.append(Finding(name, "ok", version))
        else:
            findings.append(
                Finding(name, "missing", purpose, f"pip install 'xmemk[{extra}]' (in a checkout: '.[{extra}]')")
            )
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
