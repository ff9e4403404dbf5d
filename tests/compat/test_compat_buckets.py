"""Buckets that hold the same frames: one similarity for those, and each bucket's own k tokens."""

from __future__ import annotations

import math

import pytest
import torch

from xmemk import api
from xmemk.compat import shared
from xmemk.compat.bucket import HostFrame, HostRules
from xmemk.compat.buckets import HostBuckets
from xmemk.inputs import QueryInputs
from xmemk.testing import Inputs, compare_read

CK, CV, HW, K = 16, 3, 20, 12


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def rules(long_term):
    if not long_term:
        return HostRules(False, 6, keep_frames=4)
    return HostRules(
        True,
        8,
        max_tokens=60,
        num_prototypes=6,
        full=lambda frames: frames >= 5,
        candidates=lambda frames: (0, frames - 2),
    )


def fill(joining, frames, long_term, permanent=(), batch=1, dtype=torch.float32, seed=0):
    """Buckets after some frames; joining: labels by frame. Reads come between the frames."""
    g = torch.Generator().manual_seed(seed)
    buckets, objects = HostBuckets("auto"), []
    for t in range(frames):
        objects += joining.get(t, [])
        key, selection = (torch.randn(batch, CK, HW, generator=g).to(dtype) for _ in range(2))
        shrinkage, value = (
            1 + torch.rand(batch, 1, HW, generator=g),
            torch.randn(batch, len(objects), CV, HW, generator=g),
        )
        how = "all" if t in permanent else "first"
        buckets.add(HostFrame(key, shrinkage, selection.sigmoid(), value.to(dtype)), objects, rules(long_term), how)
        queries = QueryInputs(
            torch.randn(batch, CK, HW, generator=g).to(dtype), torch.rand(batch, CK, HW, generator=g).to(dtype)
        )
        for bucket, _, usage in list(buckets.read(queries, top_k=K, chunk=-1, return_usage=True)):
            bucket.arena.record(usage)
    return buckets, queries


@pytest.mark.parametrize("long_term", [False, True])
@pytest.mark.parametrize("joining", [{0: [1], 3: [2]}, {0: [4, 1], 2: [3], 9: [2], 10: [7, 8]}])
@pytest.mark.parametrize("permanent", [(), (4, 7)])
@pytest.mark.parametrize("chunk", [-1, 1])
def test_every_bucket_reads_its_own_best_tokens(long_term, joining, permanent, chunk):
    buckets, queries = fill(joining, 14, long_term, permanent, batch=2)
    assert shared.common_frames(list(buckets.by_id.values()))
    for bucket, parts, usage in buckets.read(queries, top_k=K, chunk=chunk, return_usage=True):
        expected, expected_usage = bucket.read(queries, top_k=K, chunk=chunk, return_usage=True, backend="auto")
        assert [labels for labels, _ in parts] == [labels for labels, _ in expected]
        assert max(float((a - b).abs().max()) for (_, a), (_, b) in zip(parts, expected)) < 1e-5
        assert torch.allclose(usage, expected_usage, atol=1e-5)
        runs = bucket.arena.table.runs()
        mk, ms = (torch.cat(x, 2) for x in bucket.arena.keys(runs)[:2])
        mv = torch.cat(bucket.arena.values.segments(runs), 3)
        judged = Inputs(mk, ms, mv, *queries, mk, ms[:, 0])
        assert compare_read(judged, torch.cat([x for _, x in parts], 1), top_k=K).passed


def test_common_frames_are_searched_once(monkeypatch):
    buckets, queries = fill({0: [1], 2: [2], 3: [3], 4: [4]}, 14, False)
    searched, right = [], api.affinity_topk
    monkeypatch.setattr(
        api, "affinity_topk", lambda mk, *a, **k: searched.append(sum(x.shape[2] for x in mk)) or right(mk, *a, **k)
    )
    list(buckets.read(queries, top_k=K, chunk=-1, return_usage=False))
    # Four temporary frames are common to all; each bucket has one permanent frame of its own.
    assert searched == [4 * HW, HW, HW, HW, HW]
    assert sum(bucket.arena.tokens for bucket in buckets.by_id.values()) == 4 * 5 * HW


def test_what_is_not_common_or_not_sparse():
    buckets, queries = fill({0: [1]}, 6, False)
    assert shared.common_frames(list(buckets.by_id.values())) == []
    buckets, queries = fill({0: [1], 3: [2]}, 10, False)
    for bucket, parts, _ in buckets.read(queries, top_k=None, chunk=-1, return_usage=False):
        expected, _ = bucket.read(queries, top_k=None, chunk=-1, return_usage=False, backend="auto")
        assert torch.equal(parts[0][1], expected[0][1])


def test_more_wanted_than_a_part_holds_and_far_scores():
    buckets, queries = fill({0: [1], 5: [2]}, 8, False)
    for scale, top_k in ((1.0, 500), (1.0, HW + 3), (30.0, K)):
        far = queries._replace(qk=scale * queries.qk)
        for bucket, parts, usage in buckets.read(far, top_k=top_k, chunk=-1, return_usage=True):
            expected, _ = bucket.read(far, top_k=top_k, chunk=-1, return_usage=True, backend="auto")
            assert math.isclose(float(usage.sum()), HW, rel_tol=1e-5)
            assert torch.allclose(parts[0][1], expected[0][1], atol=2e-3 if scale > 1 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype):
    buckets, queries = fill({0: [1], 3: [2]}, 10, True, dtype=dtype)
    for bucket, parts, _ in buckets.read(queries, top_k=K, chunk=-1, return_usage=True):
        expected, _ = bucket.read(queries, top_k=K, chunk=-1, return_usage=True, backend="auto")
        assert parts[0][1].dtype == dtype
        assert torch.allclose(parts[0][1], expected[0][1], atol=1e-10 if dtype == torch.float64 else 0.05)


def test_frame_numbers_follow_the_frames():
    for long_term in (False, True):
        buckets, _ = fill({0: [1], 2: [2], 6: [3]}, 15, long_term, permanent=(8,))
        buckets.remove({2})
        buckets.clear_temporary()
        for bucket in buckets.by_id.values():
            assert len(bucket.frame_numbers) == len(bucket.arena.frames) == bucket.permanent
        assert [bucket.frame_numbers for bucket in buckets.by_id.values()] == [[8, 0], [8, 6]]
