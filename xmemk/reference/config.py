"""The memory's parameters, under XMem's own names and with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

GROUPS = ("exact", "xmem")
VALUE_DTYPES = ("float16", "bfloat16", "int8", "float8_e4m3fn")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The sizes of the three memory stores, and when they change (Sec. 2.3 and 2.4).

    top_k: how many tokens a query reads, at least 1; None for all.
    mem_every: r, a memory frame every r-th frame, for the frame loop.
    deep_update_every: the same for the deep update of the sensory memory; negative for every memory
        frame.
    max_mid_term_frames, min_mid_term_frames: T_max and T_min, the frames in working memory before
        and after a consolidation; 1 <= T_min < T_max.
    num_prototypes: P, the tokens that one consolidation adds to long-term memory.
    max_long_term_elements: the most long-term tokens, at least P, since room for P is made first.
    enable_long_term: without it working memory grows without end, and no usage is counted.
    enable_long_term_count_usage: without it nothing can be evicted, and reaching the maximum is an
        error.
    hidden_dim: channels of the sensory memory; 0 for a network that has none.
    groups: how objects that join later are kept. "exact": each with the keys of its own frames.
        "xmem": as the released code does, see :mod:`xmemk.reference.groups_xmem`.
    value_dtype: the type in which :class:`xmemk.Memory` stores values: None for the type they come
        in, "float16", "bfloat16", or 8 bits with scales, "int8" or "float8_e4m3fn". The oracle
        keeps them as they come.

    Raises ValueError or TypeError for numbers out of these ranges.
    """

    top_k: int | None = 30
    mem_every: int = 5
    deep_update_every: int = -1
    max_mid_term_frames: int = 10
    min_mid_term_frames: int = 5
    num_prototypes: int = 128
    max_long_term_elements: int = 10000
    enable_long_term: bool = True
    enable_long_term_count_usage: bool = True
    hidden_dim: int = 64
    groups: str = "exact"
    value_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None:
            self._whole("top_k", at_least=1, rule="None or a whole number >= 1")
        self._whole("mem_every", at_least=1)
        self._whole("deep_update_every", at_least=None)
        self._whole("min_mid_term_frames", at_least=1)
        self._whole("max_mid_term_frames", at_least=1)
        self._whole("num_prototypes", at_least=1)
        self._whole("max_long_term_elements", at_least=1)
        self._whole("hidden_dim", at_least=0)
        for name in ("enable_long_term", "enable_long_term_count_usage"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: wanted a bool, got {getattr(self, name)!r}")
        if self.max_mid_term_frames <= self.min_mid_term_frames:
            raise ValueError(
                f"max_mid_term_frames: wanted more than min_mid_term_frames = {self.min_mid_term_frames}, so that a "
                f"consolidation has at least one candidate frame, got {self.max_mid_term_frames}"
            )
        if self.max_long_term_elements < self.num_prototypes:
            raise ValueError(
                f"max_long_term_elements: wanted at least num_prototypes = {self.num_prototypes}, "
                f"got {self.max_long_term_elements}"
            )
        if self.groups not in GROUPS:
            raise ValueError(f"groups: wanted one of {', '.join(map(repr, GROUPS))}, got {self.groups!r}")
        if self.value_dtype not in (None, *VALUE_DTYPES):
            names = ", ".join(map(repr, VALUE_DTYPES))
            raise ValueError(f"value_dtype: wanted None or one of {names}, got {self.value_dtype!r}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> MemoryConfig:
        """From XMem's own dictionary. Unknown keys (``key_dim``, ``size``, ...) are ignored."""
        if not isinstance(config, Mapping):
            raise TypeError(f"config: wanted a mapping, got {type(config).__name__}")
        return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})

    def _whole(self, name: str, *, at_least: int | None, rule: str | None = None) -> None:
        value = getattr(self, name)
        rule = rule or ("a whole number" if at_least is None else f"a whole number >= {at_least}")
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}: wanted {rule}, got {value!r}")
        if at_least is not None and value < at_least:
            raise ValueError(f"{name}: wanted {rule}, got {value!r}")
        object.__setattr__(self, name, int(value))  # whole numbers of NumPy become plain ones
