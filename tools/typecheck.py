"""mypy over all of our Python: the package with kernels/ and benchmarks/ in it, tools/ and
tests/support/.

kernels/ and benchmarks/ lie beside the package they are imported as parts of. mypy knows no such
mapping, so build/typed/ links the three into one tree, which mypy then reads.

    python tools/typecheck.py                  # everything, as `make lint` does
    python tools/typecheck.py xmemk.kernels    # only these packages
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "typed"


def link(name: Path, target: Path) -> None:
    if name.is_symlink() and name.resolve() == target:
        return
    name.unlink(missing_ok=True)
    name.symlink_to(target)


def tree() -> None:
    """build/typed/xmemk: links to the package's files and folders, kernels/ and benchmarks/."""
    package = TREE / "xmemk"
    package.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for path in (ROOT / "xmemk").iterdir() if path.suffix in (".py", ".typed", "")}
    wanted |= {name: ROOT / name for name in ("kernels", "benchmarks")}
    for old in package.iterdir():
        if old.name not in wanted:
            old.unlink()
    for name, path in wanted.items():
        link(package / name, path)


def main() -> int:
    tree()
    modules = [f"--package={name}" for name in sys.argv[1:] or ["xmemk"]]
    environment = {**os.environ, "MYPYPATH": str(TREE)}
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    codes = [subprocess.call([*command, *modules], cwd=TREE, env=environment)]
    if not sys.argv[1:]:
        scripts = [str(path) for folder in ("tools", "tests/support") for path in sorted((ROOT / folder).glob("*.py"))]
        environment["MYPYPATH"] += os.pathsep + str(ROOT / "tests" / "support")
        codes.append(subprocess.call([*command, *scripts], cwd=TREE, env=environment))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
