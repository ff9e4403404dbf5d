"""The drop-in against a real checkout, patched and unpatched: time, extra memory, largest difference.

    python benchmarks/dropin.py PATH_TO_A_CHECKOUT [--size 480p|720p|1080p] [--objects 1] [--clip-only | --memory-only]
        [--patched-only]

The checkout is XMem (https://github.com/hkchengrex/XMem), Track-Anything, Cutie, or another folder with their memory
code; "rf-cutie" stands for the installed package. Two parts, each run in fresh processes, without the drop-in and with:

* memory: the host's memory manager alone, on synthetic features, filled to 9 frames and 10,000 long-term tokens; then
  reads, and memory frames that end in an eviction and a consolidation. The table's times are medians.
* clip: the whole network with random weights and a fixed seed over 200 small frames, with limits so low that it
  consolidates and evicts often. Networks that cannot be loaded here are named and left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import torch
from xmemk.benchmarks.peers.random_network import calibrate, features

import xmemk
from xmemk.measure.peak import Peak

SIZES = {"tiny": (6, 9), "480p": (30, 54), "720p": (45, 80), "1080p": (68, 120)}  # at stride 16
XMEM_LIMITS = {
    "hidden_dim": 64,
    "top_k": 30,
    "mem_every": 5,
    "deep_update_every": -1,
    "enable_long_term": True,
    "enable_long_term_count_usage": True,
    "max_mid_term_frames": 10,
    "min_mid_term_frames": 5,
    "num_prototypes": 128,
    "max_long_term_elements": 10000,
}
SMALL = {"max_mid_term_frames": 5, "min_mid_term_frames": 3, "num_prototypes": 16, "max_long_term_elements": 120}


class Nested(dict):
    """A configuration with attributes, as Cutie reads it."""

    __getattr__ = dict.__getitem__


def cutie_config(long_term: dict[str, int], sensory_dim: int = 256) -> Nested:
    names = ("max_mem_frames", "min_mem_frames", "num_prototypes", "max_num_tokens", "buffer_tokens")
    limits = Nested(zip(names, (long_term[name] for name in (*list(SMALL), "buffer_tokens"))), count_usage=True)
    return Nested(
        top_k=30,
        chunk_size=-1,
        save_aux=False,
        use_long_term=True,
        max_mem_frames=5,
        long_term=limits,
        model=Nested(sensory_dim=sensory_dim),
    )


def locate(checkout: str) -> tuple[str, str]:
    """The family and the package prefix of a checkout, whose folders are put on the path."""
    if checkout == "rf-cutie":
        return "cutie", "cutie."
    root = Path(checkout).resolve()
    for prefix in ("", "tracker.", "cutie."):
        folder = root / prefix.replace(".", "/") / "inference"
        if (folder / "memory_manager.py").exists():
            sys.path[:0] = [str(root), str(folder.parent)] if prefix == "tracker." else [str(root)]
            manager = importlib.import_module(f"{prefix}inference.memory_manager").MemoryManager
            return ("cutie" if hasattr(manager, "read") else "xmem"), prefix
    raise SystemExit(f"{checkout}: wanted a checkout with inference/memory_manager.py, tracker/... or cutie/...")


class Host:
    """Either family's manager behind the two calls that are measured."""

    def __init__(self, family: str, prefix: str, objects: int, limits: dict[str, int]) -> None:
        self.family, self.objects, self.limits = family, objects, limits
        module = importlib.import_module(f"{prefix}inference.memory_manager")
        if family == "xmem":
            self.manager = module.MemoryManager(config={**XMEM_LIMITS, **limits})
            return
        objects_held = importlib.import_module(f"{prefix}inference.object_manager").ObjectManager()
        objects_held.add_new_objects(list(range(1, objects + 1)))
        self.manager = module.MemoryManager(cutie_config({**SMALL, "buffer_tokens": 24, **limits}, 1), objects_held)

    def configure(self, **limits: int) -> None:
        self.limits = {**self.limits, **limits}
        if self.family == "xmem":
            self.manager.update_config({**XMEM_LIMITS, **self.limits})
        else:
            self.manager.update_config(cutie_config({**SMALL, "buffer_tokens": 24, **self.limits}, 1))

    def read(self, key: torch.Tensor, selection: torch.Tensor) -> torch.Tensor:
        if self.family == "xmem":
            return self.manager.match_memory(key, selection)
        h, w = key.shape[-2:]
        ids = list(range(1, self.objects + 1))
        self.manager.initialize_sensory_if_needed(key, ids)
        through = types.SimpleNamespace(
            pixel_fusion=lambda pix, visual, *_: visual, readout_query=lambda pixel, summaries: (pixel, None)
        )
        pix, mask = key.new_zeros(1, 1, h, w), key.new_zeros(1, self.objects, h, w)
        found = self.manager.read(pix, key, selection, mask, through)
        return torch.cat([found[obj] for obj in ids])

    def add(self, key: torch.Tensor, shrinkage: torch.Tensor, selection: torch.Tensor, value: torch.Tensor) -> None:
        ids = list(range(1, self.objects + 1))
        if self.family == "xmem":
            self.manager.add_memory(key, shrinkage, value, ids, selection=selection)
        else:
            self.manager.add_memory(key, shrinkage, value, None, ids, selection, as_permanent="first")

    @property
    def long_term(self) -> int:
        store = self.manager.long_mem
        return store.size if self.family == "xmem" else store.size(0)


def memory(checkout: str, patched: bool, size: str, objects: int, repeats: int) -> dict[str, object]:
    """Times, extra memory and readouts of one host's manager at full memory."""
    family, prefix = locate(checkout)
    importlib.import_module(f"{prefix}inference.memory_manager")
    handle = xmemk.patch() if patched else None
    h, w = SIZES[size]
    fill = 5000 if size != "tiny" else 50
    full = 10000 if size != "tiny" else 100
    limits = {
        "max_mid_term_frames": 10,
        "min_mid_term_frames": 5,
        "max_long_term_elements": 4 * full,
        "buffer_tokens": full // 5,
    }
    host = Host(family, prefix, objects, {**limits, "num_prototypes": fill})
    frames = features(h, w, objects, 512 if family == "xmem" else 256)
    readouts = []
    with torch.inference_mode(), Peak(torch.device("cpu")) as stored:
        host.add(*next(frames))
        while host.long_term < full:
            key, shrinkage, selection, value = next(frames)
            # The frame that fills working memory; a read before it gives the candidates their usage.
            if working(host) + 1 >= limits["max_mid_term_frames"]:
                readouts.append(host.read(key, selection))
            host.add(key, shrinkage, selection, value)
        host.configure(num_prototypes=128 if size != "tiny" else 8, max_long_term_elements=full)
        for _ in range(4):
            host.add(*next(frames))
    result: dict[str, object] = {"tokens": host.long_term + working(host) * h * w, "stored": stored.bytes}
    with torch.inference_mode():
        times = []
        for _ in range(repeats):
            key, _, selection, _ = next(frames)
            with Peak(torch.device("cpu")) as peak:
                start = time.perf_counter()
                readout = host.read(key, selection)
                times.append(time.perf_counter() - start)
            readouts.append(readout)
            result["read_bytes"] = max(peak.bytes or 0, int(result.get("read_bytes", 0)))
            del readout
        frame = next(frames)
        with Peak(torch.device("cpu")) as peak:
            start = time.perf_counter()
            host.add(*frame)
            result["consolidate"] = time.perf_counter() - start
        result["add_bytes"] = peak.bytes
        added = []
        for _ in range(3):  # fewer than would fill working memory again
            frame = next(frames)
            start = time.perf_counter()
            host.add(*frame)
            added.append(time.perf_counter() - start)
        result["add"] = statistics.median(added)
        readouts.append(host.read(frame[0], frame[2]))
    result["read"] = statistics.median(times)
    result["readouts"] = torch.stack([x.flatten(1)[:, :: max(1, x[0].numel() // 200_000)].float() for x in readouts])
    result["long_term"] = host.long_term
    if handle is not None:
        handle.undo()
    return result


def working(host: Host) -> int:
    """Frames in working memory, the permanent one included."""
    store = host.manager.work_mem
    tokens = store.size if host.family == "xmem" else store.size(0)
    return tokens // host.manager.HW


def clip(checkout: str, patched: bool, frames: int) -> dict[str, object]:
    """Probabilities of the whole host over a small clip; {"missing": why} where its network cannot be loaded."""
    family, prefix = locate(checkout)
    if family == "cutie":
        return {"missing": "its network is run by tests/compat/test_compat_cutie.py"}
    torch.manual_seed(0)
    try:
        importlib.import_module(f"{prefix}inference.inference_core")
        resnet = next(m for n, m in list(sys.modules.items()) if n.endswith("model.resnet"))
        for module in [m for n, m in list(sys.modules.items()) if n.endswith("model.resnet")]:
            module.model_zoo = types.SimpleNamespace(load_url=lambda *a, **k: {})  # random weights, no download
            module.load_weights_add_extra_dim = lambda *a, **k: None
        del resnet
        network_module = importlib.import_module(f"{prefix}model.network")
        core_module = importlib.import_module(f"{prefix}inference.inference_core")
    except ImportError as error:
        return {"missing": str(error)}
    config = {**XMEM_LIMITS, **SMALL, "mem_every": 3, "top_k": 20}  # the first frame has 24 tokens
    network = network_module.XMem(dict(config)).eval()
    g = torch.Generator().manual_seed(1)
    h, w = 64, 96
    image = torch.rand(3, h, w, generator=g)
    calibrate(network, image)
    mask = torch.zeros(2, h, w)
    mask[0, 8:40, 10:50], mask[1, 30:60, 55:90] = 1, 1
    handle = xmemk.patch() if patched else None
    core = core_module.InferenceCore(network, dict(config))
    core.set_all_labels([1, 2])
    found = []
    start = time.perf_counter()
    with torch.inference_mode():
        for t in range(frames):
            frame = (image.roll(t, 2) - 0.5 + 0.05 * torch.randn(3, h, w, generator=g)) / 0.25
            out = core.step(frame, mask if t == 0 else None, [1, 2] if t == 0 else None)
            found.append((out[0] if isinstance(out, tuple) else out).clone())
    if handle is not None:
        handle.undo()
    return {
        "probabilities": torch.stack(found),
        "seconds": time.perf_counter() - start,
        "long_term": core.memory.long_mem.size,
    }


def in_fresh_process(part: str, patched: bool, args: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.pt"
        given = [args.checkout, "--size", args.size, "--objects", str(args.objects), "--repeats", str(args.repeats)]
        given += ["--frames", str(args.frames), "--threads", str(args.threads)]
        worker = json.dumps({"part": part, "patched": patched, "out": str(out)})
        subprocess.run([sys.executable, __file__, *given, "--worker", worker], check=True, stdout=subprocess.DEVNULL)
        return torch.load(out)


def report(args: argparse.Namespace) -> None:
    print(f"{args.checkout}, torch {torch.__version__}, {args.threads} threads")
    if not args.clip_only:
        ours = in_fresh_process("memory", True, args)
        host = ours if args.patched_only else in_fresh_process("memory", False, args)
        print(f"memory manager at {args.size}, {args.objects} object(s), {host['tokens']} tokens, float32")
        print(f"| {'':24} | unpatched | patched | ratio |\n|{'-' * 26}|---|---|---|")
        for name, label in (("read", "read, s"), ("consolidate", "add that consolidates, s"), ("add", "add, s")):
            a, b = host[name], ours[name]
            print(f"| {label:24} | {a:9.3f} | {b:7.3f} | {a / b:.1f} |")
        # A cycle at full memory: one consolidation per T_max - T_min = 5 memory frames, r = 5 reads for each of them.
        cycle = [x["consolidate"] + 4 * x["add"] + 25 * x["read"] for x in (host, ours)]
        print(f"| {'25 frames, s':24} | {cycle[0]:9.2f} | {cycle[1]:7.2f} | {cycle[0] / cycle[1]:.1f} |")
        for name, label in (("read_bytes", "extra memory, read"), ("add_bytes", "extra memory, add")):
            a, b = (int(x[name] or 0) / 2**20 for x in (host, ours))
            print(f"| {label + ', MB':24} | {a:9.0f} | {b:7.0f} | |")
        stored = [int(x["stored"] or 0) / 2**20 for x in (host, ours)]
        print(f"peak while filling it, what is stored included: {stored[0]:.0f} and {stored[1]:.0f} MB")
        difference = (host["readouts"] - ours["readouts"]).abs().amax()
        print(f"largest difference of a readout {difference:.2g} of at most {host['readouts'].abs().amax():.2g}")
        print(f"long-term tokens at the end: {host['long_term']} and {ours['long_term']}")
    if not args.memory_only:
        host, ours = in_fresh_process("clip", False, args), in_fresh_process("clip", True, args)
        if "missing" in host:
            print(f"clip: left out, {host['missing']}")
            return
        a, b = host["probabilities"], ours["probabilities"]
        print(
            f"clip of {len(a)} frames: largest difference of a probability {(a - b).abs().amax():.2g}, masks differ in "
            f"{int((a.argmax(1) != b.argmax(1)).sum())} of {a[:, 0].numel()} pixels, long-term tokens "
            f"{host['long_term']} and {ours['long_term']}, {host['seconds']:.1f} s and {ours['seconds']:.1f} s"
        )


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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker is None:
        report(args)
        return
    worker = json.loads(args.worker)
    if worker["part"] == "memory":
        result = memory(args.checkout, worker["patched"], args.size, args.objects, args.repeats)
    else:
        result = clip(args.checkout, worker["patched"], args.frames)
    torch.save(result, worker["out"])


if __name__ == "__main__":
    main()
