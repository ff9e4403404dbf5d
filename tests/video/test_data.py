"""Reading and writing video and masks, and what is said of files that are no such thing."""

import wave
from fractions import Fraction

import pytest

pytest.importorskip("av")
import numpy as np
import torch
from PIL import Image

from xmemk.data import BUNNY
from xmemk.data.masks import MaskError, palette, read_mask, read_object_mask, write_mask
from xmemk.data.video import VideoError, probe, read_frames
from xmemk.data.video_writer import VideoWriter


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Nine frames of 64 x 48, each of one grey: 20, 40, ..."""
    path = tmp_path_factory.mktemp("video") / "greys.mp4"
    with VideoWriter(path, 64, 48, Fraction(10)) as writer:
        for i in range(1, 10):
            writer.write(torch.full((48, 64, 3), 20 * i, dtype=torch.uint8))
    return path


def test_video_comes_back(clip):
    info = probe(clip)
    assert (info.width, info.height, info.frames, info.rate) == (64, 48, 9, 10)
    frames = list(read_frames(clip))
    assert len(frames) == 9
    for i, frame in enumerate(frames, 1):
        assert frame.shape == (48, 64, 3)
        assert frame.dtype == torch.uint8
        assert (frame.float() - 20 * i).abs().max() <= 3  # what the codec loses


def test_start_and_size(clip):
    frames = list(read_frames(clip, (32, 24), start=7))
    assert len(frames) == 2
    assert frames[0].shape == (24, 32, 3)
    assert abs(frames[0].float().mean() - 160) <= 3


def test_reading_is_a_stream(clip):
    frames = read_frames(clip)
    next(frames)
    frames.close()  # no error, nothing left open


def test_odd_sizes_lose_nothing_and_it_is_said(tmp_path):
    picture = torch.zeros(47, 63, 3, dtype=torch.uint8)
    picture[:, -1] = picture[-1] = 255
    with VideoWriter(tmp_path / "odd.mp4", 63, 47, Fraction(10)) as writer:
        writer.write(picture)
    assert writer.notes == ["is 64x48: H.264 wants even sizes, the last column and last row is there twice"]
    info = probe(tmp_path / "odd.mp4")
    assert (info.width, info.height) == (64, 48)
    (read,) = read_frames(tmp_path / "odd.mp4")
    assert read[:, 62:].float().mean() > 230 and read[46:].float().mean() > 230 and read[:45, :61].float().mean() < 20


def test_the_bundled_clip():
    info = probe(BUNNY / "clip.mp4")
    assert (info.width, info.height, info.frames) == (1280, 720, 132)
    labels = read_object_mask(BUNNY / "00040.png")
    assert labels.shape == (480, 854)
    assert labels.unique().tolist() == [0, 1]


def test_videos_that_are_none(tmp_path, clip):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((BUNNY / "clip.mp4").read_bytes()[:200_000])
    for path, words in (
        (tmp_path / "absent.mp4", "no such video file"),
        (tmp_path, "no such video file"),
        (text, "not a video that can be read"),
    ):
        with pytest.raises(VideoError, match=words):
            probe(path)
        with pytest.raises(VideoError, match=words):
            list(read_frames(path))
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        list(read_frames(cut))
    with pytest.raises(VideoError, match="has 9 frames, so there is no frame 9"):
        list(read_frames(clip, start=9))
    silence = tmp_path / "silence.wav"
    with wave.open(str(silence), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    with pytest.raises(VideoError, match="has no video stream"):
        probe(silence)


def test_masks_come_back(tmp_path):
    labels = torch.arange(256, dtype=torch.uint8).view(16, 16)
    write_mask(tmp_path / "m.png", labels)
    assert torch.equal(read_mask(tmp_path / "m.png"), labels)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert tuple(image.getpalette()[3:6]) == palette()[1] == (128, 0, 0)
    assert palette()[2] == (0, 128, 0)
    assert palette()[255] == (224, 224, 192)


def test_grey_and_two_level_masks_are_labels(tmp_path):
    Image.fromarray(np.array([[0, 3], [7, 0]], dtype=np.uint8)).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png").tolist() == [[0, 3], [7, 0]]
    Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1").save(tmp_path / "two.png")
    assert read_mask(tmp_path / "two.png").tolist() == [[0, 1], [1, 0]]


def test_masks_that_are_none(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    Image.new("L", (4, 4)).save(tmp_path / "empty.png")
    Image.new("L", (4, 4), 1).save(tmp_path / "grey.jpg")
    (tmp_path / "text.png").write_text("not an image")
    whole = (BUNNY / "00040.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, words in (
        ("absent.png", "no such mask file"),
        ("text.png", "not an image that can be read"),
        ("cut.png", "not an image that can be read"),
        ("rgb.png", "has no object"),
        ("empty.png", "has no object"),
        ("grey.jpg", "wanted a PNG of labels, got JPEG"),
    ):
        with pytest.raises(MaskError, match=words):
            read_object_mask(tmp_path / name)
