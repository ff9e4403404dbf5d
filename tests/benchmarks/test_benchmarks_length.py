"""The curves over a video's length: the methods' memories, the protocol of Fig. 1 (left), that of Fig. 5."""

import json
import math
import sys
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("rich")

from xmemk.benchmarks.harness import line_process
from xmemk.benchmarks.harness.line_process import LineProcess
from xmemk.benchmarks.peers.clip import ClipFeatures, checkpoints, there_and_back
from xmemk.benchmarks.peers.memories import METHODS, STCN_TOP_K, held_bytes, held_tokens, hurry
from xmemk.benchmarks.report.schema import VideoTrack
from xmemk.benchmarks.studies import length, quality

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
    found = []
    for t in range(frames):
        hurry(memory, t in hurried)
        if t:
            found.append(memory.read(*features.query(t)))
        if t % 2 == 0:
            key, shrinkage, value, selection = features.remembered(t)
            memory.add(key, shrinkage, value, [1], selection if memory.config.enable_long_term else None)
    return torch.stack(found)


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


def test_ours_does_not_grow_and_stcn_does():
    ours, stcn = (length.play(name, FILM, length.MethodLimits(), CONFIG) for name in ("xmemk", "STCN"))
    assert [p["frame"] for p in ours.points] == [10, 20, 40]
    assert len({p["bytes"] for p in ours.points}) == 1
    assert [p["tokens"] for p in stcn.points] == [5 * 15, 10 * 15, 20 * 15]
    assert all(p["seconds"] > 0 for p in ours.points + stcn.points)
    assert not ours.reason and not stcn.reason and not stcn.computed
    assert VideoTrack.from_json(json.loads(json.dumps(stcn.to_json()))) == stcn


def test_a_method_stops_where_the_next_checkpoint_would_pass_a_limit():
    stopped = length.play("STCN", FILM, length.MethodLimits(bytes=1_000_000), CONFIG)
    assert "GB, more than the 0.001 GB allowed" in stopped.reason
    last = stopped.points[-1]
    assert last["frame"] < 40
    line = {c["frame"]: c["bytes"] for c in stopped.computed}
    assert line[last["frame"]] == last["bytes"]
    assert line[length.FAR] == 50_000 * 15 * 4 * 577
    slow = length.play("STCN", FILM, length.MethodLimits(seconds=0), CONFIG)
    assert " s, more than the 0 s allowed" in slow.reason
    late = length.play("xmemk", length.Film(3, 5, 400, 4, seconds=0, distinct=2), length.MethodLimits(), CONFIG)
    assert late.reason.startswith("it stopped at frame 16") and not late.points


def test_a_process_that_ends_is_a_reason():
    broken = length.in_fresh_process(
        "STCN", length.Film(0, 5, 40, window=4, seconds=5, distinct=2), length.MethodLimits()
    )
    assert "failed with 1" in broken.reason
    assert broken.features["width"] == 5 and broken.points == []
    assert length.text_of(broken).splitlines()[-1].strip() == broken.reason


def test_what_was_measured_before_a_process_ends_is_kept(monkeypatch):
    point = {"frame": 10, "seconds": 0.1, "bytes": 1_000, "tokens": 75, "peak_bytes": 5}
    told = json.dumps({"track": {"points": [point], "increase": None}, "ended": False})
    ends = {"raise MemoryError('no room')": "its process failed with 1: MemoryError: no room"}
    ends["import os; os.kill(os.getpid(), 9)"] = "its process was killed by SIGKILL, as when memory runs out"
    ends["import time; time.sleep(60)"] = "it did not end within 8 s"
    for code, reason in ends.items():
        said = f"print({told!r}, flush=True); {code}"
        monkeypatch.setattr(
            line_process, "LineProcess", lambda *_, said=said: LineProcess([sys.executable, "-c", said])
        )
        found = length.in_fresh_process("STCN", FILM, length.MethodLimits(), 8.0)
        assert found.points == [point] and found.reason == reason
        assert found.computed[0] == {"frame": 10, "bytes": 400}  # 2 frames of 15 tokens kept


def test_interrupted_curves_are_in_the_file(monkeypatch, tmp_path):
    def play(name, film, limits, seconds, result):
        if name == "STCN":
            result.points.append({"frame": 1})
            raise KeyboardInterrupt
        result.reason = ""

    monkeypatch.setattr(length, "in_fresh_process", play)
    monkeypatch.setattr(length, "text_of", lambda track: "")
    monkeypatch.setattr(sys, "argv", ["/a/place/length.py"])
    path = tmp_path / "results.jsonl"
    with pytest.raises(KeyboardInterrupt):
        length.main(["--save", str(path)])
    (line,) = map(json.loads, path.read_text().splitlines())
    assert [(r["method"], r["reason"], len(r["points"])) for r in line["results"]] == [
        ("xmemk", "", 0),
        ("original", "", 0),
        ("STCN", "interrupted", 1),
    ]
    assert line["stopped"] == "KeyboardInterrupt" and line["command"].startswith("python benchmarks/studies/length.py")


def test_a_budget_is_kept_and_shared(monkeypatch):
    monkeypatch.setattr(length, "QUICK", (FILM, replace(FILM, height=4)))
    monkeypatch.setattr(length, "STARTING", 1.0)
    spent = []

    def play(name, film, limits, seconds, result):
        spent.append((name, seconds, film.seconds))
        time.sleep(seconds)
        result.reason = "killed"

    monkeypatch.setattr(length, "in_fresh_process", play)
    begin = time.monotonic()
    results = length.measure(["fig1", "fig5"], quick=True, budget=12.0, tell=lambda _: None)
    assert time.monotonic() - begin < 14
    assert [name for name, *_ in spent] == ["xmemk", "original", "xmemk", "original"]  # too little is left for STCN
    first, *_ = spent
    assert first[1] == pytest.approx(12 * 30 / (2 * 70 + quality.SECONDS[True]), rel=0.05)
    assert first[2] == pytest.approx(first[1] - 1)
    assert [r.reason for r in results if r.method == "STCN"] == [length.NOT_REACHED] * 2
    fig5 = [r for r in results if r.protocol == "fig5"]
    assert len(fig5) == 2 and all("not reached in the time given" in r.reason or r.points for r in fig5)


def test_quality_that_is_not_reached_is_said():
    ours, stcn = quality.measure(size=(96, 54), count=4, times=(1, 2), until=0.0)
    assert ours.reason == stcn.reason == "not reached in the time given: 4, 8 frames"
    assert ours.points == [] and ours.fit is None


def test_growth_is_that_between_frames_100_and_200():
    points = [{"frame": f, "bytes": b} for f, b in ((100, 1000), (200, 3000), (500, 9000))]
    assert length.increase_per_frame(points) == {"bytes_per_frame": 20, "bytes_per_minute": 20 * 24 * 60}
    assert length.increase_per_frame(points[:1]) is None


def test_quality_over_length_has_both_curves():
    ours, stcn = quality.measure(size=(96, 54), count=24, times=(1, 2, 3))
    for result in (ours, stcn):
        assert [p["frame"] for p in result.points] == [24, 48, 72]
        assert result.judged_frames[0] == 40
        assert result.protocol == "fig5"
        assert all(0.3 < p["quality"] <= 1 for p in result.points), result.points
        assert math.isfinite(result.fit["per_1000_frames"])
    assert [p["judged"] for p in ours.points] == [p["judged"] for p in stcn.points]
    assert stcn.points[0]["tokens"] > ours.points[0]["tokens"]


def test_j_is_intersection_over_union():
    found = torch.tensor([[1, 1], [0, 0]])
    assert quality.region_similarity(found, torch.tensor([[1, 0], [1, 0]])) == pytest.approx(1 / 3)
    assert quality.region_similarity(found * 0, found * 0) == 1
    line = quality.fit([1000, 2000, 3000], [0.5, 0.75, 1.0])
    assert line["per_1000_frames"] == pytest.approx(0.25) and line["intercept"] == pytest.approx(0.25)
