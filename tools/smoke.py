"""Makes an installed xmemk work, away from its source: smoke.py pure|cpu

Prints one line and exits with 0, or raises. ``smoke.py --lend`` prints the folders in which this
interpreter finds torch and what torch needs, for the PYTHONPATH of an environment that has no torch
of its own.
"""

import importlib.metadata
import importlib.util
import sys
import time
from pathlib import Path

LENT = ("torch", "numpy", "typing_extensions", "sympy", "filelock", "fsspec", "jinja2", "networkx", "mpmath")


def lend() -> str:
    """Folders of the packages LENT that there are."""
    specs = (importlib.util.find_spec(name) for name in LENT)
    origins = (Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None)
    return ":".join(dict.fromkeys(str(origin.parent if origin.name in LENT else origin) for origin in origins))


def smoke(kind: str) -> None:
    """A read against the oracle, and a memory over some frames."""
    start = time.monotonic()
    import torch

    import xmemk
    from xmemk.testing import make_inputs

    package = Path(xmemk.__file__).parent
    if not package.is_relative_to(sys.prefix):
        raise SystemExit(f"smoke: wanted xmemk from {sys.prefix}, got {package}")
    if not (package / "py.typed").exists() or not (package / "kernels" / "configs.json").exists():
        raise SystemExit(f"smoke: {package} lacks files")
    made = make_inputs(500, 70, objects=2)
    inputs = made.mk, made.ms, made.mv, made.qk, made.qe
    chosen = xmemk.explain(xmemk.memory_read, *inputs, top_k=30, return_usage=True).chosen
    wanted_backend = {"pure": "torch", "cpu": "cpu"}[kind]
    if chosen != wanted_backend:
        raise SystemExit(f"smoke: wanted the backend {wanted_backend}, got {chosen}")
    readout, usage = xmemk.memory_read(*inputs, top_k=30, return_usage=True)
    wanted, mass = xmemk.reference.memory_read(*inputs, top_k=30, return_usage=True)
    torch.testing.assert_close(readout, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(usage, mass, atol=1e-4, rtol=1e-4)
    memory = xmemk.Memory(xmemk.MemoryConfig(hidden_dim=0))
    for _ in range(12):
        frame = torch.rand(1, 64, 6, 8), 1 + torch.rand(1, 1, 6, 8), torch.rand(1, 1, 32, 6, 8)
        memory.add(*frame, objects=[1], selection=torch.rand(1, 64, 6, 8))
        memory.read(torch.rand(1, 64, 6, 8), torch.rand(1, 64, 6, 8))
    if memory.consolidations == 0:
        raise SystemExit("smoke: the memory did not consolidate")
    seconds = time.monotonic() - start
    version = importlib.metadata.version("xmemk")
    print(f"xmemk {version} ({kind}), torch {torch.__version__}: a first result after {seconds:.1f} s")


if __name__ == "__main__":
    if sys.argv[1:] == ["--lend"]:
        print(lend())
    else:
        smoke(sys.argv[1])
