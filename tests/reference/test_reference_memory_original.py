"""The oracle's memory against records of XMem's own manager (data/make_xmem_memory.py)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xmemk import reference
from xmemk.reference import Memory, MemoryConfig

CASES = ("one_group_sparse", "one_group_dense", "late_objects")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parents[1] / "data" / "xmem_memory.npz") as file:
        return {name: file[name] for name in file.files}


def replay(recorded, case, dtype=torch.float64, ops=reference, **changes):
    """Runs the schedule; the largest differences from the record: of readouts, counters, sizes."""
    data = {name.removeprefix(case + "/"): x for name, x in recorded.items() if name.startswith(case + "/")}
    config = MemoryConfig.from_dict({**json.loads(str(data["config"])), "groups": "xmem"})
    memory = Memory(dataclasses.replace(config, **changes), ops=ops)
    readouts, counts, sizes = [], [], []
    for t, added in enumerate(data["added"]):
        key, shrinkage, selection, value = (
            torch.from_numpy(data[name][t]).to(dtype)[None] for name in ("key", "shrinkage", "selection", "value")
        )
        if t > 0:
            readouts.append(memory.read(key, selection).flatten())
        if added:
            memory.add(key, shrinkage, value[:, :added], range(1, added + 1), selection)
        groups = memory.groups if config.groups == memory.config.groups else memory.groups.buckets[0]
        sizes.append([0 if groups.long_term is None else groups.long_term.size, groups.working.size])
        stores = [store for store in (groups.long_term, groups.working) if store is not None]
        counts += [torch.stack([store.use[0], store.life[0]]) for store in stores if store.size]
    readout, count = torch.cat(readouts), torch.cat(counts, 1)
    difference = {"sizes": np.abs(np.array(sizes) - data["sizes"]).max(), "counts": np.inf}
    difference["readout"] = (readout.double() - torch.from_numpy(data["readout"])).abs().max().item()
    if count.shape == data["counts"].shape:
        difference["counts"] = (count - torch.from_numpy(data["counts"])).abs().max().item()
    return difference, memory


@pytest.mark.parametrize("case", CASES)
def test_float64_reads_and_counts_as_the_original(recorded, case):
    difference, _ = replay(recorded, case)
    assert difference["sizes"] == 0
    assert difference["readout"] < 1e-9
    assert difference["counts"] < 1e-4  # the original's counters are float32


@pytest.mark.parametrize("case", CASES)
def test_float32_reads_and_counts_as_the_original(recorded, case):
    difference, _ = replay(recorded, case, torch.float32)
    assert difference["sizes"] == 0
    assert difference["readout"] < 1e-4
    assert difference["counts"] < 1e-3


def test_the_record_covers_what_it_is_for(recorded):
    _, memory = replay(recorded, "one_group_sparse")
    assert memory.consolidations == 11
    assert memory.evictions == 8
    assert 14 in recorded["one_group_sparse/sizes"][:, 0]  # 10 of at most 11 survived: a tie at the threshold
    _, memory = replay(recorded, "late_objects")
    assert memory.consolidations == 8
    assert len(memory.groups.groups) == 4
    per_group = [value.shape[-1] for value in memory.groups.long_term_values]
    assert per_group == sorted(per_group, reverse=True)
    assert any(n % 5 for n in per_group), "no batch of prototypes was partly valid"


def test_exact_groups_read_as_the_original_where_nothing_ties(recorded):
    difference, memory = replay(recorded, "one_group_dense", groups="exact")
    assert memory.evictions == 4
    assert difference["sizes"] == 0
    assert difference["readout"] < 1e-9
    assert difference["counts"] < 1e-4


def sabotaged(**wrong):
    names = ("memory_read", "select_prototypes", "consolidate", "evict_lfu")
    return SimpleNamespace(**{name: getattr(reference, name) for name in names} | wrong)


def read_without_shrinkage(mk, ms, mv, qk, qe, **options):
    return reference.memory_read(mk, None, mv, qk, qe, **options)


def read_without_selection(mk, ms, mv, qk, qe, **options):
    return reference.memory_read(mk, ms, mv, qk, None, **options)


def read_with_stale_usage(mk, ms, mv, qk, qe, *, return_usage=False, **options):
    readout = reference.memory_read(mk, ms, mv, qk, qe, **options)
    return (readout, readout.new_zeros(1, sum(k.shape[-1] for k in mk))) if return_usage else readout


def least_used(usage, n):
    return reference.select_prototypes(-usage, n)


@pytest.mark.parametrize(
    ("case", "changes", "ops"),
    [
        ("one_group_sparse", {"top_k": 1}, reference),
        ("one_group_dense", {"top_k": 16}, reference),
        ("one_group_sparse", {"min_mid_term_frames": 1}, reference),
        ("one_group_sparse", {"max_mid_term_frames": 6}, reference),
        ("one_group_sparse", {"num_prototypes": 3}, reference),
        ("one_group_sparse", {"max_long_term_elements": 16}, reference),
        ("one_group_sparse", {"groups": "exact"}, reference),
        ("one_group_dense", {}, sabotaged(memory_read=read_without_shrinkage)),
        ("one_group_dense", {}, sabotaged(memory_read=read_without_selection)),
        ("one_group_sparse", {}, sabotaged(memory_read=read_with_stale_usage)),
        ("one_group_dense", {}, sabotaged(select_prototypes=least_used)),
        ("late_objects", {"groups": "exact"}, reference),
        ("late_objects", {"top_k": 5}, reference),
    ],
)
def test_the_comparison_rejects_what_is_wrong(recorded, case, changes, ops):
    difference, _ = replay(recorded, case, ops=ops, **changes)
    assert difference["readout"] > 1e-3
