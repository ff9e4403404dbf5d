"""The peak of memory of one call, in this process or in a fresh one: `python -m ...peaks --order
JSON`.

So a peer that hangs, is killed for its memory or crashes takes nothing with it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import torch
from xmemk.benchmarks.harness import case_setup
from xmemk.benchmarks.harness.line_process import NO_RESULT, ask
from xmemk.benchmarks.harness.round_timer import first_line, synchronize
from xmemk.benchmarks.peers.catalogue import Peer, Unavailable
from xmemk.benchmarks.peers.workloads import WORKLOADS, OpCase, make_case

from xmemk.measure.peak import Peak

MODULE = "xmemk.benchmarks.harness.peaks"
# What a trial in a process of its own measured: the peak beyond the inputs in bytes, or why there
# is none.
Trial = tuple["int | None", str]


def peak_of(case: OpCase, peer: Peer) -> int | None:
    """Bytes that one call takes at its peak beyond its inputs, in this process."""
    call = peer.prepare(case)
    if peer.compiled:
        call()  # what the compiler takes is not the call's
    else:  # libraries and thread pools wake up with a small one
        peer.prepare(make_case(case.op, WORKLOADS["tiny"], device=case.device))()
    with Peak(case.device) as peak:
        result = call()
        synchronize(case.device)
    del result
    return peak.bytes


def in_fresh_process(arguments: dict[str, Any], timeout: float) -> Trial:
    """:func:`peak_of` in a new process. ``arguments``: those of case_setup.make, threads, peer."""
    answer, reason = ask(MODULE, arguments, timeout)
    if not reason and isinstance(answer, dict) and answer.keys() == {"extra_bytes", "reason"}:
        return answer["extra_bytes"], answer["reason"]
    return None, reason or NO_RESULT


def main() -> None:
    arguments = json.loads(sys.argv[2])
    torch.set_num_threads(arguments["threads"])
    torch.backends.cuda.matmul.allow_tf32 = False
    name, extra_bytes, reason = arguments["peer"], None, ""
    backends = [name.removeprefix("xmemk ")] if name.startswith("xmemk ") else ["torch"]
    peer = next(p for p in case_setup.peers(arguments["op"], backends, arguments["device"]) if p.name == name)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            extra_bytes = peak_of(case_setup.make(arguments).case, peer)
    except Unavailable as refusal:
        reason = str(refusal)
    except Exception as failure:
        reason = first_line(failure)
    print(json.dumps({"extra_bytes": extra_bytes, "reason": reason}))


if __name__ == "__main__":
    main()
