"""The order of files: by the numbers in their names, so that 2.png is before 10.png."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def natural_key(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """What names are sorted by: runs of digits as numbers, equal ones by their text."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if part.isdigit() and part.isascii() else (1, part) for part in parts if part], name


def in_order(paths: Iterable[Path]) -> list[Path]:
    """The paths in natural order of their stems, then of their names."""
    return sorted(paths, key=lambda path: (natural_key(path.stem), path.name))
