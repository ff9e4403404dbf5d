"""The drop-in against a real checkout, patched and unpatched: time, extra memory, largest
difference.

    python benchmarks/dropin.py PATH_TO_A_CHECKOUT [--size 480p|720p|1080p] [--objects 1]
        [--clip-only | --memory-only] [--patched-only]

The checkout is XMem (https://github.com/hkchengrex/XMem), Track-Anything, Cutie, or another folder
with their memory code; "rf-cutie" stands for the installed package. Two parts, each run in fresh
processes, without the drop-in and with:

* memory: the host's memory manager alone, on synthetic features, filled to 9 frames and 10,000 long-term
  tokens; then reads, and memory frames that end in an eviction and a consolidation. Times are medians.
* clip: the whole network with random weights and a fixed seed over 200 small frames, with limits so low
  that it consolidates and evicts often. Networks that cannot be loaded here are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks.peers.checkouts import LIMITS, core_of, locate, network_of
from xmemk.benchmarks.peers.random_network import calibrate, features

import xmemk
from xmemk.measure.peak import Peak

SIZES = {"tiny": (6, 9), "480p": (30, 54), "720p": (45, 80), "1080p": (68, 120)}  # at stride 16
SMALL = {"max_mid_term_frames": 5, "min_mid_term_frames": 3, "num_prototypes": 16, "max_long_term_elements": 120}
COMPARED_NUMBERS = 200_000  # of a readout
CPU = torch.device("cpu")


class Nested(dict[str, Any]):
    """A configuration with attributes, as Cutie reads it."""

    __getattr__ = dict.__getitem__


def cutie_config(limits: dict[str, int]) -> Nested:
    names = ("max_mem_frames", "min_mem_frames", "num_prototypes", "max_num_tokens", "buffer_tokens")
    long_term = Nested(zip(names, (limits[name] for name in (*SMALL, "buffer_tokens"))), count_usage=True)
    flags = {"save_aux": False, "use_long_term": True, "model": Nested(sensory_dim=1)}
    return Nested(top_k=30, chunk_size=-1, max_mem_frames=5, long_term=long_term, **flags)


class Host:
    """Either family's manager behind the two calls that are measured."""

    def __init__(self, checkout: str, objects: int, limits: dict[str, int]) -> None:
        self.family, prefix = locate(checkout)
        self.objects, self.limits = list(range(1, objects + 1)), {**SMALL, "buffer_tokens": 24, **limits}
        manager = importlib.import_module(f"{prefix}inference.memory_manager").MemoryManager
        if self.family == "xmem":
            self.manager = manager(config=self._config())
        else:
            registry = importlib.import_module(f"{prefix}inference.object_manager").ObjectManager()
            registry.add_new_objects(self.objects)
            self.manager = manager(self._config(), registry)

    def _config(self) -> dict[str, Any]:
        return {**LIMITS, **self.limits} if self.family == "xmem" else cutie_config(self.limits)

    def configure(self, **limits: int) -> None:
        self.limits |= limits
        self.manager.update_config(self._config())

    def read(self, key: torch.Tensor, selection: torch.Tensor) -> torch.Tensor:
        if self.family == "xmem":
            return self.manager.match_memory(key, selection)
        h, w = key.shape[-2:]
        self.manager.initialize_sensory_if_needed(key, self.objects)
        through = types.SimpleNamespace(
            pixel_fusion=lambda pix, visual, *_: visual, readout_query=lambda pixel, summaries: (pixel, None)
        )
        pix, mask = key.new_zeros(1, 1, h, w), key.new_zeros(1, len(self.objects), h, w)
        readout = self.manager.read(pix, key, selection, mask, through)
        return torch.cat([readout[obj] for obj in self.objects])

    def add(self, key: torch.Tensor, shrinkage: torch.Tensor, selection: torch.Tensor, value: torch.Tensor) -> None:
        if self.family == "xmem":
            self.manager.add_memory(key, shrinkage, value, self.objects, selection=selection)
        else:
            self.manager.add_memory(key, shrinkage, value, None, self.objects, selection, as_permanent="first")

    @property
    def long_term(self) -> int:
        store = self.manager.long_mem
        return store.size if self.family == "xmem" else store.size(0)

    @property
    def working(self) -> int:
        """Frames in working memory, the permanent one included."""
        store = self.manager.work_mem
        return (store.size if self.family == "xmem" else store.size(0)) // self.manager.HW


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Times, extra memory and readouts of one host's manager at full memory."""
    tiny = args.size == "tiny"
    (h, w), fill, full = SIZES[args.size], 50 if tiny else 5000, 100 if tiny else 10000
    limits = {"max_mid_term_frames": 10, "min_mid_term_frames": 5, "max_long_term_elements": 4 * full}
    host = Host(args.checkout, args.objects, {**limits, "buffer_tokens": full // 5, "num_prototypes": fill})
    frames = features(h, w, args.objects, 512 if host.family == "xmem" else 256)
    readouts, times, added, peaks = [], [], [], [0]
    with torch.inference_mode(), Peak(CPU) as stored:
        host.add(*next(frames))
        while host.long_term < full:
            key, shrinkage, selection, value = next(frames)
            # The frame that fills working memory; a read before it gives the candidates their
            # usage.
            if host.working + 1 >= limits["max_mid_term_frames"]:
                readouts.append(host.read(key, selection))
            host.add(key, shrinkage, selection, value)
        host.configure(num_prototypes=8 if tiny else 128, max_long_term_elements=full)
        for _ in range(4):
            host.add(*next(frames))
    result: dict[str, Any] = {"tokens": host.long_term + host.working * h * w, "stored": stored.bytes}
    with torch.inference_mode():
        for _ in range(args.repeats):
            key, _, selection, _ = next(frames)
            with Peak(CPU) as peak:
                start = time.perf_counter()
                readouts.append(host.read(key, selection))
                times.append(time.perf_counter() - start)
            peaks.append(peak.bytes or 0)
        for _ in range(4):  # the first consolidates; the others are fewer than would fill working memory again
            frame = next(frames)
            with Peak(CPU) as peak:
                start = time.perf_counter()
                host.add(*frame)
                added.append(time.perf_counter() - start)
            result.setdefault("add_bytes", peak.bytes)
        readouts.append(host.read(frame[0], frame[2]))
    result |= {"read": statistics.median(times), "consolidate": added[0], "add": statistics.median(added[1:])}
    result |= {"read_bytes": max(peaks), "long_term": host.long_term}
    thinned = [x.flatten(1)[:, :: max(1, x[0].numel() // COMPARED_NUMBERS)].float() for x in readouts]
    return {**result, "readouts": torch.stack(thinned)}


def clip(args: argparse.Namespace) -> dict[str, Any]:
    """Probabilities over a small clip; {"missing": why} where the network cannot be loaded."""
    family, prefix = locate(args.checkout)
    if family == "cutie":
        return {"missing": "its network is run by tests/compat/test_compat_cutie.py"}
    torch.manual_seed(0)
    config = {**LIMITS, **SMALL, "mem_every": 3, "top_k": 20}  # the first frame has 24 tokens
    try:
        network = network_of(prefix, config)
    except ImportError as error:
        return {"missing": str(error)}
    g = torch.Generator().manual_seed(1)
    h, w = 64, 96
    image = torch.rand(3, h, w, generator=g)
    calibrate(network, image)
    mask = torch.zeros(2, h, w)
    mask[0, 8:40, 10:50], mask[1, 30:60, 55:90] = 1, 1
    core = core_of(prefix, network, config)
    core.set_all_labels([1, 2])
    probabilities = []
    start = time.perf_counter()
    with torch.inference_mode():
        for t in range(args.frames):
            frame = (image.roll(t, 2) - 0.5 + 0.05 * torch.randn(3, h, w, generator=g)) / 0.25
            out = core.step(frame, mask if t == 0 else None, [1, 2] if t == 0 else None)
            probabilities.append((out[0] if isinstance(out, tuple) else out).clone())
    seconds, long_term = time.perf_counter() - start, core.memory.long_mem.size
    return {"probabilities": torch.stack(probabilities), "seconds": seconds, "long_term": long_term}


PARTS = {"memory": memory, "clip": clip}


def in_fresh_process(part: str, patched: bool) -> dict[str, Any]:
    """A part with this process's options."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.pt"
        order = json.dumps({"part": part, "patched": patched, "out": str(out)})
        command = [sys.executable, __file__, *sys.argv[1:], "--order", order]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return torch.load(out)


def report(args: argparse.Namespace) -> None:
    print(f"{args.checkout}, torch {torch.__version__}, {args.threads} threads")
    if not args.clip_only:
        ours = in_fresh_process("memory", True)
        host = ours if args.patched_only else in_fresh_process("memory", False)
        print(f"memory manager at {args.size}, {args.objects} object(s), {host['tokens']} tokens, float32")
        print(f"| {'':24} | unpatched | patched | ratio |\n|{'-' * 26}|---|---|---|")
        for x in (host, ours):
            # A cycle at full memory: one consolidation per T_max - T_min = 5 memory frames, r = 5
            # reads for each.
            x["cycle"] = x["consolidate"] + 4 * x["add"] + 25 * x["read"]
        labels = {
            "read": "read, s",
            "consolidate": "add that consolidates, s",
            "add": "add, s",
            "cycle": "25 frames, s",
        }
        for name, label in labels.items():
            print(f"| {label:24} | {host[name]:9.3f} | {ours[name]:7.3f} | {host[name] / ours[name]:.1f} |")
        labels = {"read_bytes": "extra memory, read, MB", "add_bytes": "extra memory, add, MB"}
        labels["stored"] = "peak while filling it, MB"  # what is stored included
        for name, label in labels.items():
            a, b = (int(x[name] or 0) / 2**20 for x in (host, ours))
            print(f"| {label:24} | {a:9.0f} | {b:7.0f} | |")
        difference = (host["readouts"] - ours["readouts"]).abs().amax()
        print(f"largest difference of a readout {difference:.2g} of at most {host['readouts'].abs().amax():.2g}")
        print(f"long-term tokens at the end: {host['long_term']} and {ours['long_term']}")
    if not args.memory_only:
        host, ours = in_fresh_process("clip", False), in_fresh_process("clip", True)
        if "missing" in host:
            print(f"clip: left out, {host['missing']}")
            return
        a, b = host["probabilities"], ours["probabilities"]
        differing, pixels = int((a.argmax(1) != b.argmax(1)).sum()), a[:, 0].numel()
        print(f"clip of {len(a)} frames: largest difference of a probability {(a - b).abs().amax():.2g}")
        print(f"masks differ in {differing} of {pixels} pixels, long-term tokens {host['long_term']} and ", end="")
        print(f"{ours['long_term']}, {host['seconds']:.1f} s and {ours['seconds']:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout")
    parser.add_argument("--size", choices=SIZES, default="480p")
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clip-only", action="store_true")
    parser.add_argument("--memory-only", action="store_true")
    parser.add_argument("--patched-only", action="store_true", help="both columns ours, where the host has no room")
    parser.add_argument("--order", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.order is None:
        report(args)
        return
    _, prefix = locate(args.checkout)
    for module in ("memory_manager", "inference_core"):  # what is patched has to be there
        with contextlib.suppress(ImportError):
            importlib.import_module(f"{prefix}inference.{module}")
    handle = xmemk.patch() if args.order["patched"] else None
    torch.save(PARTS[args.order["part"]](args), args.order["out"])
    if handle is not None:
        handle.undo()


if __name__ == "__main__":
    main()
