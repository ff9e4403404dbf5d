"""Results that are whole or not there, written through no symbolic link.

A file is written beside its place under a name of its own, then moved into it. What a killed
process left behind is collected by the next one that has the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

_NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than files may be here",
}
# Ours, that of Memory.save, and those of earlier versions.
_UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.part|\.memory-\w+\.safetensors\.[0-9a-f]{8}\.tmp|[^.].*\.part(\.mp4)?")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields the path of a new empty file to write, which then takes the place of ``path``.

    If the block raises, ``path`` is as it was. A symbolic link at ``path`` is replaced, not
    followed. Raises OSError; where there is no space, its sentence says which limit was reached.
    """
    unfinished = path.with_name(f".{secrets.token_hex(4)}.part")
    try:
        unfinished.open("xb").close()
        yield unfinished
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        limit = _NO_SPACE.get(getattr(error, "errno", None) or 0)
        if limit is not None:
            raise OSError(error.errno, f"{limit}; what is finished is kept", str(path)) from error  # type: ignore[attr-defined]
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file, wholly or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def collect(folder: Path) -> None:
    """Removes the unfinished files that killed processes left in a folder of results."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and _UNFINISHED.fullmatch(entry.name):
                os.unlink(entry.path)


def is_result(path: Path) -> bool:
    """Whether there is a regular file at ``path``; a symbolic link is none."""
    return path.is_file() and not path.is_symlink()


@contextlib.contextmanager
def results_folder(out: Path, products: tuple[str, ...]) -> Iterator[None]:
    """A block in which ``out``, which is made if it is missing, belongs to this process.

    products: the names in ``out`` that the block writes to.

    Raises OSError where the folder cannot be written to or another process has it, and ValueError
    where ``out`` is a file, or one of the products a symbolic link.
    """
    expect_folder(out, products)
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{out}: another run is writing to it; wait for its end, or give another --out") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def expect_folder(out: Path, products: tuple[str, ...]) -> None:
    """Raises what :func:`results_folder` raises, without making or locking the folder."""
    there = next(p for p in (out, *out.absolute().parents) if p.exists() or p.is_symlink())
    if not there.is_dir():
        raise ValueError(f"out: wanted a folder for results, got {there}, which is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there}: cannot be written to; give another --out")
    for path in (out / name for name in products):
        inside = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir()] if path.is_dir() else []
        link = next((p for p in (path, *inside) if p.is_symlink()), None)
        if link is not None:
            raise ValueError(
                f"{link}: is a symbolic link, and results are not written through links; remove it, or give another "
                "--out"
            )
