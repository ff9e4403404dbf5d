"""Over the length of a video: what each method's memory takes, and how long a frame takes.

    python benchmarks/studies/length.py [--protocol fig1 fig5] [--quick] [--budget SECONDS] [--save FILE]

Fig. 1 (left) of the paper: "GPU memory increase per frame by averaging the memory consumption
difference between the 100-th and 200-th frame in 480p". Here: bytes held, resident memory and time
per frame at checkpoints of one film, the bundled clip's features played back and forth (clip.py),
no network, one object, XMem's defaults (r = 5). 100,000 frames at 480p would take hours. Hence two
films: 3,000 frames of 480p (30 x 54 tokens), and up to 100,000 frames of 6 x 10 tokens with a
long-term memory of at most 1,000 tokens, as Track-Anything has it. Each method has a process of its
own, which stops with its reason where the next checkpoint would pass a limit. With --budget the
methods share the seconds given, and what they do not reach has that reason. Interrupted or not,
what was measured is written to the file.

Every method reads every frame, with two exceptions between checkpoints: the original's reads run on
xmemk's kernels, which are equal to rounding, and STCN's, which leave no trace in its memory, are
left out. What is timed is each method's own read (and, on every fifth frame, its taking in of a
memory frame) of the last frames before a checkpoint.

Fig. 5: quality over the length of the video, see quality.py.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from xmemk.benchmarks.harness import record
from xmemk.benchmarks.harness.arguments import StudyParser, positive
from xmemk.benchmarks.harness.line_process import NO_RESULT, ask
from xmemk.benchmarks.harness.timing import Tell, printed
from xmemk.benchmarks.peers.clip import FRAMES, KEY_CHANNELS, VALUE_CHANNELS, ClipFeatures, checkpoints
from xmemk.benchmarks.peers.memories import METHODS, held_bytes, held_tokens, hurry
from xmemk.benchmarks.report.formatting import duration, size
from xmemk.benchmarks.report.schema import NOT_REACHED, VideoTrack
from xmemk.benchmarks.studies import quality

from xmemk.measure.peak import Peak, resident_bytes
from xmemk.reference import MemoryConfig

MODULE = "xmemk.benchmarks.studies.length"
COMPARED = ("xmemk", "original", "STCN")
RATE = 24  # frames a second, as Fig. 1 assumes
FAR = 100_000  # how far a method that had to stop is computed
STARTING = 5.0  # seconds that a method's process takes to begin, on a busy machine
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Film:
    """window: frames timed before each checkpoint. long_term: most tokens in long-term memory.

    seconds: after which a method stops, one that grows without bounds after a third of it.
    """

    height: int
    width: int
    frames: int
    window: int
    seconds: float
    long_term: int = 10_000
    first: int = 100
    distinct: int = FRAMES  # frames of the clip that are used


FILMS = (
    Film(30, 54, 3_000, window=5, seconds=150),
    Film(6, 10, 100_000, window=25, seconds=200, long_term=1_000),
)
QUICK = (
    Film(30, 54, 200, window=5, seconds=15, distinct=40),
    Film(6, 10, 2_000, window=25, seconds=6, long_term=1_000, distinct=40),
)


@dataclass(frozen=True)
class MethodLimits:
    """Where a method stops: bytes held and taken by a read, and seconds of a frame."""

    bytes: float = 4e9
    seconds: float = 5.0


def play(
    name: str,
    film: Film,
    limits: MethodLimits,
    config: MemoryConfig | None = None,
    tell: Callable[[VideoTrack], None] = lambda _: None,
) -> VideoTrack:
    """One method's curve, in this process; ``tell`` gets it after each point, too."""
    start = time.perf_counter()
    method = METHODS[name]
    memory: Any = method.make(config or MemoryConfig(hidden_dim=0, max_long_term_elements=film.long_term))
    every = memory.config.mem_every
    features = ClipFeatures(film.height, film.width, film.distinct)
    track = blank(name, film)
    budget = share(name) * film.seconds
    device, seen = torch.device("cpu"), 0
    for point in checkpoints(film.frames, film.first):
        track.reason = _refusal(track.points, point, method.bounded, limits)
        while seen < point - film.window and not track.reason:
            hurry(memory, True)
            _frame(memory, features, seen, every, read=method.counts)
            seen += 1
            if seen % 16 == 0 and time.perf_counter() - start > budget:
                track.reason = f"it stopped at frame {seen:,}: {budget:.0f} s were over"
        if track.reason:
            break
        hurry(memory, False)
        with Peak(device) as peak:
            times = [_frame(memory, features, t, every, read=True) for t in range(seen, point)]
        seen = point
        measured: dict[str, Any] = {"frame": point, "seconds": statistics.median(times), "bytes": held_bytes(memory)}
        measured |= {"tokens": held_tokens(memory), "resident": resident_bytes(device)}
        track.points.append(measured | {"peak_bytes": peak.bytes})  # beyond what is held, of the last frames' reads
        track.increase = increase_per_frame(track.points)
        tell(track)
    if track.reason and not method.bounded and track.points:
        track.computed = _computed(track.points, film, every)
    return track


def blank(name: str, film: Film) -> VideoTrack:
    """The curve of a method that has no point yet."""
    features = {"height": film.height, "width": film.width, "key_channels": KEY_CHANNELS}
    features |= {"value_channels": VALUE_CHANNELS, "objects": 1}
    method = METHODS[name]
    return VideoTrack("fig1", name, [], method.ours, method.what, features, film.long_term)


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


def _refusal(points: list[dict[str, Any]], frame: int, bounded: bool, limits: MethodLimits) -> str:
    """Why the next checkpoint is not tried, of a memory that grows, by the last one's figures."""
    if bounded or not points:
        return ""
    last = points[-1]
    growth = frame / last["frame"]
    needed = growth * (last["bytes"] + (last["peak_bytes"] or 0))
    seconds = growth * last["seconds"]
    if needed > limits.bytes:
        return f"frame {frame:,} would take {needed / 1e9:.1f} GB, more than the {limits.bytes / 1e9:g} GB allowed"
    if seconds > limits.seconds:
        return f"frame {frame:,} would take {seconds:.1f} s, more than the {limits.seconds:g} s allowed"
    return ""


def _computed(points: list[dict[str, Any]], film: Film, every: int) -> list[dict[str, Any]]:
    """Bytes of a memory that keeps every r-th frame, by the bytes of a token as measured."""
    last, token = points[-1]["frame"], points[-1]["bytes"] / points[-1]["tokens"]
    frames = [last, *(f for f in checkpoints(FAR, film.first) if f > last)]
    return [{"frame": f, "bytes": round(((f - 1) // every + 1) * film.height * film.width * token)} for f in frames]


def increase_per_frame(points: list[dict[str, Any]]) -> dict[str, float] | None:
    """Fig. 1 (left): growth of the bytes held from frame 100 to 200, a frame and a minute."""
    held = {p["frame"]: p["bytes"] for p in points}
    if 100 not in held or 200 not in held:
        return None
    per_frame = (held[200] - held[100]) / 100
    return {"bytes_per_frame": per_frame, "bytes_per_minute": per_frame * RATE * 60}


def in_fresh_process(
    name: str, film: Film, limits: MethodLimits, seconds: float | None = None, track: VideoTrack | None = None
) -> VideoTrack:
    """:func:`play` in a new process, killed after ``seconds`` (by default what it may need at the
    most).

    Whatever ends that process is the curve's reason. ``track`` is filled as points come, so that it
    has them whatever happens here.
    """
    track = track or blank(name, film)
    order = {"method": name, "film": asdict(film), "limits": asdict(limits), "threads": torch.get_num_threads()}
    ended = False

    def take(answer: Any) -> None:
        nonlocal ended
        if isinstance(answer, dict):
            ended = answer["ended"]
            vars(track).update(answer["track"] | ({} if ended else {"reason": INTERRUPTED}))

    _, reason = ask(MODULE, order, 4 * film.seconds + 60 if seconds is None else seconds, take)
    if not ended:
        track.reason = reason or NO_RESULT
        if track.points and not METHODS[name].bounded:
            track.computed = _computed(track.points, film, MemoryConfig().mem_every)
    return track


def measure(
    protocols: list[str],
    *,
    quick: bool = False,
    limits: MethodLimits | None = None,
    budget: float | None = None,
    tell: Tell = printed,
    results: list[VideoTrack] | None = None,
) -> list[VideoTrack]:
    """The curves of these protocols, also put into ``results`` as they come; ``tell`` gets lines
    for each.

    ``budget``: seconds for all of it, shared by what is still to be measured.
    """
    results = [] if results is None else results
    until = None if budget is None else time.monotonic() + budget
    films = (QUICK if quick else FILMS) if "fig1" in protocols else ()
    left = [(name, film) for film in films for name in COMPARED]
    others = quality.SECONDS[quick] if "fig5" in protocols else 0.0
    for at, (name, film) in enumerate(left):
        track = replace(blank(name, film), reason=INTERRUPTED)
        results.append(track)
        seconds = None
        if until is not None:
            later = sum(share(n) * f.seconds for n, f in left[at:]) + others
            seconds = (until - time.monotonic()) * share(name) * film.seconds / later
            # The process needs some of it to begin and to end.
            film = replace(film, seconds=min(film.seconds, max(0.0, seconds - STARTING) / share(name)))
        if seconds is None or seconds > STARTING:
            in_fresh_process(name, film, limits or MethodLimits(), seconds, track)
        else:
            track.reason = NOT_REACHED
        tell(text_of(track))
    if "fig5" in protocols:
        for track in quality.measure(quick=quick, until=until, results=results):
            tell(text_of(track))
    return results


def text_of(track: VideoTrack) -> str:
    """A curve as lines of text."""
    lines = [f"{track.protocol}, {track.method}, {track.grid} tokens"]
    for p in track.points:
        cells = [f"  frame {p['frame']:>6}: {duration(p['seconds']):>8}", f"{size(p['bytes'])} held"]
        cells.append(f"{p['tokens']} tokens")
        cells += [f"{size(p['resident'])} resident"] if p.get("resident") else []
        cells += [f"{size(p['peak_bytes'])} more at the peak"] if p.get("peak_bytes") is not None else []
        cells += [f"J {p['quality']:.4f}"] if "quality" in p else []
        lines.append(", ".join(cells))
    if track.increase:
        lines.append(f"  growth from frame 100 to 200: {track.increase['bytes_per_frame'] / 1e6:.3f} MB a frame")
    lines += [f"  computed: {size(c['bytes'])} at frame {c['frame']}" for c in track.computed[-1:]]
    return "\n".join([*lines, *([f"  {track.reason}"] if track.reason else [])])


def main(words: list[str] | None = None) -> None:
    parser = StudyParser(__doc__, "the first 200 frames at 480p, 2,000 small ones")
    parser.add_argument("--protocol", nargs="+", choices=("fig1", "fig5"), default=["fig1", "fig5"])
    parser.add_argument("--budget", type=positive, metavar="SECONDS", help="end within so many; say what is left out")
    parser.add_argument("--gb", type=positive, default=4.0, help="a method stops that would take more")
    parser.add_argument("--frame-seconds", type=positive, default=5.0, help="a method stops whose frame takes longer")
    options = parser.parse(words)
    if options.order:
        order = options.order
        torch.set_num_threads(order["threads"])

        def tell(track: VideoTrack, ended: bool = False) -> None:
            print(json.dumps({"track": track.to_json(), "ended": ended}), flush=True)

        film, limits = Film(**order["film"]), MethodLimits(**order["limits"])
        tell(play(order["method"], film, limits, tell=tell), ended=True)
        return
    limits = MethodLimits(options.gb * 1e9, options.frame_seconds)
    with record.recorded("length", options.save) as results:
        measure(options.protocol, quick=options.quick, limits=limits, budget=options.budget, results=results)


if __name__ == "__main__":
    main()
