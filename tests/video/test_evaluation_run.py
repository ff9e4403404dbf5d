"""Datasets through the tracker: the masks it gets, what is written and measured, resuming."""

import errno
import shutil
from dataclasses import replace

import fixed_network as fixed
import layouts
import numpy as np
import pytest
import torch
from PIL import Image

from xmemk import MemoryConfig
from xmemk.data.images import read_image
from xmemk.data.masks import MaskError, read_colours, read_mask
from xmemk.data.video import VideoError
from xmemk.evaluation import run as module
from xmemk.evaluation.layouts import open_dataset
from xmemk.evaluation.policies import POLICIES
from xmemk.evaluation.run import Settings, counting_usage, run
from xmemk.network import NetworkConfig, XMem
from xmemk.video.tracker import Tracker

SMALL = NetworkConfig(key_dim=8, value_dim=16, hidden_dim=4, width=4, key_blocks=(1, 1, 1), decoder_dim=8)
CONFIG = MemoryConfig(mem_every=2, max_mid_term_frames=4, min_mid_term_frames=2, num_prototypes=4, hidden_dim=4)
SETTINGS = Settings(CONFIG, size=0)


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # so small a network is not faster with more


@pytest.fixture(scope="module")
def network():
    network = XMem(SMALL)
    network.load_state_dict(fixed.fixed_weights(network.state_dict()))
    return network


def results(out, video):
    return {p.stem: read_mask(p).numpy() for p in sorted((out / video).glob("*"))}


def test_results_are_the_trackers(network, tmp_path):
    dataset = open_dataset(layouts.davis(tmp_path / "data", videos=("bear",)))
    calls = []
    (cost,) = run(network, dataset, tmp_path / "out", SETTINGS, lambda v, done, t: calls.append((v.name, done)))
    assert calls == [("bear", i + 1) for i in range(6)]
    tracker = Tracker(network, counting_usage(CONFIG, 6))
    got = results(tmp_path / "out", "bear")
    for number, shot in enumerate(dataset.videos[0].shots):
        mask = torch.from_numpy(layouts.labels(0, 0)) if number == 0 else None
        image = read_image(shot.image).permute(2, 0, 1)
        probability = tracker.step(image, mask, end=number == 5)
        assert np.array_equal(got[shot.name], probability.argmax(0).numpy())
    assert len(got) == 6 and (cost.frames, cost.objects, cost.width, cost.height) == (6, 2, 48, 32)
    assert cost.seconds > 0 and cost.frames_per_second == 6 / cost.seconds and cost.growth is None
    assert cost.peak is None or cost.peak > 1e6


def test_objects_join_at_their_first_annotation_and_no_later_annotation_is_told(network, tmp_path, monkeypatch):
    steps = []

    class Recording(Tracker):
        def step(self, image, mask=None, objects=None, *, end=False):
            steps.append((None if mask is None else sorted(mask.unique().tolist()), objects))
            return super().step(image, mask, objects, end=end)

    monkeypatch.setattr(module, "Tracker", Recording)
    run(network, open_dataset(layouts.lvos(tmp_path / "l")), tmp_path / "lvos", SETTINGS)
    assert steps == [([0, 1], (1,)), (None, None), ([0, 2], (2,))] + [(None, None)] * 3
    steps.clear()
    run(network, open_dataset(layouts.youtube(tmp_path / "y"), all_frames=False), tmp_path / "youtube", SETTINGS)
    assert [objects for _, objects in steps] == [(1,), None, None, (2,), None, None]
    assert list(results(tmp_path / "youtube", "0a")) == layouts.counted(5, 5)  # the ones meta.json names
    steps.clear()
    run(network, open_dataset(layouts.long_video(tmp_path / "t"), repeat=2), tmp_path / "long", SETTINGS)
    assert [objects for _, objects in steps] == [(1, 2)] + [None] * 12
    assert len(results(tmp_path / "long", "dressage")) == 7


def test_labels_and_colours_of_the_first_annotation(network, tmp_path):
    root = layouts.davis(tmp_path / "data", videos=("bear",))
    first = root / "Annotations" / "480p" / "bear" / "00000.png"
    colours = [v for i in range(256) for v in (i, 255 - i, 7)]
    layouts.write_labels(first, layouts.labels(0, 0) * 20, colours)
    run(network, open_dataset(root), tmp_path / "out", SETTINGS)
    assert read_colours(tmp_path / "out" / "bear" / "00003.png") == colours
    assert set(np.unique(results(tmp_path / "out", "bear")["00000"])) == {0, 20, 40}
    old = layouts.davis(tmp_path / "old", videos=("bear",), year="2016")
    first = old / "Annotations" / "480p" / "bear" / "00000.png"
    layouts.write_labels(first, (layouts.labels(0, 0) > 0) * 255, mode="L")
    (cost,) = run(network, open_dataset(old), tmp_path / "single", SETTINGS)
    assert cost.objects == 1 and Image.open(tmp_path / "single" / "bear" / "00001.png").mode == "L"
    assert set(np.unique(results(tmp_path / "single", "bear")["00000"])) == {0, 255}


@pytest.mark.parametrize("policy", POLICIES)
def test_another_size_for_the_network_and_16_bits(network, tmp_path, policy):
    dataset = open_dataset(layouts.long_video(tmp_path / "data"), repeat=3)
    config = MemoryConfig(mem_every=1, max_mid_term_frames=4, min_mid_term_frames=2, num_prototypes=3)
    settings = Settings(config, policy, size=20, autocast=torch.bfloat16)
    (cost,) = run(network, dataset, tmp_path / "out", settings)
    assert cost.frames == 19 and {m.shape for m in results(tmp_path / "out", "dressage").values()} == {(32, 48)}


def test_frames_before_the_first_object_are_background_and_not_timed(network, tmp_path):
    root = layouts.generic(tmp_path / "data")
    for number in (0, 1):
        (root / "Annotations" / "mine" / f"frame{number:03d}.png").unlink()
    (cost,) = run(network, open_dataset(root), tmp_path / "out", SETTINGS)
    got = results(tmp_path / "out", "mine")
    assert cost.frames == 3 and len(got) == 5 and not got["frame001"].any() and got["frame002"].any()


def test_memory_growth_is_between_two_frames(network, tmp_path, monkeypatch):
    resident = iter([1000.0, 5000.0])
    monkeypatch.setattr(module, "GROWTH", (2, 4))
    monkeypatch.setattr(module, "resident_bytes", lambda device: next(resident))
    dataset = open_dataset(layouts.davis(tmp_path / "data", videos=("bear",)))
    assert run(network, dataset, tmp_path / "out", SETTINGS)[0].growth == 2000.0


def test_usage_is_counted_where_long_term_memory_can_overflow():
    assert not counting_usage(MemoryConfig(), 390).enable_long_term_count_usage
    assert counting_usage(MemoryConfig(), 391).enable_long_term_count_usage
    assert not counting_usage(MemoryConfig(enable_long_term=False), 10**6).enable_long_term_count_usage


def test_finished_videos_are_not_done_again(network, tmp_path):
    root, out = layouts.davis(tmp_path / "data"), tmp_path / "out"
    dataset = open_dataset(root)

    class Stop(Exception):
        pass

    def stop(video, done, tracker):
        if video.name == "swan" and done == 3:
            raise Stop

    with pytest.raises(Stop):
        run(network, dataset, out, SETTINGS, stop)
    before = {p: p.stat().st_mtime_ns for p in (out / "bear").iterdir()}
    costs = run(network, dataset, out, SETTINGS)
    assert [(cost.video, cost.resumed) for cost in costs] == [("bear", True), ("swan", False)]
    assert {p: p.stat().st_mtime_ns for p in (out / "bear").iterdir()} == before
    whole = tmp_path / "whole"
    run(network, dataset, whole, SETTINGS)
    for video in ("bear", "swan"):
        assert all(np.array_equal(m, results(whole, video)[n]) for n, m in results(out, video).items())
    (out / "bear" / "00002.png").unlink()
    (out / module.NOTES / "videos" / "swan.json").write_text("{")
    assert [cost.resumed for cost in run(network, dataset, out, SETTINGS)] == [False, False]


def test_results_of_other_settings_are_not_written_over(network, tmp_path):
    root, out = layouts.davis(tmp_path / "data"), tmp_path / "out"
    run(network, open_dataset(root, videos=["bear"]), out, SETTINGS)
    assert [c.resumed for c in run(network, open_dataset(root), out, SETTINGS)] == [True, False]
    for settings, words in (
        (Settings(CONFIG, policy="stm", size=0), "policy differ"),
        (Settings(MemoryConfig(mem_every=3), size=32), "size, memory differ"),
    ):
        with pytest.raises(ValueError, match=rf"has results of another run \({words}\); give another --out"):
            run(network, open_dataset(root), out, settings)
    with pytest.raises(ValueError, match="repeat differ"):
        run(network, open_dataset(root, repeat=2), out, SETTINGS)
    with pytest.raises(ValueError, match="weights differ"):
        run(XMem(SMALL), open_dataset(root), out, SETTINGS)
    (out / module.NOTES / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match=r"settings.json: damaged"):
        run(network, open_dataset(root), out, SETTINGS)


def test_the_dataset_is_never_written_over(network, tmp_path):
    root = layouts.davis(tmp_path / "data")
    before = {p: p.read_bytes() for p in root.rglob("*.*")}
    for folder in ("Annotations/480p", "JPEGImages/480p"):
        with pytest.raises(
            ValueError, match=r"out: wanted a folder for results, got .*480p, which has the dataset's own"
        ):
            run(network, open_dataset(root), root / folder, SETTINGS)
    assert {p: p.read_bytes() for p in root.rglob("*.*")} == before


def test_input_that_does_not_fit(network, tmp_path):
    def fails(root, error, words):
        with pytest.raises(error, match=words):
            run(network, open_dataset(root), tmp_path / "out" / root.name, SETTINGS)

    root = layouts.davis(tmp_path / "size", videos=("bear",))
    layouts.write_labels(root / "Annotations" / "480p" / "bear" / "00000.png", np.ones((8, 9)))
    fails(root, MaskError, r"00000.png: is 9x8, the video 48x32")
    layouts.write_labels(root / "Annotations" / "480p" / "bear" / "00000.png", np.ones((32, 48, 3)), mode="RGB")
    fails(root, MaskError, r"00000.png: has no black or transparent pixel")
    Image.fromarray(np.full((32, 48), 300, np.uint16)).save(root / "Annotations" / "480p" / "bear" / "00000.png")
    fails(root, MaskError, r"00000.png: has the label 300, wanted at most 255")
    root = layouts.davis(tmp_path / "frames", videos=("bear",), annotated=[0])
    layouts.write_frames(root / "JPEGImages" / "480p" / "bear", ["00006", "00008"])
    fails(root, VideoError, "frame 00007 is missing between 00000.jpg and 00008.jpg")
    costs = run(network, open_dataset(root), tmp_path / "out" / "skipped", replace(SETTINGS, missing="skip"))
    assert costs[0].frames == 8 and len(results(tmp_path / "out" / "skipped", "bear")) == 8
    (root / "JPEGImages" / "480p" / "bear" / "00008.jpg").unlink()
    Image.new("RGB", (20, 20)).save(root / "JPEGImages" / "480p" / "bear" / "00006.jpg")
    fails(root, VideoError, r"00006.jpg: is 20x20, wanted 48x32 as the first")
    root = layouts.youtube(tmp_path / "labels")
    shutil.rmtree(root / "all_frames")
    layouts.write_labels(root / "valid" / "Annotations" / "0a" / "00015.png", layouts.labels(3, 0) * 4)
    fails(root, MaskError, r"00015.png: has labels \[4, 8\], the dataset says \[1, 2\]")
    root = layouts.mose(tmp_path / "empty")
    layouts.write_labels(root / "valid" / "Annotations" / "3f" / "00000.png", np.zeros((32, 48)))
    fails(root, ValueError, "no mask of video 3f has an object")


def test_a_full_disk_keeps_what_is_finished(network, tmp_path, monkeypatch):
    from xmemk.video import labels

    def full(path, labels, colours=None):
        raise OSError(errno.ENOSPC, "No space left on device")

    root, out = layouts.davis(tmp_path / "data"), tmp_path / "out"
    run(network, open_dataset(root, videos=["bear"]), out, SETTINGS)
    monkeypatch.setattr(labels, "write_mask", full)
    with pytest.raises(OSError, match="the disk is full; what is finished is kept"):
        run(network, open_dataset(root), out, SETTINGS)
    assert len(results(out, "bear")) == 6 and not results(out, "swan")
    assert run(network, open_dataset(root, videos=["bear"]), out, SETTINGS)[0].resumed
