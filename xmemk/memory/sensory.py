"""The sensory memory: the hidden state of the GRUs, one per object, overwritten every frame (Sec. 2.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_labels, expect_known, expect_tensor


class Sensory:
    """Per-object hidden state [B, O, CH, H, W], zeros for an object that has just appeared.

    Rows are in the order in which :meth:`create` first saw the labels.
    """

    def __init__(self, hidden_dim: int = 64) -> None:
        self.hidden_dim = hidden_dim
        self._objects: tuple[int, ...] = ()
        self._hidden: Tensor | None = None

    @property
    def objects(self) -> tuple[int, ...]:
        """The labels, one for each row."""
        return self._objects

    def create(self, objects: Sequence[int], sample_key: Tensor) -> None:
        """Gives zeros to every label that has no state yet; ``objects`` are all labels, ``sample_key`` [B, *, H, W].

        B, H, W and the device are the sample's; the type is float32, or float64 for a float64 sample. Later rows take
        the type of the state that is held. ValueError or TypeError for bad labels, an object missing that has a
        state, or another size than before.
        """
        labels = check_labels("objects", objects)
        expect_tensor("sample_key", sample_key, ndim=4)
        missing = [label for label in self._objects if label not in labels]
        if missing:
            raise ValueError(f"objects: wanted all that have a state, {list(self._objects)}, got {list(labels)}")
        new = tuple(label for label in labels if label not in self._objects)
        b, _, h, w = sample_key.shape
        if self._hidden is None:
            dtype = torch.promote_types(sample_key.dtype, torch.float32)
            hidden = torch.zeros(b, len(new), self.hidden_dim, h, w, dtype=dtype, device=sample_key.device)
        else:
            held = self._hidden
            if (b, h, w) != (held.shape[0], *held.shape[3:]) or sample_key.device != held.device:
                raise ValueError(
                    f"sample_key: wanted B, H, W = {held.shape[0]}, {held.shape[3]}, {held.shape[4]} on {held.device} "
                    f"as before, got {b}, {h}, {w} on {sample_key.device}"
                )
            hidden = held
            if new:
                hidden = torch.cat([held, held.new_zeros(b, len(new), self.hidden_dim, h, w)], 1)
        self._objects, self._hidden = self._objects + new, hidden

    def get(self) -> Tensor:
        """The state [B, O, CH, H, W]. RuntimeError before the first :meth:`create`."""
        if self._hidden is None:
            raise RuntimeError("the sensory memory has no state yet: call create first")
        return self._hidden

    def set(self, hidden: Tensor) -> None:
        """Replaces the state, in shape as it was. Any floating type; kept without its graph, as all that is stored.

        A graph would otherwise grow with every frame, and tensors that have one cannot be copied.
        """
        held = self.get()
        expect_tensor("hidden", hidden, shape=tuple(held.shape), device=held.device)
        self._hidden = hidden.detach() if hidden.requires_grad else hidden

    def remove(self, objects: Sequence[int]) -> None:
        """Drops the rows of these labels. ValueError for one that has none."""
        leaving = check_labels("objects", objects)
        expect_known("objects", leaving, self._objects)
        stay = [row for row, label in enumerate(self._objects) if label not in leaving]
        self._hidden = self.get()[:, stay]
        self._objects = tuple(self._objects[row] for row in stay)

    def restore(self, objects: Sequence[int], hidden: Tensor) -> None:
        """Puts back what :attr:`objects` and :meth:`get` gave. ValueError where the two do not go together."""
        labels = check_labels("objects", objects)
        expect_tensor("hidden", hidden, ndim=5)
        if hidden.shape[1:3] != (len(labels), self.hidden_dim):
            raise ValueError(f"hidden: wanted O, CH = {len(labels)}, {self.hidden_dim}, got {list(hidden.shape)}")
        self._objects, self._hidden = labels, hidden
