"""The paper's two claims about long-term memory (Sec. 2.3), by measurement:
`python benchmarks/studies/claims.py [--quick]`.

"Extremely compact with a high (> 6000%) compression ratio": T_max - T_min frames of H/16 x W/16
tokens become P prototypes. "With a 6GB memory budget [...] we can process up to 34,000 frames
before running into any memory issues": without eviction, at 480p. The paper says neither how that
was counted, nor r, nor the precision. Here: the defaults (T_max = 10, T_min = 5, P = 128, k = 30, r
= 5), one object, float32, 6 GB = 6e9 bytes. The feature memory and what a read takes beside it are
counted, the network is not.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import linear_regression
from typing import Any

from xmemk.benchmarks.harness import arguments, record
from xmemk.benchmarks.harness.processes import peak_of
from xmemk.benchmarks.peers.catalogue import peers_of
from xmemk.benchmarks.peers.clip import KEY_CHANNELS, VALUE_CHANNELS, ClipFeatures
from xmemk.benchmarks.peers.memories import METHODS, held_bytes, hurry
from xmemk.benchmarks.peers.workloads import WORKLOADS, make_case
from xmemk.benchmarks.report import tables, terminal
from xmemk.benchmarks.report.schema import Claim

from xmemk import operators
from xmemk.memory import bytes_needed
from xmemk.reference import MemoryConfig

BUDGET = 6e9
CLAIMED_FRAMES, CLAIMED_COMPRESSION = 34_000, 6_000.0
UP_TO, MORE_THAN = f"up to {CLAIMED_FRAMES:,}", f"> {CLAIMED_COMPRESSION:.0f} %"
UNMEASURED = "peaks of resident memory cannot be measured on this system"
WITHOUT_EVICTION = "frames within 6 GB, xmemk, no eviction"


def compression(features: ClipFeatures, config: MemoryConfig) -> list[Claim]:
    """Of one consolidation of the oracle's stores, in tokens and in bytes."""
    memory: Any = METHODS["original"].make(config)
    hurry(memory, True)
    t = 0
    while not memory.consolidations:
        tokens, nbytes = memory.working_size, held_bytes(memory)
        _remember(memory, features, t)
        t += 1
    into, new = tokens + features.height * features.width - memory.working_size, memory.long_term_size
    token = nbytes / tokens
    prototype = (held_bytes(memory) - token * memory.working_size) / new
    size = f"{features.height} x {features.width} tokens a frame"
    rows = (
        ("tokens", 100 * into / new, f"{into:,} working-memory tokens became {new} prototypes in one consolidation, "
         f"{size}; (T_max - T_min) H W / P"),
        ("bytes", 100 * into * token / (new * prototype), f"{token:.0f} bytes a token in working memory, which has a "
         f"selection, {prototype:.0f} in long-term memory, one object, float32, {size}"),
    )  # fmt: skip
    return [
        Claim(f"compression, in {unit}", MORE_THAN, round(value), "%", how, value > CLAIMED_COMPRESSION)
        for unit, value, how in rows
    ]


def released_budget(features: ClipFeatures, config: MemoryConfig, sizes: tuple[int, ...]) -> Claim:
    """How long the released memory lasts in 6 GB: what it holds and its read takes, linear in N."""
    memory: Any = METHODS["original"].make(replace(config, max_long_term_elements=1_000_000))
    hurry(memory, True)  # potentiation
    nbytes: list[int] = []  # after each consolidation
    for t in range(12 * config.max_mid_term_frames):
        _remember(memory, features, t)
        if memory.consolidations > len(nbytes):
            nbytes.append(held_bytes(memory))
    a_consolidation = (nbytes[-1] - nbytes[0]) / (len(nbytes) - 1)
    peaks = read_peaks("original", features, sizes)
    name = "frames within 6 GB, released formulation, no eviction"
    if None in peaks:
        return Claim(name, UP_TO, unit="frames", how=UNMEASURED)
    a_token, offset = linear_regression(sizes, [float(peak or 0) for peak in peaks])
    working = (config.max_mid_term_frames - 1) * features.height * features.width
    fixed = nbytes[0] + offset + a_token * working  # at the first consolidation
    frames = _frames(BUDGET - fixed, a_consolidation + a_token * config.num_prototypes, config)
    how = f"{a_consolidation / 1e3:.0f} kB held more per consolidation, over {len(nbytes)} of them; a read takes "
    how += f"{a_token / 1e3:.1f} kB per token at its peak, measured up to N = {sizes[-1]:,} and extended"
    return Claim(name, UP_TO, frames, "frames", how, frames >= CLAIMED_FRAMES)


def our_budget(features: ClipFeatures, config: MemoryConfig, sizes: tuple[int, ...]) -> list[Claim]:
    """The same of our memory, whose storage is allocated once; and its bytes with eviction."""

    def needed(long_term: int) -> int:
        return bytes_needed(
            replace(config, max_long_term_elements=long_term), height=features.height, width=features.width,
            objects=[1], key_channels=KEY_CHANNELS, value_channels=VALUE_CHANNELS,
        )  # fmt: skip

    peaks = read_peaks("xmemk cpu" if operators.native_error() is None else "xmemk torch", features, sizes)
    kept, evicting = "memory for 34,000 frames without eviction, xmemk", "memory with eviction, xmemk, for any length"
    papers = {WITHOUT_EVICTION: UP_TO, kept: "6 GB", evicting: "does not grow"}
    if None in peaks:
        return [Claim(name, paper, how=UNMEASURED) for name, paper in papers.items()]
    peak = max(peak or 0 for peak in peaks)
    a_consolidation = needed(config.num_prototypes + 1_000_000) - needed(1_000_000)
    working = needed(config.num_prototypes) - a_consolidation
    frames = _frames(BUDGET - working - peak, a_consolidation, config)
    prototypes = _consolidations_of(CLAIMED_FRAMES, config) * config.num_prototypes
    read = f"the peak of a read, {peak / 1e6:.0f} MB up to N = {sizes[-1]:,}"
    rows = (
        (WITHOUT_EVICTION, frames, "frames", frames >= CLAIMED_FRAMES,
         f"{a_consolidation / 1e3:.0f} kB a consolidation, {working / 1e6:.0f} MB of working memory, {read}"),
        (kept, round((needed(prototypes) + peak) / 1e9, 3), "GB", needed(prototypes) + peak <= BUDGET,
         f"{CLAIMED_FRAMES:,} frames: {prototypes:,} prototypes, bytes_needed of them, {read}"),
        (evicting, round((needed(config.max_long_term_elements) + peak) / 1e9, 3), "GB", True,
         f"allocated once for {config.max_long_term_elements:,} long-term tokens, {read}"),
    )  # fmt: skip
    return [Claim(name, papers[name], figure, unit, how, holds) for name, figure, unit, holds, how in rows]


def read_peaks(name: str, features: ClipFeatures, sizes: tuple[int, ...]) -> list[int | None]:
    """Bytes that a peer's read of so many tokens takes at its peak."""
    peer = next(p for p in peers_of("memory_read", ["cpu", "torch"]) if p.name == name)
    queries = features.height * features.width
    workloads = [replace(WORKLOADS["480p-full"], tokens=n, queries=queries) for n in sizes]
    return [peak_of(make_case("memory_read", workload), peer) for workload in workloads]


def _remember(memory: Any, features: ClipFeatures, t: int) -> None:
    """Memory frame t, which is not read before: the number of prototypes is the same."""
    key, shrinkage, value, selection = features.remembered(t)
    memory.add(key, shrinkage, value, [1], selection)


def _frames(nbytes: float, per_consolidation: float, config: MemoryConfig) -> int:
    """Frames of video whose consolidations take so many bytes."""
    return int(nbytes / per_consolidation) * _between(config)


def _between(config: MemoryConfig) -> int:
    """Frames from a consolidation to the next."""
    return (config.max_mid_term_frames - config.min_mid_term_frames) * config.mem_every


def _consolidations_of(frames: int, config: MemoryConfig) -> int:
    first = (config.max_mid_term_frames - 1) * config.mem_every
    return max(0, (frames - 1 - first) // _between(config) + 1)


def measure(
    *, quick: bool = False, height: int = 30, width: int = 54, results: list[Claim] | None = None
) -> list[Claim]:
    """All claims, also put into ``results`` as they come."""
    results = [] if results is None else results
    features, config = ClipFeatures(height, width, 20 if quick else 132), MemoryConfig(hidden_dim=0)
    sizes = (10_000, 20_000) if quick else (10_000, 20_000, 40_000)
    with terminal.progress("claims") as say:
        say("compression")
        results += compression(features, config)
        say("6 GB, the released memory")
        results.append(released_budget(features, config, sizes))
        say("6 GB, ours")
        results += our_budget(features, config, sizes)
    return results


def parser() -> argparse.ArgumentParser:
    return arguments.study(__doc__, "reads of fewer tokens")


def main(words: list[str] | None = None) -> None:
    options = arguments.parsed(parser(), words)
    with record.recorded("claims", options.save) as results:
        measure(quick=options.quick, results=results)
    terminal.show(tables.claims(results), hidden=("line",))


if __name__ == "__main__":
    main()
