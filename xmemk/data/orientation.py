"""How stored pictures are turned for display: display matrices of videos, EXIF of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """Rows and columns are exchanged first; then columns, rows are reversed."""

    transposed: bool = False
    columns_reversed: bool = False
    rows_reversed: bool = False

    def applied(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The picture [H, W, ...] as it is shown, contiguous."""
        shown = stored.swapaxes(0, 1) if self.transposed else stored
        shown = shown[:, ::-1] if self.columns_reversed else shown
        return np.ascontiguousarray(shown[::-1] if self.rows_reversed else shown)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The shown width and height of a stored width and height, and the other way round."""
        return (height, width) if self.transposed else (width, height)

    def __str__(self) -> str:
        mirrored = self.transposed ^ self.columns_reversed ^ self.rows_reversed
        straight, crossed = 180 * self.rows_reversed, 90 if self.columns_reversed else 270
        degrees = crossed if self.transposed else straight
        words = ["mirrored left to right"] * mirrored + [f"turned clockwise by {degrees} degrees"] * (degrees > 0)
        return ", then ".join(words) or "as stored"


AS_STORED = Orientation()
# By the value of EXIF's tag 0x0112.
EXIF = {
    1: AS_STORED,
    2: Orientation(False, True, False),
    3: Orientation(False, True, True),
    4: Orientation(False, False, True),
    5: Orientation(True, False, False),
    6: Orientation(True, True, False),
    7: Orientation(True, True, True),
    8: Orientation(True, False, True),
}


def from_matrix(matrix: Sequence[int]) -> Orientation:
    """The orientation of a display matrix: nine numbers a b u c d v x y w.

    A stored pixel (x, y) is shown at (a x + c y, b x + d y), but for a shift. Scale is ignored, as
    players do. A matrix of zeros counts as none. Raises ValueError for other than quarter turns.
    """
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if not any((a, b, c, d)):
        return AS_STORED
    if straight > 50 * max(abs(b), abs(c)):
        return Orientation(False, a < 0, d < 0)
    if crossed > 50 * max(abs(a), abs(d)):
        return Orientation(True, c < 0, b < 0)
    raise ValueError("its display matrix turns frames by other than quarter turns")
