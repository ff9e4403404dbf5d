"""Follows objects with the graphs that :func:`xmemk.export.export_tracker` wrote: NumPy and
onnxruntime, nothing else.

This file imports nothing of xmemk; copy it beside the graphs. What it does, frame by frame, is
xmemk.Tracker's step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
GRAPHS = ("encode_key", "encode_value", "decode", "read", "remember", "consolidate", "evict")
Array = np.ndarray[Any, Any]


class ObjectGroup:
    """The memory of the objects that joined at one frame: its rows, and how many of each kind are
    taken.
    """

    def __init__(self, runner: Runner, objects: list[int], tokens: int) -> None:
        self.runner, self.objects, self.tokens, self.frames, self.long = runner, objects, tokens, 0, 0
        c = runner.config
        rows = c["max_long_term_elements"] + c["max_mid_term_frames"] * tokens
        # Key, shrinkage, selection, value, use, life; and which rows are taken.
        channels = [(c["key_dim"],), (1,), (c["key_dim"],), (len(objects), c["value_dim"]), (), ()]
        self.state = [np.zeros((rows, *shape), np.float32) for shape in channels] + [np.zeros(rows, np.bool_)]

    def read(self, key: Array, selection: Array) -> Array:
        state = self.state[:2] + self.state[3:]
        readout, *self.state[4:6] = self.runner.run("read", *state, key, selection)
        return readout

    def add(self, *frame: Array) -> None:
        """key, shrinkage, selection [1, *, HW] and value [1, O, CV, HW] of a memory frame."""
        c, run = self.runner.config, self.runner.run
        room, keep = c["max_long_term_elements"], c["max_long_term_elements"] - c["num_prototypes"]
        start = np.array([room + self.frames * self.tokens])
        self.state = run("remember", *self.state, start, *frame)
        self.frames += 1
        if self.frames < c["max_mid_term_frames"]:
            return
        if self.long > keep:
            self.state, self.long = run("evict", *self.state), keep
        self.state = run("consolidate", *self.state, np.array([self.long]))
        self.frames, self.long = c["min_mid_term_frames"], self.long + c["num_prototypes"]


class Runner:
    """The tracker of one video. folder: where the graphs are. options: for
    onnxruntime.InferenceSession, such as ``providers=["CUDAExecutionProvider"]``.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.config = json.loads((Path(folder) / "tracker.json").read_text())
        self.sessions = {x: onnxruntime.InferenceSession(Path(folder) / f"{x}.onnx", **options) for x in GRAPHS}
        self.buckets: list[ObjectGroup] = []
        self.hidden: Array | None = None
        self.frame, self.last_memory, self.last_deep = -1, 0, -self.config["deep_update_every"]

    @property
    def objects(self) -> list[int]:
        return [label for bucket in self.buckets for label in bucket.objects]

    def run(self, name: str, *arrays: Array | None) -> list[Array]:
        session = self.sessions[name]
        feed = {x.name: a for x, a in zip(session.get_inputs(), arrays) if a is not None}
        return list(session.run(None, feed))

    def step(self, image: Array, mask: Array | None = None, *, end: bool = False) -> Array:
        """image [3, H, W], uint8 or 0 to 1; mask labels [H, W] -> probabilities [1 + O, H, W],
        background first.
        """
        known, labels = self.objects, [] if mask is None else [int(x) for x in np.unique(mask) if x != 0]
        if not known and not labels:
            return np.ones((1, *image.shape[1:]), np.float32)
        every, frame, annotated = self.config["deep_update_every"], self.frame + 1, bool(labels)
        remembered = (frame - self.last_memory >= self.config["mem_every"] or annotated) and not end
        deep = not end and (remembered if every < 0 else frame - self.last_deep >= every)
        scaled = image.astype(np.float32) / 255 if image.dtype == np.uint8 else image
        padded, cut = pad((scaled - MEAN) / STD)
        key, shrinkage, selection, *features = self.run("encode_key", padded[None])
        size = key.shape[2:]
        flat = [x.reshape(1, -1, size[0] * size[1]) for x in (key, shrinkage, selection)]
        probability = None
        if known and not set(known) <= set(labels):
            readout = np.concatenate([bucket.read(flat[0], flat[2]) for bucket in self.buckets], 1)
            probability, *hidden = self.run(
                "decode", *features, readout.reshape(*readout.shape[:3], *size), self.hidden
            )
            if hidden and not end and not (every < 0 and deep):
                self.hidden = hidden[0]
        followed = known + [label for label in labels if label not in known]
        if mask is not None and annotated:
            rows = np.zeros((len(followed), *padded.shape[1:]), np.float32)
            drawn = pad(np.stack([mask == label for label in labels]).astype(np.float32))[0]
            if probability is not None:
                rows[: len(known)] = probability[0, 1:] * (drawn.sum(0) <= 0.5)
            rows[[followed.index(label) for label in labels]] = drawn
            probability = aggregate(rows)[None]
        assert probability is not None
        if remembered:
            self.remember(padded, features[0], flat, probability, followed, deep, size)
            self.last_memory, self.last_deep = frame, frame if deep else self.last_deep
        self.frame = frame
        return probability[0][:, cut[0], cut[1]]

    def remember(self, image: Array, f16: Array, flat: list[Array], probability: Array, followed: list[int],
                 deep: bool, size: tuple[int, ...]) -> None:  # fmt: skip
        """A memory frame for every bucket, with a new one for the objects that join."""
        joining = followed[len(self.objects) :]
        if self.config["hidden_dim"]:
            fresh = np.zeros((1, len(joining), self.config["hidden_dim"], *size), np.float32)
            self.hidden = fresh if self.hidden is None else np.concatenate([self.hidden, fresh], 1)
        value, *hidden = self.run("encode_value", image[None], f16, probability[:, 1:], self.hidden)
        if hidden and deep:
            self.hidden = hidden[0]
        if joining:
            self.buckets.append(ObjectGroup(self, joining, flat[0].shape[2]))
        for bucket in self.buckets:
            rows = [followed.index(label) for label in bucket.objects]
            bucket.add(*flat, value[:, rows].reshape(1, len(rows), value.shape[2], -1))


def pad(x: Array) -> tuple[Array, tuple[slice, slice]]:
    """Zeros around [*, H, W] up to multiples of 16, and where the picture lies."""
    (h, w), (more_h, more_w) = x.shape[1:], (-n % 16 for n in x.shape[1:])
    above, left = more_h // 2, more_w // 2
    around = ((0, 0), (above, more_h - above), (left, more_w - left))
    return np.pad(x, around), (slice(above, above + h), slice(left, left + w))


def aggregate(p: Array) -> Array:
    """Soft aggregation: [O, H, W] of each object by itself -> [1 + O, H, W] that sum to 1."""
    p = np.clip(np.concatenate([(1 - p).prod(0, keepdims=True), p]), 1e-7, 1 - 1e-7)
    odds: Array = p / (1 - p)
    return odds / odds.sum(0, keepdims=True)
