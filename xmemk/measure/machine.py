"""A description of the machine that figures are measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe() -> dict[str, str]:
    """Processor, threads, system, versions, and the GPU if there is one."""
    machine = {
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }
    if torch.cuda.is_available():
        machine["GPU"] = torch.cuda.get_device_name()
    return machine


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
