"""A wheel whose C++ extension is of another torch: one sentence, and plain PyTorch serves."""

import importlib
import warnings
from types import SimpleNamespace

import pytest

import xmemk
from xmemk.operators import native
from xmemk.testing import compare_read, make_inputs


def extension(outcome):
    """importlib.import_module, but for xmemk._C: an error is raised, a version is what built it."""
    real = importlib.import_module

    def import_module(name, package=None):
        if name != "xmemk._C":
            return real(name, package)
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(build_info=lambda: {"torch": outcome, "cuda": False})

    return import_module


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (
            ImportError("_C.so: undefined symbol: _ZN2at4_ops\nmore"),
            "does not load: _C.so: undefined symbol: _ZN2at4_ops;",
        ),
        (OSError("libtorch_cpu.so: cannot open shared object file"), "does not load: libtorch_cpu.so: cannot open"),
        (ModuleNotFoundError("No module named 'numpy'", name="numpy"), "does not load: No module named 'numpy'"),
        ("2.7.1+cpu", "is built for torch 2.7.1"),
    ],
)
def test_an_extension_of_another_torch_is_one_sentence(monkeypatch, outcome, words):
    monkeypatch.setattr(native.importlib, "import_module", extension(outcome))
    monkeypatch.setattr(native, "_native_error", native._NOT_TRIED)
    inputs = make_inputs(60, 7, value_channels=8)
    with pytest.warns(RuntimeWarning) as caught:
        readout = xmemk.memory_read(*inputs.read, top_k=5)
        xmemk.memory_read(*inputs.read, top_k=5)
    assert len(caught) == 1
    sentence = str(caught[0].message)
    assert words in sentence and "--no-build-isolation" in sentence and "\n" not in sentence
    assert xmemk.explain(xmemk.memory_read, *inputs.read, top_k=5).chosen == "torch"
    compare_read(inputs, readout, top_k=5).check()


@pytest.mark.parametrize("outcome", [ModuleNotFoundError("absent", name="xmemk._C"), "THIS"])
def test_one_of_this_torch_and_none_at_all_say_nothing(monkeypatch, outcome):
    outcome = native.torch.__version__ if outcome == "THIS" else outcome
    monkeypatch.setattr(native.importlib, "import_module", extension(outcome))
    monkeypatch.setattr(native, "_native_error", native._NOT_TRIED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.native_error() == (None if isinstance(outcome, str) else "the C++ extension is not built")
