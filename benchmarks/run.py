"""xmemk beside its peers on the named workloads: `python benchmarks/run.py --op read --workload 480p-full`.

Each peer is checked against float64 before it is timed. Peers take turns, round by round; the table shows medians, half
the distance between the quartiles, how many times our time that is, and the peak of memory beyond the inputs, each
measured in a process of its own. A peer that cannot run or is wrong is a row with its reason.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from xmemk.benchmarks.measure import Row, peak_in_fresh_process, peak_of, time_peers
from xmemk.benchmarks.peers import Peer, peers_of
from xmemk.benchmarks.workloads import OPS, WORKLOADS, Case, make_case

import xmemk
from xmemk.demo.machine import describe

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
console = Console(stderr=True, width=max(Console().width, 100))


def main() -> None:
    options = parse()
    if options.peak_of:
        print(json.dumps(peak_here(json.loads(options.peak_of))))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe()
    said = f"{machine['processor']}, {machine['threads']} threads, {machine['versions']}, xmemk {revision()}"
    console.print(said, highlight=False, soft_wrap=True)
    results = []
    for workload in options.workload:
        for op in options.op:
            for objects in (1,) if op in ("select", "evict") else options.objects:
                arguments = {
                    "op": op,
                    "workload": workload,
                    "objects": objects,
                    "dtype": options.dtype,
                    "device": options.device,
                    "threads": torch.get_num_threads(),
                }
                rows = measured(arguments, options)
                show(arguments, rows)
                results.append({**arguments, "rows": [row.as_dict() for row in rows]})
    run = {
        "kind": "ops",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": revision(),
        "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "machine": machine,
        "results": results,
    }
    if options.json:
        print(json.dumps(run, indent=1))
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        with options.save.open("a") as file:
            file.write(json.dumps(run) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=OPS, default=["read"])
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=["480p-full"])
    parser.add_argument("--objects", nargs="+", type=int, default=[1], help="O, several for a table each")
    parser.add_argument(
        "--backend", nargs="+", help="ours to time; by default cpu and torch, on a GPU triton and torch"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="PEER", help="only these of the other peers, by name")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of rounds after which a peer is left out")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    parser.add_argument("--save", type=Path, metavar="FILE", help="append the run to a file, one line of JSON a run")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def case_of(arguments: dict[str, Any]) -> Case:
    return make_case(
        arguments["op"],
        WORKLOADS[arguments["workload"]],
        objects=arguments["objects"],
        dtype=DTYPES[arguments["dtype"]],
        device=arguments["device"],
    )


def chosen_peers(op: str, options: argparse.Namespace) -> list[Peer]:
    device = torch.device(options.device).type
    backends = options.backend or ["cpu" if device == "cpu" else "auto", "torch"]
    found = peers_of(op, backends)
    return [p for p in found if p.ours or not options.only or p.name in options.only]


def measured(arguments: dict[str, Any], options: argparse.Namespace) -> list[Row]:
    peers = chosen_peers(arguments["op"], options)
    with console.status("inputs") as status:
        case = case_of(arguments)
        rows = time_peers(case, peers, rounds=options.rounds, budget=options.budget, said=status.update)
        del case
        for row in rows:
            if row.median is None or options.no_memory or arguments["op"] in ("select", "evict"):
                continue
            status.update(f"memory of {row.peer}")
            peak = peak_in_fresh_process({**arguments, "peer": row.peer}, timeout=300)
            row.extra_bytes, row.reason = (None, peak) if isinstance(peak, str) else (peak, row.reason)
    return rows


def peak_here(arguments: dict[str, Any]) -> int | None:
    torch.set_num_threads(arguments["threads"])
    name = arguments["peer"]
    backends = [name.removeprefix("xmemk ")] if name.startswith("xmemk ") else []
    peer = next(p for p in peers_of(arguments["op"], backends) if p.name == name)
    return peak_of(case_of(arguments), peer)


def show(arguments: dict[str, Any], rows: list[Row]) -> None:
    """The table, and below it what a row has to say beyond its figures."""
    workload = WORKLOADS[arguments["workload"]]
    title = f"{arguments['op']}, {workload.name}, {arguments['objects']} object(s), {arguments['dtype']}"
    made = Table(title=title, title_justify="left")
    made.add_column("", no_wrap=True)
    for name in ("median", "+-", "times ours", "extra MB", "error"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.median is None:
            continue
        times = "" if row.ratio is None else f"{row.ratio:.2f}"
        extra = "" if row.extra_bytes is None else f"{row.extra_bytes / 1e6:.0f}"
        error = "" if row.error is None else f"{row.error:.1e}"
        spread = f"{100 * row.spread:.0f} %" if row.spread else f"{len(row.seconds)} runs"
        made.add_row(row.peer, duration(row.median), spread, times, extra, error)
    console.print(made)
    for row in rows:
        if row.reason:
            console.print(f"  {row.peer}: {row.reason}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} us" if seconds < 1e-3 else f"{1e3 * seconds:.1f} ms"


def revision() -> str:
    """Version and commit, with a mark where the files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True)
    return f"{xmemk.__version__} {done.stdout.strip()}".strip()


if __name__ == "__main__":
    main()
