"""The peak of memory of one call, in a process of its own: one that hangs or crashes takes nothing
with it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from typing import IO, Any

import torch
from xmemk.benchmarks.harness import cases
from xmemk.benchmarks.harness.timing import Trial, first_line, synchronize
from xmemk.benchmarks.peers.catalogue import Peer, Unavailable
from xmemk.benchmarks.peers.workloads import WORKLOADS, OpCase, make_case

from xmemk.measure.peak import Peak

COMMAND = (sys.executable, "-m", "xmemk.benchmarks.harness.processes")
REMEMBERED = 20_000  # bytes of standard error, its end
LONGEST_REASON = 300
NO_RESULT = "its process ended without a result"


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
    """:func:`peak_of` in a new process: the bytes, or why there are none.

    ``arguments``: those of cases.make, threads, peer.
    """
    with tempfile.TemporaryFile("w+") as answers, tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [*COMMAND, json.dumps(arguments)], stdout=answers, stderr=messages, start_new_session=True
        )
        try:
            reason = ending(process.wait(timeout), messages)
        except subprocess.TimeoutExpired:
            reason = f"it did not end within {timeout:.0f} s"
        finally:
            kill(process)
        answers.seek(0)
        lines = answers.read().splitlines()
    with contextlib.suppress(ValueError, IndexError, KeyError, TypeError):
        if not reason:
            answer = json.loads(lines[-1])
            return answer["extra_bytes"], answer["reason"]
    return None, reason or NO_RESULT


def kill(process: subprocess.Popen[Any]) -> None:
    """Ends a process of a session of its own, with those that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ending(code: int, messages: IO[bytes]) -> str:
    """How a process ended, by its exit code and its standard error; "" for 0."""
    if code == 0:
        return ""
    how = f"its process failed with {code}"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        how = f"its process was killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    messages.seek(max(0, messages.seek(0, os.SEEK_END) - REMEMBERED))
    last = re.findall(r"^\S.*", messages.read().decode(errors="replace"), re.MULTILINE)[
        -1:
    ]  # of a traceback, the error
    return ": ".join([how, *last])[:LONGEST_REASON]


def main() -> None:
    arguments = json.loads(sys.argv[1])
    torch.set_num_threads(arguments["threads"])
    torch.backends.cuda.matmul.allow_tf32 = False
    name, extra_bytes, reason = arguments["peer"], None, ""
    backends = [name.removeprefix("xmemk ")] if name.startswith("xmemk ") else ["torch"]
    peer = next(p for p in cases.peers(arguments["op"], backends, arguments["device"]) if p.name == name)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            extra_bytes = peak_of(cases.make(arguments).case, peer)
    except Unavailable as refusal:
        reason = str(refusal)
    except Exception as failure:
        reason = first_line(failure)
    print(json.dumps({"extra_bytes": extra_bytes, "reason": reason}))


if __name__ == "__main__":
    main()
