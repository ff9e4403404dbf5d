"""The sensory memory: the GRUs' hidden state per object, overwritten every frame (Sec. 2.4).

Twin of :mod:`xmemk.reference.sensory`: the product and its oracle share no code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .changes import commit
from .checks import check_labels, expect_known, expect_tensor


class SensoryMemory:
    """Hidden state [B, O, CH, H, W], zeros for an object that has just appeared.

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
        """Gives a row of zeros to every label without a state.

        objects: all labels, those with a state included. sample_key [B, *, H, W] gives B, H, W and
        the device; the type is float32, or float64 for a float64 sample. Later rows take the type
        of the existing state. ValueError or TypeError for bad labels, for a label with a state that
        is missing, or for another size than before.
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
            hidden = self._hidden
            old_b, _, _, old_h, old_w = hidden.shape
            if (b, h, w) != (old_b, old_h, old_w) or sample_key.device != hidden.device:
                raise ValueError(
                    f"sample_key: wanted B, H, W = {old_b}, {old_h}, {old_w} on {hidden.device} "
                    f"as before, got {b}, {h}, {w} on {sample_key.device}"
                )
            if new:
                hidden = torch.cat([hidden, hidden.new_zeros(b, len(new), self.hidden_dim, h, w)], 1)
        commit([(self, {"_objects": self._objects + new, "_hidden": hidden})])

    def get(self) -> Tensor:
        """The state [B, O, CH, H, W]. RuntimeError before the first :meth:`create`."""
        if self._hidden is None:
            raise RuntimeError("the sensory memory has no state yet: call create first")
        return self._hidden

    def set(self, hidden: Tensor) -> None:
        """Replaces the state by one of the same shape and any floating type, without its gradient.

        Its autograd graph would grow with every frame, and tensors that have one cannot be copied.
        """
        state = self.get()
        expect_tensor("hidden", hidden, shape=tuple(state.shape), device=state.device)
        self._hidden = hidden.detach() if hidden.requires_grad else hidden

    def remove(self, objects: Sequence[int]) -> None:
        """Removes the rows of these labels. ValueError for a label without one."""
        leaving = check_labels("objects", objects)
        expect_known("objects", leaving, self._objects)
        stay = [row for row, label in enumerate(self._objects) if label not in leaving]
        objects = tuple(self._objects[row] for row in stay)
        commit([(self, {"_objects": objects, "_hidden": self.get()[:, stay]})])

    def restore(self, objects: Sequence[int], hidden: Tensor) -> None:
        """Restores what :attr:`objects` and :meth:`get` returned.

        ValueError where they do not match.
        """
        labels = check_labels("objects", objects)
        expect_tensor("hidden", hidden, ndim=5)
        if hidden.shape[1:3] != (len(labels), self.hidden_dim):
            raise ValueError(f"hidden: wanted O, CH = {len(labels)}, {self.hidden_dim}, got {list(hidden.shape)}")
        commit([(self, {"_objects": labels, "_hidden": hidden})])


Sensory = SensoryMemory  # the name in pickles of version 0.1
