"""The curves over a video's length: the methods' memories, Fig. 1 (left), Fig. 5."""

import json
import math
import sys
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("rich")

from xmemk.benchmarks.peers.clip import ClipFeatures, checkpoints, there_and_back
from xmemk.benchmarks.peers.memories import METHODS, STCN_TOP_K, held_bytes, held_tokens, hurry
from xmemk.benchmarks.report.schema import VideoTrack
from xmemk.benchmarks.studies import length

import xmemk
from xmemk import MemoryConfig, reference
from xmemk.demo.features import describe

SMALL = {"max_mid_term_frames": 5, "min_mid_term_frames": 3, "num_prototypes": 16, "max_long_term_elements": 60}
CONFIG = MemoryConfig(top_k=8, mem_every=2, hidden_dim=0, groups="xmem", **SMALL)
FILM = length.Film(3, 5, 40, window=4, seconds=30, first=10, distinct=6)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def features():
    return ClipFeatures(3, 5, 6)


def run(memory, features, frames=60, hurried=()):
    """Readouts of a film of which every second frame is remembered."""
    readouts = []
    for t in range(frames):
        hurry(memory, t in hurried)
        if t:
            readouts.append(memory.read(*features.query(t)))
        if t % 2 == 0:
            key, shrinkage, value, selection = features.remembered(t)
            memory.add(key, shrinkage, value, [1], selection if memory.config.enable_long_term else None)
    return torch.stack(readouts)


@pytest.mark.parametrize("hurried", [(), range(5, 40)])
def test_the_original_gives_what_ours_gives(hurried):
    features = ClipFeatures(3, 5, 60)  # none twice: of equal tokens, torch.topk leaves open which is chosen
    ours, theirs = METHODS["xmemk"].make(CONFIG), METHODS["original"].make(CONFIG)
    wanted, got = run(ours, features), run(theirs, features, hurried=hurried)
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert theirs.consolidations == ours.consolidations > 3
    assert theirs.evictions == ours.evictions > 0
    assert held_tokens(theirs) == held_tokens(ours)


def test_the_original_builds_the_matrix_unless_it_is_hurried(features, monkeypatch):
    calls = []
    kept = xmemk.memory_read
    monkeypatch.setattr(xmemk, "memory_read", lambda *a, **k: calls.append(1) or kept(*a, **k))
    run(METHODS["original"].make(CONFIG), features, 12)
    assert not calls
    run(METHODS["original"].make(CONFIG), features, 12, hurried=[7, 9])
    assert len(calls) == 2


def test_stcn_reads_by_plain_l2_and_keeps_every_frame(features):
    memory = METHODS["STCN"].make(CONFIG)
    got = run(memory, features, 21)
    kept = [features.remembered(t) for t in range(0, 20, 2)]  # before the last read
    mk, mv = (torch.cat([x[i].flatten(-2).double() for x in kept], -1) for i in (0, 2))
    qk = features.query(20)[0].flatten(2).double()
    wanted = reference.memory_read(mk, None, mv, qk, None, top_k=STCN_TOP_K).float().unflatten(3, (3, 5))
    assert (got[-1] - wanted).abs().max() < 1e-4
    assert held_tokens(memory) == 11 * 15
    assert held_bytes(memory) == 11 * 15 * 4 * (64 + 1 + 512)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_a_feature_memory_whose_bytes_and_tokens_are_known(features, name):
    memory = METHODS[name].make(CONFIG)
    run(memory, features, 30)
    assert memory.objects == (1,)
    assert held_tokens(memory) > 0
    assert held_bytes(memory) >= held_tokens(memory) * 4 * (64 + 512)
    assert METHODS[name].ours == (name == "xmemk")


def test_the_clip_keeps_the_similarity_of_the_demo(features):
    from xmemk.benchmarks.peers.clip import BUNNY

    from xmemk.data.video import read_frames

    first = next(read_frames(BUNNY / "clip.mp4", (40, 24)))
    key, selection = (x.flatten(2) for x in describe(first, (3, 5)))
    wide_key, wide_selection = (x.flatten(2) for x in features.query(0))
    assert wide_key.shape == (1, 64, 15)
    wanted = reference.similarity(key, None, key, selection)
    assert torch.allclose(reference.similarity(wide_key, None, wide_key, wide_selection), wanted, atol=1e-3, rtol=1e-4)
    shapes = [tuple(x.shape) for x in features.remembered(3)]
    assert shapes == [(1, 64, 3, 5), (1, 1, 3, 5), (1, 1, 512, 3, 5), (1, 64, 3, 5)]


def test_the_film_goes_there_and_back():
    assert [there_and_back(t, 4) for t in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert [there_and_back(t, 1) for t in range(3)] == [0, 0, 0]
    assert list(checkpoints(3000)) == [100, 200, 500, 1000, 2000, 3000]


def played(name, film=FILM):
    track = length.blank(name, film)
    length.play(track, film, CONFIG)
    return track


def test_ours_does_not_grow_and_stcn_does():
    ours, stcn = played("xmemk"), played("STCN")
    assert [p["frame"] for p in ours.points] == [10, 20, 40]
    assert len({p["bytes"] for p in ours.points}) == 1
    assert [p["tokens"] for p in stcn.points] == [5 * 15, 10 * 15, 20 * 15]
    assert all(p["seconds"] > 0 for p in ours.points + stcn.points)
    assert not ours.reason and not stcn.reason and not stcn.computed
    assert VideoTrack.from_json(json.loads(json.dumps(stcn.to_json()))) == stcn


def test_a_method_stops_where_the_next_checkpoint_would_pass_a_limit():
    stopped = played("STCN", replace(FILM, most_bytes=1_000_000))
    assert "GB, more than the 0.001 GB allowed" in stopped.reason
    last = stopped.points[-1]
    assert last["frame"] < 40
    line = {c["frame"]: c["bytes"] for c in stopped.computed}
    assert line[last["frame"]] == last["bytes"]
    assert line[length.FAR] == 50_000 * 15 * 4 * 577
    slow = played("STCN", replace(FILM, frame_seconds=0))
    assert " s, more than the 0 s allowed" in slow.reason
    late = played("xmemk", length.Film(3, 5, 400, 4, seconds=0, distinct=2))
    assert late.reason.startswith("it stopped at frame 16") and not late.points


def test_interrupted_curves_are_in_the_file(monkeypatch, tmp_path, capsys):
    def play(track, film, **_):
        if track.method == "STCN":
            track.points.append({"frame": 1})
            raise KeyboardInterrupt
        track.reason = "a reason of\nits own"

    monkeypatch.setattr(length, "play", play)
    monkeypatch.setattr(sys, "argv", ["/a/place/length.py"])
    path = tmp_path / "results.jsonl"
    with pytest.raises(KeyboardInterrupt):
        length.main(["--save", str(path)])
    (line,) = map(json.loads, path.read_text().splitlines())
    reason = "a reason of\nits own"
    assert [(r["method"], r["reason"], len(r["points"])) for r in line["results"]] == [
        ("xmemk", reason, 0),
        ("original", reason, 0),
        ("STCN", "interrupted", 1),
    ]
    assert line["stopped"] == "KeyboardInterrupt" and line["command"].startswith("python benchmarks/studies/length.py")
    assert "a reason of" in capsys.readouterr().err


def test_a_budget_is_kept_and_shared(monkeypatch):
    spent = []

    def play(track, film, **_):
        spent.append(film.seconds)
        track.reason = "stopped"

    monkeypatch.setattr(length, "play", play)
    monkeypatch.setattr(length, "measure_quality", lambda *_, **more: spent.append(more["until"]) or [])
    films = (FILM, replace(FILM, height=4))
    length.measure(["fig1", "fig5"], films, times=(1,), budget=7.0, tell=lambda _: None)
    # Six methods of 30 s each, one that grows without bounds of a third, and two passes of fig5.
    share = 7.0 / (2 * 70 + 2 * length.SECONDS_A_PASS)
    assert spent[0] == pytest.approx(30 * share, rel=0.05) and len(spent) == 7
    assert spent[-1] == pytest.approx(time.monotonic() + 7.0, abs=2.0)
    tracks = length.measure(["fig1"], films, budget=1e-9, tell=lambda _: None)
    assert {track.reason for track in tracks} <= {length.NOT_REACHED, "stopped"} and spent[7:] == []


def test_quality_that_is_not_reached_is_said():
    ours, stcn = length.measure_quality((1, 2), size=(96, 54), count=4, until=0.0)
    assert ours.reason == stcn.reason == "not reached in the time given: 4, 8 frames"
    assert ours.points == [] and ours.fit is None


def test_growth_is_that_between_frames_100_and_200():
    points = [{"frame": f, "bytes": b} for f, b in ((100, 1000), (200, 3000), (500, 9000))]
    assert length.increase_per_frame(points) == {"bytes_per_frame": 20, "bytes_per_minute": 20 * 24 * 60}
    assert length.increase_per_frame(points[:1]) is None


def test_quality_over_length_has_both_curves():
    ours, stcn = length.measure_quality((1, 2, 3), size=(96, 54), count=24)
    for result in (ours, stcn):
        assert [p["frame"] for p in result.points] == [24, 48, 72]
        assert result.judged_frames[0] == 40
        assert result.protocol == "fig5"
        assert all(0.3 < p["quality"] <= 1 for p in result.points), result.points
        assert math.isfinite(result.fit["per_1000_frames"])
    assert [p["judged"] for p in ours.points] == [p["judged"] for p in stcn.points]
    assert stcn.points[0]["tokens"] > ours.points[0]["tokens"]


def test_j_is_intersection_over_union():
    readouts = torch.tensor([[1, 1], [0, 0]])
    assert length.region_similarity(readouts, torch.tensor([[1, 0], [1, 0]])) == pytest.approx(1 / 3)
    assert length.region_similarity(readouts * 0, readouts * 0) == 1
    line = length.fit([1000, 2000, 3000], [0.5, 0.75, 1.0])
    assert line["per_1000_frames"] == pytest.approx(0.25) and line["intercept"] == pytest.approx(0.25)
