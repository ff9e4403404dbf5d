"""Over the length of a video: what each method's memory takes, and how long a frame takes.

    python benchmarks/length.py [--protocol fig1 fig5] [--quick] [--save FILE] [--gb 4] [--frame-seconds 5]

Fig. 1 (left) of the paper: "GPU memory increase per frame by averaging the memory consumption difference between the
100-th and 200-th frame in 480p". Here: bytes held, resident memory and time per frame at checkpoints of one film, the
bundled clip's features played back and forth (``clip.py``), no network, one object, XMem's defaults (r = 5). Two
films, since 100,000 frames at 480p would take hours: 3,000 frames of 480p (30 x 54 tokens), and up to 100,000 frames of
6 x 10 tokens with a long-term memory of at most 1,000 tokens, as Track-Anything has it. Each method has a process of
its own, which stops with its reason where the next checkpoint would pass a limit.

Every frame is read, by every method, but: between checkpoints the original's reads run on xmemk's kernels, which are
equal to rounding, and STCN's, which leave no trace in its memory, are left out. What is timed is each method's own
read (and, on every fifth frame, its taking in of a memory frame) of the last frames before a checkpoint.

Fig. 5: quality over the length of the video, see ``quality.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks import quality
from xmemk.benchmarks.clip import FRAMES, KEY_CHANNELS, VALUE_CHANNELS, ClipFeatures, checkpoints
from xmemk.benchmarks.harness import record
from xmemk.benchmarks.memories import METHODS, held_bytes, held_tokens, hurry

from xmemk.demo.peak import Peak, resident_bytes
from xmemk.reference import MemoryConfig

COMPARED = ("xmemk", "original", "STCN")
RATE = 24  # frames a second, as Fig. 1 assumes
FAR = 100_000  # how far a method that had to stop is computed


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


def play(name: str, film: Film, limits: Limits, config: MemoryConfig | None = None) -> dict[str, Any]:
    """One method's curve, in this process."""
    method = METHODS[name]
    memory = method.make(config or MemoryConfig(hidden_dim=0, max_long_term_elements=film.long_term))
    every = memory.config.mem_every
    features = ClipFeatures(film.height, film.width, film.distinct)
    result: dict[str, Any] = {"protocol": "fig1", "method": name, "ours": method.ours, "what": method.what}
    result |= {
        "features": features.describe(),
        "long_term": memory.config.max_long_term_elements,
        "points": [],
        "computed": [],
        "reason": "",
    }
    device = torch.device("cpu")
    budget = film.seconds if method.bounded else film.seconds / 3
    start = time.perf_counter()
    seen = 0
    for point in checkpoints(film.frames, film.first):
        result["reason"] = _refusal(result["points"], point, method.bounded, limits)
        while seen < point - film.window and not result["reason"]:
            hurry(memory, True)
            _frame(memory, features, seen, every, read=method.counts)
            seen += 1
            if seen % 16 == 0 and time.perf_counter() - start > budget:
                result["reason"] = f"stopped at frame {seen}: {budget:.0f} s are over"
        if result["reason"]:
            break
        hurry(memory, False)
        with Peak(device) as peak:
            times = [_frame(memory, features, t, every, read=True) for t in range(seen, point)]
        seen = point
        result["points"].append(
            {
                "frame": point,
                "seconds": statistics.median(times),
                "bytes": held_bytes(memory),
                "tokens": held_tokens(memory),
                "resident": resident_bytes(device),
                "peak_bytes": peak.bytes,  # beyond what is held, while the last frames were read
            }
        )
    if result["reason"] and not method.bounded and result["points"]:
        result["computed"] = _computed(result["points"], film, every)
    result["increase"] = increase_per_frame(result["points"])
    return result


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
        return f"frame {frame} would take {wanted / 1e9:.1f} GB, more than {limits.bytes / 1e9:g}"
    if seconds > limits.seconds:
        return f"frame {frame} would take {seconds:.1f} s, more than {limits.seconds:g}"
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


def in_fresh_process(name: str, film: Film, limits: Limits) -> dict[str, Any]:
    """:func:`play` in a new process. Whatever ends that process is the curve's reason."""
    given = {"method": name, "film": asdict(film), "limits": asdict(limits), "threads": torch.get_num_threads()}
    command = [sys.executable, str(Path(__file__)), "--play", json.dumps(given)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * film.seconds + 60)
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        said = done.stderr.strip().splitlines()
        reason = f"its process failed with {done.returncode}: {said[-1] if said else 'killed'}"[:200]
    except subprocess.TimeoutExpired:
        reason = f"did not end within {4 * film.seconds + 60:.0f} s"
    except (IndexError, TypeError, ValueError):
        reason = "its process ended without a result"
    size = {"height": film.height, "width": film.width, "objects": 1}
    size |= {"key_channels": KEY_CHANNELS, "value_channels": VALUE_CHANNELS}
    result: dict[str, Any] = {"protocol": "fig1", "method": name, "ours": METHODS[name].ours, "features": size}
    return result | {"points": [], "computed": [], "increase": None, "reason": reason}


def say(words: str) -> None:
    print(words, flush=True)


def measure(
    protocols: list[str], *, quick: bool = False, limits: Limits | None = None, said: Callable[[str], None] = say
) -> list[dict[str, Any]]:
    """The results of these protocols, as result files have them; ``said`` gets a line for each."""
    results = []
    if "fig1" in protocols:
        for film in QUICK if quick else FILMS:
            for name in COMPARED:
                results.append(in_fresh_process(name, film, limits or Limits()))
                for words in told(results[-1]):
                    said(words)
    if "fig5" in protocols:
        for result in quality.measure(quick=quick):
            results.append(result)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", nargs="+", choices=("fig1", "fig5"), default=["fig1", "fig5"])
    parser.add_argument("--quick", action="store_true", help="the first 200 frames at 480p, 2,000 small ones")
    parser.add_argument("--gb", type=float, default=4.0, help="a method stops that would take more")
    parser.add_argument("--frame-seconds", type=float, default=5.0, help="a method stops whose frame would take longer")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", type=Path, metavar="FILE", help="append the results to a file, as one line of JSON")
    parser.add_argument("--play", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.play:
        given = json.loads(options.play)
        torch.set_num_threads(given["threads"])
        print(json.dumps(play(given["method"], Film(**given["film"]), Limits(**given["limits"]))))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    limits = Limits(options.gb * 1e9, options.frame_seconds)
    record.save(record.line("length", measure(options.protocol, quick=options.quick, limits=limits)), options.save)


if __name__ == "__main__":
    main()
