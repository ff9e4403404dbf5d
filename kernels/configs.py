"""Tile sizes."""

from __future__ import annotations

from torch import Tensor


def of(kernel: str, like: Tensor) -> dict[str, int]:
    if kernel == "split_maxima":
        return {"BLOCK_Q": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_C": 512, "SLOTS": 8, "num_warps": 4, "num_stages": 2}


def launch(config: dict[str, int]) -> dict[str, int]:
    return {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
