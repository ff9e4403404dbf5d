"""xmemk beside its peers on the named workloads: `python benchmarks/run.py --op read --workload 480p-full`.

Presets: --quick (two minutes on two cores), --full (thirty), --suite gpu (on a GPU, within --seconds). Ops are timed
only when their tests pass. Each peer is checked against float64 before it is timed. Peers take turns, round by round;
the table shows medians, half the distance between the quartiles, how many times our time that is (the median of the
rounds' ratios), the share of the roof by the formulas of costs.py, and the peak of memory beyond the inputs. A peer
that cannot run or is wrong is a row with its reason. On a GPU the time is the device's, by replays of a graph; cold is
one replay after the cache was overwritten, host what it takes to issue a call.

--base REV compares with another revision of this repository, --agree FILE [FILE] two runs with each other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks.harness import base, ops, tables, tested
from xmemk.benchmarks.harness.costs import Roof, measure_roof
from xmemk.benchmarks.harness.measure import Row, in_fresh_process, peak_of, time_peers
from xmemk.benchmarks.harness.ops import ALL_OPS, DTYPES, FRAME_OPS, NETWORKS
from xmemk.benchmarks.harness.stopwatch import first_line
from xmemk.benchmarks.harness.suites import SUITES, Item, Suite
from xmemk.benchmarks.harness.tables import console
from xmemk.benchmarks.peers import Peer, Unavailable
from xmemk.benchmarks.workloads import WORKLOADS

import xmemk
from xmemk.demo.machine import describe

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where tests are red, ours is wrong, or what was asked for cannot be done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    if options.peak_of:
        print(json.dumps(peak_here(json.loads(options.peak_of))))
        return 0
    if options.agree:
        return tables.agree(options.agree)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        console.print("run.py: no NVIDIA GPU here; --device cpu --suite gpu --try tries the script")
        return 1
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    suite, machine = suite_of(options), machine_of(options.device)
    console.print(f"{', '.join(machine.values())}, xmemk {revision()}", highlight=False, soft_wrap=True)
    if options.untested:
        green, red = dict.fromkeys((item.op for item in suite.items), "tests not run: --untested"), {}
    else:
        with console.status("tests") as status:
            green, red = tested.check((item.op for item in suite.items), options.device, status.update)
    for op, names in red.items():
        console.print(f"{op}: its tests are red: {', '.join(names)}", highlight=False, soft_wrap=True)
    if red and (options.suite != "gpu" or len(green) == 0):
        return 1
    run: dict[str, Any] = {
        "kind": "base" if options.base else "ops",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": revision(),
        "command": shlex.join(["python", "benchmarks/run.py", *given]),
        "machine": machine,
        "results": [],
    }
    try:
        right = base.compare(run, suite, options, green) if options.base else beside_peers(run, suite, options, green)
    except base.Failure as failure:
        console.print(f"--base: {failure}", highlight=False, soft_wrap=True)
        return 1
    if options.json:
        print(json.dumps(run, indent=1))
    if options.save:
        tables.append(run, options.save)
    return int(bool(red) or not right)


def parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=ALL_OPS, help="of a preset: these alone; otherwise by default read")
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=["480p-full"])
    parser.add_argument("--objects", nargs="+", type=int, default=[1], help="O, several for a table each")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=["small"], help="of a frame or a video")
    parser.add_argument("--suite", choices=list(SUITES), help="a preset, in the place of the three above")
    parser.add_argument("--quick", dest="suite", action="store_const", const="quick", help="--suite quick")
    parser.add_argument("--full", dest="suite", action="store_const", const="full", help="--suite full")
    parser.add_argument("--try", dest="tiny", action="store_true", help="tiny workloads: to try this, not to measure")
    parser.add_argument("--backend", nargs="+", help="ours to time; by default all that have kernels, and torch")
    parser.add_argument("--only", nargs="+", default=[], metavar="PEER", help="only these of the other peers, by name")
    parser.add_argument("--dtype", choices=list(DTYPES), help="by default float32, in the preset for GPUs float16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--budget", type=float, help="seconds of rounds after which a peer is left out")
    parser.add_argument("--seconds", type=float, help="begin no table and no peer after this")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a peer in a process of its own")
    parser.add_argument("--untested", action="store_true", help="without the tests; every table says so")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--base", metavar="REV", help="compare with this revision instead of with peers")
    parser.add_argument("--agree", nargs="+", type=Path, metavar="FILE", help="compare the last runs of two files")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    parser.add_argument("--save", type=Path, metavar="FILE", help="append the run to a file, one line of JSON a run")
    parser.add_argument("--results", type=Path, metavar="DIR", help="write MACHINE.json and .csv after every table")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def suite_of(options: argparse.Namespace) -> Suite:
    """The preset, or what --op, --workload and --objects ask for; with what other options change about it."""
    suite = SUITES[options.suite] if options.suite else Suite(())
    items = [item for item in suite.items if not options.op or item.op in options.op]
    items = [item for item in items if item.op not in FRAME_OPS or ops.has_frames()]
    if not options.suite:
        asked = options.op or ["read"]
        wanted = ((op, w, o) for w in options.workload for op in asked for o in options.objects)
        items = [Item(op, w, 1 if op in ("select", "evict") else o) for op, w, o in wanted if op not in FRAME_OPS]
        items += [Item(op, network) for op in asked if op in FRAME_OPS for network in options.network]
    if options.tiny:
        items = [item._replace(workload="tiny") for item in items if item.op not in FRAME_OPS]
    changed = {name: getattr(options, name) for name in ("rounds", "budget") if getattr(options, name) is not None}
    dtype = "float32" if options.tiny and torch.device(options.device).type == "cpu" else suite.dtype
    changed |= {"items": tuple(dict.fromkeys(items)), "dtype": options.dtype or dtype}
    if options.no_memory:
        changed["memory"] = ()
    return Suite(**{**vars(suite), **changed})


def beside_peers(run: dict[str, Any], suite: Suite, options: argparse.Namespace, green: dict[str, bool | str]) -> bool:
    """Measures the cases of ``suite`` one after the other into run["results"]; whether ours was right everywhere."""
    until = None if options.seconds is None else time.monotonic() + options.seconds
    roof: Roof | None = None
    passes = [False, True] if suite.compiled_last else [None]
    by_item: dict[Item, dict[str, Any]] = {}
    for compiled in passes:
        for item in suite.items:
            arguments = suite.arguments(item, options.device)
            peers = chosen_peers(item.op, options)
            if compiled is not None:
                peers = [p for p in peers if p.ours or p.compiled == compiled]
            if compiled and all(p.ours for p in peers):
                continue
            result = by_item.setdefault(item, {**arguments, "tested": green.get(item.op, "tests are red"), "rows": []})
            if result not in run["results"]:
                run["results"].append(result)
            late = until is not None and time.monotonic() > until
            if late or item.op not in green:
                reason = "not reached in the time given" if late else "refused: the tests of this op are red"
                rows = [Row(p.name, p.ours, reason=reason) for p in peers]
            else:
                try:
                    made = ops.make(arguments)
                    if roof is None and made.like is not None:
                        roof = measure_roof(options.device, DTYPES[suite.dtype], made.like)
                        run["roof"] = roof.as_dict()
                    result |= made.sizes
                    rows = measured(made, arguments, peers, suite, options, until)
                    for row in rows:
                        if row.median and roof and made.cost and row.peer != "similarity product alone":
                            row.of_roof = made.cost.seconds_at(roof) / row.median
                    del made
                except (MemoryError, RuntimeError) as failure:  # the inputs themselves do not fit
                    rows = [Row(p.name, p.ours, reason=first_line(failure)) for p in peers]
            found = [row.as_dict() for row in rows]
            result["rows"] += [row for row in found if not (compiled and row["ours"])]
            tables.show({**result, "rows": found})
            if options.results:
                tables.write(run, options.results, slug(run["machine"], options.device))
            torch.compiler.reset()
    return not any(row["ours"] and row["status"] in ("WRONG", "rounded") for r in run["results"] for row in r["rows"])


def chosen_peers(op: str, options: argparse.Namespace) -> list[Peer]:
    found = ops.peers(op, options.backend, options.device)
    return [p for p in found if p.ours or not options.only or p.name in options.only]


def measured(
    made: ops.Made,
    arguments: dict[str, Any],
    peers: list[Peer],
    suite: Suite,
    options: argparse.Namespace,
    until: float | None,
) -> list[Row]:
    """One row a peer, in their order."""
    on_cpu = torch.device(options.device).type == "cpu"
    item = Item(arguments["op"], arguments["workload"], arguments["objects"])
    with console.status("") as status:

        def trial(peer: Peer) -> tuple[int | None, str]:
            # On a GPU a compiler is asked for at most once, in this process: a second process takes too long.
            if peer.compiled and not on_cpu:
                return None, ""
            status.update(f"{peer.name}, in a process of its own")
            limit = options.limit if until is None else max(1.0, min(options.limit, until - time.monotonic()))
            return in_fresh_process({**arguments, "peer": peer.name}, timeout=limit)

        omitted = {p.name: why for p in peers if (why := suite.omission(item, p))}
        rows = time_peers(
            made.case,
            [p for p in peers if p.name not in omitted],
            rounds=suite.rounds,
            budget=suite.budget,
            said=status.update,
            trial=trial if made.like is not None else None,
            judge=made.judge,
            until=until,
        )
        for row in rows:
            wanted = on_cpu and arguments["op"] in suite.memory and arguments["op"] not in ("select", "evict")
            if row.median is None or row.extra_bytes is not None or not wanted:
                continue
            status.update(f"memory of {row.peer}")
            row.extra_bytes, why = in_fresh_process({**arguments, "peer": row.peer}, timeout=options.limit)
            row.reason = row.reason or (f"no memory figure: {why}" if why else "")
    by_name = {row.peer: row for row in rows}
    return [by_name.get(p.name) or Row(p.name, p.ours, reason=omitted[p.name]) for p in peers]


def peak_here(arguments: dict[str, Any]) -> dict[str, Any]:
    """What in_fresh_process wants to know: the peak of memory, or why there is none."""
    torch.set_num_threads(arguments["threads"])
    name = arguments["peer"]
    backends = [name.removeprefix("xmemk ")] if name.startswith("xmemk ") else []
    peer = next(p for p in ops.peers(arguments["op"], backends or ["torch"], arguments["device"]) if p.name == name)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return {"extra_bytes": peak_of(ops.make(arguments).case, peer), "reason": ""}
    except Unavailable as reason:
        return {"extra_bytes": None, "reason": str(reason)}
    except Exception as failure:
        return {"extra_bytes": None, "reason": first_line(failure)}


def machine_of(device: str) -> dict[str, str]:
    """The machine in words, and the GPU that is measured."""
    said = describe()
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        said["GPU"] = properties.name
        said["capability"] = f"{properties.major}.{properties.minor}, {properties.multi_processor_count} processors"
        said["GPU memory"] = f"{properties.total_memory / 1e9:.1f} GB, L2 {properties.L2_cache_size / 1e6:.1f} MB"
        said["versions"] += f", CUDA {torch.version.cuda}"
        with contextlib.suppress(metadata.PackageNotFoundError):
            said["versions"] += f", Triton {metadata.version('triton')}"
    return said


def slug(machine: dict[str, str], device: str) -> str:
    name = machine["GPU"] if torch.device(device).type == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def revision() -> str:
    """Version and commit, with a mark where the files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True)
    return f"{xmemk.__version__} {done.stdout.strip()}".strip()


if __name__ == "__main__":
    sys.exit(main())
