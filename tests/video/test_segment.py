"""A whole video: masks on disk, interruption and going on, and input that does not fit."""

import errno
import json
import os
import shutil
import signal
from fractions import Fraction
from pathlib import Path

import fixed_network as fixed
import pytest
import torch
from PIL import Image
from small_videos import CONFIG, COUNT, SMALL, equal, results

from xmemk import MemoryConfig
from xmemk.cli import main
from xmemk.data.mask_files import find_masks, mask_for
from xmemk.data.masks import MaskError, labels_of, write_mask
from xmemk.data.source import open_source
from xmemk.data.video import VideoError
from xmemk.data.video_writer import VideoWriter
from xmemk.network import XMem
from xmemk.video.segment import SegmentJob, segment
from xmemk.video.tracker import Tracker


def test_every_frame_has_a_mask_and_they_are_the_trackers(network, video, mask, tmp_path):
    calls = []
    job = SegmentJob(video, mask, tmp_path / "out", size=0, config=CONFIG)
    report = segment(network, job, lambda done, total, tracker: calls.append((done, total)))
    assert report.frames == COUNT and report.resumed == 0 and report.objects == (1, 2)
    assert calls == [(i + 1, COUNT) for i in range(COUNT)]
    assert "memory read" in report.seconds and "evictions=0" not in report.memory
    tracker = Tracker(network, CONFIG)
    for name, got in results(tmp_path / "out").items():
        number = int(name[:5])
        image = torch.from_numpy(__import__("numpy").array(Image.open(video / name))).permute(2, 0, 1)
        probability = tracker.step(image, fixed.first_mask() if number == 0 else None, end=number == COUNT - 1)
        assert torch.equal(got, probability.argmax(0).to(torch.uint8))
    assert not (tmp_path / "out" / "resume").exists()


def test_later_masks_bring_in_objects(network, video, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    write_mask(masks / "00000.png", torch.zeros(fixed.HEIGHT, fixed.WIDTH, dtype=torch.uint8))
    write_mask(masks / "00002.png", fixed.first_mask().to(torch.uint8))
    write_mask(masks / "00008.png", fixed.late_mask().to(torch.uint8) * 50)
    report = segment(network, SegmentJob(video, masks, tmp_path / "out", size=0, config=CONFIG))
    got = results(tmp_path / "out")
    assert report.objects == (1, 2, 150) and next(iter(got)) == "00002.png" and len(got) == COUNT - 2
    assert torch.equal(got["00008.png"] == 150, fixed.late_mask() == 3)


def test_another_size_for_the_network_and_masks_of_the_videos(network, video, mask, tmp_path):
    segment(network, SegmentJob(video, mask, tmp_path / "out", size=32, config=CONFIG))
    got = results(tmp_path / "out")
    assert {m.shape for m in got.values()} == {(fixed.HEIGHT, fixed.WIDTH)}
    assert (got["00000.png"] == fixed.first_mask()).float().mean() > 0.95


def test_labels_are_those_of_the_largest_row_and_of_equal_ones_the_first():
    probability = torch.randint(0, 4, (5, 30, 40), generator=torch.Generator().manual_seed(3)) / 4
    names = (0, 7, 3, 255, 12)
    got = labels_of(probability, names)
    assert got.dtype == torch.uint8
    assert torch.equal(got, torch.tensor(names, dtype=torch.uint8)[probability.argmax(0)])


def test_a_mask_of_the_videos_shape_is_scaled(video, tmp_path):
    small = torch.zeros(11, 14, dtype=torch.uint8)  # 48 x 60 at about a quarter: 11 x 13.75
    small[4:8, 2:9] = 200
    write_mask(tmp_path / "small.png", small)
    source = open_source(video)
    mask = mask_for(source, find_masks(tmp_path / "small.png", source)[0])
    assert mask.shape == (fixed.HEIGHT, fixed.WIDTH) and mask.unique().tolist() == [0, 200]
    inside = mask.nonzero()
    edges = [*inside.amin(0).tolist(), *inside.amax(0).tolist()]
    expected = [4 / 11 * 48, 2 / 14 * 60, 8 / 11 * 48 - 1, 9 / 14 * 60 - 1]  # top, left, bottom, right
    assert all(abs(a - b) <= 1 for a, b in zip(edges, expected)), (edges, expected)


class Stop(Exception):
    pass


def stop_at(count):
    def progress(done, total, tracker):
        if done == count:
            raise Stop

    return progress


@pytest.mark.parametrize("lost", [False, True])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_masks(network, video, mask, tmp_path, monkeypatch, lost):
    whole = SegmentJob(video, mask, tmp_path / "whole", size=0, config=CONFIG)
    segment(network, whole)
    job = SegmentJob(video, mask, tmp_path / "out", size=0, config=CONFIG, save_every=4)
    with monkeypatch.context() as killed:
        if lost:  # as when the process is killed: no state is saved at the end
            saves = []
            from xmemk.video.resume import SavedState

            save = SavedState.save

            def only_in_time(self, tracker, where):
                if where["done"] % 4 == 0:
                    saves.append(where)
                    save(self, tracker, where)

            killed.setattr(SavedState, "save", only_in_time)
        with pytest.raises(Stop):
            segment(network, job, stop_at(14))
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "masks").iterdir()}
    report = segment(network, job)
    assert report.resumed == (12 if lost else 14) and report.frames == COUNT
    assert equal(results(tmp_path / "out"), results(tmp_path / "whole"))
    untouched = [name for name, then in before.items() if (tmp_path / "out/masks" / name).stat().st_mtime_ns == then]
    assert len(untouched) == report.resumed


@pytest.mark.parametrize("change", ["config", "mask", "weights", "lost mask", "damaged state"])
def test_a_state_of_another_job_is_not_gone_on_with(network, video, mask, tmp_path, change):
    job = SegmentJob(video, mask, tmp_path / "out", size=0, config=CONFIG)
    with pytest.raises(Stop):
        segment(network, job, stop_at(5))
    if change == "config":
        job.config = MemoryConfig(**{**CONFIG.__dict__, "top_k": 3})
    elif change == "mask":
        write_mask(mask, fixed.first_mask().roll(3, 1).to(torch.uint8))
    elif change == "weights":
        network = XMem(SMALL)
    elif change == "lost mask":
        (tmp_path / "out/masks/00001.png").unlink()
    else:
        next((tmp_path / "out/resume").glob("memory-*")).write_bytes(b"?")
    if change in ("config", "mask", "weights"):
        before = results(tmp_path / "out")
        differs = {"config": "top_k", "mask": "first mask"}.get(change, change)
        with pytest.raises(ValueError, match=rf"has results of another run \({differs} differs\); give another --out"):
            segment(network, job)
        assert equal(results(tmp_path / "out"), before)
        shutil.rmtree(tmp_path / "out/masks")
    assert segment(network, job).resumed == 0


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; what is finished is kept"),
        (errno.EDQUOT, "the disk quota is used up; what is finished is kept"),
        (errno.EFBIG, "the file is larger than files may be here; what is finished is kept"),
    ],
)
def test_a_full_disk_keeps_what_is_finished(
    network, video, mask, tmp_path, monkeypatch, uninterrupted, number, message
):
    from xmemk.video import labels as module

    written = []

    def full(path, labels):
        if len(written) == 5:
            Path(path).write_bytes(b"half")
            raise OSError(number, "No space left on device")
        written.append(path)
        write_mask(path, labels)

    job = SegmentJob(video, mask, tmp_path / "out", size=0, config=CONFIG, save_every=3)
    with monkeypatch.context() as disk:
        disk.setattr(module, "write_mask", full)
        with pytest.raises(OSError, match=message):
            segment(network, job)
    assert list(results(tmp_path / "out")) == [f"{i:05d}.png" for i in range(5)]
    assert segment(network, job).resumed == 3  # the tracker was ahead of the masks
    assert equal(results(tmp_path / "out"), uninterrupted)


@pytest.fixture
def ctrl_c():
    """Python's own answer to SIGINT, which a process that was started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("by", ["an error", "Ctrl-C", "Ctrl-C twice", "a thread's Ctrl-C"])
def test_a_run_that_is_stopped_within_a_frame(ctrl_c, network, video, mask, tmp_path, monkeypatch, uninterrupted, by):
    calls = []
    encode = type(network).encode_value

    def stopped(self, *a, **o):
        result = encode(self, *a, **o)
        calls.append(1)
        if len(calls) == 5:  # of frame 8
            if by in ("an error", "a thread's Ctrl-C"):
                raise KeyboardInterrupt if "Ctrl" in by else RuntimeError("no memory")
            for _ in range(2 if "twice" in by else 1):
                os.kill(os.getpid(), signal.SIGINT)
        return result

    before = signal.getsignal(signal.SIGINT)
    job = SegmentJob(video, mask, tmp_path / "out", size=0, config=CONFIG, save_every=6)
    with monkeypatch.context() as network_:
        network_.setattr(type(network), "encode_value", stopped)
        with pytest.raises(RuntimeError if by == "an error" else KeyboardInterrupt):
            segment(network, job)
    assert signal.getsignal(signal.SIGINT) is before
    assert segment(network, job).resumed == (9 if by == "Ctrl-C" else 6)
    assert equal(results(tmp_path / "out"), uninterrupted)


def test_the_state_is_saved_by_time_too(network, video, mask, tmp_path, monkeypatch, uninterrupted):
    from xmemk.video import segment as module

    job = SegmentJob(video, mask, tmp_path / "out", size=0, config=CONFIG)
    with monkeypatch.context() as clock:
        clock.setattr(module, "SAVE_SECONDS", 0.0)
        clock.setattr(type(network), "encode_value", _fails_at(type(network).encode_value, 5))
        with pytest.raises(RuntimeError, match="no memory"):
            segment(network, job)
    assert segment(network, job).resumed == 8
    assert equal(results(tmp_path / "out"), uninterrupted)


def _fails_at(function, count):
    calls = []

    def failing(*a, **o):
        calls.append(1)
        if len(calls) == count:
            raise RuntimeError("no memory")
        return function(*a, **o)

    return failing


@pytest.fixture
def uninterrupted(network, video, mask, tmp_path):
    segment(network, SegmentJob(video, mask, tmp_path / "whole", size=0, config=CONFIG))
    return results(tmp_path / "whole")


def test_what_fails_after_the_last_frame_does_not_redo_frames(network, video, mask, tmp_path):
    job = SegmentJob(video, mask, tmp_path / "out", size=0, config=CONFIG)
    with pytest.raises(Stop):
        segment(network, job, then=lambda masks, first, last: stop_at(1)(1, None, None))
    written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/masks").iterdir()}
    called = []
    report = segment(network, job, then=lambda *a: called.append(a))
    assert called == [(tmp_path / "out/masks", 0, COUNT - 1)] and report.resumed == report.frames == COUNT
    assert written == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/masks").iterdir()}
    assert report.objects == (1, 2) and not (tmp_path / "out/resume").exists()


def test_input_is_not_written_over(network, video, mask, tmp_path):
    for folder in ("masks", "resume"):
        out = tmp_path / f"with {folder}"
        out.mkdir()
        shutil.copytree(video, out / folder)
        before = {p.name: p.read_bytes() for p in (out / folder).iterdir()}
        for job in (
            SegmentJob(out / folder, mask, out),
            SegmentJob(video, out / folder, out),
            SegmentJob(video, out / folder / "0.png", out),
        ):
            with pytest.raises(ValueError, match=rf"wanted a folder for results, got .*, whose {folder} is input"):
                segment(network, job)
        assert {p.name: p.read_bytes() for p in (out / folder).iterdir()} == before
        assert [p.name for p in out.iterdir()] == [folder]
    (tmp_path / "link").symlink_to(tmp_path / "with masks")
    with pytest.raises(ValueError, match="whose masks is input"):
        segment(network, SegmentJob(tmp_path / "with masks/masks", mask, tmp_path / "link"))
    with VideoWriter(tmp_path / "overlay.mp4", 60, 48, Fraction(10)) as writer:
        writer.write(torch.zeros(48, 60, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"whose overlay.mp4 is input"):
        segment(network, SegmentJob(tmp_path / "overlay.mp4", mask, tmp_path))
    with pytest.raises(ValueError, match=r"out: wanted a folder for results, got .*first.png, which is a file"):
        segment(network, SegmentJob(video, mask, mask))


def test_input_that_does_not_fit(network, video, mask, tmp_path):
    source = open_source(video)
    empty = tmp_path / "empty.png"
    write_mask(empty, torch.zeros(fixed.HEIGHT, fixed.WIDTH, dtype=torch.uint8))
    with pytest.raises(MaskError, match="has no object"):
        find_masks(empty, source)
    small = tmp_path / "small.png"
    write_mask(small, torch.ones(4, 7, dtype=torch.uint8))
    with pytest.raises(MaskError, match=r"small.png: is 7x4, which is not the shape of the video, 60x48"):
        find_masks(small, source)
    with pytest.raises(MaskError, match="the video has 21 frames, so there is no frame 21 to start with"):
        find_masks(mask, source, 21)
    named = tmp_path / "named"
    named.mkdir()
    with pytest.raises(MaskError, match="a folder without masks"):
        find_masks(named, source)
    write_mask(named / "00099.png", fixed.first_mask().to(torch.uint8))
    with pytest.raises(MaskError, match="the video has no frame of that name"):
        find_masks(named, source)
    (video / "00007.png").write_bytes(b"torn")
    with pytest.raises(VideoError, match=r"00007.png: not an image that can be read"):
        segment(network, SegmentJob(video, mask, tmp_path / "out", size=0, config=CONFIG))
    assert len(results(tmp_path / "out")) == 6  # the seventh waits for what comes after it


def test_the_command(network, video, mask, tmp_path, capsys, monkeypatch):
    weights = tmp_path / "small.pth"
    torch.save(network.state_dict(), weights)
    words = ["segment", str(video), "--mask", str(mask), "--weights", str(weights), "--out", str(tmp_path / "out")]
    words += ["--size", "0", "--mem-every", "2"]
    assert run(words + ["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == COUNT and report["objects"] == [1, 2] and report["frames_per_second"] > 0
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 1000
    assert sum(report["seconds"].values()) <= report["wall"] and report["calls"]["decoder"] == COUNT - 1
    assert run(words + ["--account", "--no-overlay", "--overwrite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for stage in ("preparing", "key encoder", "memory read", "decoder", "value encoder", "memory add", "writing"):
        assert any(line.startswith(stage) and line.endswith(" %") for line in lines), stage
    assert run(["segment", str(video), "--mask", str(mask), "--weights", str(mask)]) == 1
    assert "first.png: not a file of parameters" in capsys.readouterr().err


def run(words):
    from xmemk.cli.app import run as command

    assert callable(main)
    return command(words)
