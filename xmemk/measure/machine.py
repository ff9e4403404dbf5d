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
    """The model's name and family: cloud machines call several generations "AMD EPYC"."""
    cpuinfo = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    family = f" (family {fields['cpu family']})" if "cpu family" in fields else ""
    return fields["model name"] + family
