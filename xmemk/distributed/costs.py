"""What a sharded read costs, by a stated model: ``python -m xmemk.distributed.costs``.

A read of N tokens over R ranks takes the read of N / R tokens, three collectives, and the time that
their bytes take:

    t(R) = N / R * Q * seconds per pair + bytes / bandwidth + 3 * latency

Transfers and scoring do not overlap in this model, as they do not in the code. The figures for GPUs
are predictions: seconds per pair come from counted instructions, bandwidth and latency from data
sheets. Nothing was measured on a GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from .read import SPARE

COLLECTIVES = 3  # of a top-k read of a memory: candidates, verdict, readout


@dataclass(frozen=True)
class Machine:
    """seconds_per_pair: of a token and a query on one rank. bandwidth: bytes/s per direction."""

    name: str
    seconds_per_pair: float
    bandwidth: float
    latency: float


# 110 us for 24,580 tokens and 1,620 queries by count of instructions.
_H100 = 110e-6 / (24_580 * 1_620)
MACHINES = (
    Machine("8 H100, NVLink", _H100, 450e9, 15e-6),
    Machine("64 H100, InfiniBand", _H100, 50e9, 30e-6),
)


@dataclass(frozen=True)
class Read:
    """The sizes of a top-k read, N over all ranks. Readouts travel as float32."""

    tokens: int
    queries: int
    objects: int = 1
    value_channels: int = 512
    top_k: int = 30

    def sent(self, ranks: int) -> dict[str, float]:
        """Bytes that each rank sends in each collective, with the ring algorithm."""
        share = (ranks - 1) / ranks
        candidates = min(self.top_k + SPARE, -(-self.tokens // ranks))
        return {
            "candidates": self.queries * candidates * 16 * share,
            "verdict": self.queries * 32 * share,
            "readout": 2 * self.queries * self.objects * self.value_channels * 4 * share,
        }

    def seconds(self, ranks: int, machine: Machine) -> float:
        """The predicted time."""
        local = self.tokens / ranks * self.queries * machine.seconds_per_pair
        if ranks == 1:
            return local
        return local + sum(self.sent(ranks).values()) / machine.bandwidth + COLLECTIVES * machine.latency

    def efficiency(self, ranks: int, machine: Machine) -> float:
        """The time of one rank over that of all ranks together."""
        return self.seconds(1, machine) / (ranks * self.seconds(ranks, machine))

    def tokens_for(self, efficiency: float, ranks: int, machine: Machine) -> int:
        """The fewest tokens with this efficiency."""
        overhead = sum(self.sent(ranks).values()) / machine.bandwidth + COLLECTIVES * machine.latency
        local = overhead * efficiency / (1 - efficiency)
        return round(local * ranks / (self.queries * machine.seconds_per_pair))


def markdown() -> str:
    """The predictions as a table."""
    lines = [
        "| machine | N | Q | sent per rank | one rank | all ranks | efficiency | 85 % from N = |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for machine in MACHINES:
        ranks = int(machine.name.split()[0])
        for tokens, queries in ((200_000, 8_160), (1_000_000, 8_160), (10_000_000, 8_160), (200_000, 1_620)):
            read = Read(tokens, queries)
            enough = read.tokens_for(0.85, ranks, machine)
            lines.append(
                f"| {machine.name} | {tokens:,} | {queries:,} | {sum(read.sent(ranks).values()) / 1e6:.1f} MB "
                f"| {read.seconds(1, machine) * 1e3:.2f} ms | {read.seconds(ranks, machine) * 1e3:.2f} ms "
                f"| {read.efficiency(ranks, machine):.0%} | {enough:,} |"
            )
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(prog="python -m xmemk.distributed.costs", description=__doc__.split("\n\n")[0]).parse_args()
    print(markdown())


if __name__ == "__main__":
    main()
