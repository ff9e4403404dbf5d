"""Times the exported graphs beside xmemk.Tracker on the CPU: export_times.py [HEIGHT WIDTH FRAMES]

A network of the released size with random weights, one object. Prints a table in Markdown, for
docs/export.md.
"""

import statistics
import sys
import tempfile
import time

import torch

import xmemk
from xmemk.export import export_tracker
from xmemk.export.runner import Runner


def main() -> None:
    height, width, count = (int(x) for x in sys.argv[1:]) if len(sys.argv) > 1 else (480, 854, 61)
    torch.manual_seed(0)
    network, config = xmemk.XMem(), xmemk.MemoryConfig()
    images = torch.rand(count, 3, height, width)
    mask = torch.zeros(height, width, dtype=torch.int64)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        export_tracker(network, folder, config, height=height, width=width)
        exported = time.perf_counter() - start
        runner = Runner(folder)
        tracker = xmemk.Tracker(network.tuned(), config)
        times: dict[tuple[str, bool], list[float]] = {}
        worst = 0.0
        for t, image in enumerate(images):
            steps = {
                "xmemk.Tracker": lambda t=t, image=image: tracker.step(image, mask if t == 0 else None),
                "onnxruntime": lambda t=t, image=image: torch.from_numpy(
                    runner.step(image.numpy(), mask.numpy() if t == 0 else None)
                ),
            }
            results = {}
            for name in sorted(steps, reverse=bool(t % 2)):
                start = time.perf_counter()
                results[name] = steps[name]()
                times.setdefault((name, t % config.mem_every == 0), []).append(time.perf_counter() - start)
            worst = max(worst, float((results["xmemk.Tracker"] - results["onnxruntime"]).abs().max()))
    print(f"{height} x {width}, {count} frames, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"exported in {exported:.0f} s; largest difference of a probability {worst:.1e}; {tracker.memory}")
    print("\n| | a frame | a memory frame |\n|---|---|---|")
    for name in ("xmemk.Tracker", "onnxruntime"):
        medians = [statistics.median(times[name, memory][1:]) for memory in (False, True)]
        print(f"| {name} | {medians[0]:.2f} s | {medians[1]:.2f} s |")


if __name__ == "__main__":
    main()
