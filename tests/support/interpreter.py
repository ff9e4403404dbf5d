"""Tests of the Triton kernels run in a process of their own, where Triton's interpreter was chosen
before its import.

    @interpreted
    def test_something(parameter): ...

runs there, in one process for all of them; the process of the other tests never imports Triton.
"""

import atexit
import dataclasses
import functools
import importlib
import importlib.util
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

_HERE = "TRITON_INTERPRET"


def find_kernels() -> None:
    """Makes xmemk.kernels importable from a source tree that is not installed."""
    import xmemk

    folder = Path(xmemk.__file__).resolve().parents[1] / "kernels"
    if importlib.util.find_spec("xmemk.kernels") is None and folder.exists():
        spec = importlib.util.spec_from_file_location(
            "xmemk.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["xmemk.kernels"] = module
        setattr(xmemk, "kernels", module)  # noqa: B010
        spec.loader.exec_module(module)


@functools.cache
def _pool() -> Any:
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


def _start() -> None:
    import torch

    torch.set_num_threads(1)
    find_kernels()
    serve_cpu_tensors()
    _numbers_of_arrays()
    _products_of_bfloat16()
    _patch_the_language_once()


@functools.cache
def serve_cpu_tensors() -> None:
    """Backend "triton" serves CPU tensors in this process, if it is asked for by name.

    The operators' kernels on the CPU are then Triton's, so the C++ extension is hidden.
    """
    sys.modules["xmemk._C"] = None  # type: ignore[assignment]
    from xmemk import backends
    from xmemk.operators import library

    for name, kernel in library.TRITON_KERNELS.items():
        library.LIBRARY.impl(name, kernel, "CPU")
    library.SAVES_SOFTMAX.clear()
    for rows in backends.TABLE.values():
        if "triton" in rows:  # put last, so that "auto" takes plain PyTorch
            rows["triton"] = dataclasses.replace(rows.pop("triton"), device="cpu")


def _numbers_of_arrays() -> None:
    """Triton 3.6 makes numbers of arrays of one element in a way that NumPy 2.4 no longer has."""
    from triton.runtime import interpreter

    before = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def _products_of_bfloat16() -> None:
    """Triton's interpreter holds bfloat16 as its bits, and would multiply these."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    before = InterpreterBuilder.create_dot

    def patched(self: Any, a: Any, b: Any, *more: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return before(self, a, b, *more)

    InterpreterBuilder.create_dot = patched


def _patch_the_language_once() -> None:
    """Triton's interpreter patches triton.language in every call of a function, which takes most of
    its time.

    This process only interprets, so the first patch stays.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    any_function = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})  # of which it looks at the modules
    interpreter._patch_lang(any_function)
    interpreter._patch_lang = lambda fn: interpreter._LangPatchScope()


def _run(module: Any, name: Any, arguments: Any) -> None:
    try:
        getattr(importlib.import_module(module), name)(**arguments)
    except pytest.fail.Exception as failure:  # is of a class that does not travel
        raise AssertionError(str(failure)) from None


def interpreted(test: Any) -> Any:
    """A test whose arguments are parameters, not fixtures."""
    if os.environ.get(_HERE) == "1":
        serve_cpu_tensors()
        return test

    @functools.wraps(test)
    def elsewhere(**arguments: Any) -> None:
        if importlib.util.find_spec("triton") is None:
            pytest.skip("Triton is not installed; it is made for Linux alone")
        _pool().submit(_run, test.__module__, test.__name__, arguments).result()

    return elsewhere
