"""Chooses the tile sizes of configs.json for the GPU at hand.

``python -m xmemk.kernels.tune [--kernel NAME ...]``

For one kernel after the other, every candidate is timed within the read that launches it: at XMem's
size at 480p with ten frames and a full long-term memory. The fastest replaces the current one if it
is faster. A candidate is rejected, with a line that says why, where

- aot.py finds a problem (spills, local memory, too much shared memory, no matrix units): in the
  form that is timed, and in all forms before it replaces the current one;
- the read differs from Eq. 1 and 2 in float64.

Compiling takes most of the time. A run may be stopped: the table is replaced as a whole after each
kernel that gained.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from . import aot, configs

Config = dict[str, int]
Read = Callable[[], tuple[Tensor, Tensor | None]]

# kernel -> the case of aot.py that launches the form that is timed
TIMED = {
    "split_maxima": "topk float16",
    "read_rows": "topk float16",
    "split_lse": "dense float16",
    "split_weights": "dense float16",
    "multiply_values": "dense float16",
    "multiply_values_float32": "dense float32",
}
CHECKED_QUERIES = 64


def candidates(kernel: str) -> Iterator[Config]:
    """Configurations worth a try, of whatever GPU."""
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


def best(
    kernel: str,
    current: Config,
    time: Callable[[Config], float],
    problem: Callable[[Config, bool], str | None],
    report: Callable[[str], None] = print,
) -> tuple[Config, float]:
    """The fastest of the candidates and of what is used now, which only a gain of 1 % replaces; and
    its time.

    time: of a read with it; raises where it cannot be launched or reads what is wrong. problem: why
    not to use what the compiler makes of it, with True in every form, or None.
    """

    def attempt(config: Config, limit: float) -> tuple[float, str | None]:
        """Its time if less than ``limit``, else infinity; and why it is rejected, if it is."""
        why = problem(config, False)
        if why is not None:
            return math.inf, why
        try:
            duration = time(config)
        except Exception as error:  # does not fit, does not compile, is wrong: each has its own way to say so
            return math.inf, str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        why = problem(config, True) if duration < limit else None
        return (duration, None) if duration < limit and why is None else (math.inf, why)

    chosen = current
    least, why = attempt(current, math.inf)
    if why is not None:
        report(f"{kernel}: what is used now, {current}, would be rejected: {why}")
    for candidate in candidates(kernel):
        if candidate == current:
            continue
        duration, why = attempt(candidate, 0.99 * least)
        if why is not None:
            report(f"{kernel} {candidate}: rejected, {why}")
        elif duration < math.inf:
            chosen, least = candidate, duration
    return chosen, least


@functools.cache
def _compiled(launch: aot.Launch, architecture: int) -> tuple[str, ...]:
    try:
        return aot.compile_launch(launch, architecture).problems
    except Exception as error:  # the compilers' own
        return (f"does not compile: {type(error).__name__}",)


def compiled_problem(kernel: str, architecture: int, config: Config, every_form: bool) -> str | None:
    """The first problem that aot.py finds with a configuration: in the form that is timed, or in
    every form.
    """
    table = configs.table()[str(architecture)]
    before, table[kernel] = table[kernel], config
    configs.forget()
    try:
        only = (lambda case: True) if every_form else (lambda case: case == TIMED[kernel])
        launches = aot.launches(architecture, only)
    except ValueError as error:  # a grid that CUDA does not have
        return str(error)
    finally:
        table[kernel] = before
        configs.forget()
    # multiply_parts is configured as multiply_values is.
    name = kernel.removesuffix("_float32")
    names = (name, "multiply_parts") if name == "multiply_values" else (name,)
    for launch in launches:
        if launch.kernel in names and (problems := _compiled(launch, architecture)):
            return f"{launch.kernel} compiled for sm_{architecture}: {', '.join(problems)}"
    return None


def exact(mk: Tensor, ms: Tensor, mv: Tensor, qk: Tensor, qe: Tensor, top_k: int | None) -> Tensor:
    """Eq. 1 and 2 in float64, of a few queries: readout [B, O, CV, Q]."""
    mk, ms, mv, qk, qe = (x.double() for x in (mk, ms, mv, qk, qe))
    product = (mk * mk).mT @ qe - 2 * mk.mT @ (qe * qk) + (qe * qk * qk).sum(1, keepdim=True)
    score = -ms.mT * product / math.sqrt(mk.shape[1])
    if top_k is not None:
        score = score.masked_fill(score < score.topk(top_k, 1).values[:, -1:], -math.inf)
    return torch.einsum("bocn,bnq->bocq", mv, score.softmax(1))


def expect(readout: Tensor, expected: Tensor) -> None:
    """ValueError where a readout is off by more than its type's rounding explains."""
    allowed = (2**-9 if readout.dtype == torch.float16 else 2**-15) * expected.abs().max()
    off = (readout.double() - expected).abs().max()
    if not off <= allowed:  # NaN is none
        raise ValueError(f"wrong by {off:.2g} where {allowed:.2g} is allowed")


def write(table: dict[str, dict[str, Config]]) -> None:
    """configs.json, one kernel a line; there is always a whole one."""
    blocks = []
    for architecture, kernels in table.items():
        rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(config)}" for name, config in kernels.items())
        blocks.append(f"  {json.dumps(architecture)}: {{\n{rows}\n  }}")
    new = configs.PATH.with_suffix(f".{os.getpid()}.tmp")
    try:
        new.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
        new.replace(configs.PATH)
    finally:
        new.unlink(missing_ok=True)


def workloads(device: str, tokens: int = 24_580, queries: int = 1620) -> dict[str, tuple[Read, Tensor]]:
    """For each kernel a read that launches it, and what some of its queries read, exactly."""
    from . import memory_read

    def tensors(dtype: torch.dtype) -> tuple[Any, ...]:
        g = torch.Generator(device=device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, device=device).to(dtype).movedim(1, -1)

        ms = 1 + 9 * torch.rand((1, tokens, 1), generator=g, device=device).movedim(1, -1) ** 2
        mk, mv, qk = normal(1, tokens, 64), normal(1, tokens, 1, 512), normal(1, queries, 64)
        return mk, ms, mv, qk, normal(1, queries, 64).sigmoid()

    def one(dtype: torch.dtype, top_k: int | None) -> tuple[Read, Tensor]:
        mk, ms, mv, qk, qe = tensors(dtype)
        some = checked(queries)
        expected = exact(mk, ms, mv, qk[..., some], qe[..., some], top_k)
        return lambda: memory_read(MemoryInputs([mk], [ms], [mv]), QueryInputs(qk, qe), top_k, True), expected

    topk, dense = one(torch.float16, 30), one(torch.float16, None)
    return {
        "split_maxima": topk,
        "read_rows": topk,
        "split_lse": dense,
        "split_weights": dense,
        "multiply_values": dense,
        "multiply_values_float32": one(torch.float32, None),
    }


def checked(queries: int) -> slice:
    """Which queries are compared: some of every block."""
    return slice(None, None, max(1, queries // CHECKED_QUERIES))


def tune(name: str, kernels: list[str], work: dict[str, tuple[Read, Tensor]], bench: Callable[[Read], float]) -> None:
    """Tunes ``kernels`` on the device of ``work``, whose configurations the table has under
    ``name``.
    """
    table = configs.table()
    for kernel in kernels:
        read, expected = work[kernel]
        current = table[name][kernel]

        def time(config: Config, kernel: str = kernel, read: Read = read, expected: Tensor = expected) -> float:
            table[name][kernel] = config
            configs.forget()
            readout = read()[0]
            expect(readout[..., checked(readout.shape[3])], expected)
            return bench(read)

        def problem(config: Config, every_form: bool, kernel: str = kernel) -> str | None:
            return compiled_problem(kernel, int(name), config, every_form)

        chosen = current
        try:
            chosen, least = best(kernel, current, time, problem)
        finally:
            table[name][kernel] = chosen
            configs.forget()
        if chosen == current:
            print(f"{kernel} on {name}: nothing is faster than {current}, the read {1000 * least:.0f} us")
        else:
            write(table)
            print(f"{kernel} on {name}: {chosen} instead of {current}, the read {1000 * least:.0f} us")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m xmemk.kernels.tune", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kernel", nargs="+", choices=list(TIMED), default=list(TIMED))
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU: the table was written on one, or compiled for (python -m xmemk.kernels.aot)", file=sys.stderr)
        return 1
    from triton.testing import do_bench

    def bench(read: Read) -> float:
        return float(do_bench(read, warmup=10, rep=100, return_mode="median"))

    name = configs.name(torch.device("cuda", torch.cuda.current_device()))
    try:
        tune(name, options.kernel, workloads("cuda"), bench)
    except KeyboardInterrupt:
        print("stopped: the table has the best configurations of the kernels before this one", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
