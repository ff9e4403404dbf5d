"""Options that commands share, and the refusal of options that would have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... or mps; default: the best there is.")]
Half = Annotated[bool | None, typer.Option("--half/--full", help="16-bit convolutions; default on a GPU.")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile; takes minutes at first.")]
Size = Annotated[int, typer.Option(min=0, help="Shorter side that the network sees; 0: the video's own.")]
Weights = Annotated[
    Path | None, typer.Option(help="A released file; default: the XMem.pth that `xmemk weights` fetched.")
]

Threshold = Annotated[float | None, typer.Option(help="The mask's pixels of at least this grey are the one object.")]
Colours = Annotated[
    str | None,
    typer.Option(help="Labels of the mask's colours, ff0000=1,00ff00=2; or 'stored': each value is a label."),
]


class Interrupted(Exception):
    """A command was interrupted; the message says what there is, and how to go on."""


def device_named(name: str | None) -> str:
    """The device of --device, by default the best. Raises ValueError where it is missing."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return "cuda" if count else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps") or (device.type != "cuda" and device.index):
        raise ValueError(f"--device: wanted cpu, cuda, cuda:<number> or mps, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"--device: PyTorch finds {count} CUDA device(s), no {name}; `xmemk doctor` says more")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device: PyTorch finds no mps device; it is there on Macs with Apple silicon alone")
    return name


def narrow_type(device: str, half: bool | None) -> torch.dtype | None:
    """The type for --half on a device, None for full precision."""
    import torch

    on_gpu = not device.startswith("cpu")
    if not (device.startswith("cuda") if half is None else half):
        return None
    return torch.float16 if on_gpu else torch.bfloat16


def typed(context: typer.Context, *names: str) -> dict[str, str]:
    """The options among ``names`` that the command line has, each as it is typed."""
    options = {
        p.name: (p.secondary_opts if p.secondary_opts and context.params.get(p.name or "") is False else p.opts)[0]
        for p in context.command.params
    }
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name: options[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def refuse(context: typer.Context, why: str, *names: str) -> None:
    """Raises ValueError where an option that would have no effect was given."""
    given = typed(context, *names)
    if given:
        raise ValueError(f"{', '.join(given.values())}: {why}")
