"""Whole frames and videos with each method's memory: equal where they should be, checked before they are timed."""

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("rich")

from xmemk.benchmarks.harness.timing import time_peers
from xmemk.benchmarks.peers import video
from xmemk.benchmarks.peers.catalogue import Peer
from xmemk.benchmarks.peers.memories import held_tokens
from xmemk.benchmarks.peers.workloads import FRAME_OPS
from xmemk.benchmarks.report.schema import OTHER_METHOD, Measurement

from xmemk import MemoryConfig

CONFIG = MemoryConfig(
    groups="xmem",
    mem_every=2,
    top_k=10,
    max_mid_term_frames=4,
    min_mid_term_frames=2,
    num_prototypes=16,
    max_long_term_elements=70,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def case_of(op, frames=14):
    return video.make_video_case(op, "small", height=64, frames=frames, config=CONFIG)


def rows_of(case, peers=None):
    """As run.py times them."""
    rows = time_peers(case, peers or video.VIDEO_PEERS, rounds=2, budget=60, judge=video.video_verdict)
    return {row.peer: row for row in rows}


@pytest.mark.parametrize("op", FRAME_OPS)
def test_ours_agrees_with_the_original_and_stcn_is_not_checked(op):
    rows = rows_of(case_of(op))
    stcn = "STCN (another method)"
    assert list(rows) == ["xmemk", "original", stcn]
    assert all(len(row.seconds) == 2 for row in rows.values())
    assert rows["xmemk"].ours and not rows["xmemk"].reason
    assert rows["xmemk"].error < video.ALLOWED and rows["original"].error == 0
    assert rows[stcn].error is None and rows[stcn].status == ""
    assert [Measurement(peer).kind == OTHER_METHOD for peer in rows] == [False, False, True]


def test_a_memory_in_mid_video_is_full_and_stays_so_for_frames():
    case = case_of("frame")
    for name in ("xmemk", "original"):
        memory = video.filled(case, name)
        assert memory.consolidations == 4 and memory.evictions == 0
        assert held_tokens(memory) == 4 * 16 + 3 * 32
    assert held_tokens(video.filled(case, "STCN")) == video.STCN_FRAMES * 32
    before = case_of("memory_frame")
    assert video.filled(before, "xmemk").working_size == 2 * 32


def test_a_memory_frame_is_remembered_and_a_frame_is_not(monkeypatch):
    kept, filled = {}, video.filled
    monkeypatch.setattr(video, "filled", lambda case, name: kept.setdefault(case.op, filled(case, name)))
    for op, more in (("frame", 0), ("memory_frame", 32)):
        case = case_of(op)
        call = next(p for p in video.VIDEO_PEERS if p.ours).prepare(case)
        before = kept[op].working_size
        first = call()
        assert kept[op].working_size == before + more
        assert first.shape == (1, 2, *case.mask.shape)


def test_the_clip_is_followed_from_its_annotated_frame():
    case = case_of("video")
    assert len(case.images) == 14 and case.images[0].shape == (3, *case.mask.shape)
    assert 0 < (case.mask > 0).float().mean() < 0.5
    first = case.expected()[0]
    assert (first.argmax(0) == (case.mask > 0)).all()
    assert torch.allclose(case.expected().sum(1), torch.ones(14, *case.mask.shape), atol=1e-5)


def test_a_wrong_and_a_crashing_memory_are_rows_with_reasons():
    case = case_of("video", frames=3)

    def crash(_):
        raise MemoryError("no room")

    peers = [
        Peer("wrong", lambda c: lambda: c.expected() + 0.01),
        Peer("other shape", lambda c: lambda: c.expected()[1:]),
        Peer("crash", crash),
    ]
    rows = rows_of(case, peers)
    assert rows["wrong"].reason.startswith("wrong: probabilities: error 0.01") and not rows["wrong"].seconds
    assert rows["other shape"].reason.startswith("wrong: probabilities of shape")
    assert rows["crash"].reason == "MemoryError: no room"


def test_an_unknown_op_or_network_is_named():
    with pytest.raises(ValueError, match="'films'"):
        video.make_video_case("films")
    with pytest.raises(ValueError, match="'huge'"):
        video.make_video_case("video", "huge")
