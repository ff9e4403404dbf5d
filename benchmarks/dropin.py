"""xmemk beside a real checkout: time, memory, and how far the results are apart.

    python benchmarks/dropin.py CHECKOUT [--part manager frames] [--size 480p] [--objects 1]
    python benchmarks/dropin.py CHECKOUT --part frames --with tuned [--late 20 40] [--top-k 30]

The checkout is XMem (https://github.com/hkchengrex/XMem), Track-Anything, Cutie, or another folder
with their memory code; "rf-cutie" stands for the installed package. Two parts:

* manager: the memory manager alone, unpatched and then patched, on synthetic features, filled to 9
  frames and 10,000 long-term tokens; then reads, and memory frames that end in an eviction and a
  consolidation.
* frames: XMem's released network and frame loop over the bundled clip, in turn with another one of
  the same random weights. By default that is the patched one, on small frames with limits so low
  that it consolidates and evicts often. --with tuned, plain or compiled takes our own network and
  tracker, at 480p with the released limits. The released code fails where it has to evict with a
  late object, so --late needs those limits, too.

The released similarity is off by up to 1e-4, and reads now and then another token than the k-th
best, which with random weights shows. Three ways to see what is owed to that choice: --top-k 0 has
both read all tokens. --with float64 compares the released code with itself, its similarity in
float64. --exact has the released similarity in float64; --keys 6 multiplies the keys, so that the
k-th best has next to no weight.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from xmemk.benchmarks.harness.arguments import count
from xmemk.benchmarks.harness.timing import Tell
from xmemk.benchmarks.peers.checkouts import LIMITS, Checkout, Manager
from xmemk.benchmarks.peers.clip import Frame, clip_frames, features, randomise
from xmemk.benchmarks.report import terminal
from xmemk.benchmarks.report.formatting import counted, duration, size, times

import xmemk
from xmemk.measure.peak import Peak
from xmemk.measure.stopwatch import Stopwatch

SIZES = {"tiny": (6, 9), "480p": (30, 54), "720p": (45, 80), "1080p": (68, 120)}  # at stride 16
SMALL = {"max_mid_term_frames": 5, "min_mid_term_frames": 3, "num_prototypes": 16, "max_long_term_elements": 120}
COMPARED_NUMBERS = 200_000  # of a readout
CPU = torch.device("cpu")
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
OURS = ("tuned", "plain", "compiled")
# What --with does not say otherwise; a frame of 64 lines has 24 tokens.
PATCHED = {"frames": 200, "lines": 64, "late": [], "top_k": 20}
OTHERS = {"frames": 60, "lines": 480, "late": [20, 40], "top_k": 30}


def measured(call: Callable[[], Any]) -> tuple[Any, float, int]:
    """What a call returns, its seconds, and the bytes that it takes at its peak."""
    with Peak(CPU) as peak:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
    return result, seconds, peak.bytes or 0


def filled(checkout: Checkout, options: argparse.Namespace, say: Tell) -> tuple[dict[str, float], torch.Tensor]:
    """A manager's seconds, bytes and tokens at full memory, and its readouts.

    It is filled with eviction put off.
    """
    tiny = options.size == "tiny"
    (h, w), prototypes, full = SIZES[options.size], 50 if tiny else 5000, 100 if tiny else 10000
    limits = {"max_mid_term_frames": 10, "min_mid_term_frames": 5, "max_long_term_elements": 4 * full}
    host = Manager(checkout, options.objects, {**limits, "buffer_tokens": full // 5, "num_prototypes": prototypes})
    made = features(h, w, options.objects, 512 if host.family == "xmem" else 256)
    readouts, reads, adds = [], [], []
    with torch.inference_mode():
        with Peak(CPU) as stored:
            host.add(*next(made))
            while host.long_term < full:
                say(f"{host.long_term:,} of {full:,} tokens")
                key, shrinkage, selection, value = next(made)
                # A read before the frame that fills working memory gives candidates their usage.
                if host.working_frames + 1 >= limits["max_mid_term_frames"]:
                    readouts.append(host.read(key, selection))
                host.add(key, shrinkage, selection, value)
            host.configure(num_prototypes=8 if tiny else 128, max_long_term_elements=full)
            for _ in range(4):
                host.add(*next(made))
        tokens = host.long_term + host.working_frames * h * w
        for _ in range(options.repeats):
            key, _, selection, _ = next(made)
            reads.append(measured(lambda key=key, selection=selection: host.read(key, selection)))  # type: ignore[misc]
            readouts.append(reads[-1][0])
        for _ in range(4):  # the first consolidates; the others are fewer than would fill working memory again
            frame = next(made)
            adds.append(measured(lambda frame=frame: host.add(*frame)))  # type: ignore[misc]
        readouts.append(host.read(frame[0], frame[2]))
    thinned = [x.flatten(1)[:, :: max(1, x[0].numel() // COMPARED_NUMBERS)].float() for x in readouts]
    seconds = [taken for _, taken, _ in adds]
    figures = {"read": statistics.median(taken for _, taken, _ in reads), "consolidate": seconds[0]}
    figures |= {"add": statistics.median(seconds[1:]), "stored": stored.bytes or 0, "tokens": tokens}
    # At full memory 25 frames have 5 memory frames, one of which consolidates.
    figures["cycle"] = figures["consolidate"] + 4 * figures["add"] + 25 * figures["read"]
    figures |= {"read_bytes": max(nbytes for *_, nbytes in reads), "add_bytes": adds[0][2], "long_term": host.long_term}
    return figures, torch.stack(thinned)


def compare_managers(checkout: Checkout, options: argparse.Namespace) -> None:
    with terminal.progress("memory manager, unpatched") as say:
        released = None if options.patched_only else filled(checkout, options, say)
    with xmemk.patch(), terminal.progress("memory manager, patched") as say:
        b, ours = filled(checkout, options, say)
    a, theirs = released or (b, ours)
    print(f"memory manager at {options.size}, {counted(options.objects, 'object')}, {a['tokens']:,} tokens, float32")
    print(f"| {'':25} | unpatched | patched | ratio |\n|{'-' * 27}|---|---|---|")
    labels = {"read": "read", "consolidate": "add that consolidates", "add": "add", "cycle": "25 frames"}
    for name, label in labels.items():
        print(f"| {label:25} | {duration(a[name])} | {duration(b[name])} | {times(a[name] / b[name])} |")
    labels = {"read_bytes": "extra memory of a read", "add_bytes": "extra memory of an add"}
    labels |= {"stored": "peak while it is filled"}  # what is stored included
    for name, label in labels.items():
        print(f"| {label:25} | {size(a[name])} | {size(b[name])} | |")
    print(f"largest difference of a readout {(theirs - ours).abs().amax():.2g} of at most {theirs.abs().amax():.2g}")
    print(f"long-term tokens at the end: {a['long_term']:,} and {b['long_term']:,}")


class FrameLoop:
    """A frame loop whose steps are timed; ``calls``: the methods of ``memory`` that count as it."""

    def __init__(self, step: Callable[[Frame], torch.Tensor], memory: Any, *calls: str) -> None:
        self.memory, self._step, self.watch = memory, step, Stopwatch()
        for name in calls:
            setattr(memory, name, self.watch("memory")(getattr(memory, name)))

    def step(self, frame: Frame) -> torch.Tensor:
        """The probabilities [1 + O, H, W]. The first frame reads nothing and warms up."""
        with self.watch("whole"):
            probabilities = self._step(frame)
        if frame.first:
            self.watch.seconds.clear()
        return probabilities


def released_loop(core: Any, options: argparse.Namespace, in_float64: Any = None) -> FrameLoop:
    """``in_float64``: the host's module memory_manager, for its similarity in float64."""

    def step(frame: Frame) -> torch.Tensor:
        core.set_all_labels(list(range(1, frame.labels + 1)))
        joining: tuple[Any, ...] = ()
        if frame.mask is not None:
            masks = [frame.mask == label for label in range(1, frame.labels + 1)]
            joining = torch.stack(masks).float(), [int(label) for label in frame.mask.unique() if label]
        similarity = in_float64 and in_float64.get_similarity
        if in_float64:
            in_float64.get_similarity = lambda *x: similarity(*(t.double() for t in x)).float()
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=options.half):
                probabilities = core.step((frame.picture - MEAN) / STD, *joining, end=frame.last)
        finally:
            if in_float64:
                in_float64.get_similarity = similarity
        return probabilities[0] if isinstance(probabilities, tuple) else probabilities

    return FrameLoop(step, core.memory, "match_memory", "add_memory", "create_hidden_state")


def our_loop(network: Any, config: dict[str, Any], options: argparse.Namespace) -> FrameLoop:
    """Our network of the same weights, and our tracker."""
    ours = xmemk.XMem()
    ours.load_state_dict(network.state_dict(), strict=True)
    ours.requires_grad_(False)
    if options.other != "plain":
        ours = ours.tuned(compile=options.other == "compiled")
    memory = xmemk.Memory(xmemk.MemoryConfig.from_dict({**config, "groups": "xmem"}))
    tracker = xmemk.Tracker(ours, memory=memory, autocast=torch.bfloat16 if options.half else None)
    return FrameLoop(lambda frame: tracker.step(frame.picture, frame.mask, end=frame.last), memory, "read", "add")


def compare_frames(checkout: Checkout, options: argparse.Namespace) -> None:
    patched = options.other == "patched"
    for name, value in (PATCHED if patched else OTHERS).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if checkout.family != "xmem":
        print("frames: left out, the network of Cutie is run by tests/compat/test_compat_cutie.py")
        return
    config = {**LIMITS, **(SMALL if patched and not options.late else {}), "mem_every": options.mem_every}
    config |= {"top_k": options.top_k or None, "key_dim": 64, "value_dim": 512}
    try:
        network = checkout.network(config)
    except ImportError as missing:
        print(f"frames: left out, {missing}")
        return
    randomise(network, options.keys)
    with xmemk.patch(functions=False) if patched else contextlib.nullcontext():
        core = checkout.core(network, config)
    manager = checkout.module("memory_manager")
    if options.other in OURS:
        second = our_loop(network, config, options)
    else:
        second = released_loop(core, options, manager if options.other == "float64" else None)
    first = released_loop(checkout.core(network, config), options, manager if options.exact else None)
    largest, means, pixels, off, labels = 0.0, 0.0, 0, 0, 0
    with torch.inference_mode(), terminal.progress("frames") as say:
        for t, frame in enumerate(clip_frames(options.lines, options.frames, options.objects, options.late)):
            say(f"{t + 1:,} of {options.frames:,}")
            if t % 2:
                b, a = second.step(frame), first.step(frame)
            else:
                a, b = first.step(frame), second.step(frame)
            difference = (a - b).abs()
            largest, means = max(largest, float(difference.max())), means + float(difference.mean())
            pixels, off = pixels + a[0].numel(), off + int((difference.amax(0) > 1e-4).sum())
            labels += int((a.argmax(0) != b.argmax(0)).sum())
            shares = a.argmax(0).flatten().bincount(minlength=len(a)) / a[0].numel()
            shown = ", ".join(f"{100 * share:.1f} %" for share in shares.tolist())
            if options.verbose:
                print(f"{t:3} {float(difference.max()):.1e}  labels {shown}  {second.memory}", flush=True)
    both = first.memory, second.memory
    kept = [x.long_term_size if isinstance(x, xmemk.Memory) else x.long_mem.size for x in both]
    print(f"{options.frames} frames of {options.lines} lines, released and {options.other}", end="")
    print(f"{', bfloat16' if options.half else ''}; long-term tokens at the end: {kept[0]} and {kept[1]}")
    print("| mean of a frame | released | the other | ratio |\n|---|---|---|---|")
    means_of = []
    for loop in (first, second):
        mean = {name: total / (options.frames - 1) for name, total in loop.watch.seconds.items()}
        means_of.append({"network": mean["whole"] - mean["memory"], **mean})
    theirs, ours = means_of
    for name in ("network", "memory", "whole"):
        print(f"| {name} | {duration(theirs[name])} | {duration(ours[name])} | {times(theirs[name] / ours[name])} |")
    print(f"largest difference of a probability {largest:.2g}, mean {means / options.frames:.2g}")
    print(f"of {pixels:,} pixels, {off:,} differ by more than 1e-4, {labels:,} in their label")
    print(f"pixels of each label in the last frame: {shown}")


PARTS = {"manager": compare_managers, "frames": compare_frames}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkout")
    add("--part", nargs="+", choices=PARTS, default=list(PARTS))
    add("--objects", type=count, default=1)
    add("--threads", type=count, default=torch.get_num_threads())
    add("--size", choices=SIZES, default="480p", help="of the manager's frames")
    add("--repeats", type=count, default=3, help="reads of the manager that are timed")
    add("--patched-only", action="store_true", help="both columns ours, where the host's manager has no room")
    add("--with", dest="other", choices=("patched", *OURS, "float64"), default="patched")
    add("--frames", type=count)
    add("--lines", type=count, help="height of the frames")
    add("--mem-every", type=count, default=3)
    add("--late", type=int, nargs="*", metavar="FRAME", help="an object joins at each")
    add("--top-k", type=int, help="tokens that are read; 0 for all")
    add("--half", action="store_true", help="bfloat16 autocast for both")
    add("--exact", action="store_true", help="the released similarity in float64")
    add("--keys", type=float, default=1.0, help="how many times as large the keys are made")
    add("--verbose", action="store_true", help="a line for each frame")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    try:
        checkout = Checkout(options.checkout)
    except (FileNotFoundError, ImportError) as wrong:
        sys.exit(f"dropin.py: {wrong}")
    print(f"{options.checkout}, torch {torch.__version__}, {counted(options.threads, 'thread')}")
    for part in options.part:
        PARTS[part](checkout, options)


if __name__ == "__main__":
    main()
