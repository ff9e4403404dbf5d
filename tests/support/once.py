"""Results that depend on files alone: made once, kept under build/ for all processes and runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "tests"
Result = TypeVar("Result")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time is inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(files: Iterable[Path], words: Iterable[str]) -> str:
    """Of the names and contents of files, and of words such as versions and options."""
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(f"{path.name}\0".encode() + path.read_bytes())
    for word in words:
        found.update(f"\0{word}".encode())
    return found.hexdigest()[:16]


def once(name: str, files: Iterable[Path], words: Iterable[str], make: Callable[[], Result]) -> Result:
    """make(), or what it returned for the same files and words; the results before are deleted."""
    path = FOLDER / f"{name}-{digest(files, words)}.pickle"
    with locked(FOLDER / f"{name}.lock"):
        if path.exists():
            result: Result = pickle.loads(path.read_bytes())
            return result
        result = make()
        for old in FOLDER.glob(f"{name}-*.pickle"):
            old.unlink()
        fresh = path.with_suffix(".tmp")
        fresh.write_bytes(pickle.dumps(result))
        fresh.rename(path)
        return result
