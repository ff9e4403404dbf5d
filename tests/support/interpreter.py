"""Tests of the Triton kernels run in a process of their own, where Triton's interpreter was chosen before its import.

    @interpreted
    def test_something(parameter): ...

runs there, in one process for all of them; the process of the other tests never imports Triton.
"""

import atexit
import functools
import importlib
import importlib.util
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

_HERE = "TRITON_INTERPRET"


def find_kernels():
    """Lets xmemk.kernels be imported where xmemk runs from its source tree without being installed."""
    import xmemk

    folder = Path(xmemk.__file__).parent.parent / "kernels"
    if importlib.util.find_spec("xmemk.kernels") is None and folder.exists():
        spec = importlib.util.spec_from_file_location(
            "xmemk.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["xmemk.kernels"] = xmemk.kernels = module
        spec.loader.exec_module(module)


@functools.cache
def _pool():
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_start)
    atexit.register(pool.shutdown)
    before = os.environ.get(_HERE)
    os.environ[_HERE] = "1"
    try:
        pool.submit(int).result()  # the process starts now, with this environment
    finally:
        if before is None:
            del os.environ[_HERE]
        else:
            os.environ[_HERE] = before
    return pool


def _start():
    import torch

    torch.set_num_threads(1)
    find_kernels()
    _numbers_of_arrays()
    _products_of_bfloat16()
    _patch_the_language_once()


def _numbers_of_arrays():
    """Triton 3.6 makes numbers of arrays of one element in a way that NumPy 2.4 no longer has."""
    from triton.runtime import interpreter

    before = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def _products_of_bfloat16():
    """Triton's interpreter holds bfloat16 as its bits, and would multiply these."""
    from triton import language as tl
    from triton.runtime import interpreter

    before = interpreter.InterpreterBuilder.create_dot

    def operand(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)

    def patched(self, a, b, *more):
        return before(self, operand(a), operand(b), *more)

    interpreter.InterpreterBuilder.create_dot = patched


def _patch_the_language_once():
    """Triton's interpreter patches triton.language anew in every call of a function, which takes most of its time.

    This process only interprets, so the first patch stays.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    before = interpreter._patch_lang

    before(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))  # it looks at a function's modules
    interpreter._patch_lang = lambda fn: interpreter._LangPatchScope()


def _run(module, name, arguments):
    try:
        getattr(importlib.import_module(module), name)(**arguments)
    except pytest.fail.Exception as failure:  # is of a class that does not travel
        raise AssertionError(str(failure)) from None


def interpreted(test):
    """A test whose arguments are parameters, not fixtures."""
    if os.environ.get(_HERE) == "1":
        return test

    @functools.wraps(test)
    def elsewhere(**arguments):
        if importlib.util.find_spec("triton") is None:
            pytest.skip("Triton is not installed; it is made for Linux alone")
        _pool().submit(_run, test.__module__, test.__name__, arguments).result()

    return elsewhere
