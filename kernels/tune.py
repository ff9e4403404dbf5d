"""Chooses the tile sizes of configs.json for the GPU at hand: ``python -m xmemk.kernels.tune``

For one kernel after the other, every candidate is timed within the read that launches it, at XMem's size at 480p with
ten frames and a full long-term memory, and the fastest is kept. Compiling takes most of the time; it may be stopped,
since the table is written after each kernel.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import configs

Config = dict[str, int]


def candidates(kernel: str) -> Iterator[Config]:
    """Configurations worth a try; those that do not fit a GPU fail to launch there."""
    if kernel == "read_rows":
        sizes: dict[str, tuple[int, ...]] = {"BLOCK_C": (128, 256, 512), "SLOTS": (4, 8, 16, 32)}
    elif kernel.startswith("multiply_values"):
        sizes = {"BLOCK_Q": (64, 128), "BLOCK_C": (64, 128, 256), "BLOCK_N": (32, 64, 128)}
    else:
        sizes = {"BLOCK_Q": (64, 128), "BLOCK_N": (32, 64, 128)}
        if kernel == "split_weights":
            sizes["SPAN"] = (1, 2, 4, 8)
    sizes |= {"num_warps": (4, 8), "num_stages": (1, 2, 3, 4)}
    for values in itertools.product(*sizes.values()):
        yield dict(zip(sizes, values))


def best(kernel: str, now: Config, time: Callable[[Config], float]) -> tuple[Config, float]:
    """The fastest of the candidates and of what is used now, which only a gain of 1 % replaces. ``time`` may raise."""
    kept, least = now, time(now)
    for candidate in candidates(kernel):
        try:
            taken = time(candidate)
        except Exception as error:  # does not fit, or does not compile: every compiler has its own way to say so
            print(f"{kernel} {candidate}: {str(error).splitlines()[0][:80] if str(error) else type(error).__name__}")
            continue
        if taken < 0.99 * least:
            kept, least = candidate, taken
    return kept, least


def write(table: dict[str, dict[str, Config]]) -> None:
    """configs.json, one kernel a line."""
    blocks = []
    for architecture, kernels in table.items():
        rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(config)}" for name, config in kernels.items())
        blocks.append(f"  {json.dumps(architecture)}: {{\n{rows}\n  }}")
    configs.PATH.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def workloads() -> dict[str, Callable[[], Any]]:
    """For each kernel a read that launches it."""
    from . import memory_read

    def tensors(dtype: torch.dtype) -> tuple[Any, ...]:
        g = torch.Generator(device="cuda").manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=g, device="cuda").to(dtype).movedim(1, -1)

        ms = 1 + 9 * torch.rand((1, 24_580, 1), generator=g, device="cuda").movedim(1, -1) ** 2
        mk, mv, qk = normal(1, 24_580, 64), normal(1, 24_580, 1, 512), normal(1, 1620, 64)
        return [mk], [ms], [mv], qk, normal(1, 1620, 64).sigmoid()

    half, single = tensors(torch.float16), tensors(torch.float32)
    topk, dense = (lambda: memory_read(*half, 30, True)), (lambda: memory_read(*half, None, True))
    return {
        "split_maxima": topk,
        "read_rows": topk,
        "split_lse": dense,
        "split_weights": dense,
        "multiply_values": dense,
        "multiply_values_float32": lambda: memory_read(*single, None, True),
    }


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU: the table was written on one, or compiled for (python -m xmemk.kernels.aot)", file=sys.stderr)
        return 1
    from triton.testing import do_bench

    table = configs.table()
    name = configs.name(torch.device("cuda", torch.cuda.current_device()))
    for kernel, read in workloads().items():

        def time(config: Config, kernel: str = kernel, read: Callable[[], Any] = read) -> float:
            table[name][kernel] = config
            configs.forget()
            return float(do_bench(read, warmup=10, rep=100, return_mode="median"))

        now = table[name][kernel]
        kept, least = best(kernel, now, time)
        table[name][kernel] = kept
        write(table)
        print(f"{kernel} on {name}: {kept}, the read {1000 * least:.0f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
