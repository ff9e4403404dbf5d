"""Writes xmem_memory.npz: what XMem's own memory manager reads and counts over three fixed random
schedules.

    python make_xmem_memory.py PATH_TO_AN_XMEM_CHECKOUT

Imports the manager from that checkout (https://github.com/hkchengrex/XMem) and stores inputs and
outputs only. Inputs are float16 numbers, computed with in float64. Schedules: one group of objects
through consolidations and evictions, read sparsely and read densely; and objects that appear later,
in four groups, through consolidations without an eviction, which the original does not offer for
several groups.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

CK, CV, H, W = 4, 3, 2, 3
COMMON = {
    "hidden_dim": 4,
    "key_dim": CK,
    "value_dim": CV,
    "size": 480,
    "deep_update_every": -1,
    "enable_long_term": True,
    "enable_long_term_count_usage": True,
}
CASES = {
    # Sparse reads leave prototypes unused, so that once two tie at the eviction threshold and both
    # go.
    "one_group_sparse": {
        "config": {
            "top_k": 2,
            "mem_every": 2,
            "max_mid_term_frames": 5,
            "min_mid_term_frames": 2,
            "num_prototypes": 4,
            "max_long_term_elements": 15,
        },
        "joining": {0: 2},
        "frames": 70,
        "seed": 6,
    },
    # Dense reads use every token, so that nothing ties.
    "one_group_dense": {
        "config": {
            "top_k": None,
            "mem_every": 2,
            "max_mid_term_frames": 5,
            "min_mid_term_frames": 2,
            "num_prototypes": 4,
            "max_long_term_elements": 15,
        },
        "joining": {0: 2},
        "frames": 50,
        "seed": 6,
    },
    # Joining right before, one above and well above T_min frames before a consolidation.
    "late_objects": {
        "config": {
            "top_k": 6,
            "mem_every": 2,
            "max_mid_term_frames": 6,
            "min_mid_term_frames": 2,
            "num_prototypes": 5,
            "max_long_term_elements": 1000,
        },
        "joining": {0: 1, 3: 2, 24: 1, 41: 1},
        "frames": 70,
        "seed": 1,
    },
}


def random_inputs(frames: int, objects: int, seed: int) -> dict[str, np.ndarray]:
    """Frames as a network might give them; shrinkage >= 1, selection in 0..1."""
    rng = np.random.default_rng(seed)
    arrays = {
        "key": rng.standard_normal((frames, CK, H, W)),
        "shrinkage": 1 + rng.standard_normal((frames, 1, H, W)) ** 2,
        "selection": rng.random((frames, CK, H, W)),
        "value": rng.standard_normal((frames, objects, CV, H, W)),
    }
    return {name: array.astype(np.float16) for name, array in arrays.items()}


def prototypes_are_unambiguous(manager, prototypes: int) -> bool:
    """Whether the next consolidation would choose without a tie, which the original breaks in an
    unspecified way.
    """
    store = manager.work_mem
    if store.size + H * W < manager.max_mt_frames * H * W:
        return True
    usage = torch.cat([store.get_usage().flatten(), torch.zeros(H * W)])
    candidates = usage[H * W : usage.numel() - (manager.min_mt_frames - 1) * H * W].sort(descending=True).values
    return bool((candidates[:prototypes] - candidates[1 : prototypes + 1]).min() > 1e-5)


def run(manager_class, case: dict) -> dict[str, np.ndarray]:
    """One schedule: every frame reads, every r-th one and those with new objects are added."""
    config = {**COMMON, **case["config"]}
    arrays = random_inputs(case["frames"], sum(case["joining"].values()), case["seed"])
    manager = manager_class(config)
    objects = 0
    added, readouts, sizes, counts = [], [], [], []
    for t in range(case["frames"]):
        key, shrinkage, selection, value = (
            torch.from_numpy(arrays[name][t]).double()[None] for name in ("key", "shrinkage", "selection", "value")
        )
        if t > 0:
            readouts.append(manager.match_memory(key, selection).flatten().numpy())
        objects += case["joining"].get(t, 0)
        added.append(objects if t % config["mem_every"] == 0 or t in case["joining"] else 0)
        if added[-1]:
            if t > 0 and not prototypes_are_unambiguous(manager, config["num_prototypes"]):
                raise SystemExit(f"frame {t}: usage ties, choose another seed")
            manager.add_memory(key, shrinkage, value[:, :objects], list(range(1, objects + 1)), selection)
        stores = (manager.long_mem, manager.work_mem)
        sizes.append([store.size for store in stores])
        for store in stores:
            if store.size:
                counts.append(torch.stack([store.use_count.flatten(), store.life_count.flatten()]).numpy())
    return arrays | {
        "config": np.array(json.dumps(config)),
        "added": np.array(added),  # per frame, how many objects were added; 0 where the frame was only read
        "readout": np.concatenate(readouts),  # [O, CV, H, W] of each frame from 1 on, one after the other
        "sizes": np.array(sizes),  # per frame, after its add: tokens in long-term and in working memory
        "counts": np.concatenate(counts, 1),  # use and life of those tokens, one frame after the other
    }


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.path.insert(0, sys.argv[1])
    from inference.memory_manager import MemoryManager

    results = {f"{name}/{key}": x for name, case in CASES.items() for key, x in run(MemoryManager, case).items()}
    target = Path(__file__).with_name("xmem_memory.npz")
    np.savez_compressed(target, **results)
    print(target.name, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
