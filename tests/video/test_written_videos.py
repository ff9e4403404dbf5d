"""Written videos: times, sound, the shape of pixels, odd sizes; whole or not there."""

from fractions import Fraction

import pytest

pytest.importorskip("av")
import av
import numpy as np
import torch

from xmemk.data.masks import write_mask
from xmemk.data.overlay import draw_videos, overlay
from xmemk.data.source import open_source
from xmemk.data.video import probe, read_frames
from xmemk.data.video_writer import VideoWriter
from xmemk.data.whole_files import whole_file

TIMES = [0, 40, 80, 90, 200, 240, 300, 310, 320, 400, 440, 480]  # milliseconds: a variable rate
WIDTH, HEIGHT = 64, 48


def make_video(path, *, width=WIDTH, height=HEIGHT, aspect=None, sound=None, container="mp4", first=0):
    """A white square that wanders over grey, with a tone in AAC or another codec."""
    with av.open(str(path), "w", format=container) as out:
        video = out.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.sample_aspect_ratio = aspect or Fraction(1)
        if sound is not None:
            audio = out.add_stream(sound, rate=8000)
            audio.codec_context.layout = "mono"
        for number, time in enumerate(TIMES):
            picture = np.full((height, width, 3), 90, np.uint8)
            picture[10:30, 3 * number : 3 * number + 16] = 255
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = time + first, Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None:
            size = audio.codec_context.frame_size or 1024
            for start in range(0, 4800, size):
                form = audio.codec_context.format.name
                kind = np.float32 if form.startswith("flt") else np.int16
                tone = (1000 * np.sin(np.arange(start, start + size) / 5)).astype(kind)
                frame = av.AudioFrame.from_ndarray(tone[None], form, "mono")
                frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
                out.mux(audio.encode(frame))
            out.mux(audio.encode(None))
    return path


def times(path):
    with av.open(str(path)) as container:
        return [round(1000 * frame.time) for frame in container.decode(video=0)]


def packets(path):
    """The time and content of each packet of sound."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(container.streams.audio[0]) if p.size]


def aspect(path):
    with av.open(str(path)) as container:
        return container.streams.video[0].sample_aspect_ratio


@pytest.fixture
def masks(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for number in range(len(TIMES)):
        labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
        labels[10:30, 3 * number : 3 * number + 16] = 1
        write_mask(folder / f"{number:05d}.png", labels)
    return folder


def test_times_sound_and_the_shape_of_pixels_are_kept(tmp_path, masks):
    source = make_video(tmp_path / "v.mp4", aspect=Fraction(4, 3), sound="aac")
    paths = {kind: tmp_path / f"{kind}.mp4" for kind in ("overlay", "side-by-side")}
    assert draw_videos(paths, open_source(source), masks) == []
    for path in paths.values():
        assert times(path) == TIMES
        assert aspect(path) == Fraction(4, 3)
        assert packets(path) == packets(source) != []
    assert (probe(paths["overlay"]).width, probe(paths["side-by-side"]).width) == (WIDTH, 2 * WIDTH)
    for original, left in zip(read_frames(source), read_frames(paths["side-by-side"])):
        assert (original.float() - left[:, :WIDTH].float()).abs().mean() < 3
        red = left[12:28, WIDTH:].float()
        assert (red[..., 0] - red[..., 1]).amax() > 40  # a tint


@pytest.mark.parametrize("container", ["matroska", "mov"])
def test_other_containers(tmp_path, masks, container):
    source = make_video(tmp_path / "v", container=container, sound="pcm_s16le", aspect=Fraction(2, 1))
    draw_videos({"overlay": tmp_path / "o.mp4"}, open_source(source), masks)
    assert times(tmp_path / "o.mp4") == TIMES and aspect(tmp_path / "o.mp4") == 2
    assert b"".join(p for _, p in packets(tmp_path / "o.mp4")) == b"".join(p for _, p in packets(source))


def test_a_part_of_a_video_begins_at_0_with_its_own_sound(tmp_path, masks):
    source = make_video(tmp_path / "v.mp4", sound="aac")
    draw_videos({"overlay": tmp_path / "late.mp4"}, open_source(source), masks, 4)
    assert times(tmp_path / "late.mp4") == [t - TIMES[4] for t in TIMES[4:]]
    late = [(time + Fraction(TIMES[4], 1000), content) for time, content in packets(tmp_path / "late.mp4")]
    kept = [(time, content) for time, content in packets(source) if time >= Fraction(TIMES[4], 1000)]
    assert [content for _, content in late] == [content for _, content in kept]
    assert all(abs(a - b) < Fraction(1, 4000) for (a, _), (b, _) in zip(late, kept))
    draw_videos({"overlay": tmp_path / "early.mp4"}, open_source(source), masks, 0, 4)
    assert times(tmp_path / "early.mp4") == TIMES[:5]
    assert packets(tmp_path / "early.mp4") == [p for p in packets(source) if p[0] < Fraction(TIMES[4] + 40, 1000)]


def test_a_first_frame_that_comes_late_stays_in_step_with_the_sound(tmp_path, masks):
    source = make_video(tmp_path / "v.mkv", container="matroska", sound="aac", first=120)
    draw_videos({"overlay": tmp_path / "o.mp4"}, open_source(source), masks)
    assert times(tmp_path / "o.mp4") == [t + 120 for t in TIMES]


def test_sound_that_mp4_does_not_hold_is_said(tmp_path, masks):
    source = make_video(tmp_path / "v.avi", container="avi", sound="pcm_mulaw")
    (note,) = draw_videos({"overlay": tmp_path / "o.mp4"}, open_source(source), masks)
    assert note == f"o.mp4 is without the sound of {source}: MP4 does not hold pcm_mulaw"
    assert packets(tmp_path / "o.mp4") == [] and len(times(tmp_path / "o.mp4")) == len(TIMES)


@pytest.mark.parametrize(("width", "height"), [(63, 48), (64, 47), (63, 47), (16, 16), (17, 17)])
def test_odd_sizes_are_written_whole_and_said(tmp_path, width, height):
    picture = torch.zeros(height, width, 3, dtype=torch.uint8)
    picture[-8:, -8:] = 255
    with VideoWriter(tmp_path / "v.mp4", width, height, Fraction(10)) as writer:
        for _ in range(2):
            writer.write(picture)
    assert len(writer.notes) == (width % 2 or height % 2)
    for frame in read_frames(tmp_path / "v.mp4"):
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        assert (frame[:height, :width].float() - picture.float()).abs().mean() < 8
        assert frame[-1, -1].float().mean() > 200


def test_what_fails_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    (tmp_path / "link").symlink_to(path)
    with whole_file(tmp_path / "link") as unfinished:
        unfinished.write_text("after")
    assert path.read_text() == "before" and (tmp_path / "link").read_text() == "after"
    assert not (tmp_path / "link").is_symlink()


def test_the_overlay_tints_objects_alone():
    image, labels = torch.full((8, 8, 3), 90, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
    labels[2:6, 2:6] = 1
    drawn = overlay(image, labels)
    assert torch.equal(drawn[labels == 0], image[labels == 0]) and (drawn[3, 3].int() - 90).abs().amax() > 40


def test_results_are_drawn_whatever_they_look_like(tmp_path):
    make_video(tmp_path / "v.mp4")
    (tmp_path / "masks").mkdir()
    labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    labels[9:31, 9:41] = 255  # a thin object around another, as the void of PASCAL VOC
    labels[10:30, 10:40] = 1
    write_mask(tmp_path / "masks" / "00000.png", labels)
    draw_videos({"overlay": tmp_path / "overlay.mp4"}, open_source(tmp_path / "v.mp4"), tmp_path / "masks")
    assert open_source(tmp_path / "overlay.mp4").frames == len(TIMES)
