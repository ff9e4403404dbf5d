"""Reads a host's configuration, without importing the library that holds it.

A configuration is a flat mapping (XMem, Track-Anything, DEVA), or nested with attributes or items
like OmegaConf's DictConfig (Cutie, rf-cutie). A key that is missing or does not fit is a ValueError
that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..reference.config import MemoryConfig

_ALWAYS = ("top_k", "enable_long_term", "enable_long_term_count_usage")
_LONG_TERM = ("max_mid_term_frames", "min_mid_term_frames", "num_prototypes", "max_long_term_elements")


def lookup(config: Any, key: str) -> Any:
    """``config["a"]["b"]`` or ``config.a.b`` for the key "a.b".

    ValueError where there is no such key.
    """
    value = config
    for part in key.split("."):
        try:
            value = value[part] if isinstance(value, Mapping) else getattr(value, part)
        except (KeyError, AttributeError) as error:
            raise ValueError(f"config: wanted the key {key!r}, found none") from error
    return value


def memory_config(config: Any, groups: str) -> MemoryConfig:
    """XMem's keys as a :class:`xmemk.MemoryConfig`.

    Without long-term memory its limits are not read, as in XMem.
    """
    values = {key: lookup(config, key) for key in _ALWAYS}
    if values["enable_long_term"]:
        values |= {key: lookup(config, key) for key in _LONG_TERM}
    hidden_dim = lookup(config, "hidden_dim")
    return MemoryConfig(**values, hidden_dim=0 if hidden_dim is None else hidden_dim, groups=groups)


@dataclass(frozen=True)
class CutieLimits:
    """Cutie's limits, less the first frame, which is permanent: Cutie's keys say one frame more."""

    use_long_term: bool
    count_usage: bool
    max_frames: int
    min_frames: int = 0
    num_prototypes: int = 0
    max_tokens: int = 0
    buffer_tokens: int = 0

    @classmethod
    def of(cls, config: Any) -> CutieLimits:
        """From Cutie's configuration. ValueError names the key that is missing or does not fit."""
        use_long_term = bool(lookup(config, "use_long_term"))
        count_usage = bool(lookup(config, "long_term.count_usage"))
        if not use_long_term:
            frames = int(lookup(config, "max_mem_frames"))
            if frames < 1:
                raise ValueError(f"max_mem_frames: wanted at least 1, the permanent one, got {frames}")
            return cls(use_long_term, count_usage, frames - 1)
        keys = ("max_mem_frames", "min_mem_frames", "num_prototypes", "max_num_tokens", "buffer_tokens")
        longest, shortest, prototypes, tokens, buffer = (int(lookup(config, f"long_term.{key}")) for key in keys)
        if not 1 <= shortest < longest:
            raise ValueError(
                "long_term.max_mem_frames: wanted more than long_term.min_mem_frames, and that at least 1, got "
                f"{longest} and {shortest}"
            )
        if prototypes < 1 or buffer < 0 or tokens < prototypes + buffer:
            raise ValueError(
                "long_term.max_num_tokens: wanted at least num_prototypes + buffer_tokens, the first at least 1 and "
                f"the second at least 0, got {tokens}, {prototypes} and {buffer}"
            )
        return cls(use_long_term, count_usage, longest - 1, shortest - 1, prototypes, tokens, buffer)
