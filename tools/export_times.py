"""Times the exported graphs beside xmemk.Tracker on this machine's CPU, frame by frame in turn.

    python tools/export_times.py [--size HEIGHT WIDTH] [--seconds SECONDS]

A network of the released size with random weights, one object. Frames go on until the seconds are
over. Prints a table in Markdown, for docs/export.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import NamedTuple

import onnxruntime
import torch
from torch import Tensor

import xmemk
from xmemk.export import export_tracker
from xmemk.export.runner import Runner
from xmemk.measure import machine

OURS, GRAPHS = "xmemk.Tracker", "the graphs on onnxruntime"
FEWEST = 7  # frames, of which the first two warm up


class Timed(NamedTuple):
    """seconds: of each step of each of the two, without and with a memory frame. worst: the largest
    difference of a probability.
    """

    seconds: dict[tuple[str, bool], list[float]]
    worst: float
    frames: int


def timed(tracker: xmemk.Tracker, runner: Runner, mask: Tensor, seconds: float) -> Timed:
    """Random frames of the mask's size [H, W], the two in turn, until the seconds are over."""
    times: dict[tuple[str, bool], list[float]] = {}
    worst, frame, end = 0.0, 0, time.perf_counter() + seconds
    while frame < FEWEST or time.perf_counter() < end:
        image, first = torch.rand(3, *mask.shape), mask if frame == 0 else None
        steps: dict[str, Callable[[], Tensor]] = {
            OURS: partial(tracker.step, image, first),
            GRAPHS: partial(_step, runner, image, first),
        }
        results = {}
        for name in sorted(steps, reverse=bool(frame % 2)):
            start = time.perf_counter()
            results[name] = steps[name]()
            if frame > 1:
                times.setdefault((name, frame % tracker.config.mem_every == 0), []).append(time.perf_counter() - start)
        worst = max(worst, float((results[OURS] - results[GRAPHS]).abs().max()))
        frame += 1
    return Timed(times, worst, frame)


def _step(runner: Runner, image: Tensor, mask: Tensor | None) -> Tensor:
    return torch.from_numpy(runner.step(image.numpy(), None if mask is None else mask.numpy()))


def report(run: Timed, height: int, width: int) -> str:
    """What was run, and a table in Markdown."""
    lines = [
        f"{date.today()}, {machine.describe()['processor']}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, onnxruntime {onnxruntime.__version__}; {height} x {width}, {run.frames} frames, one "
        f"object, float32. The largest difference of a probability was {run.worst:.0e}.",
        "",
        "| | a frame | a memory frame |",
        "|---|---:|---:|",
    ]
    medians = {key: statistics.median(seconds) for key, seconds in run.seconds.items()}
    for name in (OURS, GRAPHS):
        lines.append(f"| {name} | {1000 * medians[name, False]:.0f} ms | {1000 * medians[name, True]:.0f} ms |")
    ratios = [medians[GRAPHS, memory] / medians[OURS, memory] for memory in (False, True)]
    return "\n".join([*lines, f"| times as long | {ratios[0]:.2f} | {ratios[1]:.2f} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs=2, type=int, default=(480, 854), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    height, width = options.size
    torch.manual_seed(0)
    network, config = xmemk.XMem(), xmemk.MemoryConfig()
    mask = torch.zeros(height, width, dtype=torch.int64)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        export_tracker(network, folder, config, height=height, width=width)
        runner = Runner(folder, sess_options=threads, providers=["CPUExecutionProvider"])
    print(report(timed(xmemk.Tracker(network.tuned(), config), runner, mask, options.seconds), height, width))


if __name__ == "__main__":
    main()
