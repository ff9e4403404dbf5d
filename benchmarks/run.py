"""xmemk beside its peers on the named workloads: `python benchmarks/run.py --op read --workload 480p-full`.

Presets: --quick (two minutes on two cores), --full (thirty), --suite gpu (on a GPU, within --seconds). Ops are timed
only when their tests pass. Each peer is checked against float64 before it is timed. Peers take turns, round by round;
the table shows medians, half the distance between the quartiles, how many times our time that is (the median of the
rounds' ratios), the share of the roof by the formulas of costs.py, and the peak of memory beyond the inputs. A peer
that cannot run or is wrong is a row with its reason, and where it takes the GPU along, as by an illegal memory access,
a fresh process goes on with the others. On a GPU the time is the device's, by replays of a graph; cold is one replay
after the cache was overwritten, host what it takes to issue a call.

--base REV compares with another revision of this repository, --agree FILE [FILE] two runs with each other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks.harness import afresh, arguments, base, ops, sweeps, tables, tested
from xmemk.benchmarks.harness.measure import peak_of
from xmemk.benchmarks.harness.ops import ALL_OPS, DTYPES, FRAME_OPS, NETWORKS
from xmemk.benchmarks.harness.record import command, revision
from xmemk.benchmarks.harness.stopwatch import first_line
from xmemk.benchmarks.harness.suites import SUITES, Item, Suite
from xmemk.benchmarks.harness.tables import console
from xmemk.benchmarks.peers.registry import Unavailable
from xmemk.benchmarks.peers.workloads import WORKLOADS

from xmemk.measure.machine import describe

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where tests are red, ours is wrong, or what was asked for cannot be done.

    Without ``argv``, as a program, a fresh process may take the place of this one.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    options = parse(given)
    if options.peak_of:
        print(json.dumps(peak_here(json.loads(options.peak_of))))
        return 0
    if options.agree:
        return tables.agree(options.agree)
    if argv is None:  # as a program, which is asked to end: with what it has
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    suite = suite_of(options)
    state = afresh.take_up(options.go_on) if options.go_on else begun(suite, options, given)
    if state is None:
        return 1
    run, green = state.run, state.green
    red = any(item.op not in green for item in suite.items)
    try:
        if options.base:
            right = base.compare(run, suite, options, green)
        else:
            right = sweeps.beside_peers(suite, options, state, afresh=argv is None)
    except afresh.Afresh as left:
        loss = run["losses"][-1]
        said = f"{loss['peer'] or 'the inputs'} of {loss['op']}: {loss['reason']}; a fresh process goes on"
        console.print(said, highlight=False, soft_wrap=True)
        afresh.replace_this_process(left.state)
    except base.Failure as failure:
        console.print(f"--base: {failure}", highlight=False, soft_wrap=True)
        return 1
    except BaseException as stopped:  # what was measured until now is kept
        run["stopped"], right = type(stopped).__name__, False
        if not isinstance(stopped, (KeyboardInterrupt, SystemExit)):
            console.print_exception()
    if options.json:
        print(json.dumps(run, indent=1))
    if options.save:
        tables.append(run, options.save)
    return int(red or not right)


def begun(suite: Suite, options: argparse.Namespace, given: Sequence[str]) -> afresh.State | None:
    """The machine in words, the tests, and a run without results; None where it is refused."""
    machine = machine_of(options.device)
    console.print(f"{', '.join(machine.values())}, xmemk {revision()}", highlight=False, soft_wrap=True)
    if options.untested:
        green, red = dict.fromkeys((item.op for item in suite.items), "tests not run: --untested"), {}
    else:
        with console.status("tests") as status:
            green, red = tested.check((item.op for item in suite.items), options.device, status.update)
    for op, names in red.items():
        console.print(f"{op}: its tests are red: {', '.join(names)}", highlight=False, soft_wrap=True)
    if red and (options.suite != "gpu" or len(green) == 0):
        return None
    run: dict[str, Any] = {
        "kind": "base" if options.base else "ops",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": revision(),
        "command": command("run.py", given),
        "machine": machine,
        "results": [],
    }
    return afresh.State(run, green, options.seconds, time.time())


def parse(given: Sequence[str]) -> argparse.Namespace:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--op", nargs="+", choices=ALL_OPS, help="of a preset: these alone; otherwise by default read")
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=["480p-full"])
    parser.add_argument("--objects", nargs="+", type=arguments.count, default=[1], help="O, several for a table each")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=["small"], help="of a frame or a video")
    parser.add_argument("--suite", choices=list(SUITES), help="a preset, in the place of the three above")
    parser.add_argument("--quick", dest="suite", action="store_const", const="quick", help="--suite quick")
    parser.add_argument("--full", dest="suite", action="store_const", const="full", help="--suite full")
    parser.add_argument("--try", dest="tiny", action="store_true", help="tiny workloads: to try this, not to measure")
    parser.add_argument("--backend", nargs="+", help="ours to time; by default all that have kernels, and torch")
    parser.add_argument("--only", nargs="+", default=[], metavar="PEER", help="only these of the other peers, by name")
    parser.add_argument("--dtype", choices=list(DTYPES), help="by default float32, in the preset for GPUs float16")
    parser.add_argument("--device", type=arguments.device, default="cpu", help="cpu, cuda or cuda:INDEX")
    parser.add_argument("--threads", type=arguments.count)
    parser.add_argument("--rounds", type=arguments.count)
    parser.add_argument("--budget", type=float, help="seconds of rounds after which a peer is left out")
    parser.add_argument("--seconds", type=float, help="begin no table and no peer after this")
    parser.add_argument(
        "--limit", type=arguments.positive, default=300, help="seconds for a peer in a process of its own"
    )
    parser.add_argument("--untested", action="store_true", help="without the tests; every table says so")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--base", metavar="REV", help="compare with this revision instead of with peers")
    parser.add_argument("--agree", nargs="+", type=Path, metavar="FILE", help="compare the last runs of two files")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    saved = "append the run to a file, one line of JSON a run"
    parser.add_argument("--save", type=arguments.result_file, metavar="FILE", help=saved)
    parser.add_argument("--results", type=Path, metavar="DIR", help="write MACHINE.json and .csv after every table")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument(afresh.OPTION, type=Path, help=argparse.SUPPRESS)
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


def peak_here(asked: dict[str, Any]) -> dict[str, Any]:
    """What in_fresh_process wants to know: the peak of memory, or why there is none."""
    torch.set_num_threads(asked["threads"])
    name = asked["peer"]
    backends = [name.removeprefix("xmemk ")] if name.startswith("xmemk ") else []
    peer = next(p for p in ops.peers(asked["op"], backends or ["torch"], asked["device"]) if p.name == name)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return {"extra_bytes": peak_of(ops.make(asked).case, peer), "reason": ""}
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


if __name__ == "__main__":
    sys.exit(main())
