"""A memory in a file, to go on later or elsewhere: safetensors with the tokens held, and JSON with everything else.

Tokens return to the slots they came from, so that the runs, and with them every later result on the same kind of
device, are those of a memory that was never saved, to the bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..reference.config import MemoryConfig
from .arena import Arena
from .bank import Bank, add_block
from .checks import Layout, check_labels
from .exact import Bucket, ExactGroups
from .graph import Captures
from .rules import Rules
from .sensory import Sensory
from .shared import Late, SharedGroups
from .spec import Spec
from .table import LONG_TERM, Slot, Table

FORMAT = "xmemk.Memory"
VERSION = 1

# What torch and json raise for a file that contradicts itself, or names a device that is not here.
_CONTRADICTIONS = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError, AssertionError)

Groups = ExactGroups | SharedGroups


def write(
    path: str | os.PathLike[str],
    config: MemoryConfig,
    layout: Layout | None,
    groups: Groups | None,
    sensory: Sensory,
) -> None:
    """Writes to a temporary file beside ``path`` first: where that fails, the old file is as it was."""
    safetensors = _safetensors()
    tensors: dict[str, Tensor] = {}
    state = {
        "config": asdict(config),
        "layout": None if layout is None else _layout_as_json(layout),
        "groups": None if groups is None else _groups_as_json(groups, tensors),
        "sensory": list(sensory.objects),
    }
    if sensory.objects:
        tensors["sensory"] = sensory.get().detach().contiguous().cpu()
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    metadata = {"format": FORMAT, "version": str(VERSION), "state": json.dumps(state)}
    try:
        try:
            with open(temporary, "xb"):
                mode = temporary.stat().st_mode
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)  # safetensors makes files that only their owner may read
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: could not be written: {error}") from error
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # the new name is on the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(
    path: str | os.PathLike[str],
    device: torch.device | str | None,
    backend: str,
    graphs: Captures | None = None,
) -> tuple[MemoryConfig, Layout | None, Groups | None, Sensory]:
    """ValueError that names the file where it is cut off, no memory, of a newer version, or contradicts itself."""
    safetensors = _safetensors()
    with open(path, "rb"):  # a file that is not there, or may not be read, is an OSError
        pass
    device = None if device is None else torch.empty(0, device=device).device
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError("another safetensors file")
            if metadata.get("version") != str(VERSION):
                raise ValueError(f"version {metadata.get('version')} of the format")
            return _restore(json.loads(metadata["state"]), file, device, backend, graphs)
    except (safetensors.SafetensorError, *_CONTRADICTIONS) as error:
        wanted = f"{path}: wanted a whole file that Memory.save wrote, version {VERSION}"
        raise ValueError(f"{wanted}, got: {error}") from error


def _restore(
    state: Mapping[str, Any], file: Any, device: torch.device | None, backend: str, graphs: Captures | None
) -> tuple[MemoryConfig, Layout | None, Groups | None, Sensory]:
    config = MemoryConfig(**state["config"])
    layout = None if state["layout"] is None else _layout_from_json(state["layout"], device)
    sensory = Sensory(config.hidden_dim)
    if state["sensory"]:
        hidden = file.get_tensor("sensory")
        sensory.restore(state["sensory"], hidden.to((layout.device if layout else device) or "cpu"))
    if layout is None or state["groups"] is None:
        return config, layout, None, sensory
    rules = Rules(config, layout, backend, graphs=graphs)
    groups: Groups
    if config.groups == "exact":
        groups = _exact_from_json(state["groups"], ExactGroups(rules), file)
    else:
        groups = _shared_from_json(state["groups"], SharedGroups(rules), file)
    if groups.objects:
        check_labels("objects", groups.objects)
    return config, layout, groups, sensory


def _groups_as_json(groups: Groups, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(groups, ExactGroups):
        return {
            "buckets": [_bucket_as_json(b, f"{i}", tensors) for i, b in enumerate(groups.buckets)],
            "gone": groups.gone,
        }
    assert groups.arena is not None  # there since the first add
    late = []
    for i, group in enumerate(groups.late):
        _tokens(group.table, _named(group.values.banks), f"late{i}", tensors)
        late.append(_table_as_json(group.table, group.values.banks[0]) | {"objects": group.objects})
    own = {
        "objects": groups.first,
        "consolidations": groups.consolidations,
        "evictions": groups.evictions,
        "late": late,
    }
    return _arena_as_json(groups.arena, "0", tensors) | own


def _exact_from_json(saved: Mapping[str, Any], groups: ExactGroups, file: Any) -> ExactGroups:
    for i, each in enumerate(saved["buckets"]):
        objects = check_labels("objects", each["objects"])
        bucket = Bucket(groups.rules, objects, _spec(each, groups.rules, objects))
        _arena_from_json(each, bucket.arena, f"{i}", file)
        bucket.consolidations, bucket.evictions = int(each["consolidations"]), int(each["evictions"])
        groups.buckets.append(bucket)
    groups.gone = int(saved["gone"][0]), int(saved["gone"][1])
    return groups


def _shared_from_json(saved: Mapping[str, Any], groups: SharedGroups, file: Any) -> SharedGroups:
    groups.first = check_labels("objects", saved["objects"])
    groups.arena = Arena(_spec(saved, groups.rules, groups.first), groups.rules.functions, groups.rules.graphs)
    _arena_from_json(saved, groups.arena, "0", file)
    groups.consolidations, groups.evictions = int(saved["consolidations"]), int(saved["evictions"])
    for i, each in enumerate(saved["late"]):
        objects = check_labels("objects", each["objects"])
        group = Late(groups.rules, objects, _spec(each, groups.rules, objects))
        _put_back(each, group.table, _named(group.values.banks), f"late{i}", file)
        if group.table.long > groups.arena.long_term or len(group.table.frames) > len(groups.arena.frames):
            raise ValueError(f"a later group of {group.table.tokens} tokens, more than there are keys")
        groups.late.append(group)
    return groups


def _bucket_as_json(bucket: Bucket, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    counts = {"consolidations": bucket.consolidations, "evictions": bucket.evictions}
    return _arena_as_json(bucket.arena, name, tensors) | counts | {"objects": bucket.objects}


def _arena_as_json(arena: Arena, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    _tokens(arena.table, arena.banks, name, tensors)
    return _table_as_json(arena.table, arena.key) | {"reads": arena.reads}


def _arena_from_json(saved: Mapping[str, Any], arena: Arena, name: str, file: Any) -> None:
    _put_back(saved, arena.table, arena.banks, name, file)
    arena.reads = int(saved["reads"])
    births = [birth for birth in map(arena.birth.rows, arena.table.runs()) if birth.numel()]
    if arena.reads < 0 or any(not 0 <= int(x.min()) <= int(x.max()) <= arena.reads for x in births):
        raise ValueError(f"{arena.reads} reads, and tokens that came before the first or after the last")


def _table_as_json(table: Table, value: Bank) -> dict[str, Any]:
    """Positions, and the room there is: limits may have changed since it was made (:mod:`xmemk.compat`)."""
    room = value.blocks[LONG_TERM].shape[1]
    frames = [list(slot) for slot in table.frames]
    return {"long": table.long, "room": room, "slots": table.slots, "frames": frames}


def _spec(saved: Mapping[str, Any], rules: Rules, objects: Sequence[int]) -> Spec:
    """What the storage was made for."""
    spec = rules.spec(len(objects))
    room, slots = int(saved["room"]), int(saved["slots"][0])
    if room < spec.long_term or slots < 1:
        raise ValueError(f"room for {room} long-term tokens and {slots} frames, wanted {spec.long_term} and one")
    return replace(spec, frames=slots, long_term=room)


def _named(banks: Sequence[Bank]) -> dict[str, Bank]:
    return {f"value{i}": bank for i, bank in enumerate(banks)}


def _tokens(table: Table, banks: Mapping[str, Bank], name: str, tensors: dict[str, Tensor]) -> None:
    """The tokens held, a tensor for each run of each bank; for B = 1 they are written from where they lie."""
    for bank_name, bank in banks.items():
        for i, run in enumerate(table.runs()):
            if not (bank_name == "selection" and run.block == LONG_TERM):
                tensors[f"{name}.{bank_name}.{i}"] = bank.rows(run).contiguous().cpu()


def _put_back(saved: Mapping[str, Any], table: Table, banks: Mapping[str, Bank], name: str, file: Any) -> None:
    """Into a table and banks as new, which a file that is wrong leaves useless."""
    room = int(saved["room"])
    slots, long = [int(n) for n in saved["slots"]], int(saved["long"])
    frames = [Slot(int(block), int(slot)) for block, slot in saved["frames"]]
    fits = all(1 <= s.block <= len(slots) and 0 <= s.slot < slots[s.block - 1] for s in frames)
    fits = fits and len(set(frames)) == len(frames) and min(slots) >= 1
    if not fits or not 0 <= long <= room:
        raise ValueError(f"{long} long-term tokens and frames at {frames} where there is room for {room} and {slots}")
    for more in slots[1:]:
        add_block(banks.values(), more * table.frame)
    table.slots, table.frames, table.long = slots, frames, long
    for bank_name, bank in banks.items():
        for i, run in enumerate(table.runs()):
            if bank_name == "selection" and run.block == LONG_TERM:
                continue
            rows, tensor = bank.rows(run), file.get_tensor(f"{name}.{bank_name}.{i}")
            if tensor.shape != rows.shape or tensor.dtype != rows.dtype:
                came = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{bank_name} of {came}, where {rows.dtype} {list(rows.shape)} belongs")
            rows.copy_(tensor)


def _layout_as_json(layout: Layout) -> dict[str, Any]:
    return {field.name: _plain(getattr(layout, field.name)) for field in fields(layout)}


def _plain(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, (torch.dtype, torch.device)) else value


def _layout_from_json(saved: Mapping[str, Any], device: torch.device | None) -> Layout:
    known = {field.name: saved[field.name] for field in fields(Layout)}
    for name in ("key_dtype", "value_dtype"):
        known[name] = getattr(torch, known[name])
        if not isinstance(known[name], torch.dtype):
            raise ValueError(f"{name}: {saved[name]!r} is no type")
    for name in ("batch", "key_channels", "value_channels", "height", "width"):
        if type(known[name]) is not int or known[name] < 1:
            raise ValueError(f"{name}: wanted a whole number from 1, got {known[name]!r}")
    known["device"] = torch.empty(0, device=known["device"]).device if device is None else device
    return Layout(**known)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Memory.save and Memory.load need safetensors: pip install 'xmemk[memory]', or safetensors itself"
        ) from error
    return safetensors
