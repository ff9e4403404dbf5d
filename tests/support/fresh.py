"""Code run in a process of its own that has loaded torch and xmemk, and computed nothing yet.

Such processes are forked from one that did no more than load them: each costs some milliseconds.
"""

import contextlib
import functools
import io
import multiprocessing
from multiprocessing.pool import Pool


@functools.cache
def _pool() -> Pool:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xmemk", "xmemk.measure.peak", "xmemk.testing"])
    return context.Pool(1, maxtasksperchild=1)


def fresh(code: str) -> str:
    """What the code prints. Raises what it raises. Linux and macOS alone."""
    return _pool().apply(_run, (code,))


def _run(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return out.getvalue()
