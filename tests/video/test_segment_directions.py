"""Following a video from any frame in both directions; probabilities and cut-outs of frames."""

import fixed_network as fixed
import numpy as np
import pytest
import torch

pytest.importorskip("av")
from PIL import Image
from small_videos import CONFIG, COUNT, equal, pictures, results, write_video

from xmemk.data.backwards import read_backwards
from xmemk.data.masks import labels_of, read_mask, write_mask
from xmemk.data.source import open_source
from xmemk.video.segment import SegmentJob, segment
from xmemk.video.tracker import Tracker

START = 9


def followed(network, images, mask):
    """Labels of the tracker alone."""
    tracker = Tracker(network, CONFIG)
    for number, image in enumerate(images):
        last = number == len(images) - 1
        probability = tracker.step(image.permute(2, 0, 1), mask if number == 0 else None, end=last)
        yield probability


def test_both_directions_have_a_memory_each(network, video, mask, tmp_path):
    out, calls = tmp_path / "out", []
    job = SegmentJob(video, mask, out, start=START, direction="both", size=0, config=CONFIG, soft=True, cutout=True)
    report = segment(network, job, lambda done, total, tracker: calls.append((done, total)))
    assert (report.first, report.last, report.frames, report.resumed) == (0, COUNT - 1, COUNT, 0)
    assert calls[-1] == (COUNT, COUNT) and [done for done, _ in calls] == sorted(done for done, _ in calls)
    got, images = results(out), pictures()
    forwards = list(followed(network, images[START:], fixed.first_mask()))
    backwards = list(followed(network, images[START::-1], fixed.first_mask()))
    probabilities = {
        **{START - i: p for i, p in enumerate(backwards)},
        **{START + i: p for i, p in enumerate(forwards)},
    }
    assert list(got) == [f"{i:05d}.png" for i in range(COUNT)]
    for number, probability in probabilities.items():
        name = f"{number:05d}.png"
        assert torch.equal(got[name], labels_of(probability, (0, 1, 2))), number
        for label in (1, 2):
            level = np.array(Image.open(out / "soft" / str(label) / name))
            assert np.array_equal(level, (255 * probability[label]).round().to(torch.uint8).numpy())
        cutout = Image.open(out / "cutouts" / name)
        assert cutout.mode == "RGBA"
        pixels = torch.from_numpy(np.array(cutout))
        assert torch.equal(pixels[..., :3], images[number])
        assert (pixels[..., 3].float() - 255 * (1 - probability[0])).abs().amax() <= 0.51


def test_backward_is_the_video_reversed(network, video, mask, tmp_path):
    back = tmp_path / "reversed"
    back.mkdir()
    for number, picture in enumerate(reversed(pictures(START + 1))):
        Image.fromarray(picture.numpy()).save(back / f"{number:05d}.png")
    segment(network, SegmentJob(back, mask, tmp_path / "a", size=0, config=CONFIG))
    report = segment(
        network, SegmentJob(video, mask, tmp_path / "b", start=START, direction="backward", size=0, config=CONFIG)
    )
    assert (report.first, report.last, report.frames) == (0, START, START + 1)
    mirrored = {f"{START - int(name[:5]):05d}.png": labels for name, labels in results(tmp_path / "a").items()}
    assert equal(dict(sorted(mirrored.items())), results(tmp_path / "b"))


def test_earlier_masks_bring_in_objects_backwards(network, video, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    write_mask(masks / "00012.png", fixed.first_mask().to(torch.uint8))
    write_mask(masks / "00005.png", fixed.late_mask().to(torch.uint8))
    write_mask(masks / "00015.png", torch.zeros(fixed.HEIGHT, fixed.WIDTH, dtype=torch.uint8))
    job = SegmentJob(video, masks, tmp_path / "out", direction="backward", size=0, config=CONFIG)
    report = segment(network, job)
    assert report.objects == (1, 2, 3) and (report.first, report.last) == (0, 12)
    got = results(tmp_path / "out")
    assert torch.equal(got["00005.png"] == 3, fixed.late_mask() == 3) and not (got["00006.png"] == 3).any()


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [3, COUNT - START, COUNT - START + 1, COUNT - 2, COUNT])
def test_a_run_in_both_directions_is_resumed_wherever_it_stopped(network, video, mask, tmp_path, at):
    def stop(done, total, tracker):
        if done == at:
            raise Stop

    options = {"start": START, "direction": "both", "size": 0, "config": CONFIG, "soft": True}
    segment(network, SegmentJob(video, mask, tmp_path / "whole", **options))
    job = SegmentJob(video, mask, tmp_path / "out", **options)
    with pytest.raises(Stop):
        segment(network, job, stop)
    report = segment(network, job)
    assert report.resumed == at and report.frames == COUNT and report.objects == (1, 2)
    for folder in ("masks", "soft/1", "soft/2"):
        assert equal(results(tmp_path / "out", folder), results(tmp_path / "whole", folder))


def test_what_cannot_be_is_refused(network, video, mask, tmp_path):
    with pytest.raises(ValueError, match="nothing comes before frame 0 of"):
        segment(network, SegmentJob(video, mask, tmp_path / "out", direction="backward"))
    assert not (tmp_path / "out").exists()
    report = segment(network, SegmentJob(video, mask, tmp_path / "out", direction="both", size=0, config=CONFIG))
    assert (report.first, report.last) == (0, COUNT - 1)


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [
        ("mp4", "libx264", {"bf": "2"}),
        ("matroska", "libx264", {"bf": "2", "x264-params": "open-gop=1"}),
        ("avi", "mpeg4", {}),
        ("h264", "libx264", {}),  # without times
        ("mjpeg", "mjpeg", {}),
    ],
)
def test_frames_backwards_are_those_forwards(tmp_path, monkeypatch, form, codec, options):
    from xmemk.data import backwards

    monkeypatch.setattr(backwards, "_BYTES", 3 * fixed.WIDTH * fixed.HEIGHT)  # in parts of eight frames, the fewest
    source = open_source(write_video(tmp_path / "v", form=form, codec=codec, **options))
    forwards = list(source.read())
    for start in (0, 1, 7, 8, 20):
        got = list(read_backwards(source, start))
        assert [f.number for f in got] == list(range(start, -1, -1)) and {f.name for f in got} >= {"00000"}
        assert all(torch.equal(f.image, forwards[f.number].image) for f in got)
    jumps, jump = [], backwards._Backwards._jump
    monkeypatch.setattr(backwards._Backwards, "_jump", lambda *a: jumps.append(1) or jump(*a)[::-1])
    wrong = list(read_backwards(source, 20))  # a decoder that gives other frames after a jump
    assert all(torch.equal(f.image, forwards[f.number].image) for f in wrong)
    assert jumps or form in ("h264", "avi", "mjpeg")


def test_a_mask_of_the_first_frame_alone_is_written_as_it_is(network, video, mask, tmp_path):
    segment(network, SegmentJob(video, mask, tmp_path / "o", start=START, direction="both", size=0, config=CONFIG))
    assert torch.equal(read_mask(tmp_path / "o/masks" / f"{START:05d}.png"), fixed.first_mask().to(torch.uint8))
