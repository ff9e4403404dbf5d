"""The memory of a run in pictures, as in Figure 4 of the paper: where it was read, what became
prototypes, and where one query reads from.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from .. import api
from .records import ConsolidationInputs, ReadInputs

_WIDTH = 427  # pixels of a picture
_MOST = 24  # memory frames that are kept for pictures
_SOURCES = 5  # frames that a query reads from, shown
_HOTTEST = 0.99  # the share of cells below full heat


@dataclass
class MemoryFrame:
    """A frame that was remembered: its number, its keys [CK, h * w], its picture."""

    number: int
    key: Tensor
    picture: Image.Image


@dataclass
class MemoryView:
    """usage: the frames of a consolidation, heat and stars drawn in. reading: the query's frame,
    then those that it reads from. Each picture has its caption. The shares sum to 1 with those of
    frames that are not kept any more.
    """

    usage: list[tuple[str, Image.Image]]
    prototypes: int
    reading: list[tuple[str, Image.Image]]
    share_shown: float


class MemoryFrames:
    """The last memory frames of a run."""

    def __init__(self) -> None:
        self._grid = (1, 1)  # the cells of a frame, h and w
        self._frames: deque[MemoryFrame] = deque(maxlen=_MOST)

    def add(self, number: int, key: Tensor, image: Tensor) -> None:
        """A memory frame: its key [1, CK, h, w], its image uint8 [H, W, 3]."""
        self._grid = key.shape[2], key.shape[3]
        self._frames.append(MemoryFrame(number, key[0].flatten(1), _small(image)))

    def view(
        self,
        number: int,
        image: Tensor,
        labels: Tensor,
        consolidation: ConsolidationInputs | None,
        read: ReadInputs,
    ) -> MemoryView:
        """Pictures of a consolidation and of the last read: of frame ``number``, labels [H, W]."""
        usage, prototypes = ([], 0) if consolidation is None else self._usage(consolidation)
        reading, share = self._reading(number, image, labels, read)
        return MemoryView(usage, prototypes, reading, share)

    def _usage(self, inputs: ConsolidationInputs) -> tuple[list[tuple[str, Image.Image]], int]:
        cells = math.prod(self._grid)
        chosen = api.select_prototypes(inputs.usage, inputs.num_prototypes)[0].tolist()
        hottest = inputs.usage.quantile(_HOTTEST).clamp_min(torch.finfo(inputs.usage.dtype).tiny)
        pictures = []
        for start in range(0, inputs.mk.shape[2], cells):
            frame = self._frame_with(inputs.mk[0, :, start : start + cells])
            if frame is not None:
                stars = [index - start for index in chosen if start <= index < start + cells]
                heat = (inputs.usage[0, start : start + cells] / hottest).clamp(max=1)
                picture = _heated(frame.picture, heat.reshape(self._grid))
                for cell in stars:
                    _star(picture, *self._place(cell, picture))
                pictures.append((f"frame {frame.number}: {len(stars)} prototypes", picture))
        return pictures, len(chosen)

    def _reading(
        self, number: int, image: Tensor, labels: Tensor, read: ReadInputs
    ) -> tuple[list[tuple[str, Image.Image]], float]:
        query = _middle(labels, self._grid)
        one = slice(query, query + 1)
        weight, index = api.affinity_topk(read.mk, read.ms, read.qk[..., one], read.qe[..., one], top_k=read.top_k)[:2]
        places: dict[int, list[tuple[float, int]]] = {}
        for w, token in zip(weight[0, 0].tolist(), index[0, 0].tolist()):
            for at, frame in enumerate(self._frames):
                cell = (frame.key == read.mk[0, :, token, None]).all(0).nonzero()
                if len(cell):
                    places.setdefault(at, []).append((w, int(cell[0])))
                    break
        asking = _small(image)
        _cross(asking, *self._place(query, asking))
        pictures = [(f"frame {number}: the query", asking)]
        shares = {at: sum(w for w, _ in tokens) for at, tokens in places.items()}
        shown = sorted(sorted(shares, key=lambda at: -shares[at])[:_SOURCES])
        for at in shown:
            picture = _heated(self._frames[at].picture, None)
            for w, place in places[at]:
                _disc(picture, *self._place(place, picture), 3 + 14 * math.sqrt(w))
            pictures.append((f"frame {self._frames[at].number}: {100 * shares[at]:.0f} % of the read", picture))
        return pictures, sum(shares[at] for at in shown)

    def _frame_with(self, key: Tensor) -> MemoryFrame | None:
        return next((frame for frame in self._frames if torch.equal(frame.key, key)), None)

    def _place(self, cell: int, picture: Image.Image) -> tuple[float, float]:
        """The middle of a cell in a picture, x and y."""
        h, w = self._grid
        return (cell % w + 0.5) * picture.width / w, (cell // w + 0.5) * picture.height / h


def _small(image: Tensor) -> Image.Image:
    picture = Image.fromarray(image.numpy())
    return picture.resize((_WIDTH, max(1, round(_WIDTH * picture.height / picture.width))), Image.Resampling.LANCZOS)


def _middle(labels: Tensor, grid: tuple[int, int]) -> int:
    """The cell of an object that is nearest to the middle of all its cells; any cell if none is."""
    inside = F.adaptive_avg_pool2d((labels > 0).float()[None, None], grid)[0, 0].flatten()
    inside = inside >= min(0.5, float(inside.max()))
    cells = inside.nonzero()[:, 0]
    where = torch.stack([cells // grid[1], cells % grid[1]], 1).float()
    return int(cells[(where - where.mean(0)).square().sum(1).argmin()])


def _heated(picture: Image.Image, heat: Tensor | None) -> Image.Image:
    """The picture in grey, with heat [h, w] of 0 to 1 over it."""
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float32) * 0.8
    if heat is None:
        return Image.fromarray(grey.astype(np.uint8))
    size = (picture.height, picture.width)
    fine = F.interpolate(heat[None, None].float().cpu(), size, mode="bilinear")[0, 0].numpy()[..., None]
    colour = colormaps["inferno"](fine[..., 0])[..., :3] * 255
    return Image.fromarray((grey * (1 - 0.75 * fine) + colour * 0.75 * fine).astype(np.uint8))


def _star(picture: Image.Image, x: float, y: float, radius: float = 5.5) -> None:
    points = [
        (x + r * math.sin(i * math.pi / 5), y - r * math.cos(i * math.pi / 5))
        for i, r in enumerate([radius, 0.42 * radius] * 5)
    ]
    ImageDraw.Draw(picture).polygon(points, fill=(255, 255, 255), outline=(20, 20, 20))


def _disc(picture: Image.Image, x: float, y: float, radius: float) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(picture).ellipse(box, outline=(0, 229, 255), width=2)


def _cross(picture: Image.Image, x: float, y: float, arm: float = 9) -> None:
    draw = ImageDraw.Draw(picture)
    for width, colour in ((5, (20, 20, 20)), (2, (0, 229, 255))):
        draw.line((x - arm, y, x + arm, y), fill=colour, width=width)
        draw.line((x, y - arm, x, y + arm), fill=colour, width=width)
