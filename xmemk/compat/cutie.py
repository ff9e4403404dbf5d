"""Cutie's and rf-cutie's memory manager over arenas; and their functions, for import lines.

    from xmemk.compat.cutie import get_similarity, do_softmax, get_affinity, readout

The replacement inherits from the host's class. Object and sensory memory stay the host's own code.
Reading, adding, consolidation, eviction and the stores of the pixel memory are xmemk's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..inputs import QueryInputs
from ..memory import Arena
from ..memory.functions import PUBLIC
from .bucket import HostFrame, HostRules
from .buckets import HostBuckets
from .config import CutieLimits
from .cutie_stores import LongTermView, WorkingView
from .functions import do_softmax, get_affinity, readout
from .functions import get_similarity as _get_similarity
from .report import PatchReport

__all__ = ["do_softmax", "get_affinity", "get_similarity", "manager", "readout"]

_PERMANENT = {False: "no", True: "all", "no": "no", "first": "first", "all": "all"}


def get_similarity(mk: Tensor, ms: Tensor | None, qk: Tensor, qe: Tensor | None, add_batch_dim: bool = False) -> Tensor:
    """:func:`xmemk.compat.functions.get_similarity`.

    add_batch_dim: whether the arguments come without the batch dimension.
    """
    if not add_batch_dim:
        return _get_similarity(mk, ms, qk, qe)
    tensors = [None if x is None else x.unsqueeze(0) for x in (mk, ms, qk, qe)]
    return _get_similarity(*tensors)  # type: ignore[arg-type]


def manager(original: Any, report: PatchReport | None = None) -> Any:
    """The class MemoryManager that replaces ``original``, and verifies itself into a ``report``."""
    from .cutie_verify import verified

    base = type("MemoryManager", (CutieMemory, original), {"__module__": __name__})
    return base if report is None else verified(base, original, report)


class CutieMemory:
    """Mixed in before the host's class, with the host's configuration.

    B is 1, or 2 with flip augmentation. The first frame fixes the stored types; later frames are
    converted. No gradients flow through the stores.

    Raises ValueError or TypeError for input that the host's own code does not check: another
    resolution than before, only some objects of a bucket, numbers that are not finite. A call that
    raises has changed nothing.
    """

    backend = "auto"

    def __init__(self, cfg: Any, object_manager: Any) -> None:
        CutieLimits.of(cfg)
        super().__init__(cfg, object_manager)  # type: ignore[call-arg]
        self._start()

    def update_config(self: Any, cfg: Any) -> None:
        """Sets limits and top_k for later calls.

        ValueError for a switch of long-term memory or its usage.
        """
        new = CutieLimits.of(cfg)
        for name, old in (("use_long_term", self.use_long_term), ("count_usage", self.count_long_term_usage)):
            if getattr(new, name) != old:
                raise ValueError(f"{name}: wanted {old} as before, got {getattr(new, name)}")
        super().update_config(cfg)  # type: ignore[misc]

    def read(
        self: Any, pix_feat: Tensor, query_key: Tensor, selection: Tensor, last_mask: Tensor, network: Any
    ) -> dict[int, Tensor]:
        """Reads all memories: object -> [B, C, H, W].

        Usage is recorded after everything was read.
        """
        h, w = pix_feat.shape[-2:]
        for name, x in (("query_key", query_key), ("selection", selection), ("last_mask", last_mask)):
            if x.shape[0] != pix_feat.shape[0]:
                raise ValueError(f"{name}: wanted B = {pix_feat.shape[0]} as in pix_feat, got {list(x.shape)}")
        if (h, w) != tuple(query_key.shape[-2:]):
            raise ValueError(f"query_key: wanted {h} x {w} as in pix_feat, got {list(query_key.shape)}")
        readouts: dict[int, Tensor] = {}
        with torch.no_grad():
            dtype = next((b.arena.spec.key_dtype for b in self._buckets.by_id.values()), query_key.dtype)
            queries = QueryInputs(query_key.flatten(2).to(dtype), selection.flatten(2).to(dtype))
        usages = []
        reads = self._buckets.read(queries, top_k=self.top_k, chunk=self.chunk_size, return_usage=self.use_long_term)
        while True:
            with torch.no_grad():
                bucket, parts, usage = next(reads, (None, [], None))
            if bucket is None:
                break
            usages.append((bucket, usage))
            for objects, visual in parts:
                visual = visual.contiguous().unflatten(3, (h, w))
                readouts |= self._fuse(objects, visual, pix_feat, last_mask, network)
        with torch.no_grad():
            for bucket, usage in usages:
                if usage is not None:
                    bucket.arena.record(usage)
        return readouts

    def add_memory(
        self: Any,
        key: Tensor,
        shrinkage: Tensor,
        msk_value: Tensor,
        obj_value: Tensor | None,
        objects: list[int],
        selection: Tensor | None = None,
        *,
        as_permanent: bool | str = False,
    ) -> None:
        """Adds a memory frame.

        key [B, CK, H, W], msk_value [B, O, CV, H, W], obj_value [B, O, S, C + 1] or None.
        """
        self._check(key, shrinkage, msk_value, obj_value, objects, selection, as_permanent)
        with torch.no_grad():
            frame = self._frame(key, shrinkage, msk_value, selection)
            self._buckets.add(frame, list(objects), self._rules(), _PERMANENT[as_permanent])
        self.engaged = True
        if self.H is None or self.config_stale or tuple(key.shape[-2:]) != (self.H, self.W):
            self.config_stale = False
            self.H, self.W = key.shape[-2:]
            self.HW = self.H * self.W
            self.max_work_tokens = self.max_mem_frames * self.HW
            if self.use_long_term:
                self.min_work_tokens = self.min_mem_frames * self.HW
        self.CK, self.CV = key.shape[1], msk_value.shape[2]
        if obj_value is not None:
            for i, obj in enumerate(objects):
                # Sums of embeddings and, last, their count: the object transformer takes the mean.
                old = self.obj_v.get(obj)
                self.obj_v[obj] = obj_value[:, i] if old is None else old + obj_value[:, i]

    def purge_except(self: Any, obj_keep_idx: list[int]) -> None:
        """Removes all objects but these, with their values and sensory memory."""
        self._buckets.remove(set(self._buckets.objects) - set(obj_keep_idx))
        self.sensory = {obj: x for obj, x in self.sensory.items() if obj in obj_keep_idx}
        if not self._buckets:
            self.engaged = False

    def compress_features(self: Any, bucket_id: int) -> None:
        """Consolidates a bucket now; :meth:`add_memory` does so when working memory is full."""
        with torch.no_grad():
            self._buckets.consolidate(self._buckets.by_id[bucket_id], self._rules())

    def clear_non_permanent_memory(self: Any) -> None:
        """Removes everything but permanent frames."""
        self._buckets.clear_temporary()

    def _start(self: Any) -> None:
        self._buckets = HostBuckets(self.backend)
        self.work_mem = WorkingView(self._buckets, self.use_long_term)
        if self.use_long_term:
            self.long_mem = LongTermView(self._buckets, self.count_long_term_usage)

    def _take_over(self: Any, before: dict[str, Any]) -> None:
        """Replaces a host's manager with these attributes, which holds no object yet."""
        vars(self).update(before)
        self._start()

    def _rules(self: Any) -> HostRules:
        if not self.use_long_term:
            return HostRules(False, self.max_mem_frames + 2, keep_frames=self.max_mem_frames)
        room = self.max_long_tokens - self.num_prototypes

        def survivors(arena: Arena) -> tuple[Tensor, bool] | None:
            if arena.long_term < room:
                return None
            keep = min(room - self.buffer_tokens, arena.long_term)
            return PUBLIC.select_prototypes(arena.long_term_usage(), keep, backend=self.backend), False

        return HostRules(
            True,
            self.max_mem_frames + 2,
            max_tokens=self.max_long_tokens,
            count_long_term=self.count_long_term_usage,
            num_prototypes=self.num_prototypes,
            full=lambda frames: frames >= self.max_mem_frames,
            candidates=lambda frames: (0, frames - self.min_mem_frames),
            survivors=survivors,
        )

    def _fuse(
        self: Any, objects: list[int], visual: Tensor, pix_feat: Tensor, last_mask: Tensor, network: Any
    ) -> dict[int, Tensor]:
        """Passes visual readouts [B, O, CV, H, W] of some objects through the host's network."""
        sensory = self._get_sensory_by_ids(objects)
        pixel = network.pixel_fusion(pix_feat, visual, sensory, self._get_mask_by_ids(last_mask, objects))
        summaries = self._get_object_mem_by_ids(objects)
        memory, aux = network.readout_query(pixel, None if summaries is None else summaries.unsqueeze(2))
        if self.save_aux:
            aux = aux or {}
            mask = aux.get("attn_mask")  # missing in the released network, where the host's own code stops
            self.aux = {
                "sensory": sensory,
                "pixel_readout": pixel,
                "q_logits": aux.get("logits"),
                "q_weights": aux.get("q_weights"),
                "p_weights": aux.get("p_weights"),
                "attn_mask": None if mask is None else mask.float(),
            }
        return {obj: memory[:, i] for i, obj in enumerate(objects)}

    def _frame(self: Any, key: Tensor, shrinkage: Tensor, msk_value: Tensor, selection: Tensor | None) -> HostFrame:
        key_type, value_type = key.dtype, msk_value.dtype
        for bucket in self._buckets.by_id.values():
            key_type, value_type = bucket.arena.spec.key_dtype, bucket.arena.spec.value_dtype
        return HostFrame(
            key.flatten(2).to(key_type),
            shrinkage.flatten(2).to(torch.promote_types(key_type, torch.float32)),
            selection.flatten(2).to(key_type) if self.use_long_term and selection is not None else None,
            msk_value.flatten(3).to(value_type),
        )

    def _check(
        self: Any,
        key: Tensor,
        shrinkage: Tensor,
        msk_value: Tensor,
        obj_value: Tensor | None,
        objects: list[int],
        selection: Tensor | None,
        as_permanent: bool | str,
    ) -> None:
        if as_permanent not in _PERMANENT:
            raise ValueError(f"as_permanent: wanted 'no', 'first' or 'all', got {as_permanent!r}")
        if self.use_long_term and selection is None:
            raise ValueError("selection: wanted [B, CK, H, W], which long-term memory needs, got None")
        if key.dim() != 4 or msk_value.dim() != 5:
            raise ValueError(
                f"key, msk_value: wanted [B, CK, H, W] and [B, O, CV, H, W], got {list(key.shape)} and "
                f"{list(msk_value.shape)}"
            )
        b, ck, h, w = key.shape
        if self._buckets and ((h, w) != (self.H, self.W) or ck != self.CK):
            raise ValueError(
                f"key: wanted [B, {self.CK}, {self.H}, {self.W}] as before, got {list(key.shape)}; a video of another "
                "size needs a new memory, see clear_memory"
            )
        for bucket in self._buckets.by_id.values():
            if b != bucket.arena.spec.batch:
                raise ValueError(f"key: wanted B = {bucket.arena.spec.batch} as before, got {list(key.shape)}")
        if len(set(objects)) != len(objects) or not objects:
            raise ValueError(f"objects: wanted each label once and at least one, got {list(objects)}")
        cv = self.CV if self._buckets else msk_value.shape[2]
        shapes = {
            "shrinkage": (shrinkage, (b, 1, h, w)),
            "selection": (selection if self.use_long_term else None, (b, ck, h, w)),
            "msk_value": (msk_value, (b, len(objects), cv, h, w)),
        }
        for name, (x, shape) in shapes.items():
            if x is not None and tuple(x.shape) != shape:
                raise ValueError(f"{name}: wanted shape {list(shape)}, got {list(x.shape)}")
        if obj_value is not None and tuple(obj_value.shape[:2]) != (b, len(objects)):
            raise ValueError(f"obj_value: wanted [{b}, {len(objects)}, S, C + 1], got {list(obj_value.shape)}")
        for name, x in (("key", key), ("shrinkage", shrinkage), ("msk_value", msk_value), ("selection", selection)):
            if x is not None and x.device.type == "cpu" and not bool(torch.isfinite(x).all()):
                raise ValueError(f"{name}: wanted finite numbers, got {int((~torch.isfinite(x)).sum())} NaN or Inf")
