"""The demo's pictures: a contact sheet of frames, and plots."""

from __future__ import annotations

import io
import re

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .records import ReadRecord

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the choice of backend

_INK = "#123457"  # replaced by the page's own text colour, light or dark


class Spread:
    """Evenly spread frames of a video of unknown length, of which only a few are kept.

    Every n-th frame is kept. When there are too many, every other one is dropped and n doubles.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._every = 1
        self._count = 0
        self._kept: list[tuple[int, Tensor]] = []
        self._last: tuple[int, Tensor] | None = None

    def add(self, number: int, picture: Tensor) -> None:
        self._last = (number, picture)
        if self._count % self._every == 0:
            self._kept.append(self._last)
            if len(self._kept) > 4 * self._most:
                self._kept = self._kept[::2]
                self._every *= 2
        self._count += 1

    def chosen(self) -> list[tuple[int, Tensor]]:
        """At most ``most`` frames with their numbers, including the first and the last."""
        frames = self._kept if self._last is None or self._kept[-1] is self._last else [*self._kept, self._last]
        if len(frames) <= self._most:
            return frames
        return [frames[round(i * (len(frames) - 1) / (self._most - 1))] for i in range(self._most)]


def captioned(caption: str, picture: Tensor | Image.Image, width: int = 420) -> Image.Image:
    """A picture, [H, W, 3] uint8 if a tensor, of this width with words in its corner."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture.numpy())
    image = image.resize((width, max(1, round(width * image.height / image.width))), Image.Resampling.LANCZOS)
    font, draw = ImageFont.load_default(size=16), ImageDraw.Draw(image)
    draw.rectangle((0, 0, 16 + draw.textlength(caption, font), 24), fill=(0, 0, 0))
    draw.text((8, 3), caption, font=font, fill=(255, 255, 255))
    return image


def sheet(pictures: list[Image.Image], columns: int = 4) -> Image.Image:
    """One picture of several of equal width, in reading order."""
    gap, width, height = 6, pictures[0].width, max(picture.height for picture in pictures)
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    whole = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (24, 24, 24))
    for i, picture in enumerate(pictures):
        whole.paste(picture, (gap + i % columns * (width + gap), gap + i // columns * (height + gap)))
    return whole


def plots(reads: list[ReadRecord], first_frame: int) -> str:
    """Milliseconds a read and tokens in memory over the video, as SVG in the page's text colour."""
    frames = np.arange(first_frame, first_frame + len(reads))
    with plt.rc_context(
        {"svg.fonttype": "none", "font.family": "sans-serif", "text.color": _INK, "axes.edgecolor": _INK}
    ):
        figure, (time_axis, size_axis) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
        ours = [1000 * r.seconds for r in reads]
        time_axis.plot(frames, ours, color="#2a9d8f", lw=1.8, label="xmemk")
        beside = [(f, 1000 * r.original_seconds) for f, r in zip(frames, reads) if r.original_seconds is not None]
        if beside:
            time_axis.plot(*zip(*beside), "o", color="#e76f51", ms=5, label="the original's formulation")
        time_axis.set_yscale("log")
        time_axis.set_title("time of a memory read, ms", loc="left", color=_INK, fontsize=11)
        time_axis.legend(frameon=False, labelcolor=_INK, fontsize=9)
        size_axis.plot(frames, [r.tokens for r in reads], color="#8a6fc0", lw=1.8)
        size_axis.set_ylim(bottom=0)
        size_axis.set_title("tokens read: working and long-term memory", loc="left", color=_INK, fontsize=11)
        for axis in (time_axis, size_axis):
            axis.set_xlabel("frame", color=_INK)
            axis.tick_params(colors=_INK, which="both")
            axis.spines[["top", "right"]].set_visible(False)
            axis.patch.set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
        plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(
        r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    )
