"""The whole of XMem beside a real checkout's, frame by frame in turn: probabilities, masks, and
where the time goes.

    python benchmarks/studies/parity.py PATH_TO_A_CHECKOUT [--frames 60] [--size 480] [--mem-every 3]
        [--objects 2] [--late 20 40] [--top-k 30] [--plain | --compile | --itself] [--half] [--exact] [--keys 1]

The checkout is XMem (https://github.com/hkchengrex/XMem). Both networks get the same random weights
and no file is fetched. Both follow the same objects through the bundled clip, scaled to the size:
parts of the first mask, and one more object at each of the late frames. Long-term memory is on,
with the released limits (T_max 10, T_min 5, 128 prototypes). --mem-every is small, so that a short
clip has several consolidations. The released code fails where it has to evict with a late object:
long-term memory stays below its limit.

The memory's part of a frame is what the two memory managers do (read, add, consolidation). The
network's is all else of the step, from a picture in 0 to 1 to probabilities. Ours is the tuned
network, as the commands use it; --plain takes the network as it is loaded, --compile compiles it,
--half puts both under bfloat16 autocast.

The released similarity is off by up to 1e-4. So it reads now and then another token than the k-th
best. With random weights the k-th best has a thirtieth of the weight, so that a choice between
nearly equal tokens shows. Three ways to see what is owed to that choice: --top-k 0 has both read
all tokens, which leaves no choice. --itself puts the released code with its similarity in float64
in our place, so that it is compared with itself. --exact has the released similarity computed in
float64; --keys 6 multiplies the keys, so that the k-th best has next to no weight.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks.peers.checkouts import LIMITS, core_of, locate, network_of

from xmemk import MemoryConfig, Tracker, XMem
from xmemk.data import BUNNY
from xmemk.data.masks import read_mask
from xmemk.data.video import read_frames
from xmemk.memory import Memory

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
START = 40  # the frame that the mask is of; 92 of the clip's 132 are left


@dataclass
class FrameTimes:
    """Seconds of each frame, whole and the memory's part."""

    whole: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def watch(self, manager: object, *names: str) -> None:
        """From now on, these methods of a memory manager count as the memory's part."""
        for name in names:
            setattr(manager, name, self._timed(getattr(manager, name)))

    def step(self, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.memory.append(0.0)
        start = time.perf_counter()
        result = call()
        self.whole.append(time.perf_counter() - start)
        return result

    @property
    def network(self) -> list[float]:
        return [whole - memory for whole, memory in zip(self.whole, self.memory)]

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.memory[-1] += time.perf_counter() - start

        return call


@dataclass
class Differences:
    """Largest and sum of means of all frames; pixels in all, off by over 1e-4, relabelled."""

    largest: float = 0.0
    means: float = 0.0
    pixels: int = 0
    off: int = 0
    labels: int = 0

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        difference = (a - b).abs()
        self.largest = max(self.largest, float(difference.max()))
        self.means += float(difference.mean())
        self.pixels += a[0].numel()
        self.off += int((difference.amax(0) > 1e-4).sum())
        self.labels += int((a.argmax(0) != b.argmax(0)).sum())


def released(checkout: str, config: dict[str, Any], exact: bool, keys: float) -> tuple[Any, Any]:
    """The released network with random weights, its keys multiplied, and its frame loop."""
    if not (Path(checkout) / "inference" / "inference_core.py").exists():
        raise SystemExit(f"{checkout}: wanted a checkout of XMem, with inference/inference_core.py")
    _, prefix = locate(checkout)
    network = network_of(prefix, config)
    randomise(network)
    for x in network.key_proj.key_proj.parameters():
        x.data *= keys
    core = core_of(prefix, network, config)
    if exact:
        core.step = in_float64(core.step)
    return network, core


def in_float64(step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The released frame loop's step, with its similarity computed in float64."""
    manager: Any = importlib.import_module("inference.memory_manager")
    similarity = manager.get_similarity

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        manager.get_similarity = lambda *tensors: similarity(*(x.double() for x in tensors)).float()
        try:
            return step(*args, **kwargs)
        finally:
            manager.get_similarity = similarity

    return call


def randomise(network: torch.nn.Module) -> None:
    """Weights that keep signals of one size through all layers, and statistics of the
    normalisations that are not 0 and 1."""
    g = torch.Generator().manual_seed(0)
    for name, x in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(x.shape, generator=g)
        if name.endswith("running_var"):
            x.copy_(0.5 + torch.rand(x.shape, generator=g))
        elif x.dim() > 1:
            x.copy_(noise / math.sqrt(x[0].numel()))
        else:
            x.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))


def pictures(size: int, count: int) -> Iterator[torch.Tensor]:
    """RGB [3, H, W] in 0 to 1: the clip from START to its end and back, scaled."""
    width = 2 * round(size * 1280 / 720 / 2)
    clip = list(read_frames(BUNNY / "clip.mp4", (width, size), START))
    there_and_back = [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    for t in range(count):
        yield clip[there_and_back[t % len(there_and_back)]].permute(2, 0, 1).float() / 255


def masks(shape: torch.Size, objects: int, late: list[int]) -> dict[int, torch.Tensor]:
    """By frame, labels [H, W] of what joins: the bunny in vertical strips, later boxes."""
    height, width = shape
    bunny = read_mask(BUNNY / "00040.png")[None, None].float()
    bunny = torch.nn.functional.interpolate(bunny, (height, width), mode="nearest")[0, 0] > 0
    columns = bunny.any(0).nonzero()
    left, right = int(columns[0]), int(columns[-1]) + 1
    strips = (torch.arange(width) - left).clamp(0, right - left - 1) * objects // (right - left) + 1
    joins = {0: torch.where(bunny, strips, 0)}
    for i, t in enumerate(late):
        top, start = (height // 8) * (1 + 2 * (i % 3)), (width // 10) * (1 + 3 * (i % 3))
        joins[t] = torch.zeros(height, width, dtype=torch.int64)
        joins[t][top : top + height // 5, start : start + width // 6] = objects + 1 + i
    return joins


def follow(args: argparse.Namespace) -> None:
    config = {**LIMITS, "top_k": args.top_k or None, "mem_every": args.mem_every}
    original, core = released(args.checkout, {**config, "key_dim": 64, "value_dim": 512}, args.exact, args.keys)
    network = XMem()
    network.load_state_dict(original.state_dict(), strict=True)
    network.requires_grad_(False)
    tracker = Tracker(
        network if args.plain else network.tuned(compile=args.compile),
        memory=Memory(MemoryConfig.from_dict({**config, "groups": "xmem"})),
        autocast=torch.bfloat16 if args.half else None,
    )
    arithmetic = torch.autocast("cpu", torch.bfloat16, enabled=args.half)
    again = type(core)(original, dict(core.config)) if args.itself else None
    theirs, ours, differences = FrameTimes(), FrameTimes(), Differences()
    theirs.watch(core.memory, "match_memory", "add_memory", "create_hidden_state")
    ours.watch(tracker.memory, "read", "add")
    shares, labels = "", 0
    joins: dict[int, torch.Tensor] = {}
    for t, picture in enumerate(pictures(args.size, args.frames)):
        joins = joins or masks(picture.shape[1:], args.objects, [f for f in args.late if f < args.frames])
        end, mask = t == args.frames - 1, joins.get(t)
        joining: tuple[Any, ...] = (None, None)
        if mask is not None:
            new = [int(label) for label in mask.unique() if label]
            labels = max(labels, *new)
            core.set_all_labels(list(range(1, labels + 1)))
            joining = (torch.stack([mask == label for label in range(1, labels + 1)]).float(), new)

        def their_step(picture: Any = picture, joining: Any = joining, end: bool = end) -> torch.Tensor:
            with arithmetic:
                return core.step((picture - MEAN) / STD, *joining, end=end)

        def our_step(
            picture: Any = picture, mask: Any = mask, joining: Any = joining, labels: int = labels, end: bool = end
        ) -> torch.Tensor:
            if again is None:
                return tracker.step(picture, mask, end=end)
            again.set_all_labels(list(range(1, labels + 1)))
            return in_float64(again.step)((picture - MEAN) / STD, *joining, end=end)

        with torch.inference_mode():
            if t % 2:
                b, a = ours.step(our_step), theirs.step(their_step)
            else:
                a, b = theirs.step(their_step), ours.step(our_step)
        differences.add(a, b)
        counts = a.argmax(0).flatten().bincount(minlength=len(a)) / a[0].numel()
        shares = ", ".join(f"{100 * share:.1f} %" for share in counts.tolist())
        if args.verbose:
            print(f"{t:3} {float((a - b).abs().max()):.1e}  labels {shares}  {tracker.memory}", flush=True)
    if again is None:
        report(args, theirs, ours, core, tracker)
    else:
        print(f"{args.frames} frames, the released code beside itself with its similarity in float64")
    d = differences
    print(f"largest difference of a probability {d.largest:.2g}, mean {d.means / args.frames:.2g}")
    print(f"of {d.pixels} pixels, {d.off} differ by more than 1e-4, {d.labels} in their label")
    print(f"pixels of each label in the last frame: {shares}")


def report(args: argparse.Namespace, theirs: FrameTimes, ours: FrameTimes, core: Any, tracker: Tracker) -> None:
    memory = tracker.memory
    assert isinstance(memory, Memory)
    kind = ("plain" if args.plain else "compiled" if args.compile else "tuned") + (", bfloat16" if args.half else "")
    print(f"{args.frames} frames, objects {list(memory.objects)}, ours {kind}, {torch.get_num_threads()} threads")
    print(f"long-term tokens {core.memory.long_mem.size} and {memory.long_term_size}, ", end="")
    print(f"{memory.consolidations} consolidations")
    print("| of a frame, ms (median, mean) | released | xmemk | ratio of means |\n|---|---|---|---|")
    for name in ("network", "memory", "whole"):
        a, b = getattr(theirs, name)[1:], getattr(ours, name)[1:]  # the first frame reads nothing and warms up
        cells = [f"{1000 * statistics.median(x):.0f}, {1000 * statistics.mean(x):.0f}" for x in (a, b)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {statistics.mean(a) / statistics.mean(b):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--size", type=int, default=480, help="shorter side")
    parser.add_argument("--mem-every", type=int, default=3)
    parser.add_argument("--objects", type=int, default=2)
    parser.add_argument("--late", type=int, nargs="*", default=[20, 40])
    parser.add_argument("--top-k", type=int, default=30, help="tokens that are read; 0 for all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    ours = parser.add_mutually_exclusive_group()
    ours.add_argument("--plain", action="store_true", help="the network as it is loaded")
    ours.add_argument("--compile", action="store_true", help="the tuned network, compiled")
    ours.add_argument("--itself", action="store_true", help="not ours: the released code with a similarity in float64")
    parser.add_argument("--half", action="store_true", help="bfloat16 autocast for both")
    parser.add_argument("--exact", action="store_true", help="the released similarity in float64")
    parser.add_argument("--keys", type=float, default=1.0, help="how many times as large the keys are made")
    parser.add_argument("--verbose", action="store_true", help="a line for each frame")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    follow(args)


if __name__ == "__main__":
    main()
