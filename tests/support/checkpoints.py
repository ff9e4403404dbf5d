"""Hypothesis strategies for files of network parameters: as they are found, and as they are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Any]
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "model.net.")
WRAPPINGS = (None, "network", "state_dict", "model", "net", "anything")


class Wrapping(NamedTuple):
    """How a file holds parameters; with ``outer`` and ``inner`` None it holds them at once."""

    dtype: torch.dtype
    prefix: str
    inner: str | None
    outer: str | None
    form: str  # zip, legacy, safetensors
    parameters: bool  # nn.Parameter, as a careless dictionary has them
    backwards: bool  # the order of names

    def write(self, state: State, path: Path) -> None:
        """Writes the parameters in this way."""
        items = list(state.items())[:: -1 if self.backwards else 1]
        content: State = {self.prefix + name: self._typed(x) for name, x in items}
        if self.form == "safetensors":
            save_file(content, path)
            return
        for key in (self.inner, self.outer):
            if key is not None:
                content = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}, key: content, "args": []}
        write(content, path, self.form == "zip")

    def _typed(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        x = x.to(self.dtype)
        return torch.nn.Parameter(x) if self.parameters and self.form != "safetensors" else x


def write(content: Any, path: Path, as_zip: bool = True) -> None:
    """torch.save without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, path, _use_new_zipfile_serialization=as_zip)


wrappings: st.SearchStrategy[Wrapping] = st.builds(
    Wrapping,
    st.sampled_from(FLOATING),
    st.sampled_from(PREFIXES),
    st.sampled_from(WRAPPINGS),
    st.sampled_from(WRAPPINGS),
    st.sampled_from(["zip", "legacy", "safetensors"]),
    st.booleans(),
    st.booleans(),
)

# What can be wrong with one parameter, each with a word of the error.
FAULTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "meta": (lambda x: x.to("meta"), "a meta tensor"),
    "nested": (lambda x: torch.nested.nested_tensor([x.reshape(-1), x.reshape(-1)]), "a nested tensor"),
    "sparse": (lambda x: x.to_sparse(), "a sparse tensor"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "a quantised tensor"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "complex": (lambda x: x.to(torch.complex64), "complex64"),
    "whole numbers": (lambda x: x.long(), "int64"),
    "another type": (lambda x: x.half(), "as most parameters, got torch.float16"),
    "NaN": (lambda x: x / 0 * 0, "NaN or Inf"),
    "Inf": (lambda x: x.abs() / 0 + 1e38 * 1e38, "NaN or Inf"),
    "another shape": (lambda x: x[None], "shape"),
    "no tensor": (lambda x: x.tolist(), "is list"),
    "missing": (lambda x: None, "is missing"),
}


@st.composite
def faults(draw: st.DrawFn, names: list[str]) -> list[tuple[str, str]]:
    """Some of the names, and a fault for each."""
    some = draw(st.lists(st.sampled_from(names), min_size=1, max_size=6, unique=True))
    return [(name, draw(st.sampled_from(sorted(FAULTS)))) for name in some]


def damaged(state: State, damages: list[tuple[str, str]]) -> State:
    """The parameters with these faults."""
    state = dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, fault in damages:
            state[name] = FAULTS[fault][0](state[name])
            if fault == "missing":
                del state[name]
    return state


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file that is cut off, or has other bytes in some places."""
    content = bytearray(whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole)
    for _ in range(draw(st.integers(0, 20))):
        if content:
            content[draw(st.integers(0, min(len(content), 4000) - 1))] = draw(st.integers(0, 255))
    return bytes(content)
