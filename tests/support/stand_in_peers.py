"""Peers that take the device from their process, on the CPU: `python stand_in_peers.py PLAN LOG
ARGUMENTS`.

A program of its own, since run.py replaces its process. Once a peer has failed, every call of the
process fails with CUDA's words. PLAN, in JSON, says which peer of which op does it when: at
"check", in the "rounds", or in the sweep "after". LOG gets a line a process, "inherited" where it
had that file open from the start.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks import run
from xmemk.benchmarks.harness import cases, costs, op_tests, sweeps, timing
from xmemk.benchmarks.peers.catalogue import Peer, peers_of

ERROR = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"


class Device:
    """Works until it is broken, and never again."""

    def __init__(self) -> None:
        self.broken = False

    def use(self, *_: Any, **__: Any) -> None:
        if self.broken:
            raise RuntimeError(ERROR)

    def break_(self) -> None:
        self.broken = True
        self.use()


def stand_ins(device: Any, plan: Any, op: Any) -> Any:
    """Ours, one of ours that may be bad, another's, one after it; another that compiles."""
    right = peers_of(op, ["torch"])[0].prepare

    def peer(name: Any, **of_peer: Any) -> Any:
        when, prepared = plan.get(op, {}).get(name), []

        def prepare(case: Any) -> Any:
            device.use()
            call, calls = right(case), []
            prepared.append(call)

            def one() -> Any:
                device.use()
                calls.append(1)
                if when == "check" or (when == "rounds" and len(calls) > 9) or (when == "after" and len(prepared) > 1):
                    device.break_()
                time.sleep(1e-4)
                return call()

            return one

        return Peer(name, prepare, **of_peer)

    ours = [peer("xmemk torch", ours=True), peer("xmemk other", ours=True)]
    return [*ours, peer("bad"), peer("last"), peer("compiled", compiled=True)]


def put_in_place(put: Any, plan: Any) -> Any:
    """``put``: (object, name, value), setattr or a fixture's. The device."""
    device, make = Device(), cases.make

    def made(arguments: Any) -> Any:
        device.use()
        return make(arguments)

    put(cases, "peers", lambda op, *_: stand_ins(device, plan, op))
    put(cases, "make", made)
    put(timing, "synchronize", device.use)
    put(sweeps, "in_fresh_process", lambda *_, **__: (None, ""))
    put(sweeps, "measure_roof", lambda *_: costs.Roof(100.0, 10.0))
    put(timing, "CHAIN_SECONDS", {"cpu": 1e-3})
    put(torch.compiler, "reset", device.use)
    put(op_tests, "check", lambda asked, *_: (dict.fromkeys(asked, True), {}))
    return device


if __name__ == "__main__":
    opened = [Path("/dev/fd", name).resolve() for name in os.listdir("/dev/fd")]
    log = open(sys.argv[2], "a")  # noqa: SIM115 (left open, as a library leaves that of a GPU)
    os.set_inheritable(log.fileno(), True)
    log.write("inherited\n" if Path(sys.argv[2]).resolve() in opened else "began\n")
    log.flush()
    put_in_place(setattr, json.loads(sys.argv[1]))
    del sys.argv[1:3]
    sys.exit(run.main())
