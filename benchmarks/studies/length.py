"""Over the length of a video: what each method's memory takes, and how long a frame takes.

    python benchmarks/studies/length.py [--protocol fig1 fig5] [--quick] [--budget SECONDS] [--save FILE]

Fig. 1 (left) of the paper: "GPU memory increase per frame by averaging the memory consumption difference between the
100-th and 200-th frame in 480p". Here: bytes held, resident memory and time per frame at checkpoints of one film, the
bundled clip's features played back and forth (``clip.py``), no network, one object, XMem's defaults (r = 5). Two
films, since 100,000 frames at 480p would take hours: 3,000 frames of 480p (30 x 54 tokens), and up to 100,000 frames of
6 x 10 tokens with a long-term memory of at most 1,000 tokens, as Track-Anything has it. Each method has a process of
its own, which stops with its reason where the next checkpoint would pass a limit. With --budget the methods share the
seconds given; what they do not reach is said. Interrupted or not, what was measured is written to the file.

Every frame is read, by every method, but: between checkpoints the original's reads run on xmemk's kernels, which are
equal to rounding, and STCN's, which leave no trace in its memory, are left out. What is timed is each method's own
read (and, on every fifth frame, its taking in of a memory frame) of the last frames before a checkpoint.

Fig. 5: quality over the length of the video, see ``quality.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks.harness import record
from xmemk.benchmarks.harness.arguments import Parser, count, positive, result_file
from xmemk.benchmarks.harness.child import Child
from xmemk.benchmarks.peers.clip import FRAMES, KEY_CHANNELS, VALUE_CHANNELS, ClipFeatures, checkpoints
from xmemk.benchmarks.peers.memories import METHODS, held_bytes, held_tokens, hurry
from xmemk.benchmarks.studies import quality

from xmemk.measure.peak import Peak, resident_bytes
from xmemk.reference import MemoryConfig

COMPARED = ("xmemk", "original", "STCN")
RATE = 24  # frames a second, as Fig. 1 assumes
FAR = 100_000  # how far a method that had to stop is computed
STARTING = 5.0  # seconds that a method's process takes to begin, on a busy machine
NOT_REACHED = "not reached in the time given"


@dataclass(frozen=True)
class Film:
    """``window``: frames timed before each checkpoint. ``seconds``: after which a method stops, one that grows without
    bounds after a third of it. ``long_term``: most tokens in long-term memory.
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
class Limits:
    """Where a method stops: bytes held and taken by a read, and seconds of a frame."""

    bytes: float = 4e9
    seconds: float = 5.0


def play(
    name: str,
    film: Film,
    limits: Limits,
    config: MemoryConfig | None = None,
    said: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """One method's curve, in this process; ``said`` gets the result after each point, too."""
    start = time.perf_counter()
    method = METHODS[name]
    memory = method.make(config or MemoryConfig(hidden_dim=0, max_long_term_elements=film.long_term))
    every = memory.config.mem_every
    features = ClipFeatures(film.height, film.width, film.distinct)
    result = blank(name, film)
    points = result["points"]
    device = torch.device("cpu")
    budget = share(name) * film.seconds
    seen = 0
    for point in checkpoints(film.frames, film.first):
        result["reason"] = _refusal(points, point, method.bounded, limits)
        while seen < point - film.window and not result["reason"]:
            hurry(memory, True)
            _frame(memory, features, seen, every, read=method.counts)
            seen += 1
            if seen % 16 == 0 and time.perf_counter() - start > budget:
                result["reason"] = f"it stopped at frame {seen:,}: {budget:.0f} s were over"
        if result["reason"]:
            break
        hurry(memory, False)
        with Peak(device) as peak:
            times = [_frame(memory, features, t, every, read=True) for t in range(seen, point)]
        seen = point
        points.append(
            {
                "frame": point,
                "seconds": statistics.median(times),
                "bytes": held_bytes(memory),
                "tokens": held_tokens(memory),
                "resident": resident_bytes(device),
                "peak_bytes": peak.bytes,  # beyond what is held, while the last frames were read
            }
        )
        result["increase"] = increase_per_frame(points)
        said(result)
    if result["reason"] and not method.bounded and points:
        result["computed"] = _computed(points, film, every)
    return result


def blank(name: str, film: Film) -> dict[str, Any]:
    """The curve of a method that has no point yet."""
    size = {"height": film.height, "width": film.width, "key_channels": KEY_CHANNELS, "value_channels": VALUE_CHANNELS}
    return {
        "protocol": "fig1",
        "method": name,
        "ours": METHODS[name].ours,
        "what": METHODS[name].what,
        "features": size | {"objects": 1},
        "long_term": film.long_term,
        "points": [],
        "computed": [],
        "increase": None,
        "reason": "",
    }


def share(name: str) -> float:
    """Of a film's seconds: all for a memory that does not grow with the video, a third for the others."""
    return 1.0 if METHODS[name].bounded else 1 / 3


def _frame(memory: Any, features: ClipFeatures, t: int, every: int, *, read: bool) -> float:
    """Frame t is read, and remembered where its turn has come; the seconds that took."""
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


def _refusal(points: list[dict[str, Any]], frame: int, bounded: bool, limits: Limits) -> str:
    """Why the next checkpoint is not tried: for a memory that grows with the video, what the last one tells of it."""
    if bounded or not points:
        return ""
    last = points[-1]
    growth = frame / last["frame"]
    wanted = growth * (last["bytes"] + (last["peak_bytes"] or 0))
    seconds = growth * last["seconds"]
    if wanted > limits.bytes:
        return f"frame {frame:,} would take {wanted / 1e9:.1f} GB, more than the {limits.bytes / 1e9:g} GB allowed"
    if seconds > limits.seconds:
        return f"frame {frame:,} would take {seconds:.1f} s, more than the {limits.seconds:g} s allowed"
    return ""


def _computed(points: list[dict[str, Any]], film: Film, every: int) -> list[dict[str, int]]:
    """Bytes of a memory that keeps every r-th frame: frames kept x tokens of one x bytes of a token as measured."""
    token = points[-1]["bytes"] / points[-1]["tokens"]
    tail = [f for f in checkpoints(FAR, film.first) if f > points[-1]["frame"]]
    return [
        {"frame": f, "bytes": round(((f - 1) // every + 1) * film.height * film.width * token)}
        for f in [points[-1]["frame"], *tail]
    ]


def increase_per_frame(points: list[dict[str, Any]]) -> dict[str, float] | None:
    """Fig. 1 (left): mean growth of the bytes held between frames 100 and 200, a frame and a minute."""
    held = {p["frame"]: p["bytes"] for p in points}
    if 100 not in held or 200 not in held:
        return None
    per_frame = (held[200] - held[100]) / 100
    return {"bytes_per_frame": per_frame, "bytes_per_minute": per_frame * RATE * 60}


def in_fresh_process(
    name: str, film: Film, limits: Limits, seconds: float | None = None, result: dict[str, Any] | None = None
) -> dict[str, Any]:
    """:func:`play` in a new process, killed after ``seconds`` (by default what it may need at the most). Whatever ends
    that process is the curve's reason. ``result`` is filled as points come, so that it has them whatever happens here.
    """
    result = blank(name, film) if result is None else result
    given = {"method": name, "film": asdict(film), "limits": asdict(limits), "threads": torch.get_num_threads()}
    longest = 4 * film.seconds + 60 if seconds is None else seconds
    ended = False
    with Child([sys.executable, str(Path(__file__)), "--play", json.dumps(given)]) as child:
        try:
            for said in child.lines(longest):
                told = json.loads(said)
                ended = told["ended"]
                result |= told["result"] | ({} if ended else {"reason": "interrupted"})
            reason = child.end()[1]
        except TimeoutError as late:
            reason = f"it {late}"
        except (KeyError, TypeError, ValueError):
            reason = "its process ended without a result"
    if not ended:
        result["reason"] = reason or "its process ended without a result"
        if result["points"] and not METHODS[name].bounded:
            result["computed"] = _computed(result["points"], film, MemoryConfig().mem_every)
    return result


def say(words: str) -> None:
    print(words, flush=True)


def measure(
    protocols: list[str],
    *,
    quick: bool = False,
    limits: Limits | None = None,
    budget: float | None = None,
    said: Callable[[str], None] = say,
    results: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The results of these protocols, as result files have them, also put into ``results`` as they come; ``said`` gets
    lines for each. ``budget``: seconds for all of it, shared by what is still to be measured.
    """
    results = [] if results is None else results
    until = None if budget is None else time.monotonic() + budget
    films = (QUICK if quick else FILMS) if "fig1" in protocols else ()
    wanted = [(name, film) for film in films for name in COMPARED]
    others = quality.SECONDS[quick] if "fig5" in protocols else 0.0
    for at, (name, film) in enumerate(wanted):
        result = blank(name, film) | {"reason": "interrupted"}
        results.append(result)
        seconds = None
        if until is not None:
            later = sum(share(n) * f.seconds for n, f in wanted[at:]) + others
            seconds = (until - time.monotonic()) * share(name) * film.seconds / later
            # The process needs some of it to begin and to end.
            film = replace(film, seconds=min(film.seconds, max(0.0, seconds - STARTING) / share(name)))
        if seconds is None or seconds > STARTING:
            in_fresh_process(name, film, limits or Limits(), seconds, result)
        else:
            result["reason"] = NOT_REACHED
        for words in told(result):
            said(words)
    if "fig5" in protocols:
        begun = len(results)
        quality.measure(quick=quick, until=until, results=results)
        for result in results[begun:]:
            for words in told(result):
                said(words)
    return results


def told(result: dict[str, Any]) -> list[str]:
    """A curve as lines of text."""
    size = result["features"]
    lines = [f"{result['protocol']}, {result['method']}, {size['height']} x {size['width']} tokens"]
    for p in result["points"]:
        measured = [f"  frame {p['frame']:>6}: {1e3 * p['seconds']:9.2f} ms  {p['bytes'] / 1e6:8.1f} MB held"]
        measured.append(f"{p['tokens']:>8} tokens")
        if p.get("resident"):
            measured.append(f"{p['resident'] / 1e6:7.0f} MB resident")
        if p.get("peak_bytes") is not None:
            measured.append(f"{p['peak_bytes'] / 1e6:7.1f} MB more at the peak")
        if "quality" in p:
            measured.append(f"J {p['quality']:.4f}")
        lines.append("  ".join(measured))
    if result.get("increase"):
        lines.append(f"  growth from frame 100 to 200: {result['increase']['bytes_per_frame'] / 1e6:.3f} MB a frame")
    for c in result["computed"][-1:]:
        lines.append(f"  computed: {c['bytes'] / 1e9:.1f} GB at frame {c['frame']}")
    if result["reason"]:
        lines.append(f"  {result['reason']}")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--protocol", nargs="+", choices=("fig1", "fig5"), default=["fig1", "fig5"])
    parser.add_argument("--quick", action="store_true", help="the first 200 frames at 480p, 2,000 small ones")
    parser.add_argument("--budget", type=positive, metavar="SECONDS", help="end within so many; say what is left out")
    parser.add_argument("--gb", type=positive, default=4.0, help="a method stops that would take more")
    parser.add_argument("--frame-seconds", type=positive, default=5.0, help="a method stops whose frame takes longer")
    parser.add_argument("--threads", type=count)
    parser.add_argument("--save", type=result_file, metavar="FILE", help="append the results to a file, a line of JSON")
    parser.add_argument("--play", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.play:
        given = json.loads(options.play)
        torch.set_num_threads(given["threads"])
        _play_in_lines(given["method"], Film(**given["film"]), Limits(**given["limits"]))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    limits = Limits(options.gb * 1e9, options.frame_seconds)
    with record.kept("length", options.save) as results:
        measure(options.protocol, quick=options.quick, limits=limits, budget=options.budget, results=results)


def _play_in_lines(name: str, film: Film, limits: Limits) -> None:
    """:func:`play` for :func:`in_fresh_process`: the result so far after each point, and at the end."""

    def tell(result: dict[str, Any], ended: bool = False) -> None:
        print(json.dumps({"result": result, "ended": ended}), flush=True)

    tell(play(name, film, limits, said=tell), ended=True)


if __name__ == "__main__":
    main()
