"""A memory as JSON and tensors, and back: what :mod:`.files` writes and reads.

Tokens return to the slots they came from. The runs decide where a read rounds, so with the same
runs a loaded memory resumes bit-exactly on the same kind of device. Only tokens in the memory are
written, not the room for more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..reference.config import MemoryConfig
from .arena import Arena
from .bank import Bank, add_block
from .checks import FrameLayout, check_labels
from .exact import ExactBucket, SeparateGroups
from .graph import Captures
from .rules import MemoryRules
from .sensory import SensoryMemory
from .shared import LateGroup, SharedGroups
from .spec import Spec
from .table import LONG_TERM, Slot, Table

Groups = SeparateGroups | SharedGroups
State = tuple[MemoryConfig, FrameLayout | None, Groups | None, SensoryMemory]


def state_of(
    config: MemoryConfig,
    layout: FrameLayout | None,
    groups: Groups | None,
    sensory: SensoryMemory,
    tensors: dict[str, Tensor],
) -> dict[str, Any]:
    """The JSON of a memory. Its tensors are added to ``tensors``, on the CPU."""
    state = {
        "config": asdict(config),
        "layout": None if layout is None else layout_as_json(layout),
        "groups": None if groups is None else _groups_as_json(groups, tensors),
        "sensory": list(sensory.objects),
    }
    if sensory.objects:
        tensors["sensory"] = sensory.get().detach().contiguous().cpu()
    return state


def restore(
    state: Mapping[str, Any], file: Any, device: torch.device | None, backend: str, graphs: Captures | None
) -> State:
    """The memory of this JSON, with tensors of an open safetensors ``file``.

    Raises one of many errors where the two do not match; :func:`.files.read` makes it a ValueError.
    """
    config = MemoryConfig(**state["config"])
    layout = None if state["layout"] is None else layout_from_json(state["layout"], device)
    sensory = SensoryMemory(config.hidden_dim)
    if state["sensory"]:
        hidden = file.get_tensor("sensory")
        sensory.restore(state["sensory"], hidden.to((layout.device if layout else device) or "cpu"))
    if layout is None or state["groups"] is None:
        return config, layout, None, sensory
    rules = MemoryRules(config, layout, backend, graphs=graphs)
    groups: Groups
    if config.groups == "exact":
        groups = _separate_from_json(state["groups"], SeparateGroups(rules), file)
    else:
        groups = _shared_from_json(state["groups"], SharedGroups(rules), file)
    if groups.objects:
        check_labels("objects", groups.objects)
    return config, layout, groups, sensory


# Groups


def _groups_as_json(groups: Groups, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(groups, SeparateGroups):
        buckets = [_bucket_as_json(bucket, f"{i}", tensors) for i, bucket in enumerate(groups.buckets)]
        return {"buckets": buckets, "gone": groups.gone}
    assert groups.arena is not None  # there since the first add
    late = []
    for i, group in enumerate(groups.late):
        _add_tokens(group.table, _named(group.values.banks), f"late{i}", tensors)
        late.append(_table_as_json(group.table, group.values.banks[0]) | {"objects": group.objects})
    own = {
        "objects": groups.first,
        "consolidations": groups.consolidations,
        "evictions": groups.evictions,
        "late": late,
    }
    return _arena_as_json(groups.arena, "0", tensors) | own


def _separate_from_json(saved: Mapping[str, Any], groups: SeparateGroups, file: Any) -> SeparateGroups:
    for i, saved_bucket in enumerate(saved["buckets"]):
        objects = check_labels("objects", saved_bucket["objects"])
        bucket = ExactBucket(groups.rules, objects, _spec(saved_bucket, groups.rules, objects))
        _fill_arena(saved_bucket, bucket.arena, f"{i}", file)
        bucket.consolidations = int(saved_bucket["consolidations"])
        bucket.evictions = int(saved_bucket["evictions"])
        groups.buckets.append(bucket)
    groups.gone = int(saved["gone"][0]), int(saved["gone"][1])
    return groups


def _shared_from_json(saved: Mapping[str, Any], groups: SharedGroups, file: Any) -> SharedGroups:
    groups.first = check_labels("objects", saved["objects"])
    groups.arena = groups.rules.arena(_spec(saved, groups.rules, groups.first))
    _fill_arena(saved, groups.arena, "0", file)
    groups.consolidations, groups.evictions = int(saved["consolidations"]), int(saved["evictions"])
    for i, saved_group in enumerate(saved["late"]):
        objects = check_labels("objects", saved_group["objects"])
        group = LateGroup(groups.rules, objects, _spec(saved_group, groups.rules, objects))
        _fill(saved_group, group.table, _named(group.values.banks), f"late{i}", file)
        if group.table.long > groups.arena.long_term or len(group.table.frames) > len(groups.arena.frames):
            raise ValueError(f"a later group of {group.table.tokens} tokens, more than there are keys")
        groups.late.append(group)
    return groups


def _bucket_as_json(bucket: ExactBucket, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    counts = {"consolidations": bucket.consolidations, "evictions": bucket.evictions}
    return _arena_as_json(bucket.arena, name, tensors) | counts | {"objects": bucket.objects}


# Arenas and tables


def _arena_as_json(arena: Arena, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    _add_tokens(arena.table, arena.banks, name, tensors)
    return _table_as_json(arena.table, arena.key) | {"reads": arena.reads}


def _fill_arena(saved: Mapping[str, Any], arena: Arena, name: str, file: Any) -> None:
    _fill(saved, arena.table, arena.banks, name, file)
    arena.reads = int(saved["reads"])
    births = [birth for birth in map(arena.birth.rows, arena.table.runs()) if birth.numel()]
    if arena.reads < 0 or any(not 0 <= int(x.min()) <= int(x.max()) <= arena.reads for x in births):
        raise ValueError(f"{arena.reads} reads, and tokens that came before the first or after the last")


def _table_as_json(table: Table, bank: Bank) -> dict[str, Any]:
    """Positions, and the room of ``bank``, which may be larger than the limits of the rules.

    :mod:`xmemk.compat` changes limits while a video runs.
    """
    room = bank.blocks[LONG_TERM].shape[1]
    frames = [list(slot) for slot in table.frames]
    return {"long": table.long, "room": room, "slots": table.slots, "frames": frames}


def _spec(saved: Mapping[str, Any], rules: MemoryRules, objects: Sequence[int]) -> Spec:
    """The spec of storage with the saved room. ValueError where the rules need more."""
    spec = rules.spec(len(objects))
    room, slots = int(saved["room"]), int(saved["slots"][0])
    if room < spec.long_term or slots < 1:
        raise ValueError(f"room for {room} long-term tokens and {slots} frames, wanted {spec.long_term} and one")
    return replace(spec, frames=slots, long_term=room)


def _named(banks: Sequence[Bank]) -> dict[str, Bank]:
    return {f"value{i}": bank for i, bank in enumerate(banks)}


def _add_tokens(table: Table, banks: Mapping[str, Bank], name: str, tensors: dict[str, Tensor]) -> None:
    """Adds a tensor per run and bank to ``tensors``; without a copy where B = 1."""
    for bank_name, bank in banks.items():
        for i, run in enumerate(table.runs()):
            if not (bank_name == "selection" and run.block == LONG_TERM):
                tensors[f"{name}.{bank_name}.{i}"] = bank.rows(run).contiguous().cpu()


def _fill(saved: Mapping[str, Any], table: Table, banks: Mapping[str, Bank], name: str, file: Any) -> None:
    """Fills a new table and new banks. Where this raises, they are unusable."""
    room = int(saved["room"])
    slots, long = [int(n) for n in saved["slots"]], int(saved["long"])
    frames = [Slot(int(block), int(slot)) for block, slot in saved["frames"]]
    fits = all(1 <= s.block <= len(slots) and 0 <= s.slot < slots[s.block - 1] for s in frames)
    fits = fits and len(set(frames)) == len(frames) and min(slots) >= 1
    if not fits or not 0 <= long <= room:
        raise ValueError(f"{long} long-term tokens and frames at {frames} where there is room for {room} and {slots}")
    for added_slots in slots[1:]:
        add_block(banks.values(), added_slots * table.frame)
    table.slots, table.frames, table.long = slots, frames, long
    for bank_name, bank in banks.items():
        for i, run in enumerate(table.runs()):
            if bank_name == "selection" and run.block == LONG_TERM:
                continue
            rows, tensor = bank.rows(run), file.get_tensor(f"{name}.{bank_name}.{i}")
            if bank_name == "use" and tensor.dtype == torch.float32:  # of version 0.1
                tensor = tensor.double()
            if tensor.shape != rows.shape or tensor.dtype != rows.dtype:
                form = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{bank_name} of {form}, where {rows.dtype} {list(rows.shape)} belongs")
            rows.copy_(tensor)


# Layout


def layout_as_json(layout: FrameLayout) -> dict[str, Any]:
    return {field.name: _as_text(getattr(layout, field.name)) for field in fields(layout)}


def _as_text(value: Any) -> Any:
    """Types and devices by name; numbers as they are."""
    return str(value).removeprefix("torch.") if isinstance(value, (torch.dtype, torch.device)) else value


def layout_from_json(saved: Mapping[str, Any], device: torch.device | None) -> FrameLayout:
    known = {field.name: saved[field.name] for field in fields(FrameLayout)}
    for name in ("key_dtype", "value_dtype"):
        known[name] = getattr(torch, known[name])
        if not isinstance(known[name], torch.dtype):
            raise ValueError(f"{name}: {saved[name]!r} is no type")
    for name in ("batch", "key_channels", "value_channels", "height", "width"):
        if type(known[name]) is not int or known[name] < 1:
            raise ValueError(f"{name}: wanted a whole number from 1, got {known[name]!r}")
    known["device"] = torch.empty(0, device=known["device"]).device if device is None else device
    return FrameLayout(**known)
