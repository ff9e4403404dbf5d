"""One revision of xmemk in a process of its own: `python revision_worker.py TREE THREADS`, for
revisions.py.

It imports xmemk from TREE and nothing else of ours, so that it runs on any revision. Orders come on
standard input. Orders and answers are a line of JSON each:

    {"prepare": FILE, "backend": NAME} -> {"chosen": NAME}
    {"result": FILE}                   -> {}
    {"chain": COUNT}                   -> {"seconds": mean of a call}

An answer {"reason": WHY} says what went wrong. With "spoilt" this process can do no more, as after
an error of CUDA's, which every later call would raise again.
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

# What PyTorch, cuBLAS, cuDNN and Triton call an error after which a CUDA context can do no more.
ERRORS_OF_A_CONTEXT = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "[CUDA]")


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


def prepare(xmemk: Any, case: dict[str, Any], backend: str) -> tuple[Callable[[], Any], str]:
    """The call and the backend that serves it. ``case``: op, arguments, options, how, d_readout."""
    function, options = getattr(xmemk, case["op"]), case["options"]
    how, arguments = case["how"], case["arguments"]
    if how != "call":
        arguments = tuple(None if t is None else t.requires_grad_() for t in arguments)
    explained = xmemk.explain(function, *arguments, backend=backend)
    if explained.chosen is None:
        raise ValueError(explained.refusals[backend])

    def forward() -> Any:
        return function(*arguments, backend=backend, **options)

    if how == "call":
        return forward, explained.chosen
    leaves = [t for t in arguments if t is not None]
    if how == "train":
        return lambda: torch.autograd.grad(forward(), leaves, case["d_readout"]), explained.chosen
    readout = forward()
    return lambda: torch.autograd.grad(readout, leaves, case["d_readout"], retain_graph=True), explained.chosen


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], chain: int) -> float:
    call()
    synchronize()
    start = time.perf_counter()
    for _ in range(chain):
        call()
    synchronize()
    return (time.perf_counter() - start) / chain


def refusal(failure: Exception) -> dict[str, Any]:
    """The answer to an order that failed.

    Memory that does not suffice leaves a context as it was.
    """
    text = str(failure).strip()
    answer: dict[str, Any] = {"reason": f"{type(failure).__name__}: {text.splitlines()[0] if text else ''}"[:200]}
    if not isinstance(failure, torch.cuda.OutOfMemoryError) and any(name in text for name in ERRORS_OF_A_CONTEXT):
        answer["spoilt"] = True
    return answer


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    tree, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    xmemk = load(tree)
    call: Callable[[], Any] | None = None
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "prepare" in order:
                call = None
                case = torch.load(order["prepare"], weights_only=True)
                call, answer["chosen"] = prepare(xmemk, case, order["backend"])
            assert call is not None
            if "result" in order:
                result = call()
                torch.save(result if isinstance(result, torch.Tensor) else tuple(result), order["result"])
            if "chain" in order:
                answer["seconds"] = seconds(call, order["chain"])
        except Exception as failure:
            answer = refusal(failure)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
