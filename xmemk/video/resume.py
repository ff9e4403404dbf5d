"""Resuming an interrupted run: the identity of a job, and the tracker's state on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..data.source import FrameSource
from ..memory import Memory
from .tracker import Tracker


def fingerprint_of(network: nn.Module, source: FrameSource, masks: Mapping[int, Path], settings: Sequence[Any]) -> str:
    """The identity of a job: equal for runs that write equal masks.

    It covers the source, the files of ``masks`` by frame number, the settings by their repr, and
    the weights.
    """
    digest = hashlib.sha256()
    parts = [source.path.resolve(), source.width, source.height, source.frames, *settings]
    digest.update(repr(parts).encode())
    if source.names is None:
        digest.update(str(source.path.stat().st_size).encode())
    for number, file in masks.items():
        digest.update(number.to_bytes(8, "little") + hashlib.sha256(file.read_bytes()).digest())
    digest.update(weights_digest(network).encode())
    return digest.hexdigest()


def weights_digest(network: nn.Module) -> str:
    """Equal for networks whose parameters have equal names, shapes and sums."""
    digest = hashlib.sha256()
    for name, x in network.state_dict().items():
        digest.update(f"{name} {tuple(x.shape)} {float(x.double().sum())!r}".encode())
    return digest.hexdigest()


def claim(out: Path, fingerprint: str) -> None:
    """Makes ``out/masks`` and records in ``out/job.json`` which job it belongs to.

    Raises ValueError where the folder has masks of another job.
    """
    record = out / "job.json"
    try:
        owner = json.loads(record.read_text())["of"]
    except (OSError, ValueError, LookupError, TypeError):
        owner = None
    if owner != fingerprint and any((out / "masks").glob("*.png")):
        raise ValueError(
            f"{out / 'masks'}: has masks of another video, first mask, weights or settings; give another --out, or "
            "remove them"
        )
    (out / "masks").mkdir(parents=True, exist_ok=True)
    temporary = out / "job.part"
    temporary.write_text(json.dumps({"of": fingerprint}))
    os.replace(temporary, record)


class SavedState:
    """The state of a job on disk: a file of memory, and a small file that names it.

    The small file is replaced last, so that it always names a complete memory.

    every_frames, every_seconds: how often :meth:`due` asks for a save, whichever comes first.
    """

    def __init__(self, folder: Path, fingerprint: str, every_frames: int, every_seconds: float) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        self._every_frames = every_frames
        self._every_seconds = every_seconds
        self._saved_at = time.perf_counter()

    def due(self, frames: int) -> bool:
        """Whether to save now, after so many frames."""
        return frames % self._every_frames == 0 or time.perf_counter() - self._saved_at >= self._every_seconds

    def save(self, tracker: Tracker, done: int, ended: bool = False) -> None:
        """Saves the tracker's memory and counters.

        done: the number of the frame to resume with. ended: the video has no frame of that number.
        """
        self._saved_at = time.perf_counter()
        if not isinstance(tracker.memory, Memory) or not tracker.objects:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"memory-{done}.safetensors"
        tracker.memory.save(file)
        state: dict[str, Any] = {"of": self._fingerprint, "done": done, "ended": ended, "memory": file.name}
        state["tracker"] = tracker.state()
        temporary = self._folder / "state.part"
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self._folder / "state.json")
        for old in self._folder.glob("memory-*.safetensors"):
            if old != file:
                old.unlink()

    def restore(self, tracker: Tracker, masks: Path, source: FrameSource, first: int) -> tuple[int, bool]:
        """Restores the tracker where there is a usable state of this job, and says where to begin.

        A state is usable if all masks from frame ``first`` up to it are in the folder ``masks``.

        Returns the number of the frame to begin with, which is ``first`` without a usable state,
        and whether the video ends before that frame.
        """
        try:
            state = json.loads((self._folder / "state.json").read_text())
            done = int(state["done"])
            if state["of"] != self._fingerprint:
                return first, False
            if not all((masks / f"{source.name_of(n)}.png").is_file() for n in range(first, done)):
                return first, False
            tracker.restore(Memory.load(self._folder / state["memory"], tracker.device), state["tracker"])
        except (OSError, ValueError, LookupError, TypeError):
            return first, False  # a damaged state counts as none
        return done, bool(state.get("ended", False))

    def remove(self) -> None:
        """Removes the state, and the folder unless something else is in it."""
        for file in (*self._folder.glob("memory-*"), *self._folder.glob("state.*")):
            file.unlink()
        with contextlib.suppress(OSError):  # there is no folder, or it has other files
            self._folder.rmdir()
