"""Writes xmemk as a repository of the Hugging Face Kernel Hub: hub.py [FOLDER], by default
build/hub

    build.toml, torch-ext/, csrc/    for kernel-builder, for CPU and CUDA; never tried with it
    build/torch-cpu, torch-cuda      the Python and Triton part, which needs no compiler
    build/torch-universal            the same for older versions of `kernels`
    README.md                            the kernel card, with the figures of benchmarks/results

A kernel of the hub is loaded from any folder, under any name, beside other versions of itself. So
absolute imports become relative ones, and the operators get a namespace that no other version has.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = ("api", "backends", "checks", "inputs", "version")
PACKAGES = ("operators", "plain", "reference", "memory")
TOOLS_OF_KERNELS = ("aot.py", "tune.py")  # run in a checkout
VARIANTS = {"torch-cpu": "cpu", "torch-cuda": "cuda", "torch-universal": "cuda"}

INIT = '''"""xmemk, the memory of XMem: read, prototype selection, potentiation, eviction. See README.md."""

from . import layers
from .api import (
    affinity_topk,
    consolidate,
    evict_lfu,
    explain,
    memory_read,
    readout_topk,
    select_prototypes,
    similarity,
)
from .memory import Memory
from .reference.config import MemoryConfig
from .version import __version__

__all__ = [
    "Memory",
    "MemoryConfig",
    "__version__",
    "affinity_topk",
    "consolidate",
    "evict_lfu",
    "explain",
    "layers",
    "memory_read",
    "readout_topk",
    "select_prototypes",
    "similarity",
]
'''

LAYERS = '''"""What `kernelize` puts in a layer's place: modules without a state of their own."""

from torch import Tensor, nn

from .api import memory_read


class MemoryRead(nn.Module):
    """The read of XMem's memory: mk [B, CK, N], ms [B, 1, N] or None, mv [B, O, CV, N], qk and qe [B, CK, Q] ->
    [B, O, CV, Q]. A layer that is replaced has ``top_k``: None for all tokens.
    """

    top_k: int | None
    has_backward = True
    can_torch_compile = True

    def forward(self, mk: Tensor, ms: Tensor | None, mv: Tensor, qk: Tensor, qe: Tensor | None) -> Tensor:
        return memory_read(mk, ms, mv, qk, qe, top_k=getattr(self, "top_k", None))
'''

# For versions of `kernels` that look for a folder named as the kernel.
COMPATIBLE = """import importlib.util
import sys
from pathlib import Path

_file = Path(__file__).parent.parent / "__init__.py"
_spec = importlib.util.spec_from_file_location("{name}", _file)
_module = importlib.util.module_from_spec(_spec)
sys.modules["{name}"] = _module
_spec.loader.exec_module(_module)
globals().update({{name: value for name, value in vars(_module).items() if not name.startswith("_")}})
"""

BUILD = """[general]
name = "xmemk"
version = 1
license = "MIT"
backends = ["cpu", "cuda"]

[torch]
src = ["csrc/xmemk.cpp", {headers}]

[kernel.xmemk_cpu]
backend = "cpu"
depends = ["torch"]
cxx-flags = ["-O3", "-fopenmp"]
include = ["csrc"]
src = [{cpu}]

[kernel.xmemk_cuda]
backend = "cuda"
depends = ["torch"]
cuda-capabilities = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
cxx-flags = ["-DXMEMK_WITH_CUDA"]
include = ["csrc"]
src = [{cuda}]
"""

CARD = """---
library_name: kernels
license: mit
tags: [kernel, video-object-segmentation, xmem]
---

# xmemk

The memory of [XMem](https://github.com/hkchengrex/XMem) and its descendants: exact kernels for its read (anisotropic L2
similarity, top-k softmax, readout, usage) and its upkeep (prototype selection, potentiation, eviction).

```python
from kernels import get_kernel

xmemk = get_kernel("OWNER/xmemk", version=1, trust_remote_code=True)
readout, usage = xmemk.memory_read(mk, ms, mv, qk, qe, top_k=30, return_usage=True)
```

`xmemk.layers.MemoryRead` takes the place of a layer under `kernelize`. On NVIDIA GPUs of compute capability 8.0 and
newer the Triton kernels serve, elsewhere plain PyTorch in blocks. Every backend is held to a float64 oracle.
The figures below are of the C++ kernels, which `pip install` builds; their sources and a `build.toml` are here, but no
build of them by kernel-builder has been tried.

{figures}
"""


def relocatable(source: str, namespace: str) -> str:
    """A module's text without the package's own name in it."""
    root = '{__package__.partition(".operators")[0]}'  # modules that load compiled code lie in operators/
    source = re.sub(r'"xmemk(\.(?:kernels|_C)[\w.]*)"', lambda found: f"f'{root}{found[1]}'", source)
    source = source.replace('Library("xmemk"', f'Library("{namespace}"').replace('"xmemk::', f'"{namespace}::')
    return source.replace("torch.ops.xmemk.", f"torch.ops.{namespace}.")


def files() -> dict[str, str]:
    """Path within a variant -> text."""
    paths = {f"{name}.py": ROOT / "xmemk" / f"{name}.py" for name in MODULES}
    for name in PACKAGES:
        paths |= {p.relative_to(ROOT / "xmemk").as_posix(): p for p in (ROOT / "xmemk" / name).rglob("*.py")}
    for pattern in ("*.py", "*.json"):
        kernels = (p for p in (ROOT / "kernels").rglob(pattern) if p.name not in TOOLS_OF_KERNELS)
        paths |= {p.relative_to(ROOT).as_posix(): p for p in kernels}
    texts = {name: path.read_text() for name, path in sorted(paths.items())}
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:8]
    return {name: relocatable(text, f"xmemk_{digest}") for name, text in texts.items()} | {
        "__init__.py": INIT,
        "layers.py": LAYERS,
    }


def figures() -> str:
    """The part of README.md or docs/benchmarks.md that is written from benchmarks/results."""
    for page in (ROOT / "README.md", ROOT / "docs" / "benchmarks.md"):
        block = re.search(r"<!-- figures.*?-->\n(.*?)<!--", page.read_text() if page.exists() else "", re.DOTALL)
        if block:
            return "## How fast\n\n" + re.sub(r"\]\((?!https?:)[^)]*\)", "]", block[1]).strip()
    return ""


def write(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    texts = files()
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:8]
    for variant, backend in VARIANTS.items():
        name = f"_xmemk_{variant.removeprefix('torch-')}_{digest}"
        metadata = {
            "id": name,
            "name": "xmemk",
            "version": 1,
            "license": "MIT",
            "python-depends": [],
            "backend": {"type": backend},
        }
        inside = {
            "metadata.json": json.dumps(metadata, indent=1) + "\n",
            "xmemk/__init__.py": COMPATIBLE.format(name=name),
        }
        for path, text in {**texts, **inside}.items():
            file = out / "build" / variant / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    for path, text in texts.items():
        file = out / "torch-ext" / "xmemk" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    shutil.copytree(ROOT / "csrc", out / "csrc")
    listed = {
        "headers": ["csrc/*.h"],
        "cpu": ["csrc/cpu/*.cpp", "csrc/cpu/*.h"],
        "cuda": ["csrc/cuda/*.cu", "csrc/cuda/*.cpp", "csrc/cuda/*.cuh"],
    }
    named = {
        key: ", ".join(f'"{p.relative_to(ROOT)}"' for pattern in patterns for p in sorted(ROOT.glob(pattern)))
        for key, patterns in listed.items()
    }
    (out / "build.toml").write_text(BUILD.format(**named))
    (out / "README.md").write_text(CARD.format(figures=figures()))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "hub")
