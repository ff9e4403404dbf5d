"""Over the length of a video: what each method's memory takes, and how long a frame takes.

    python benchmarks/studies/length.py [--protocol fig1 fig5] [--quick] [--budget SECONDS]

Fig. 1 (left) of the paper: "GPU memory increase per frame by averaging the memory consumption
difference between the 100-th and 200-th frame in 480p". Here: bytes held, what a read takes beside
them, and time per frame at checkpoints of one film, the bundled clip's features played back and
forth, no network, one object, XMem's defaults (r = 5). 100,000 frames at 480p would take hours.
Hence two films: 3,000 frames of 480p (30 x 54 tokens), and up to 100,000 frames of 6 x 10 tokens
with a long-term memory of at most 1,000 tokens, as Track-Anything has it. A method stops with its
reason where the next checkpoint would pass a limit, or its share of the time is over.

Between checkpoints the original's reads run on xmemk's kernels, which are equal to rounding, and
STCN's, which leave no trace in its memory, are left out. What is timed is each method's own read
(and, on every fifth frame, its taking in of a memory frame) of the last frames before a checkpoint.

Fig. 5 has J&F on Long-time Video played back and forth 1 to 10 times, STCN with at most 50 memory
frames, XMem with r = 10, and a least-squares line through each. Neither the dataset nor trained
weights are at hand. Here the bundled clip is played so, objects are propagated by the demo's
hand-made features, and J is taken on the frames whose masks are known. So it shows what the rules
of the two memories do to the same features, not what XMem scores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from xmemk.benchmarks.harness import arguments, record
from xmemk.benchmarks.harness.timing import Tell, silent
from xmemk.benchmarks.peers.clip import (
    FRAMES,
    KEY_CHANNELS,
    START,
    VALUE_CHANNELS,
    ClipFeatures,
    checkpoints,
    there_and_back,
)
from xmemk.benchmarks.peers.memories import METHODS, held_bytes, held_tokens, hurry
from xmemk.benchmarks.report import tables, terminal
from xmemk.benchmarks.report.formatting import size
from xmemk.benchmarks.report.schema import NOT_REACHED, VideoTrack

from xmemk.data import BUNNY
from xmemk.evaluation import policies
from xmemk.measure.peak import Peak
from xmemk.reference import MemoryConfig

COMPARED = ("xmemk", "original", "STCN")
RATE = 24  # frames a second, as Fig. 1 assumes
FAR = 100_000  # how far a method that had to stop is computed
CPU = torch.device("cpu")
SIZE = (256, 144)  # width, height
TIMES, QUICK_TIMES = (1, 2, 4, 7, 10), (1, 2)
SECONDS_A_PASS = 1.6  # about what a clip takes
MEMORY_FRAMES = 50  # of STCN, whatever the video's length
DRAWN = Path(__file__).resolve().parents[2] / "tests" / "data" / "bunny"  # in a checkout: masks of four more frames


@dataclass(frozen=True)
class Film:
    """window: frames timed before each checkpoint. long_term: most tokens in long-term memory.

    A method stops after ``seconds``, one that grows without bounds after a third of them, or where
    it would take more bytes, held and for a read, or more time for a frame.
    """

    height: int
    width: int
    frames: int
    window: int
    seconds: float
    long_term: int = 10_000
    first: int = 100
    distinct: int = FRAMES  # frames of the clip that are used
    most_bytes: float = 4e9
    frame_seconds: float = 5.0


FILMS = (
    Film(30, 54, 3_000, window=5, seconds=150),
    Film(6, 10, 100_000, window=25, seconds=200, long_term=1_000),
)
QUICK = (
    Film(30, 54, 200, window=5, seconds=15, distinct=40),
    Film(6, 10, 2_000, window=25, seconds=6, long_term=1_000, distinct=40),
)


def play(track: VideoTrack, film: Film, config: MemoryConfig | None = None, say: Tell = silent) -> None:
    """The points of a method's curve, as they come, and why it ends."""
    start = time.perf_counter()
    method = METHODS[track.method]
    memory: Any = method.make(config or MemoryConfig(hidden_dim=0, max_long_term_elements=film.long_term))
    every = memory.config.mem_every
    features = ClipFeatures(film.height, film.width, film.distinct)
    track.reason, budget, seen = "", share(track.method) * film.seconds, 0
    for point in checkpoints(film.frames, film.first):
        track.reason = "" if method.bounded else _refusal(track.points, point, film)
        while seen < point - film.window and not track.reason:
            hurry(memory, True)
            _frame(memory, features, seen, every, read=method.counts)
            seen += 1
            say(f"frame {seen:,} of {film.frames:,}")
            if seen % 16 == 0 and time.perf_counter() - start > budget:
                track.reason = f"it stopped at frame {seen:,}: {budget:.0f} s were over"
        if track.reason:
            break
        hurry(memory, False)
        with Peak(CPU) as peak:
            times = [_frame(memory, features, t, every, read=True) for t in range(seen, point)]
        seen = point
        measured: dict[str, Any] = {"frame": point, "seconds": statistics.median(times), "bytes": held_bytes(memory)}
        # The peak is beyond what is held, of the last frames' reads.
        track.points.append(measured | {"tokens": held_tokens(memory), "peak_bytes": peak.bytes})
        track.increase = increase_per_frame(track.points)
    if track.reason and not method.bounded and track.points:
        track.computed = _computed(track.points, film, every)


def blank(name: str, film: Film) -> VideoTrack:
    """The curve of a method that has no point yet."""
    features = {"height": film.height, "width": film.width, "key_channels": KEY_CHANNELS}
    features |= {"value_channels": VALUE_CHANNELS, "objects": 1}
    method = METHODS[name]
    track = VideoTrack("fig1", name, [], method.ours, method.what, features, film.long_term)
    return replace(track, reason="interrupted")


def share(name: str) -> float:
    """Of a film's seconds: all for a memory with a limit, a third for the others."""
    return 1.0 if METHODS[name].bounded else 1 / 3


def _frame(memory: Any, features: ClipFeatures, t: int, every: int, *, read: bool) -> float:
    """Reads frame t, and remembers it where its turn has come; the seconds that took."""
    took = 0.0
    if t > 0 and read:
        key, selection = features.query(t)
        start = time.perf_counter()
        memory.read(key, selection)
        took = time.perf_counter() - start
    if t % every == 0:
        key, shrinkage, value, selection = features.remembered(t)
        start = time.perf_counter()
        memory.add(key, shrinkage, value, [1], selection if memory.config.enable_long_term else None)
        took += time.perf_counter() - start
    return took


def _refusal(points: list[dict[str, Any]], frame: int, film: Film) -> str:
    """Why the next checkpoint is not tried, of a memory that grows, by the last one's figures."""
    if not points:
        return ""
    last = points[-1]
    growth = frame / last["frame"]
    needed, seconds = growth * (last["bytes"] + (last["peak_bytes"] or 0)), growth * last["seconds"]
    if needed > film.most_bytes:
        return f"frame {frame:,} would take {needed / 1e9:.1f} GB, more than the {film.most_bytes / 1e9:g} GB allowed"
    if seconds > film.frame_seconds:
        return f"frame {frame:,} would take {seconds:.1f} s, more than the {film.frame_seconds:g} s allowed"
    return ""


def _computed(points: list[dict[str, Any]], film: Film, every: int) -> list[dict[str, Any]]:
    """Bytes of a memory that keeps every r-th frame, by the bytes of a token as measured."""
    last, token = points[-1]["frame"], points[-1]["bytes"] / points[-1]["tokens"]
    frames = [last, *(f for f in checkpoints(FAR, film.first) if f > last)]
    return [{"frame": f, "bytes": round(((f - 1) // every + 1) * film.height * film.width * token)} for f in frames]


def increase_per_frame(points: list[dict[str, Any]]) -> dict[str, float] | None:
    """Fig. 1 (left): growth of the bytes held from frame 100 to 200, a frame and a minute."""
    nbytes = {p["frame"]: p["bytes"] for p in points}
    if not nbytes.keys() >= {100, 200}:
        return None
    per_frame = (nbytes[200] - nbytes[100]) / 100
    return {"bytes_per_frame": per_frame, "bytes_per_minute": per_frame * RATE * 60}


def known_masks(size: tuple[int, int] = SIZE) -> dict[int, Tensor]:
    """Frame of the clip -> its mask [H, W], at this size (width, height)."""
    from xmemk.data.masks import read_mask

    paths = [BUNNY / f"{START:05}.png", *sorted(DRAWN.glob("*.png"))]
    width, height = size
    return {int(p.stem): F.interpolate(read_mask(p)[None, None], (height, width))[0, 0] for p in paths}


def region_similarity(labels: Tensor, known: Tensor) -> float:
    """J: intersection over union of all objects' pixels."""
    labels, known = labels > 0, known > 0
    union = int((labels | known).sum())
    return int((labels & known).sum()) / union if union else 1.0


def follow(
    policy: str, frames: list[Tensor], masks: dict[int, Tensor], times: int, until: float | None = None
) -> Iterator[dict[str, Any]]:
    """The clip ``times`` times, and a point after each: mean J of all known frames passed so far.

    Nothing comes after ``until`` (of time.monotonic).
    """
    from xmemk.demo.tracker import MEMORY_CONFIG, DemoTracker

    config = MemoryConfig(hidden_dim=0, top_k=MEMORY_CONFIG["top_k"], mem_every=10)
    if policy == "stcn":
        config = replace(config, mem_every=max(1, -(-times * len(frames) // MEMORY_FRAMES)))
    memory = policies.make_memory(policy, config)
    tracker = DemoTracker(memory, frames[0], masks[START], mem_every=config.mem_every)
    judged, seconds = [], []
    for t in range(1, times * len(frames)):
        if until is not None and time.monotonic() > until:
            return
        place = there_and_back(t, len(frames))
        start = time.perf_counter()
        labels = tracker.step(frames[place])
        seconds.append(time.perf_counter() - start)
        if START + place in masks:
            judged.append(region_similarity(labels, masks[START + place]))
        if (t + 1) % len(frames) == 0 and judged:
            yield {
                "frame": t + 1,
                "seconds": statistics.median(seconds[-len(frames) :]),
                "bytes": held_bytes(memory),
                "tokens": held_tokens(memory),
                "quality": statistics.fmean(judged),
                "judged": len(judged),
            }


def measure_quality(
    times: Sequence[int],
    *,
    size: tuple[int, int] = SIZE,
    count: int | None = None,
    until: float | None = None,
    results: list[VideoTrack] | None = None,
) -> list[VideoTrack]:
    """Both curves, also put into ``results`` as they come: XMem's from one run, since it does not
    ask how long a video is, STCN's from a run per length.

    What is not reached before ``until`` is the reason.
    """
    from xmemk.data.video import read_frames
    from xmemk.demo.features import CELL, grid_size

    results = [] if results is None else results
    frames, masks = list(read_frames(BUNNY / "clip.mp4", size, START))[:count], known_masks(size)
    height, width = grid_size(size[1], size[0])
    features = {"height": height, "width": width, "key_channels": 12, "value_channels": CELL * CELL, "objects": 1}
    judged = sorted(START + i for i in range(len(frames)) if START + i in masks)
    tracks = []
    for name, policy, ours in (("xmemk", "xmem", True), (f"STCN, {MEMORY_FRAMES} frames", "stcn", False)):
        track = VideoTrack("fig5", name, [], ours, features=features, judged_frames=judged, reason="interrupted")
        tracks.append(track)
        results.append(track)
        end = (until + time.monotonic()) / 2 if until is not None and ours else until
        with terminal.progress(f"quality of {name}") as say:
            for n in times[-1:] if ours else times:
                for point in follow(policy, frames, masks, n, end):
                    passes = point["frame"] // len(frames)
                    say(f"the clip {passes} of {n} times")
                    track.points += [point] if passes in times and (ours or passes == n) else []
        reached = [p["frame"] for p in track.points]
        missing = [str(n * len(frames)) for n in times if n * len(frames) not in reached]
        track.reason = f"{NOT_REACHED}: {', '.join(missing)} frames" if missing else ""
        track.fit = fit(reached, [p["quality"] for p in track.points])
    return tracks


def fit(x: list[int], y: list[float]) -> dict[str, float] | None:
    """The least-squares line, as the paper draws it."""
    if len(x) < 2:
        return None
    slope, intercept = statistics.linear_regression(x, y)
    return {"intercept": intercept, "per_1000_frames": 1000 * slope}


def measure(
    protocols: Sequence[str],
    films: Iterable[Film],
    *,
    times: Sequence[int] = TIMES,
    budget: float | None = None,
    tell: Callable[[VideoTrack], None] | None = None,
    results: list[VideoTrack] | None = None,
) -> list[VideoTrack]:
    """The curves of these protocols, also put into ``results`` as they come; ``tell`` gets each.

    ``times``: of the clip in fig5. ``budget``: seconds, shared by what is still to be measured.
    """
    results, tell = [] if results is None else results, tell or show
    until = None if budget is None else time.monotonic() + budget
    planned = [(name, film) for film in films if "fig1" in protocols for name in COMPARED]
    times = times if "fig5" in protocols else ()
    others = SECONDS_A_PASS * (sum(times) + max(times, default=0))
    for at, (name, film) in enumerate(planned):
        track = blank(name, film)
        results.append(track)
        if until is not None:
            later = sum(share(n) * f.seconds for n, f in planned[at:]) + others
            left = max(0.0, until - time.monotonic())
            film = replace(film, seconds=film.seconds * min(1.0, left / later))
        if film.seconds > 0:
            with terminal.progress(f"{name}, {track.grid} tokens a frame") as say:
                play(track, film, say=say)
        else:
            track.reason = NOT_REACHED
        tell(track)
    if times:
        for track in measure_quality(times, until=until, results=results):
            tell(track)
    return results


def show(track: VideoTrack) -> None:
    """A curve as a table, and why it ends."""
    table = tables.track_points([track])._replace(
        title=f"{track.protocol}, {track.method}, {track.grid} tokens a frame"
    )
    remarks = (
        [f"growth from frame 100 to 200: {size(track.increase['bytes_per_frame'])} a frame"] if track.increase else []
    )
    remarks += [f"computed: {size(point['bytes'])} at frame {point['frame']:,}" for point in track.computed[-1:]]
    terminal.show(table, [*remarks, track.reason], hidden=("protocol", "method", "tokens of a frame"))


def parser() -> argparse.ArgumentParser:
    parser = arguments.study(__doc__, "the first 200 frames at 480p, 2,000 small ones")
    add = parser.add_argument
    add("--protocol", nargs="+", choices=("fig1", "fig5"), default=["fig1", "fig5"])
    add("--gb", type=arguments.positive, default=4.0, help="a method stops that would take more")
    add("--frame-seconds", type=arguments.positive, default=5.0, help="a method stops whose frame takes longer")
    return parser


def main(words: list[str] | None = None) -> None:
    options = arguments.parsed(parser(), words)
    stops = {"most_bytes": options.gb * 1e9, "frame_seconds": options.frame_seconds}
    films = [replace(film, **stops) for film in (QUICK if options.quick else FILMS)]
    times = QUICK_TIMES if options.quick else TIMES
    with record.recorded("length", options.save) as results:
        measure(options.protocol, films, times=times, budget=options.budget, results=results)


if __name__ == "__main__":
    main()
