"""One revision of xmemk in a process of its own: `python revision_worker.py TREE THREADS`, for
revisions.py.

It imports xmemk from TREE and nothing else of ours, so that it runs on any revision. Orders come on
standard input. Orders and answers are a line of JSON each; {"reason": WHY} says what went wrong:

    {"prepare": FILE, "backend": NAME, "result": FILE} -> {}
    {"chain": COUNT}                                   -> {"seconds": mean of a call}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def load(tree: Path) -> Any:
    """xmemk of a source tree, not the one that is installed. kernels/ lies beside the package."""
    sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
    sys.path.insert(0, str(tree))
    import xmemk

    folder = Path(xmemk.__file__).resolve().parent
    if folder != (tree / "xmemk").resolve():
        raise ImportError(f"xmemk came from {folder}")
    xmemk.__path__.append(str(tree))
    return xmemk


def prepare(xmemk: Any, case: dict[str, Any], backend: str) -> Callable[[], Any]:
    """The call. ``case``: op, arguments, options, how, d_readout."""
    function, how = getattr(xmemk, case["op"]), case["how"]
    arguments = [t if how == "call" or t is None else t.requires_grad_() for t in case["arguments"]]
    explained = xmemk.explain(function, *arguments, backend=backend)
    if explained.chosen is None:
        raise ValueError(explained.refusals[backend])

    def forward() -> Any:
        return function(*arguments, backend=backend, **case["options"])

    if how == "call":
        return forward
    leaves = [t for t in arguments if t is not None]
    if how == "train":
        return lambda: torch.autograd.grad(forward(), leaves, case["d_readout"])
    readout = forward()
    return lambda: torch.autograd.grad(readout, leaves, case["d_readout"], retain_graph=True)


def seconds(call: Callable[[], Any], chain: int) -> float:
    synchronize = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    call()
    synchronize()
    start = time.perf_counter()
    for _ in range(chain):
        call()
    synchronize()
    return (time.perf_counter() - start) / chain


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    torch.set_num_threads(int(sys.argv[2]))
    xmemk = load(Path(sys.argv[1]))
    call: Callable[[], Any] = dict
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "prepare" in order:
                call = prepare(xmemk, torch.load(order["prepare"], weights_only=True), order["backend"])
                result = call()
                torch.save(result if isinstance(result, torch.Tensor) else tuple(result), order["result"])
            else:
                answer["seconds"] = seconds(call, order["chain"])
        except Exception as failure:
            text = str(failure).strip() or " "
            answer["reason"] = f"{type(failure).__name__}: {text.splitlines()[0]}"[:200]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
