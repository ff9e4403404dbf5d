"""The metrics J, intersection over union of regions, and F, agreement of contours.

vos-benchmark's Evaluator computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.label_rules import LabelRule
from ..data.masks import AUTOMATIC, STORED, MaskError, read_mask
from .layouts import Dataset, DatasetError, Shot, Video

RULES = ("davis", "all")


@dataclass(frozen=True)
class Score:
    """J and F of one object in per cent: means over the judged frames."""

    video: str
    label: int
    j: float
    f: float

    @property
    def jf(self) -> float:
        """J&F, their mean."""
        return (self.j + self.f) / 2


@dataclass(frozen=True)
class Judgement:
    """The scores of a dataset's results.

    scores: of all objects; the score of a dataset is their mean. frames: how many were judged.
    unjudged: videos whose only annotations are those that the tracker gets.
    """

    rule: str
    scores: tuple[Score, ...]
    frames: int
    unjudged: tuple[str, ...] = ()

    def of(self, video: str) -> tuple[Score, ...]:
        """The objects of one video."""
        return tuple(score for score in self.scores if score.video == video)


def mean(scores: tuple[Score, ...]) -> tuple[float, float, float]:
    """The means of J&F, J and F over objects. Raises ValueError where there are none."""
    if not scores:
        raise ValueError("scores: wanted at least one object")
    j, f = (sum(getattr(score, name) for score in scores) / len(scores) for name in ("j", "f"))
    return (j + f) / 2, j, f


def judge(
    dataset: Dataset, results: Path, rule: str | None = None, progress: Callable[[str], None] = lambda _: None
) -> Judgement:
    """Compares ``results/<video>/<frame>.png`` with the dataset's annotations.

    rule: "davis" leaves out the first and the last annotated frame of each video; "all" takes every
        annotated frame, including those that the tracker gets; None is the rule of the layout,
        which is "davis" for DAVIS and Long-time Video and "all" for the others.

    An object is judged from the first judged frame on in which it is annotated or predicted.

    Raises RuntimeError where vos-benchmark is not installed. Raises DatasetError where results are
    missing, which it names, or nothing can be judged. Raises MaskError for a result of another
    size, or with labels that no annotation of its video has.
    """
    rule = dataset.rule if rule is None else rule
    if rule not in RULES:
        raise ValueError(f"rule: wanted one of {', '.join(RULES)}, got {rule!r}")
    evaluator = _evaluator()
    annotated = {video.name: [s for s in video.shots if s.annotation is not None] for video in dataset.videos}
    judged = {v.name: _judged(annotated[v.name], rule) for v in dataset.videos if has_truth(v)}
    unjudged = tuple(video.name for video in dataset.videos if not judged.get(video.name))
    if len(unjudged) == len(dataset.videos):
        raise DatasetError(
            f"{dataset.root}: no annotations to judge by: there are only those that the tracker is told"
            + (", or too few to leave out the first and the last" if rule == "davis" else "")
        )
    _expect_results(results, {name: shots for name, shots in judged.items() if shots})
    scores: list[Score] = []
    for video in dataset.videos:
        if judged.get(video.name):
            scores += _video(evaluator, video, annotated[video.name], judged[video.name], results / video.name)
            progress(video.name)
    return Judgement(rule, tuple(scores), sum(len(shots) for shots in judged.values()), unjudged)


def has_truth(video: Video) -> bool:
    """Whether the video has an annotation that the tracker does not get."""
    seen: set[int] = set()
    rule = rule_of(video)
    for shot in video.shots:
        if shot.annotation is None:
            continue
        if seen and not video.joins:
            return True
        labels = _labels(read_mask(shot.annotation, rule))
        if seen and labels <= seen:
            return True
        seen |= labels
    return False


def rule_of(video: Video) -> LabelRule:
    """How its annotations become labels: each colour is one label in all of them."""
    return AUTOMATIC.fitted(dict.fromkeys(shot.annotation for shot in video.shots if shot.annotation is not None))


def _judged(shots: list[Shot], rule: str) -> list[Shot]:
    return shots[1:-1] if rule == "davis" else shots


def _video(evaluator: Callable[..., Any], video: Video, annotated: list[Shot], judged: list[Shot], folder: Path) -> Any:
    judging = evaluator(name=video.name)
    predicted: dict[int, Path] = {}  # the first file with each label
    known: set[int] = set()
    names, rule = {shot.name for shot in judged}, rule_of(video)
    for shot in annotated:
        assert shot.annotation is not None
        truth = _of(video, read_mask(shot.annotation, rule))
        known |= _labels(truth)
        if shot.name not in names:
            continue
        path = folder / f"{shot.name}.png"
        result = _of(video, read_mask(path, STORED))
        if result.shape != truth.shape:
            height, width = truth.shape
            raise MaskError(f"{path}: is {result.shape[1]}x{result.shape[0]}, the annotation {width}x{height}")
        for label in _labels(result):
            predicted.setdefault(label, path)
        judging.feed_frame(result.numpy(), truth.numpy())
    unknown = sorted(set(predicted) - known)
    if unknown:
        raise MaskError(
            f"{predicted[unknown[0]]}: has label {unknown[0]}, {video.name} is annotated with {sorted(known)}"
        )
    j, f = judging.conclude()
    return [Score(video.name, int(label), float(j[label]), float(f[label])) for label in sorted(j)]


def _of(video: Video, labels: Tensor) -> Tensor:
    return (labels > 0).to(labels.dtype) if video.merged else labels


def _labels(mask: Tensor) -> set[int]:
    return set(np.unique(mask.numpy()).tolist()) - {0}


def _expect_results(results: Path, judged: dict[str, list[Shot]]) -> None:
    if not results.is_dir():
        raise DatasetError(f"{results}: no such folder of results")
    missing, count = [], 0
    for name, shots in judged.items():
        count += len(shots)
        existing = {p.stem for p in (results / name).glob("*.png")}
        missing += [f"{name}/{shot.name}.png" for shot in shots if shot.name not in existing]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DatasetError(f"{results}: {len(missing)} of {count} results are missing: {', '.join(missing[:5])}{more}")


def _evaluator() -> Callable[..., Any]:
    try:
        from vos_benchmark.evaluator import Evaluator
    except ModuleNotFoundError as error:
        raise RuntimeError(f"J and F need {error.name}: pip install 'xmemk[eval]'") from error
    except ImportError as error:
        # opencv-python needs window libraries that servers do not have.
        raise RuntimeError(
            f"vos-benchmark cannot be loaded ({error}): if that is of OpenCV, pip install opencv-python-headless "
            "in place of opencv-python"
        ) from error
    return Evaluator
