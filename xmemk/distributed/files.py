"""A sharded memory in files: one of tensors per rank, and one that names them.

``path`` is JSON and is written last, by a rename. It therefore names a complete set, the new one or
the old one. The files beside it hold the tokens of one rank in the order of the memory. Any number
of ranks can read the set: each takes its slices of the frames and its share of long-term memory out
of the files that have them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..memory.bank import place
from ..memory.checks import check_labels
from ..memory.exact import ExactBucket
from ..memory.files import safetensors_package
from ..memory.sensory import SensoryMemory
from ..memory.state import layout_as_json, layout_from_json
from ..memory.table import LONG_TERM, Run
from ..reference.config import MemoryConfig
from .arena import ShardedArena
from .local import LocalMemory, arenas_of
from .objects import ObjectColumns
from .shards import Shards, slices

FORMAT = "xmemk.distributed.Memory"
VERSION = 1


def write(path: str | os.PathLike[str], local: LocalMemory, columns: ObjectColumns, sensory: SensoryMemory) -> None:
    """See :meth:`xmemk.distributed.Memory.save`; ``local`` is a rank's part of it."""
    path = Path(path)
    shards, device = local.shards, torch.device("cpu") if local.layout is None else local.layout.device
    ranks = (shards, columns.shards)
    mark = first_of(ranks, secrets.randbits(62), device)
    mine = path.with_name(f"{path.stem}-{mark:016x}-{columns.shards.rank}-{shards.rank}.safetensors")
    temporary = path.with_name(f".{path.name}.{mark:016x}.tmp")
    names = [
        [f"{path.stem}-{mark:016x}-{column}-{rank}.safetensors" for rank in range(shards.size)]
        for column in range(columns.shards.size)
    ]
    head = {
        "format": FORMAT,
        "version": VERSION,
        "config": asdict(local.config),
        "layout": None if local.layout is None else layout_as_json(local.layout),
        "objects": list(columns.labels),
        "sensory": list(sensory.objects),
        "files": names,
    }
    writes_head = shards.rank == columns.shards.rank == 0
    old = files_named_by(path) if writes_head else []
    try:
        with agreed(ranks, device, f"{path}: could not be written"):
            write_tensors(mine, local, sensory if writes_head else None)
        with agreed(ranks, device, f"{path}: could not be written"):
            if writes_head:
                with open(temporary, "x") as file:
                    json.dump(head, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
    except BaseException:
        for file_name in (mine, temporary):
            with contextlib.suppress(OSError):
                file_name.unlink()
        raise
    for file_name in old:
        with contextlib.suppress(OSError):
            file_name.unlink()


def write_tensors(path: Path, local: LocalMemory, sensory: SensoryMemory | None) -> None:
    """Writes the tokens of one rank, and the sensory memory where one is given."""
    safetensors = safetensors_package()
    tensors: dict[str, Tensor] = {}
    groups = local.groups
    state: dict[str, Any] = {"gone": [0, 0] if groups is None else list(groups.gone), "buckets": []}
    for i, (bucket, arena) in enumerate(zip([] if groups is None else groups.buckets, arenas_of(local))):
        runs = arena.table.runs() or [Run(LONG_TERM, 0, 0)]
        for name, bank in arena.banks.items():
            rows = [bank.rows(run) for run in runs if not (name == "selection" and run.block == LONG_TERM)]
            tensors[f"{i}.{name}"] = torch.cat(rows, 1).cpu() if rows else bank.empty(0).cpu()
        tensors[f"{i}.serial"] = arena.serial[: arena.long_term].cpu()
        state["buckets"].append(
            {
                "objects": list(bucket.objects),
                "consolidations": bucket.consolidations,
                "evictions": bucket.evictions,
                "reads": arena.reads,
                "made": arena.made,
                "frames": len(arena.frames),
                "long_term_of": list(arena.long_term_of),
            }
        )
    if sensory is not None and sensory.objects:
        tensors["sensory"] = sensory.get().detach().contiguous().cpu()
    try:
        safetensors.torch.save_file(tensors, path, metadata={"state": json.dumps(state)})
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


class SavedSet:
    """A set of files that :func:`write` wrote, open for reading."""

    def __init__(self, path: Path, device: torch.device | str | None, opened: contextlib.ExitStack) -> None:
        self.path = path
        head = json.loads(path.read_text())
        if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != VERSION:
            raise ValueError("another JSON file, or another version")
        self.config = MemoryConfig(**head["config"])
        self.device = None if device is None else torch.empty(0, device=device).device
        self.layout = None if head["layout"] is None else layout_from_json(head["layout"], self.device)
        self.labels = check_labels("objects", head["objects"]) if head["objects"] else ()
        self.in_sensory = head["sensory"]
        safe_open = safetensors_package().safe_open
        self.columns = [
            [opened.enter_context(safe_open(sibling(path, name), framework="pt", device="cpu")) for name in names]
            for names in head["files"]
        ]

    def sensory(self) -> SensoryMemory:
        """The sensory memory."""
        sensory = SensoryMemory(self.config.hidden_dim)
        if self.in_sensory:
            hidden = self.columns[0][0].get_tensor("sensory")
            sensory.restore(self.in_sensory, hidden.to((self.layout.device if self.layout else self.device) or "cpu"))
        return sensory

    def fill(self, local: LocalMemory, mine: tuple[int, ...]) -> None:
        """Fills a rank's memory with its part of the tokens of its objects."""
        if self.layout is None or not mine:
            return
        groups = local.new_groups(self.layout)
        for files in self.columns:
            state = json.loads(files[0].metadata()["state"])
            groups.gone = groups.gone[0] + int(state["gone"][0]), groups.gone[1] + int(state["gone"][1])
            for i, saved in enumerate(state["buckets"]):
                rows = [row for row, label in enumerate(saved["objects"]) if label in mine]
                if rows:
                    bucket = ExactBucket(groups.rules, tuple(saved["objects"][row] for row in rows))
                    bucket.consolidations, bucket.evictions = int(saved["consolidations"]), int(saved["evictions"])
                    SavedBucket(files, i, saved, rows, self.layout.frame).fill(cast(ShardedArena, bucket.arena))
                    groups.buckets.append(bucket)
        order = {label: i for i, label in enumerate(self.labels)}
        groups.buckets.sort(key=lambda bucket: order[bucket.objects[0]])
        local.restore(self.layout, groups)


class SavedBucket:
    """The tokens of one bucket in the files of the ranks that held them."""

    def __init__(self, files: list[Any], number: int, saved: Mapping[str, Any], rows: list[int], frame: int) -> None:
        self.files, self.number, self.saved, self.rows, self.frame = files, number, saved, rows, frame
        self.slices = slices(frame, len(files))
        frames, held = int(saved["frames"]), saved["long_term_of"]
        sizes = [long_term + frames * (part.stop - part.start) for long_term, part in zip(held, self.slices)]
        tokens = [file.get_slice(f"{number}.key").get_shape()[1] for file in files]
        if len(held) != len(files) or tokens != sizes:
            raise ValueError(f"files with {tokens} tokens, wanted {sizes}")

    def fill(self, arena: ShardedArena) -> None:
        """Fills the empty arena of a rank."""
        shards, held = arena.shards, [int(n) for n in self.saved["long_term_of"]]
        arena.reads, arena.made = int(self.saved["reads"]), int(self.saved["made"])
        arena.long_term_of = shards.sizes_of(sum(held))
        serials = torch.cat([file.get_tensor(f"{self.number}.serial") for file in self.files])
        if len(serials) != sum(held):
            raise ValueError(f"{len(serials)} serial numbers of long-term tokens, wanted {sum(held)}")
        order = serials.argsort()[shards.slice_of(sum(held))]
        count = len(order)
        arena.serial[:count] = serials[order].to(arena.serial.device)
        for name, bank in arena.banks.items():
            if name != "selection":
                long_term = [self._rows(file, name, 0, n) for file, n in zip(self.files, held)]
                copy_rows(bank.rows(Run(LONG_TERM, 0, count)), torch.cat(long_term, 1)[:, order])
        arena.table.long = count
        for j in range(int(self.saved["frames"])):
            slot = place(arena.table, list(arena.banks.values()))
            for name, bank in arena.banks.items():
                copy_rows(bank.rows(arena.table.run(slot)), self._frame(name, j, arena.slice, held))
            arena.table.frames.append(slot)

    def _frame(self, name: str, j: int, mine: slice, held: list[int]) -> Tensor:
        """The tokens ``mine`` of frame j."""
        parts = []
        for file, own, long_term in zip(self.files, self.slices, held):
            start, stop = max(mine.start, own.start), min(mine.stop, own.stop)
            if start < stop:
                first = (0 if name == "selection" else long_term) + j * (own.stop - own.start) - own.start
                parts.append(self._rows(file, name, first + start, first + stop))
        return torch.cat(parts, 1) if parts else self._rows(self.files[0], name, 0, 0)

    def _rows(self, file: Any, name: str, start: int, stop: int) -> Tensor:
        rows: Tensor = file.get_slice(f"{self.number}.{name}")[:, start:stop]
        return rows[:, :, self.rows] if name.startswith("value") else rows


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], device: torch.device | str | None) -> Iterator[SavedSet]:
    """The set that ``path`` names.

    ValueError, naming ``path``, where it is damaged or incomplete.
    """
    path = Path(path)
    with open(path, "rb"):  # OSError for a file that is missing or may not be read
        pass
    try:
        with contextlib.ExitStack() as stack:
            yield SavedSet(path, device, stack)
    except Exception as error:  # torch, json and safetensors raise many for what contradicts itself
        expected = f"{path}: wanted a whole set of files that distributed.Memory.save wrote, version {VERSION}"
        raise ValueError(f"{expected}, got: {error}") from error


@contextlib.contextmanager
def agreed(ranks: tuple[Shards, ...], device: torch.device, failure: str) -> Iterator[None]:
    """Raises OSError on every rank where the body raised on one."""
    error: OSError | None = None
    try:
        yield
    except OSError as raised:
        error = raised
    failed = int(error is not None)
    for shards in ranks:
        failed = sum(count[0] for count in shards.numbers([failed], device))
    if failed:
        raise OSError(f"{failure}: {error or 'another rank failed'}") from error


def first_of(ranks: tuple[Shards, ...], number: int, device: torch.device) -> int:
    """The number of the first rank, on every rank."""
    for shards in ranks:
        number = shards.numbers([number], device)[0][0]
    return number


def files_named_by(path: Path) -> list[Path]:
    """The files of an older set, which a new one replaces."""
    try:
        head = json.loads(path.read_text())
        return [sibling(path, name) for names in head["files"] for name in names] if head["format"] == FORMAT else []
    except (OSError, LookupError, TypeError, ValueError):
        return []


def sibling(path: Path, name: str) -> Path:
    """A file of the set, in the folder of ``path``. ValueError for a name that leads elsewhere."""
    if name != Path(name).name or not name.endswith(".safetensors"):
        raise ValueError(f"a file named {name!r}")
    return path.with_name(name)


def copy_rows(rows: Tensor, saved: Tensor) -> None:
    """Copies saved rows. ValueError for another shape or type."""
    if saved.shape != rows.shape or saved.dtype != rows.dtype:
        raise ValueError(f"{saved.dtype} {list(saved.shape)}, where {rows.dtype} {list(rows.shape)} belongs")
    rows.copy_(saved)
