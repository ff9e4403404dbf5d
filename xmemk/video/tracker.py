"""The frame loop (Sec. 2.1, with the rules of the released code): images in, probabilities out."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..measure.stopwatch import Stopwatch
from ..memory import Memory
from ..memory.changes import adoption, commit
from ..network import XMem, aggregate
from ..network.wrapped import unwrapped
from ..reference.config import MemoryConfig
from .frame_inputs import check_image, mask_rows

STRIDE = 16  # an image is padded to a multiple of it
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class FeatureMemory(Protocol):
    """What the tracker needs of a memory.

    :class:`xmemk.Memory` and the oracle's memory have it, and so may a policy of your own. Where it
    also has ``draft()`` as they do, a step that raises leaves it as it was.
    """

    config: MemoryConfig

    @property
    def objects(self) -> tuple[int, ...]: ...
    @property
    def sensory(self) -> Any: ...
    def add(
        self, key: Tensor, shrinkage: Tensor, value: Tensor, objects: Sequence[int], selection: Tensor | None = None
    ) -> None: ...
    def read(self, query_key: Tensor, selection: Tensor | None = None) -> Tensor: ...
    def remove(self, objects: Sequence[int]) -> None: ...


class Tracker:
    """Follows the objects of one video.

    network: the XMem network; its device and floating type are used. DataParallel and the like are
        unwrapped.
    config: the memory's rules, and how often frames are remembered.
    memory: an empty memory, to use instead of a new one made from ``config``.
    autocast: float16 or bfloat16 for the network's convolutions, None for the network's type.
    stopwatch: times the stages of each frame. It waits for the device before and after each.
    object_chunk: how many objects the network encodes and decodes at a time, None for all. Fewer
        take less memory; probabilities are equal to rounding.

    Raises ValueError or TypeError for arguments that do not fit one another.

    >>> tracker = Tracker(XMem.from_checkpoint("XMem.pth"))  # doctest: +SKIP
    >>> probability = tracker.step(first_image, mask=labels)  # doctest: +SKIP
    >>> for image in images: probability = tracker.step(image)  # doctest: +SKIP
    """

    object_chunk: int | None = None  # of trackers that an earlier version pickled

    def __init__(
        self,
        network: XMem,
        config: MemoryConfig | None = None,
        *,
        memory: FeatureMemory | None = None,
        autocast: torch.dtype | None = None,
        stopwatch: Stopwatch | None = None,
        object_chunk: int | None = None,
    ) -> None:
        network = unwrapped(network)
        if memory is not None and config is not None and memory.config != config:
            raise ValueError("memory, config: wanted one of them, or a memory of this config")
        if memory is None:
            config = config or MemoryConfig(hidden_dim=network.config.hidden_dim)
            memory = Memory(config)
        if memory.config.hidden_dim != network.config.hidden_dim:
            raise ValueError(
                f"config: wanted hidden_dim = {network.config.hidden_dim} as the network has, "
                f"got {memory.config.hidden_dim}"
            )
        if autocast not in (None, torch.float16, torch.bfloat16):
            raise ValueError(f"autocast: wanted float16, bfloat16 or None, got {autocast}")
        if object_chunk is not None and (type(object_chunk) is not int or object_chunk < 1):
            raise ValueError(f"object_chunk: wanted a whole number from 1, or None, got {object_chunk!r}")
        self.network = network
        self.memory: FeatureMemory = memory
        self.config = memory.config
        self.autocast = autocast
        self.object_chunk = object_chunk
        self._watch = stopwatch or Stopwatch(enabled=False)
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._expect_arithmetic(autocast)
        self._mean = torch.tensor(_MEAN, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(_STD, device=self.device).view(3, 1, 1)
        self._frame = -1  # the current frame, counted from the first one with an object
        self._last_memory = 0
        self._last_deep = -self.config.deep_update_every
        self._size: tuple[int, int] | None = None

    @property
    def objects(self) -> tuple[int, ...]:
        """The labels that are followed; row 1 + i of a result belongs to ``objects[i]``."""
        return self.memory.objects

    @torch.inference_mode()
    def step(
        self, image: Tensor, mask: Tensor | None = None, objects: Sequence[int] | None = None, *, end: bool = False
    ) -> Tensor:
        """Processes the next frame.

        image: RGB [3, H, W], uint8, or floating between 0 and 1. Floats of 0 to 255 and normalised
            images are refused on the first frame. BGR, as OpenCV reads it, cannot be told from RGB
            and gives worse masks: ``image.flip(0)`` is RGB.
        mask: the known objects of this frame: labels [H, W] of an integer type, 0 for background;
            or probabilities [O, H, W], one row for each object. Other objects are predicted.
        objects: the labels that the mask covers. Row i of an [O, H, W] mask belongs to
            ``objects[i]``. For a label mask the default is all its labels except 0. New labels
            join. A label without a pixel in the mask is known to be absent from this frame.
        end: whether this is the last frame, of which nothing is remembered.

        Returns probabilities [1 + O, H, W] float32 that sum to 1: background, then the objects in
        the order of :attr:`objects`. Before the first mask, and after all objects have left, there
        is background alone.

        Raises ValueError or TypeError for input that does not fit, or for a frame whose size is not
        that of the first. Whatever it raises, the tracker and its memory are then unchanged.
        """
        self._expect_arithmetic(self.autocast)
        image = check_image(image, self._size, first=self._size is None)
        rows, labels = mask_rows(mask, objects, image.shape[1:], self.device)
        if not self.objects and not labels:
            return torch.ones(1, *image.shape[1:], device=self.device)
        frame = self._frame + 1
        config = self.config
        remembered = (frame - self._last_memory >= config.mem_every or rows is not None) and not end
        in_step = config.deep_update_every < 0
        deep = not end and (remembered if in_step else frame - self._last_deep >= config.deep_update_every)
        shallow = not end and not (in_step and deep)
        known = self.objects
        predicts = bool(known) and not set(known) <= set(labels)
        memory = self.memory.draft() if hasattr(self.memory, "draft") else self.memory

        with self._watch("preparing"):
            padded, padding = pad(self._normalised(image))
        with self._arithmetic(), self._watch("key encoder"):
            key, shrinkage, selection, features = self.network.encode_key(
                padded[None],
                need_shrinkage=remembered,
                need_selection=predicts or config.enable_long_term,
            )
        probability = None
        if predicts:
            with self._watch("memory read"):
                readout = memory.read(key, selection)
            hidden = self._hidden(memory)
            with self._arithmetic(), self._watch("decoder"):
                hidden, probability = self.network.segment(
                    features, readout, hidden, update_hidden=shallow, **self._chunks()
                )
            if hidden is not None:
                memory.sensory.set(hidden)
        if rows is not None:
            with self._watch("preparing"):
                probability = self._merged(probability, pad(rows)[0], labels)
        assert probability is not None
        counters: dict[str, Any] = {"_frame": frame, "_size": (image.shape[1], image.shape[2])}
        if remembered:
            followed = (*known, *(label for label in labels if label not in known))
            self._remember(memory, padded, (key, shrinkage, selection), features[0], probability, followed, deep)
            counters |= {"_last_memory": frame} | ({"_last_deep": frame} if deep else {})
        adopted = [] if memory is self.memory else adoption(self.memory, memory)
        return commit([*adopted, (self, counters)], unpad(probability[0], padding))

    def state(self) -> dict[str, Any]:
        """The loop's counters as JSON values: with the memory, all that :meth:`restore` needs."""
        return {
            "frame": self._frame,
            "last_memory": self._last_memory,
            "last_deep": self._last_deep,
            "size": None if self._size is None else list(self._size),
        }

    def restore(self, memory: FeatureMemory, state: Mapping[str, Any]) -> None:
        """Resumes where a tracker of the same network was, from its memory and its :meth:`state`.

        Raises ValueError for a memory of another configuration.
        """
        if memory.config != self.config:
            raise ValueError(f"memory: wanted the configuration {self.config}, got {memory.config}")
        try:
            counters: dict[str, Any] = {
                f"_{name}": operator.index(state[name]) for name in ("frame", "last_memory", "last_deep")
            }
            height, width = (0, 0) if state["size"] is None else map(operator.index, state["size"])
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"state: wanted what Tracker.state() returned, got {state!r}") from error
        counters["_size"] = None if state["size"] is None else (height, width)
        commit([(self, {"memory": memory, **counters})])

    def remove(self, objects: Sequence[int]) -> None:
        """Stops following these objects. Raises ValueError for a label that is not followed."""
        self.memory.remove(objects)

    def _merged(self, predicted: Tensor | None, mask: Tensor, labels: tuple[int, ...]) -> Tensor:
        """Joins the mask's rows [O, H, W] of ``labels`` with the prediction for the other objects.

        Where the mask has an object, the prediction for the others is 0.
        """
        known = self.objects
        followed = (*known, *(label for label in labels if label not in known))
        rows = mask.new_zeros(len(followed), *mask.shape[1:])
        if predicted is not None:
            rows[: len(known)] = predicted[0, 1:] * (mask.sum(0) <= 0.5)
        for i, label in enumerate(labels):
            rows[followed.index(label)] = mask[i]
        return aggregate(rows[None])

    def _remember(
        self,
        memory: FeatureMemory,
        image: Tensor,
        projected: tuple[Tensor, Tensor | None, Tensor | None],
        f16: Tensor,
        probability: Tensor,
        followed: tuple[int, ...],
        deep: bool,
    ) -> None:
        key, shrinkage, selection = projected
        assert shrinkage is not None
        if self.network.config.hidden_dim > 0:
            memory.sensory.create(followed, key)
        with self._arithmetic(), self._watch("value encoder"):
            value, hidden = self.network.encode_value(
                image[None], f16, self._hidden(memory), probability[:, 1:], deep_update=deep, **self._chunks()
            )
        with self._watch("memory add"):
            memory.add(key, shrinkage, value, followed, selection if self.config.enable_long_term else None)
        if deep and hidden is not None:
            memory.sensory.set(hidden)

    def _hidden(self, memory: FeatureMemory) -> Tensor | None:
        if self.network.config.hidden_dim == 0:
            return None
        hidden: Tensor = memory.sensory.get()
        return hidden

    def _chunks(self) -> dict[str, Any]:
        return {} if self.object_chunk is None else {"object_chunk": self.object_chunk}

    def _normalised(self, image: Tensor) -> Tensor:
        image = image.to(self.device)
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        return ((image - self._mean) / self._std).to(self.dtype)

    def _expect_arithmetic(self, autocast: torch.dtype | None) -> None:
        """ValueError where the network has been moved, or autocast is to other 16 bits."""
        parameter = next(self.network.parameters())
        if (parameter.device, parameter.dtype) != (self.device, self.dtype):
            raise ValueError(
                f"network: wanted it in {self.dtype} on {self.device} as when the Tracker was made, got "
                f"{parameter.dtype} on {parameter.device}; make a new Tracker, or move it back"
            )
        device = self.device.type
        if autocast is None and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            autocast = torch.get_autocast_dtype(device)
        if autocast is not None and self.dtype.itemsize == 2 and autocast != self.dtype:
            raise ValueError(f"autocast: wanted None or {self.dtype}, which the network is in, got {autocast}")

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)


def pad(x: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Pads [..., H, W] with zeros to multiples of 16.

    Returns the padded tensor, and how much was added: left, right, above, below.
    """
    height, width = x.shape[-2:]
    more_h, more_w = -height % STRIDE, -width % STRIDE
    padding = (more_w // 2, more_w - more_w // 2, more_h // 2, more_h - more_h // 2)
    return (F.pad(x, padding) if more_h or more_w else x), padding


def unpad(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Undoes :func:`pad`."""
    left, right, above, below = padding
    return x[..., above : x.shape[-2] - below, left : x.shape[-1] - right]
