"""The tracker's step written as ONNX graphs, a folder of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn, rand
from torch.export import Dim

from ..network.network import XMem
from ..reference.config import MemoryConfig
from . import graphs
from .read import write

STRIDE = 16
EXAMPLE_SIZE = (96, 128)  # traced where the size is to stay free
RULES = ("mem_every", "deep_update_every", "max_mid_term_frames", "min_mid_term_frames", "num_prototypes")


def export_tracker(
    network: XMem,
    folder: str | os.PathLike[str],
    config: MemoryConfig | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
) -> None:
    """Writes the tracker of this network and memory as ONNX graphs and ``tracker.json``, which
    runner.py reads.

    height, width: of the frames, 480 and 854 say; both None for graphs that take any size. The
    number of objects is free in any case. ValueError for a memory that the graphs cannot be:
    without long-term memory, which has no fixed room, or with counting, groups or ``value_dtype``
    other than the defaults; and for P or k beyond what it holds.
    """
    config = config or MemoryConfig(hidden_dim=network.config.hidden_dim)
    if (height is None) != (width is None):
        raise ValueError(f"height, width: wanted both or neither, got {height} and {width}")
    h, w = (-(-size // STRIDE) for size in ((height, width) if height and width else EXAMPLE_SIZE))
    _check(network, config, h * w)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _area_as_average():
        for name, graph in _all(network, config, h, w, free=height is None).items():
            program = torch.export.export(graph.module, graph.arguments, dynamic_shapes=graph.free, strict=False)
            write(out / f"{name}.onnx", program, graph.inputs.split(), graph.outputs.split())
    sizes = {name: getattr(network.config, name) for name in ("key_dim", "value_dim", "hidden_dim")}
    rules = {name: getattr(config, name) for name in (*RULES, "max_long_term_elements")}
    (out / "tracker.json").write_text(json.dumps({**sizes, **rules}, indent=1) + "\n")


def _check(network: XMem, config: MemoryConfig, tokens: int) -> None:
    settings = {"enable_long_term": True, "enable_long_term_count_usage": True, "groups": "exact", "value_dtype": None}
    for name, value in {**settings, "hidden_dim": network.config.hidden_dim}.items():
        if getattr(config, name) != value:
            raise ValueError(f"config: wanted {name} = {value!r} for a graph, got {getattr(config, name)!r}")
    candidates = (config.max_mid_term_frames - config.min_mid_term_frames) * tokens
    if config.num_prototypes > candidates:
        raise ValueError(f"num_prototypes: wanted at most the {candidates} candidates, got {config.num_prototypes}")
    room = config.max_long_term_elements + config.max_mid_term_frames * tokens
    if (config.top_k or 0) > room:
        raise ValueError(f"top_k: wanted at most the memory's room of {room} tokens, got {config.top_k}")


class Graph(NamedTuple):
    module: nn.Module
    inputs: str
    outputs: str
    arguments: tuple[Any, ...]
    free: tuple[Any, ...]  # for each argument its axes that stay free


def _all(network: XMem, config: MemoryConfig, h: int, w: int, *, free: bool) -> dict[str, Graph]:
    sizes, hw, o = network.config, h * w, 2
    ck, cv, ch = sizes.key_dim, sizes.value_dim, sizes.hidden_dim
    frames, long = config.max_mid_term_frames, config.max_long_term_elements
    n = long + frames * hw
    network = network.tuned()
    made = network, config
    # Axes that stay free.
    dim_o, dim_hw, *dims = Dim("objects", min=1), Dim("tokens", min=2), Dim("h", min=2), Dim("w", min=2)

    def axes(first: int, scale: int) -> dict[int, Any]:
        return {first + i: scale * dim if scale > 1 else dim for i, dim in enumerate(dims)} if free else {}

    rows = {0: frames * dim_hw + long} if free else {}
    new, per_object = {2: dim_hw} if free else {}, {1: dim_o}
    # Arguments to trace with, each with its free axes.
    image = rand(1, 3, STRIDE * h, STRIDE * w), axes(2, STRIDE)
    features = network.encode_key(image[0])[3], (axes(2, 1), axes(2, 2), axes(2, 4))
    frame = [(rand(1, c, hw), new) for c in (ck, 1, ck)]
    value = rand(1, o, cv, hw), per_object | ({3: dim_hw} if free else {})
    readout = rand(1, o, cv, h, w), per_object | axes(3, 1)
    masks = rand(1, o, STRIDE * h, STRIDE * w), per_object | axes(2, STRIDE)
    hidden = [(rand(1, o, ch, h, w), per_object | axes(3, 1))] if ch else []
    there = torch.ones(n, dtype=torch.bool)
    state = graphs.State(rand(n, ck), rand(n, 1), rand(n, ck), rand(n, o, cv), rand(n), rand(n), there)
    of_state = [rows | per_object if name == "value" else rows for name in state._fields]
    read = (*state[:2], *state[3:]), (*of_state[:2], *of_state[3:])
    start: tuple[Tensor, dict[int, Any]] = torch.tensor([0]), {}
    names, after = " ".join(state._fields), " ".join(f"next_{name}" for name in state._fields)
    more = (" hidden", " next_hidden") if ch else ("", "")

    def graph(module: nn.Module, inputs: str, outputs: str, *arguments: tuple[Any, Any]) -> Graph:
        return Graph(module, inputs, outputs, *(tuple(column) for column in zip(*arguments)))

    key, segment = "key shrinkage selection", "f16 f8 f4"
    new_names = "new_key new_shrinkage new_selection new_value"
    whole = state, graphs.State(*of_state)  # type: ignore[arg-type]
    return {
        "encode_key": graph(graphs.EncodeKey(*made), "image", f"{key} {segment}", image),
        "encode_value": graph(
            graphs.EncodeValue(*made), f"image f16 masks{more[0]}", f"value{more[1]}",
            image, (features[0][0], axes(2, 1)), masks, *hidden,
        ),
        "decode": graph(
            graphs.Decode(*made), f"{segment} readout{more[0]}", f"probability{more[1]}",
            features, readout, *hidden,
        ),
        "read": graph(
            graphs.Read(*made), names.replace(" selection", "") + " qk qe", "readout next_use next_life",
            read, frame[0], frame[2],
        ),
        "remember": graph(
            graphs.Remember(*made), f"{names} start {new_names}", after, whole, start, *frame, value
        ),
        "consolidate": graph(graphs.Consolidate(*made), f"{names} start", after, whole, start),
        "evict": graph(graphs.Evict(*made), names, after, whole),
    }  # fmt: skip


@contextmanager
def _area_as_average() -> Iterator[None]:
    """Areas of whole pixels are averages of fixed windows, which ONNX has for any size."""
    interpolate = F.interpolate

    def pooled(x: Tensor, **options: Any) -> Tensor:
        area = options.get("mode") == "area"
        return F.avg_pool2d(x, round(1 / options["scale_factor"])) if area else interpolate(x, **options)

    with mock.patch.object(F, "interpolate", pooled):
        yield
