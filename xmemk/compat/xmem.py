"""XMem's and Track-Anything's memory manager over :class:`xmemk.Memory`, and their functions.

    from xmemk.compat.xmem import MemoryManager, get_similarity, do_softmax, get_affinity, readout

:class:`MemoryManager` takes the host's configuration and calls. Its readouts equal the host's up to
rounding, and it keeps the same tokens, without an N x Q matrix and without copies of the stores. It
continues where the released code stops with an error: eviction after objects joined late, and fewer
than top_k tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import api
from ..memory import Memory
from ..memory.functions import PUBLIC
from .config import memory_config
from .functions import do_softmax, get_affinity, get_similarity, readout
from .xmem_stores import StoreView, reconfigure

__all__ = ["MemoryManager", "do_softmax", "get_affinity", "get_similarity", "readout"]


class MemoryManager:
    """The three memory stores of one video behind XMem's interface.

    config: XMem's dictionary. groups: "xmem", which keeps objects that join late as the released
    code does, defects included; or "exact", in which every value is read against its own key.
    Shapes are those of the host: keys and selections [1, CK, H, W], shrinkage [1, 1, H, W], values
    [1, O, CV, H, W]. No gradients flow through the stores.

    Raises ValueError or TypeError for input that the host's own code does not check: another
    resolution than that of the first frame, objects out of order, numbers that are not finite. A
    call that raises has changed nothing.
    """

    groups = "xmem"
    backend = "auto"

    def __init__(self, config: Any) -> None:
        self._set_config(config)
        self.CK: int | None = None
        self.CV: int | None = None
        self.H: int | None = None
        self.W: int | None = None
        self.hidden: Tensor | None = None
        self.reset_config = True
        self.memory = Memory(self._config, backend=self.backend)
        self.work_mem = StoreView(self.memory, False, self.enable_long_term)
        if self.enable_long_term:
            self.long_mem = StoreView(self.memory, True, self.enable_long_term_usage)

    def update_config(self, config: Any) -> None:
        """Sets limits and top_k for later calls.

        ValueError for a switch of long-term memory or its usage.
        """
        new = memory_config(config, self.groups)
        for name in ("enable_long_term", "enable_long_term_count_usage"):
            if getattr(new, name) != getattr(self._config, name):
                raise ValueError(f"{name}: wanted {getattr(self._config, name)} as before, got {getattr(new, name)}")
        reconfigure(self.memory, new)
        self._set_config(config)
        self.reset_config = True

    def match_memory(self, query_key: Tensor, selection: Tensor) -> Tensor:
        """Reads the memory for every token of a frame and records usage.

        Returns [O, CV, H, W] in the values' type. RuntimeError before the first add. ValueError
        without ``selection``: the released code then computes another similarity than Eq. 2, which
        none of its callers uses.
        """
        if selection is None:
            raise ValueError("selection: wanted [1, CK, H, W] as XMem's network gives it, got None")
        with torch.no_grad():
            dtype, _ = self._memory_dtypes(query_key.dtype, query_key.dtype)
            return self.memory.read(query_key.to(dtype), selection.to(dtype))[0].contiguous()

    def add_memory(
        self, key: Tensor, shrinkage: Tensor, value: Tensor, objects: Iterable[int], selection: Tensor | None = None
    ) -> None:
        """Adds a memory frame, whose ``value`` has object i in row i - 1.

        Evicts and consolidates when due.
        """
        labels = [int(label) for label in objects]
        self._check_order(labels)
        if value.dim() != 5 or (labels and value.shape[1] < max(labels)):
            raise ValueError(f"value: wanted [1, O, CV, H, W] with O >= {max(labels)}, got {list(value.shape)}")
        if selection is None and self.enable_long_term:
            raise ValueError("selection: wanted [1, CK, H, W], which long-term memory needs, got None")
        if selection is not None and not self.enable_long_term:
            warnings.warn("the selection is only needed with long-term memory", UserWarning, stacklevel=2)
            selection = None
        rows = [label - 1 for label in labels]
        if rows != list(range(value.shape[1])):
            value = value[:, rows]
        with torch.no_grad():
            key_type, value_type = self._memory_dtypes(key.dtype, value.dtype)
            self.memory.add(
                key.detach().to(key_type),
                shrinkage.detach().to(torch.promote_types(key_type, torch.float32)),
                value.detach().to(value_type),
                labels,
                None if selection is None else selection.detach().to(key_type),
            )
        self.CK, self.CV = key.shape[1], value.shape[2]
        if self.H is None or self.reset_config:
            self.reset_config = False
            self.H, self.W = key.shape[-2:]
            self.HW = self.H * self.W
            if self.enable_long_term:
                self.min_work_elements = self.min_mt_frames * self.HW
                self.max_work_elements = self.max_mt_frames * self.HW

    def compress_features(self) -> None:
        """RuntimeError: only :meth:`add_memory` consolidates, when working memory is full."""
        raise RuntimeError("compress_features: consolidation is a part of add_memory here, and cannot be asked for")

    def consolidation(
        self,
        candidate_key: Tensor,
        candidate_shrinkage: Tensor | None,
        candidate_selection: Tensor,
        usage: Tensor,
        candidate_value: list[Tensor | None],
    ) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
        """Prototypes of candidates (Sec. 2.3), in the host's shapes. No store changes.

        candidate_key and candidate_selection [1, CK, N], candidate_shrinkage [1, 1, N], usage [1,
        1, N]. candidate_value: per group of objects the values [O, CV, V], V <= N, of the last V
        candidates, or None. Returns keys [1, CK, P]; per group the values [O, CV, V'] of the
        prototypes it has, or None; and shrinkage [1, 1, P].
        """
        n = candidate_key.shape[2]
        index = PUBLIC.select_prototypes(usage.flatten(1), min(self.num_prototypes, n), backend=self.backend)[0]
        pk, pe = candidate_key[:, :, index], candidate_selection[:, :, index]

        def potentiate(value: Tensor, v: int, valid: Tensor | slice) -> Tensor:
            ms = None if candidate_shrinkage is None else candidate_shrinkage[..., n - v :]
            mk, qk, qe = candidate_key[..., n - v :], pk[..., valid], pe[..., valid]
            return api.memory_read(mk, ms, value[None], qk, qe, backend=self.backend)[0]

        values: list[Tensor | None] = []
        for value in candidate_value:
            valid = index >= n - (0 if value is None else value.shape[2])
            values.append(potentiate(value, value.shape[2], valid) if value is not None and bool(valid.any()) else None)
        ps = None
        if candidate_shrinkage is not None:
            ps = potentiate(candidate_shrinkage.to(candidate_key.dtype), n, slice(None))
        return pk, values, ps

    def create_hidden_state(self, n: int, sample_key: Tensor) -> None:
        """Extends the hidden state with zeros to ``n`` objects: [1, n, CH, H, W]."""
        h, w = sample_key.shape[-2:]
        old = 0 if self.hidden is None else self.hidden.shape[1]
        if n < old:
            raise ValueError(f"n: wanted at least {old}, the objects that have a state, got {n}")
        if self.hidden is None or n > old:
            new = torch.zeros(1, n - old, self.hidden_dim, h, w, device=sample_key.device)
            self.hidden = new if self.hidden is None else torch.cat([self.hidden, new], 1)

    def set_hidden(self, hidden: Tensor | None) -> None:
        """Replaces the hidden state."""
        self.hidden = hidden

    def get_hidden(self) -> Tensor | None:
        """The hidden state [1, O, CH, H, W], None before :meth:`create_hidden_state`."""
        return self.hidden

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__name__}({self.memory!r})"

    def _take_over(self, before: dict[str, Any]) -> None:
        """Replaces a host's manager with these attributes, which holds no object yet."""
        # MemoryConfig's name -> the attribute of XMem's manager.
        names = {"enable_long_term_count_usage": "enable_long_term_usage"}
        if before["enable_long_term"]:
            names |= {
                "max_mid_term_frames": "max_mt_frames",
                "min_mid_term_frames": "min_mt_frames",
                "num_prototypes": "num_prototypes",
                "max_long_term_elements": "max_long_elements",
            }
        same = ("hidden_dim", "top_k", "enable_long_term")
        type(self).__init__(self, {name: before[names.get(name, name)] for name in (*same, *names)})
        self.hidden = before["hidden"]

    def _set_config(self, config: Any) -> None:
        self._config = memory_config(config, self.groups)
        self.hidden_dim, self.top_k = self._config.hidden_dim, self._config.top_k
        self.enable_long_term = self._config.enable_long_term
        self.enable_long_term_usage = self._config.enable_long_term_count_usage
        if self.enable_long_term:
            self.max_mt_frames = self._config.max_mid_term_frames
            self.min_mt_frames = self._config.min_mid_term_frames
            self.num_prototypes = self._config.num_prototypes
            self.max_long_elements = self._config.max_long_term_elements

    def _memory_dtypes(self, key: torch.dtype, value: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
        """The stored types of keys and values, which the first frame fixes; before it, these."""
        groups = self.memory.groups
        return (key, value) if groups is None else (groups.rules.layout.key_dtype, groups.rules.layout.value_dtype)

    def _check_order(self, labels: list[int]) -> None:
        known = list(self.memory.objects)
        new = [label for label in labels if label not in known]
        if known + new != sorted(known + new):
            raise ValueError(
                f"objects: wanted new ones in ascending order and above all earlier ones, got {new} after {known}"
            )
