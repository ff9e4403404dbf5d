"""The summary of a run and its judgement, as JSON and for the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .layouts import Dataset
from .metrics import Judgement, mean
from .run import Cost


def summary(costs: Sequence[Cost], judgement: Judgement | None, dataset: Dataset) -> dict[str, Any]:
    """The figures of each video and of the whole dataset; None for what was not measured.

    jf, j, f: per cent; for the whole, means over objects. fps: frames over their seconds.
    growth: bytes a frame; for the whole, the mean over videos that are long enough.
    peak: bytes; for the whole, the largest.
    """
    cost_of = {cost.video: cost for cost in costs}
    rows = []
    for video in dataset.videos:
        row: dict[str, Any] = {"video": video.name}
        scores = () if judgement is None else judgement.of(video.name)
        row["objects"] = [{"label": s.label, "jf": s.jf, "j": s.j, "f": s.f} for s in scores]
        row.update(_scores(judgement, video.name))
        cost = cost_of.get(video.name)
        if cost is not None:
            row.update(
                frames=cost.frames,
                seconds=cost.seconds,
                fps=cost.frames_per_second,
                growth=cost.growth,
                peak=cost.peak,
                resumed=cost.resumed,
                size=[cost.width, cost.height],
            )
        rows.append(row)
    whole: dict[str, Any] = {**_scores(judgement, None)}
    if costs:
        seconds = math.fsum(cost.seconds for cost in costs)
        growth = [cost.growth for cost in costs if cost.growth is not None]
        peaks = [cost.peak for cost in costs if cost.peak is not None]
        whole.update(
            frames=sum(cost.frames for cost in costs),
            seconds=seconds,
            fps=sum(cost.frames for cost in costs) / seconds if seconds > 0 else None,
            growth=math.fsum(growth) / len(growth) if growth else None,
            peak=max(peaks, default=None),
        )
    return {
        "dataset": str(dataset.root),
        "layout": dataset.layout,
        "split": dataset.split,
        "rule": None if judgement is None else judgement.rule,
        "judged_frames": None if judgement is None else judgement.frames,
        "unjudged": [] if judgement is None else list(judgement.unjudged),
        "whole": whole,
        "videos": rows,
    }


def _scores(judgement: Judgement | None, video: str | None) -> dict[str, float | None]:
    scores = () if judgement is None else judgement.scores if video is None else judgement.of(video)
    return dict(zip(("jf", "j", "f"), mean(scores) if scores else (None, None, None)))
