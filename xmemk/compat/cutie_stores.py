"""Cutie's view of its stores inside xmemk's buckets: sizes for displays, tensors for inspection.

Tensors are copies in the host's layout, made when they are accessed. Changing them does not change
the memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..memory.arena import LIFE_OF_A_NEW_TOKEN
from ..memory.table import Run
from .bucket import HostBucket
from .buckets import HostBuckets

_NOTHING = [Run(1, 0, 0)]  # what torch.cat joins where there are no tokens


class _View:
    """The attributes of Cutie's KeyValueMemoryStore that are read from outside.

    Each is a dict: bucket -> tensor, and for values object -> tensor.
    """

    def __init__(self, buckets: HostBuckets, save_usage: bool) -> None:
        self._all = buckets
        self.save_usage = save_usage

    def _buckets(self) -> dict[int, HostBucket]:
        return self._all.by_id

    def _runs(self, bucket: HostBucket) -> list[Run]:
        raise NotImplementedError

    def _counted(self, bucket: HostBucket) -> list[Run]:
        raise NotImplementedError

    @property
    def buckets(self) -> dict[int, list[int]]:
        """Bucket -> its objects."""
        return {i: list(bucket.objects) for i, bucket in self._buckets().items()}

    @property
    def key(self) -> dict[int, Tensor]:
        """Bucket -> [B, CK, N]."""
        return self._each(lambda b: [b.arena.key.view(run) for run in self._runs(b)])

    @property
    def shrinkage(self) -> dict[int, Tensor]:
        """Bucket -> [B, 1, N]."""
        return self._each(lambda b: [b.arena.shrinkage.rows(run)[:, None] for run in self._runs(b)])

    @property
    def value(self) -> dict[int, Tensor]:
        """Object -> [B, CV, N]."""
        values: dict[int, Tensor] = {}
        for bucket in self._buckets().values():
            joined = torch.cat(bucket.arena.values.segments(self._runs(bucket)), 3)
            values |= {obj: joined[:, i].contiguous() for i, obj in enumerate(bucket.objects)}
        return values

    k, s, v = key, shrinkage, value

    @property
    def use_cnt(self) -> dict[int, Tensor]:
        """Bucket -> [B, N] of the tokens that are not permanent: the mass each received."""
        self._counts()
        return self._each(lambda b: [b.arena.use.rows(run).to(b.arena.spec.number) for run in self._counted(b)])

    @property
    def life_cnt(self) -> dict[int, Tensor]:
        """Bucket -> [B, N] of the tokens that are not permanent: reads since birth, plus 1e-7."""
        self._counts()

        def life(b: HostBucket) -> list[Tensor]:
            births = [b.arena.birth.rows(run) for run in self._counted(b)]
            return [(b.arena.reads - birth).to(torch.float32) + LIFE_OF_A_NEW_TOKEN for birth in births]

        return self._each(life)

    def get_usage(self, bucket_id: int) -> Tensor:
        """[B, N] of the tokens that are not permanent: mass per read.

        RuntimeError where usage is not counted.
        """
        return self.use_cnt[bucket_id] / self.life_cnt[bucket_id]

    def size(self, bucket_id: int) -> int:
        """N of a bucket, 0 for an unknown one."""
        bucket = self._buckets().get(bucket_id)
        return 0 if bucket is None else sum(run.tokens for run in self._runs(bucket))

    def perm_size(self, bucket_id: int) -> int:
        """Permanent tokens of a bucket."""
        return 0

    def non_perm_size(self, bucket_id: int) -> int:
        """Tokens of a bucket that are not permanent."""
        return self.size(bucket_id) - self.perm_size(bucket_id)

    def get_v_size(self, obj_id: int) -> int:
        """N of an object's bucket."""
        return next(self.size(i) for i, bucket in self._buckets().items() if obj_id in bucket.objects)

    def engaged(self, bucket_id: int | None = None) -> bool:
        """Whether there is a bucket, or this bucket."""
        return bool(self._buckets()) if bucket_id is None else bucket_id in self._buckets()

    @property
    def num_objects(self) -> int:
        """Objects that have values here."""
        return sum(len(bucket.objects) for bucket in self._buckets().values())

    @property
    def perm_end_pt(self) -> dict[int, int]:
        """Bucket -> permanent tokens."""
        return {i: self.perm_size(i) for i in self._buckets()}

    @property
    def global_bucket_id(self) -> int:
        """The id of the next bucket."""
        return self._all.next_id

    def __contains__(self, obj_id: object) -> bool:
        return any(obj_id in bucket.objects for bucket in self._buckets().values())

    def _each(self, parts: Callable[[HostBucket], list[Tensor]]) -> dict[int, Tensor]:
        return {i: torch.cat(parts(bucket), -1) for i, bucket in self._buckets().items()}

    def _counts(self) -> None:
        if not self.save_usage:
            raise RuntimeError("usage is not counted here")


class WorkingView(_View):
    """Working memory: permanent frames, then the others."""

    def __init__(self, buckets: HostBuckets, long_term: bool) -> None:
        super().__init__(buckets, save_usage=long_term)
        self.save_selection = long_term

    def _runs(self, bucket: HostBucket) -> list[Run]:
        return bucket.runs or _NOTHING

    def _counted(self, bucket: HostBucket) -> list[Run]:
        return bucket.temporary or _NOTHING

    def perm_size(self, bucket_id: int) -> int:
        bucket = self._buckets().get(bucket_id)
        return 0 if bucket is None else bucket.permanent * bucket.arena.spec.frame

    @property
    def selection(self) -> dict[int, Tensor]:
        """Bucket -> [B, CK, N] of the tokens that are not permanent."""
        return self._each(lambda b: [b.arena.selection.view(run) for run in self._counted(b)])  # type: ignore[union-attr]

    e = selection


class LongTermView(_View):
    """Long-term memory."""

    save_selection = False

    def _buckets(self) -> dict[int, HostBucket]:
        return {i: bucket for i, bucket in self._all.by_id.items() if bucket.long_engaged}

    def _runs(self, bucket: HostBucket) -> list[Run]:
        return bucket.long_term

    _counted = _runs
