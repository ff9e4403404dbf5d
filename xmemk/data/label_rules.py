"""Which label a pixel of a mask has: as stored, by colour, or by a threshold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .mask_values import TRANSPARENT, Kind, MaskError, MaskValues, packed, read_values, stores_labels
from .palette import palette
from .smooth_edges import areas, is_outline, ranked

_MOST = 255  # labels besides the background
_NOISE = 60  # how far the compression of a picture may move a colour
_DAVIS = tuple(red << 16 | green << 8 | blue for red, green, blue in palette())


@dataclass(frozen=True)
class LabelRule:
    """How the values of masks become labels. Without arguments, by what the files store:

    - indexes of a palette, and grey up to 255, are labels as they are;
    - colours of the DAVIS palette are its labels; equal red, green and blue are that number;
      other colours are numbered 1, 2, ... in the order of frames, then of 0xRRGGBB. Black is the
      background, or what is transparent.

    What is ambiguous, such as smoothed edges, is refused.

    threshold: pixels of at least this grey are object 1, others background; in stored units.
    colours: pairs of a colour 0xRRGGBB and its label; a pixel has the label of the nearest one.
        Black is the background unless it is listed.
    stored: every value is a label, even where that looks like smoothed edges. Grey above 255 is
        numbered 1, 2, ... in its order.
    kind, numbers: which numbers stored values of that kind have, which :meth:`fitted` fills in.
    """

    threshold: float | None = None
    colours: tuple[tuple[int, int], ...] = ()
    stored: bool = False
    kind: Kind | None = None
    numbers: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        wrong = [pair for pair in self.colours if not (0 <= pair[0] <= 0xFFFFFF and 0 <= pair[1] <= _MOST)]
        if wrong:
            raise ValueError(f"colours: wanted pairs of 0xRRGGBB and a label up to {_MOST}, got {wrong[0]}")
        if self.threshold is not None and (self.colours or not self.threshold > 0):
            raise ValueError(f"threshold: wanted a number above 0 and no colours, got {self.threshold}")

    @classmethod
    def parse(cls, threshold: float | None = None, colours: str | None = None) -> LabelRule:
        """The rule of command-line options.

        colours: "stored", or a list such as "ff0000=1,00ff00=2"; without numbers, in order.

        Raises ValueError.
        """
        if threshold is not None and colours is not None:
            raise ValueError("--threshold, --colours: wanted one of them, got both")
        if colours is None or colours.strip() == "stored":
            return cls(threshold, stored=colours is not None)
        pairs = {}
        for number, part in enumerate(colours.split(","), 1):
            match = re.fullmatch(r"#?([0-9a-fA-F]{6})(?:=([0-9]{1,3}))?", part.strip())
            if match is None or int(match[2] or number) > _MOST or int(match[1], 16) in pairs:
                raise ValueError(
                    f"--colours: wanted 'stored' or different colours such as ff0000=1,00ff00=2, got {colours!r}"
                )
            pairs[int(match[1], 16)] = int(match[2] or number)
        return cls(colours=tuple(pairs.items()))

    def fitted(self, files: Iterable[str | Path]) -> LabelRule:
        """The rule with one number for each value of all these files, in their order.

        Files whose values are labels are not read beyond their header. Raises MaskError.
        """
        if self.threshold is not None or self.colours:
            return self
        paths = [Path(file) for file in files]
        to_number = [path for path in paths if not stores_labels(path)]
        if not to_number:
            return self
        values: dict[int, None] = {}
        kinds: set[Kind] = set()
        for path in to_number:
            mask = read_values(path)
            self._expect_hard(path, mask)
            kinds.add(mask.kind)
            values.update(dict.fromkeys(_integers(path, mask.kind, ranked(mask.values)[0])))
        numbers = self._numbered(to_number[0], next(iter(kinds)), list(values))
        as_they_are = kinds == {"grey"} and all(value == label for value, label in numbers.items())
        if len(kinds) > 1 or (len(to_number) < len(paths) and not as_they_are):
            raise MaskError(
                f"{to_number[0]}: has colours or 16 bits, unlike other masks in its folder, so it is not known which "
                "labels are the same; save them alike"
            )
        return replace(self, kind=kinds.pop(), numbers=tuple(numbers.items()))

    def labels(self, path: str | Path) -> Tensor:
        """The labels [H, W] uint8 of a file, 0 for the background. Raises MaskError."""
        mask = read_values(path, rgb=bool(self.colours) or self.threshold is not None)
        if self.colours:
            return torch.from_numpy(self._nearest(path, mask))
        if self.threshold is not None:
            return torch.from_numpy((_grey(mask) >= self.threshold).astype(np.uint8))
        self._expect_hard(path, mask)
        if mask.kind == "index":
            return torch.from_numpy(mask.values.astype(np.uint8))
        distinct, places, _ = ranked(mask.values)
        values = _integers(path, mask.kind, distinct)
        numbers = dict(self.numbers) if mask.kind == self.kind else {}
        if not set(values) <= set(numbers):
            numbers = self._numbered(path, mask.kind, values)
        table = np.array([numbers[value] for value in values], np.uint8)
        return torch.from_numpy(table[places])

    @property
    def note(self) -> str:
        """A sentence for a person: the numbers of colours or of large values; "" without such."""
        pairs = [f"{_name(self.kind, v)} = {label}" for v, label in self.numbers if label and v != label]
        return f"labels of the masks: {', '.join(pairs)} (--colours settles it otherwise)" if pairs else ""

    def _nearest(self, path: str | Path, mask: MaskValues) -> NDArray[np.uint8]:
        if mask.rgb is None:
            raise MaskError(f"{path}: has grey of more than 8 bits, which --colours does not take; give --threshold")
        listed = dict(self.colours)
        listed.setdefault(0, 0)
        distinct, inverse = np.unique(packed(mask.rgb), return_inverse=True)
        channels, anchors = (
            np.stack([np.asarray(x, np.int64) >> shift & 255 for shift in (16, 8, 0)], -1)
            for x in (distinct, list(listed))
        )
        labels = np.zeros(len(distinct), np.uint8)
        best = np.full(len(distinct), np.iinfo(np.int64).max)
        for anchor, label in zip(anchors, listed.values()):
            distance = ((channels - anchor) ** 2).sum(1)
            labels[distance < best] = label
            best = np.minimum(best, distance)
        labels = labels[inverse.reshape(mask.values.shape)]
        return np.where(mask.values == TRANSPARENT, 0, labels).astype(np.uint8)

    def _numbered(self, path: str | Path, kind: Kind, values: Sequence[int]) -> dict[int, int]:
        """The label of each value, as :class:`LabelRule` says. Raises MaskError."""
        opaque = [value for value in values if value != TRANSPARENT]
        if kind != "colour":
            if max(values) <= _MOST:
                return {value: value for value in values}
            if not self.stored:
                raise MaskError(
                    f"{path}: has the label {max(values)}, wanted at most {_MOST}; renumber the labels, or give "
                    "--colours stored to number the values 1, 2, ... in their order"
                )
            objects, numbers = sorted(set(values) - {0}), {0: 0}
        else:
            numbers = {TRANSPARENT: 0}
            if len(opaque) < len(values) and 0 in opaque and len(opaque) > 1:
                raise MaskError(
                    f"{path}: has black and transparent pixels; give --colours LIST with the colours of objects"
                )
            if len(opaque) == len(values) and 0 not in opaque:
                raise MaskError(
                    f"{path}: has no black or transparent pixel, so which colour is the background is not known; give "
                    f"--colours {_listed(opaque[:8], 0)} with a number for each, 0 for the background"
                )
            objects = [value for value in opaque if value or len(opaque) < len(values)]
            if 0 not in objects:
                numbers[0] = 0
            if all(value == (value & 255) * 0x010101 for value in objects) and 0 not in objects:
                return numbers | {value: value & 255 for value in objects}
            davis = {colour: label for label, colour in enumerate(_DAVIS)}
            if all(value in davis for value in objects) and 0 not in objects:
                return numbers | {value: davis[value] for value in objects}
        if len(objects) > _MOST:
            raise MaskError(
                f"{path}: has {len(objects)} different values, more than the {_MOST} objects that a mask can have; "
                "give --threshold, or --colours LIST with the colours of objects"
            )
        return numbers | {value: label for label, value in enumerate(objects, 1)}

    def _expect_hard(self, path: str | Path, mask: MaskValues) -> None:
        """Raises MaskError where it is ambiguous which labels are meant."""
        if self.stored:
            return
        _expect_no_void(path, mask)
        grey_palette = all(colour in (index * 0x010101, TRANSPARENT) for index, colour in enumerate(mask.colours))
        if mask.kind == "index" and not grey_palette:
            _expect_background_first(path, mask)
            if mask.colours == _DAVIS[: len(mask.colours)]:  # no program blends the indexes of labels
                return
        if not np.isfinite(mask.values).all():
            raise MaskError(f"{path}: has values that are no numbers; save labels from 0 on")
        if mask.values.dtype.kind == "f" and not np.array_equal(mask.values, np.round(mask.values)):
            top = float(mask.values.max())
            raise MaskError(f"{path}: has probabilities, not labels; give --threshold {top / 2:.3g} for one object")
        ordered = mask.kind == "grey" or (mask.kind == "index" and grey_palette)
        # Small objects are more common in palette images than smoothed edges.
        found = areas(mask.values, ordered, fewest=8 if mask.kind == "index" else 3)
        solid = [mask.colours[x] for x in found.solid if x < len(mask.colours)] if mask.colours else found.solid
        if mask.lossy:
            raise MaskError(
                f"{path}: wanted a PNG of labels, got {mask.lossy}, which changes labels at edges; save a PNG, or give "
                f"{_way_out(mask, solid)}"
            )
        if mask.partly or found.smoothed:
            some = f"values such as {', '.join(_name(mask.kind, value) for value in found.lines[:3])}"
            what = "pixels of half opacity" if mask.partly else f"{some} in lines between others"
            raise MaskError(
                f"{path}: has {what}, as a smoothed mask has; save it without smoothing, or give "
                f"{_way_out(mask, solid)}, or --colours stored if each value is an object"
            )


def _expect_background_first(path: str | Path, mask: MaskValues) -> None:
    if not mask.colours or mask.colours[0] in (0, TRANSPARENT):
        return
    present = [index for index in np.unique(mask.values).tolist() if index < len(mask.colours)]
    empty = [index for index in present if mask.colours[index] in (0, TRANSPARENT)]
    if empty and present[0] == 0:
        raise MaskError(
            f"{path}: label 0, the background, is drawn in {_name('colour', mask.colours[0])}, and label {empty[0]} is "
            f"black or transparent; give --colours {_listed(_far_apart(mask.colours[i] for i in present))} for "
            "objects by colour, or --colours stored for labels as stored"
        )


def _expect_no_void(path: str | Path, mask: MaskValues) -> None:
    """Raises MaskError where label 255 is PASCAL VOC's void, the outline of other objects."""
    if mask.kind == "colour" or mask.values.dtype != np.uint8:
        return
    labels = ranked(mask.values)[0].tolist()
    if labels[-1] == _MOST and is_outline(mask.values, _MOST):
        stored = mask.colours if mask.kind == "index" else range(0, 0x1000000, 0x010101)
        pairs = [f"{stored[x]:06x}={x % _MOST}" for x in labels if 0 < x < len(stored)]
        raise MaskError(
            f"{path}: label {_MOST} is in thin lines, as the void around objects in PASCAL VOC; give --colours "
            f"{','.join(pairs)} for background there, or --colours stored if it is an object"
        )


def _way_out(mask: MaskValues, solid: Sequence[int]) -> str:
    """Options that would settle a mask, given the values that have areas, most frequent first."""
    objects = _far_apart(solid) if mask.kind == "colour" or mask.colours else []
    if objects:
        return f"--colours {_listed(objects)} for these objects"
    top = 255.0 if mask.kind == "colour" or mask.colours else max(float(mask.values.max()), 1)
    return f"--threshold {round((top + 1) / 2)} for one object, --colours LIST for several by colour"


def _far_apart(colours: Iterable[int]) -> list[int]:
    """The first eight colours that differ from each other, and from black, by more than noise."""
    chosen: list[int] = []
    for colour in colours:
        others = [tuple(x >> shift & 255 for shift in (16, 8, 0)) for x in (colour, 0, *chosen)]
        apart = (sum((a - b) ** 2 for a, b in zip(others[0], other)) for other in others[1:])
        if colour > 0 and min(apart) > _NOISE**2:
            chosen.append(colour)
    return chosen[:8]


def _integers(path: str | Path, kind: Kind, distinct: NDArray[Any]) -> list[int]:
    """The distinct values, which are in ascending order. Raises MaskError for negative ones."""
    values = [int(value) for value in distinct.tolist()]
    if kind == "grey" and values[0] < 0:
        raise MaskError(f"{path}: has the value {values[0]}, wanted labels from 0 on")
    return values


def _grey(mask: MaskValues) -> NDArray[Any]:
    """What a threshold is compared with: grey as stored, else the brightness on black."""
    if mask.kind == "grey" or mask.rgb is None:
        return mask.values
    return mask.rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def _listed(colours: Iterable[int], first: int = 1) -> str:
    """The argument of --colours for these colours."""
    return ",".join(f"{colour:06x}={label}" for label, colour in enumerate(colours, first))


def _name(kind: Kind | None, value: int) -> str:
    return str(value) if kind != "colour" else "transparent" if value == TRANSPARENT else f"#{value:06x}"
