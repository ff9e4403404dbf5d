"""xmemk beside its peers on the named workloads: `python benchmarks/run.py --op memory_read
--workload 480p-full`.

Ops are timed only when their tests pass. Each peer is compared with float64 before it is timed, and
peers take turns, round by round. A table shows medians, half the distance between the quartiles,
how many times our time a peer takes (the median of the rounds' ratios), the share of the roof
(costs.py), and the peak of memory beyond the inputs. A peer that cannot run or is wrong is a row
with its reason. On a GPU the time is the device's, by replays of a graph; cold is one replay after
the cache was overwritten, launch what it takes to issue a call.

--base REV compares with another revision of this repository, --agree FILE [FILE] two runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from xmemk.benchmarks.harness import arguments, cases, op_tests, record, revisions, sweeps
from xmemk.benchmarks.harness.cases import DTYPES, SUITES, Suite, SuiteItem
from xmemk.benchmarks.peers.video import NETWORKS
from xmemk.benchmarks.peers.workloads import ALL_OPS, FRAME_OPS, UPKEEP, WORKLOADS, op_name
from xmemk.benchmarks.report import terminal
from xmemk.benchmarks.report.terminal import tell

from xmemk.measure import load
from xmemk.measure.machine import describe


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where tests are red, ours is wrong, or what was asked for cannot be done.

    Without ``argv``, as a program, a fresh process may take the place of this one.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    options = arguments.parsed(parser(), words)
    if options.agree:
        return terminal.agree(options.agree)
    torch.backends.cuda.matmul.allow_tf32 = False
    suite = suite_of(options)
    state = record.take_up(options.go_on) if options.go_on else begin(suite, options, words)
    if state is None:
        return 1
    run = state.run
    red = any(item.op not in state.green for item in suite.items)
    try:
        with record.kept(run, options.save), contextlib.ExitStack() as base:
            peers: sweeps.PeersOf = cases.peers
            if options.base:
                peers = base.enter_context(revisions.beside(options.base, run, options.limit))
            right = sweeps.beside_peers(suite, options, state, peers, restarts=argv is None)
    except revisions.NoSuchRevision as failure:
        tell(f"--base: {failure}")
        return 1
    if options.json:
        print(json.dumps(run.to_json(), indent=1))
    return int(red or not right)


def begin(suite: Suite, options: argparse.Namespace, words: Sequence[str]) -> record.RunState | None:
    """The machine in words, the tests, and a run without results; None where it is refused."""
    until = None if options.seconds is None else time.time() + options.seconds
    machine = machine_of(options.device)
    tell(f"{', '.join(machine.values())}, xmemk {record.revision()}")
    ops = [item.op for item in suite.items]
    green: dict[str, bool | str] = dict.fromkeys(ops, "tests not run: --untested")
    red: dict[str, list[str]] = {}
    if not options.untested:
        tell(f"tests of {', '.join(dict.fromkeys(ops))}")
        with terminal.progress("tests"):
            green, red = op_tests.check(ops, options.device)
    for op, names in red.items():
        tell(f"{op}: its tests are red: {', '.join(names)}")
    if red and (options.suite != "gpu" or len(green) == 0):
        return None
    run = record.new_run("base" if options.base else "ops", "run.py", words, machine)
    return record.RunState(run, green, until)


def parser() -> argparse.ArgumentParser:
    count, positive = arguments.count, arguments.positive
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--op", nargs="+", type=op_name, choices=ALL_OPS, help="of a preset: these alone; else by default memory_read")
    add("--workload", nargs="+", choices=list(WORKLOADS), default=["480p-full"])
    add("--objects", nargs="+", type=count, default=[1], help="O, several for a table each")
    add("--network", nargs="+", choices=NETWORKS, default=["small"], help="of a frame or a video")
    add("--suite", choices=list(SUITES), help="a preset, in the place of the three above")
    add("--quick", dest="suite", action="store_const", const="quick", help="--suite quick")
    add("--full", dest="suite", action="store_const", const="full", help="--suite full")
    add("--try", dest="tiny", action="store_true", help="tiny workloads: to try this, not to measure")
    add("--backend", nargs="+", help="ours to time; by default all that have kernels, and torch")
    add("--only", nargs="+", default=[], metavar="PEER", help="only these of the other peers, by name")
    add("--dtype", choices=list(DTYPES), help="by default float32, in the preset for GPUs float16")
    add("--device", type=arguments.device, default="cpu", help="cpu, cuda or cuda:INDEX")
    add("--threads", type=count)
    add("--rounds", type=count)
    add("--budget", type=float, help="seconds of rounds after which a peer is left out")
    add("--seconds", type=float, help="begin no table and no peer after this, tests included")
    add("--limit", type=positive, default=300, help="seconds for a peer in a process of its own")
    add("--untested", action="store_true", help="without the tests; every table says so")
    add("--no-memory", action="store_true", help="leave out the processes that measure memory")
    add("--base", metavar="REV", help="compare with this revision instead of with peers; not frames and videos")
    add("--agree", nargs="+", type=Path, metavar="FILE", help="compare the last runs of two files")
    add("--json", action="store_true", help="print everything as JSON on standard output")
    add("--save", type=arguments.result_file, metavar="FILE", help="append the run to a file, one line of JSON a run")
    add("--quiet", action="store_true", help=arguments.QUIET)
    add("--results", type=Path, metavar="DIR", help="write MACHINE.json and .csv after every table")
    add(record.OPTION, type=Path, help=argparse.SUPPRESS)
    return parser


def suite_of(options: argparse.Namespace) -> Suite:
    """The preset, or what --op, --workload and --objects ask for, as other options change it."""
    suite = SUITES[options.suite] if options.suite else Suite(())
    items = [item for item in suite.items if not options.op or item.op in options.op]
    if not options.suite:
        ops = options.op or ["memory_read"]
        functions, frames = [op for op in ops if op not in FRAME_OPS], [op for op in ops if op in FRAME_OPS]
        items = [SuiteItem(op, w, 1 if op in UPKEEP else o)
                 for w in options.workload for op in functions for o in options.objects]  # fmt: skip
        items += [SuiteItem(op, network) for op in frames for network in options.network]
    if options.tiny:
        items = [item._replace(workload="tiny") for item in items if item.op not in FRAME_OPS]
    dtype = "float32" if options.tiny and torch.device(options.device).type == "cpu" else suite.dtype
    return replace(
        suite,
        items=tuple(item for item in dict.fromkeys(items) if not options.base or item.op not in FRAME_OPS),
        dtype=options.dtype or dtype,
        rounds=suite.rounds if options.rounds is None else options.rounds,
        budget=suite.budget if options.budget is None else options.budget,
        memory=() if options.no_memory or options.base else suite.memory,
    )


def machine_of(device: str) -> dict[str, str]:
    """The machine in words, its load, and the GPU that is measured."""
    words = {**describe(), "load": str(load.look())}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        words["GPU"] = properties.name
        words["capability"] = f"{properties.major}.{properties.minor}, {properties.multi_processor_count} processors"
        words["GPU memory"] = f"{properties.total_memory / 1e9:.1f} GB, L2 {properties.L2_cache_size / 1e6:.1f} MB"
        words["versions"] += f", CUDA {torch.version.cuda}"
        with contextlib.suppress(metadata.PackageNotFoundError):
            words["versions"] += f", Triton {metadata.version('triton')}"
    return words


if __name__ == "__main__":
    sys.exit(main())
