"""Resuming an interrupted run: a job's identity, its record, and the tracker's state on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.live import StreamSource
from ..data.source import FrameSource
from ..data.whole_files import collect, is_result, write_text
from ..memory import Memory
from .tracker import Tracker

CHUNK = 1 << 22  # bytes
Look = Callable[[int, int], None]  # called with the bytes read and those to read


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Equal for parameters of equal names, types, shapes and values, in whatever order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        x = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identity(
    weights: str, source: FrameSource, masks: Mapping[int, Path], settings: Mapping[str, Any], look: Look
) -> dict[str, str]:
    """What the masks of a run depend on, as words. Runs of equal identity write equal masks.

    weights: their digest. source, masks: their contents count, and the names of frames, but not
    where they are. A stream is equal to none.
    """
    return {
        "video": _digest_of_source(source, look),
        "first mask": _digest_of({str(number): file for number, file in masks.items()}),
        "weights": weights,
        **{name: str(value) for name, value in settings.items()},
    }


def _digest_of_source(source: FrameSource, look: Look) -> str:
    if isinstance(source, StreamSource):
        return secrets.token_hex(32)
    if source.names is None:
        return _digest_of({"": source.path}, look)
    return _digest_of({name: source.path / name for name in source.names}, look)


def _digest_of(files: Mapping[str, Path], look: Look = lambda done, total: None) -> str:
    digest = hashlib.sha256()
    done, total = 0, sum(file.stat().st_size for file in files.values())
    for name, path in files.items():
        content = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                content.update(chunk)
                done += len(chunk)
                look(done, total)
        digest.update(f"{name}\n".encode() + content.digest())
    return digest.hexdigest()


class JobRecord:
    """``out/job.json``: the job whose results are in a folder, and whether it is finished."""

    def __init__(self, out: Path) -> None:
        self._out, self._file = out, out / "job.json"
        self.job: dict[str, str] | None = None  # None: there is no record
        self.finished: list[int] | None = None  # the numbers of the first and the last frame
        self.products: list[str] = []
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            content = json.loads(self._file.read_text(encoding="utf-8")) if is_result(self._file) else {}
            job, finished, products = dict(content["job"]), content["finished"], list(content["products"])
            self.job, self.finished, self.products = job, finished, products

    def expect(self, job: Mapping[str, str]) -> None:
        """Raises ValueError, which says what differs, where there are results of another job."""
        masks = self._out / "masks"
        if not any(masks.glob("*.png")):
            return
        if self.job is None:
            raise ValueError(f"{masks}: has masks of which xmemk segment has no record; give another --out")
        names = [name for name in {**self.job, **job} if self.job.get(name) != job.get(name)]
        if names:
            differ = f"{', '.join(names)} {'differs' if len(names) == 1 else 'differ'}"
            raise ValueError(
                f"{self._out}: has results of another run ({differ}); "
                "give another --out, or --overwrite to replace them"
            )

    def write(self, job: Mapping[str, str], products: Sequence[str], finished: Sequence[int] | None = None) -> None:
        """Replaces the record."""
        self.job, self.products = dict(job), list(products)
        self.finished = None if finished is None else list(finished)
        content = {"job": self.job, "products": self.products, "finished": self.finished}
        write_text(self._file, json.dumps(content, indent=1))


class SavedState:
    """The state of a job on disk: a file of memory, and a small file that names it.

    The small file is replaced last, so that it always names a complete memory.

    job: the identity of the job. every_frames, every_seconds: how often :meth:`due` asks for a
    save, whichever comes first.
    """

    def __init__(self, folder: Path, job: Mapping[str, str], every_frames: int, every_seconds: float) -> None:
        self._folder, self._job = folder, dict(job)
        self._every_frames, self._every_seconds = every_frames, every_seconds
        self._saved_at = time.perf_counter()

    def due(self, frames: int) -> bool:
        """Whether to save now, after so many frames."""
        return frames % self._every_frames == 0 or time.perf_counter() - self._saved_at >= self._every_seconds

    def save(self, tracker: Tracker, where: Mapping[str, Any]) -> None:
        """Saves the tracker's memory and counters.

        where: what the run wants to know when it is resumed, as JSON values.
        """
        self._saved_at = time.perf_counter()
        if not isinstance(tracker.memory, Memory) or not tracker.objects:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"memory-{secrets.token_hex(4)}.safetensors"
        tracker.memory.save(file)
        state = {**where, "job": self._job, "memory": file.name, "tracker": tracker.state()}
        write_text(self._folder / "state.json", json.dumps(state))
        for old in self._folder.glob("memory-*.safetensors"):
            if old != file:
                old.unlink()

    def read(self) -> dict[str, Any] | None:
        """The ``where`` of this job's state, with more for :meth:`restore`; None without one."""
        collect(self._folder)
        try:
            state = json.loads((self._folder / "state.json").read_text(encoding="utf-8"))
            return dict(state) if state["job"] == self._job else None
        except (OSError, ValueError, LookupError, TypeError):
            return None  # a damaged state counts as none

    def restore(self, tracker: Tracker, state: Mapping[str, Any]) -> bool:
        """Brings the tracker into a state from :meth:`read`; False where its memory is damaged."""
        try:
            file = self._folder / Path(state["memory"]).name
            tracker.restore(Memory.load(file, tracker.device), state["tracker"])
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return True

    def remove(self) -> None:
        """Removes the state, and the folder unless something else is in it."""
        for file in (*self._folder.glob("memory-*"), *self._folder.glob("state.*")):
            file.unlink()
        with contextlib.suppress(OSError):  # there is no folder, or it has other files
            self._folder.rmdir()
