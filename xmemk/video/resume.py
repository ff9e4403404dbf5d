"""Resuming an interrupted run: whose masks a folder holds, and the tracker's state on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from ..data.source import Source
from ..memory import Memory
from .tracker import Tracker


def claim(out: Path, fingerprint: str) -> None:
    """Makes the folder of masks, and notes whose they are. ValueError where there are masks of another job."""
    note = out / "job.json"
    try:
        whose = json.loads(note.read_text())["of"]
    except (OSError, ValueError, LookupError, TypeError):
        whose = None
    if whose != fingerprint and any((out / "masks").glob("*.png")):
        raise ValueError(
            f"{out / 'masks'}: has masks of another video, first mask, weights or settings; give another --out, or "
            "remove them"
        )
    (out / "masks").mkdir(parents=True, exist_ok=True)
    temporary = out / "job.part"
    temporary.write_text(json.dumps({"of": fingerprint}))
    os.replace(temporary, note)


def weights_digest(network: nn.Module) -> str:
    """Equal for networks of the same names, shapes and sums of weights."""
    digest = hashlib.sha256()
    for name, x in network.state_dict().items():
        digest.update(f"{name} {tuple(x.shape)} {float(x.double().sum())!r}".encode())
    return digest.hexdigest()


class SavedState:
    """The state on disk: a memory, and a small file that names it, replaced last."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    def save(self, tracker: Tracker, done: int, ended: bool = False) -> None:
        """``done``: the number of the frame to go on with; ``ended``: there is none of that number."""
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

    def restore(self, tracker: Tracker, masks: Path, source: Source, first: int) -> tuple[int, bool]:
        """The number of the frame to begin with, and whether the video ends before it: the first, unless there is a
        state of this very job that all masks before it belong to.
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
            return first, False  # a state that cannot be used is one that is not there
        return done, bool(state.get("ended", False))

    def remove(self) -> None:
        for file in (*self._folder.glob("memory-*"), *self._folder.glob("state.*")):
            file.unlink()
        with contextlib.suppress(OSError):  # there is none, or something of someone else's in it
            self._folder.rmdir()
