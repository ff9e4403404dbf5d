"""The colours of labels in PASCAL VOC and the DAVIS datasets."""

from __future__ import annotations

import functools


@functools.cache
def palette() -> tuple[tuple[int, int, int], ...]:
    """The 256 colours of PASCAL VOC and DAVIS, red, green and blue of each label.

    Bits 3 b, 3 b + 1 and 3 b + 2 of a label become bit 7 - b of its red, green and blue.
    """
    colours = []
    for label in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)
