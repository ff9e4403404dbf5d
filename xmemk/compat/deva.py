"""DEVA's memory manager over arenas, by its interface alone, since DEVA's licence forbids a copy.

What is known of DEVA: objects that joined together share keys and are a memory of their own. That
memory keeps its first frame, consolidates, and evicts every token whose usage is at most that of
the last token to go. A readout is a dict by object.

The replacement inherits from the host's class, which keeps sensory memory. It is only made where
all other methods are known (:data:`.recognition.signatures.DEVA`). It was tested with a stand-in of
that interface, not with DEVA itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..inputs import QueryInputs
from ..memory import Arena
from .bucket import HostFrame, HostRules
from .buckets import HostBuckets
from .config import lookup, memory_config
from .cutie_stores import LongTermView, WorkingView


def manager(original: Any) -> Any:
    """The class MemoryManager that replaces ``original``."""
    return type("MemoryManager", (DevaMemory, original), {"__module__": __name__})


class DevaMemory:
    """Mixed in before the host's class. config: DEVA's dictionary. The batch is 1.

    Raises ValueError for input that the host's own code does not check: another resolution than
    before, only some objects of a bucket, numbers that are not finite. A call that raises has
    changed nothing.
    """

    backend = "auto"

    def __init__(self, config: Any) -> None:
        self._set_config(config)
        super().__init__(config)  # type: ignore[call-arg]
        self._start()

    def update_config(self: Any, config: Any) -> None:
        """Sets limits and top_k for later calls."""
        self._set_config(config)
        super().update_config(config)  # type: ignore[misc]

    def match_memory(self: Any, query_key: Tensor, selection: Tensor) -> dict[int, Tensor]:
        """Reads the memory for a query_key and selection [1, CK, H, W]: object -> [CV, H, W]."""
        h, w = query_key.shape[-2:]
        if not self._buckets:
            raise RuntimeError("the memory is empty: call add_memory before match_memory")
        self._check_size("query_key", query_key)
        readouts: dict[int, Tensor] = {}
        usages = []
        with torch.no_grad():
            dtype = next(iter(self._buckets.by_id.values())).arena.spec.key_dtype
            for bucket, parts, usage in self._buckets.read(
                QueryInputs(query_key.flatten(2).to(dtype), selection.flatten(2).to(dtype)),
                top_k=self._config.top_k,
                chunk=self._chunk_size,
                return_usage=self._config.enable_long_term,
            ):
                usages.append((bucket, usage))
                for objects, readout in parts:
                    visual = readout[0].contiguous().unflatten(2, (h, w))
                    readouts |= {obj: visual[i] for i, obj in enumerate(objects)}
            for bucket, usage in usages:
                if usage is not None:
                    bucket.arena.record(usage)
        return readouts

    def add_memory(
        self: Any,
        key: Tensor,
        shrinkage: Tensor,
        value: Tensor,
        objects: Iterable[int],
        selection: Tensor | None = None,
    ) -> None:
        """Adds a memory frame.

        key [1, CK, H, W]; value [1, O, CV, H, W], whose row i belongs to ``objects[i]``.
        """
        labels = list(objects)
        self._check(key, shrinkage, value, labels, selection)
        with torch.no_grad():
            key_type, value_type = key.dtype, value.dtype
            for bucket in self._buckets.by_id.values():
                key_type, value_type = bucket.arena.spec.key_dtype, bucket.arena.spec.value_dtype
            stored_selection = selection if self._config.enable_long_term else None
            frame = HostFrame(
                key.flatten(2).to(key_type),
                shrinkage.flatten(2).to(torch.promote_types(key_type, torch.float32)),
                None if stored_selection is None else stored_selection.flatten(2).to(key_type),
                value.flatten(3).to(value_type),
            )
            self._buckets.add(frame, labels, self._rules(), "first")
        self.engaged = True
        self._size = (key.shape[1], value.shape[2], *key.shape[-2:])

    def purge_except(self: Any, obj_keep_idx: Iterable[int]) -> None:
        """Removes all objects but these, with their values and sensory memory."""
        keep = set(obj_keep_idx)
        self._buckets.remove(set(self._buckets.objects) - keep)
        if isinstance(vars(self).get("sensory"), dict):
            self.sensory = {obj: x for obj, x in self.sensory.items() if obj in keep}
        if not self._buckets:
            self.engaged = False

    def _take_over(self, before: dict[str, Any]) -> None:
        """RuntimeError: the configuration of an existing manager is not known."""
        raise RuntimeError(
            "a memory manager of DEVA exists already; patch before it is made, since its configuration is not known"
        )

    def _set_config(self, config: Any) -> None:
        self._config = memory_config({"hidden_dim": 0, **config}, "exact")
        self._chunk_size = int(lookup(config, "chunk_size"))

    def _start(self: Any) -> None:
        self._buckets = HostBuckets(self.backend)
        self.work_mem = WorkingView(self._buckets, self._config.enable_long_term)
        if self._config.enable_long_term:
            self.long_mem = LongTermView(self._buckets, self._config.enable_long_term_count_usage)

    def _rules(self) -> HostRules:
        config = self._config
        if not config.enable_long_term:
            return HostRules(False, config.max_mid_term_frames)
        room = config.max_long_term_elements - config.num_prototypes

        def survivors(arena: Arena) -> tuple[Tensor, bool] | None:
            if arena.long_term <= room:
                return None
            usage = arena.long_term_usage()[0]
            last_to_go = usage.sort().values[arena.long_term - room - 1]
            return (usage > last_to_go).nonzero()[:, 0][None], True

        # The first frame of a bucket is permanent here, and counts towards T_max and T_min.
        return HostRules(
            True,
            config.max_mid_term_frames,
            max_tokens=config.max_long_term_elements,
            count_long_term=config.enable_long_term_count_usage,
            num_prototypes=config.num_prototypes,
            full=lambda frames: frames + 1 >= config.max_mid_term_frames,
            candidates=lambda frames: (0, frames + 1 - config.min_mid_term_frames),
            survivors=survivors,
        )

    def _check(
        self: Any, key: Tensor, shrinkage: Tensor, value: Tensor, labels: list[int], selection: Tensor | None
    ) -> None:
        if key.dim() != 4 or key.shape[0] != 1:
            raise ValueError(f"key: wanted [1, CK, H, W], got {list(key.shape)}")
        if self._buckets:
            self._check_size("key", key)
        if self._config.enable_long_term and selection is None:
            raise ValueError("selection: wanted [1, CK, H, W], which long-term memory needs, got None")
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(f"objects: wanted each label once and at least one, got {labels}")
        _, ck, h, w = key.shape
        cv = self._size[1] if self._buckets else value.shape[2] if value.dim() == 5 else 0
        shapes = {
            "shrinkage": (shrinkage, (1, 1, h, w)),
            "value": (value, (1, len(labels), cv, h, w)),
            "selection": (selection, (1, ck, h, w)),
        }
        for name, (x, shape) in shapes.items():
            if x is not None and tuple(x.shape) != shape:
                raise ValueError(f"{name}: wanted shape {list(shape)}, got {list(x.shape)}")
        for name, x in (("key", key), ("shrinkage", shrinkage), ("value", value), ("selection", selection)):
            if x is not None and x.device.type == "cpu" and not bool(torch.isfinite(x).all()):
                raise ValueError(f"{name}: wanted finite numbers, got {int((~torch.isfinite(x)).sum())} NaN or Inf")

    def _check_size(self: Any, name: str, x: Tensor) -> None:
        ck, _, h, w = self._size
        if tuple(x.shape) != (1, ck, h, w):
            raise ValueError(f"{name}: wanted [1, {ck}, {h}, {w}] as before, got {list(x.shape)}")
