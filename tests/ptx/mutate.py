"""python tests/ptx/mutate.py: are faults in compiled kernels noticed?

Instructions that order or wait are removed one by one, and others changed a little; a mutant is
noticed where the interpreter finds something or the result is wrong, in one of a few runs with
other interleavings. Changes of code that no case executes are left out. The table ends with what
went unnoticed.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import cases
import torch
from interp import machine, ptx
from run import run_case

NOTHING = ptx.Instruction("nop", ())
ORDERING = re.compile(
    r"bar\.sync|bar\.warp\.sync|cp\.async\.(commit|wait)_group|wgmma\.(fence|commit|wait)|fence\.proxy"
)
LARGEST = 3  # runs of a mutant, with other seeds, before it counts as unnoticed


@dataclass(frozen=True)
class Mutant:
    kind: str
    kernel: str
    place: int
    before: ptx.Instruction
    after: ptx.Instruction

    def change(self, kernel: ptx.Kernel) -> ptx.Kernel:
        if kernel.name != self.kernel or kernel.instructions[self.place] != self.before:
            return kernel
        instructions = list(kernel.instructions)
        instructions[self.place] = self.after
        return dataclasses.replace(kernel, instructions=tuple(instructions))


def removed(kernel: ptx.Kernel) -> Iterator[Mutant]:
    for place, one in enumerate(kernel.instructions):
        if ORDERING.match(one.opcode):
            name = re.sub(r"\.sync\.aligned|\.shared::cta", "", one.opcode)
            yield Mutant(f"without {name}", kernel.name, place, one, NOTHING)


def changed(kernel: ptx.Kernel) -> Iterator[Mutant]:
    """Guards taken away, offsets a step too far, accumulators and factors of products swapped."""

    def mutant(kind: str, place: int, one: ptx.Instruction, **how: object) -> Mutant:
        return Mutant(kind, kernel.name, place, one, dataclasses.replace(one, **how))  # type: ignore[arg-type]

    for place, one in enumerate(kernel.instructions):
        if one.guard and one.opcode.startswith(("ld.global", "st.global")):
            yield mutant("without mask", place, one, guard="", negated=False)
        for n, operand in enumerate(one.operands):
            if operand.startswith("[%") and one.opcode.startswith(("ld.", "st.", "ldmatrix", "stmatrix", "cp.async")):
                further = re.sub(r"( ?\+ ?)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 16}", operand)
                further = further if further != operand else operand.replace("]", "+16]")
                yield mutant("offset + 16", place, one, operands=(*one.operands[:n], further, *one.operands[n + 1 :]))
                break
        if one.opcode.startswith(("mma.sync", "wgmma.mma_async")):
            registers = one.operands[0].strip("{} ").split(",")
            swapped = "{" + ",".join([registers[1], registers[0], *registers[2:]]) + "}"
            yield mutant("accumulators swapped", place, one, operands=(swapped, *one.operands[1:]))
        if one.opcode.startswith("wgmma.mma_async") and one.operands[1].startswith("%"):
            a, b = one.operands[1:3]
            yield mutant("factors swapped", place, one, operands=(one.operands[0], b, a, *one.operands[3:]))
        if re.match(r"(shl|mul|mad)\.", one.opcode) and re.fullmatch(r"[1-9]\d*", one.operands[2]):
            more = str(int(one.operands[2]) + 1)
            yield mutant("stride + 1", place, one, operands=(*one.operands[:2], more, *one.operands[3:]))


def mutants_of(case: cases.Case, architecture: int, every: int, only: str) -> Iterator[Mutant]:
    """Of the kernels that a case launches; of the changed ones each ``every``-th."""
    result = run_case(case, architecture)
    if not result.passed:
        raise RuntimeError(f"{case.name} fails before anything is changed: {result}")
    seen: set[tuple[str, str]] = set()
    for run in result.runs:
        kernel = run.program.kernel
        text = "\n".join(map(str, kernel.instructions))
        if (kernel.name, text) in seen or only not in kernel.name:
            continue
        seen.add((kernel.name, text))
        all_of_it = [*removed(kernel), *list(changed(kernel))[::every]]
        yield from (m for m in all_of_it if run.outcome.executed[m.place])


def noticed(mutant: Mutant, case: cases.Case, architecture: int) -> bool:
    return any(not run_case(case, architecture, seed, mutant.change).passed for seed in range(LARGEST))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/ptx/mutate.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", type=int, choices=(80, 90), default=90)
    parser.add_argument("--case", nargs="+", default=["topk float16", "dense float16"], help="names of cases")
    parser.add_argument("--kernel", default="", help="kernels whose name holds this")
    parser.add_argument(
        "--every", type=int, default=20, help="of offsets, strides and masks each so many-th is changed"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine.LIMIT = 5_000_000
    started = time.perf_counter()
    total: Counter[tuple[str, str]] = Counter()
    seen: Counter[tuple[str, str]] = Counter()
    missed = []
    for case in (c for c in cases.CASES if c.name in options.case):
        for mutant in list(mutants_of(case, options.arch, options.every, options.kernel)):
            key = mutant.kernel, mutant.kind
            total[key] += 1
            if noticed(mutant, case, options.arch):
                seen[key] += 1
            else:
                missed.append((case.name, mutant))
    print(f"{'kernel':20}{'mutants':38}{'noticed':>10}")
    for kernel, kind in sorted(total):
        print(f"{kernel:20}{kind:38}{seen[kernel, kind]:>4} of {total[kernel, kind]}")
    for name, mutant in missed:
        print(f"unnoticed in {name}: {mutant.kernel} {mutant.kind}, instruction {mutant.place}: {mutant.before}"[:160])
    share = sum(seen.values()) / max(1, sum(total.values()))
    print(f"{sum(seen.values())} of {sum(total.values())} noticed, {share:.1%}; {time.perf_counter() - started:.0f} s")
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
