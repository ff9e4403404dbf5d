"""Frames from videos and folders: names, order, reading ahead, and what is wrong with a source."""

import threading
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("av")
import av
import torch
from PIL import Image

import xmemk.data
from xmemk.data.mask_files import find_masks, mask_for
from xmemk.data.masks import MaskError, write_mask
from xmemk.data.overlay import draw_videos
from xmemk.data.read_ahead import ahead
from xmemk.data.source import open_source
from xmemk.data.video import VideoError, read_frames
from xmemk.data.video_writer import VideoWriter

CLIP = next((Path(xmemk.data.__file__).parent / "bunny").glob("*.mp4"))


def folder(path, names, size=(8, 6)):
    path.mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", size, (i, 2 * i, 3)).save(path / name)
    return path


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    source = open_source(folder(tmp_path / "v", ["00002.png", "00000.png", "00001.png"]))
    (tmp_path / "v" / "notes.txt").write_text("not a frame")
    assert (source.width, source.height, source.frames, source.rate) == (8, 6, 3, Fraction(25))
    frames = list(source.read())
    assert [f.name for f in frames] == ["00000", "00001", "00002"]
    assert [int(f.image[0, 0, 0]) for f in frames] == [1, 2, 0]
    assert frames[0].image.shape == (6, 8, 3) and frames[0].image.dtype == torch.uint8
    assert [f.number for f in source.read(1)] == [1, 2]


def test_a_video_is_a_stream_of_numbered_frames():
    source = open_source(CLIP)
    assert (source.width, source.height) == (1280, 720)
    stream = source.read(3)
    frame = next(stream)
    assert (frame.number, frame.name, frame.image.shape) == (3, "00003", (720, 1280, 3))
    stream.close()
    assert not [t for t in threading.enumerate() if t.name == "xmemk-read-ahead"]


@pytest.mark.parametrize("names", [["a.jpg", "c.jpg"], ["0.png", "5.png", "10.png", "15.png"], ["001.png", "900.png"]])
def test_names_without_a_gap_to_speak_of(tmp_path, names):
    assert open_source(folder(tmp_path / "v", names)).frames == len(names)


def test_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(VideoError, match=r"a folder without images"):
        open_source(folder(tmp_path / "empty", []))
    with pytest.raises(VideoError, match=r"frame 00003 is missing between 00000.png and 00006.png"):
        open_source(folder(tmp_path / "gap", [f"{i:05d}.png" for i in (0, 1, 2, 4, 5, 6)]))
    with pytest.raises(VideoError, match=r"frame 15 is missing"):
        open_source(folder(tmp_path / "fives", ["0.png", "05.png", "10.png", "20.png", "25.png"]))
    with pytest.raises(VideoError, match=r"two images of one name, '1'"):
        open_source(folder(tmp_path / "twice", ["1.png", "1.jpg"]))
    sizes = folder(tmp_path / "sizes", ["0.png", "1.png"])
    Image.new("RGB", (9, 6)).save(sizes / "2.png")
    with pytest.raises(VideoError, match=r"frame 2 is 9x6, wanted 8x6 as the first"):
        list(open_source(sizes).read())
    bad = folder(tmp_path / "bad", ["0.png", "1.png", "2.png"])
    (bad / "1.png").write_bytes(b"no image")
    stream = open_source(bad).read()
    assert next(stream).number == 0
    with pytest.raises(VideoError, match=r"1.png: not an image that can be read"):
        next(stream)
    with pytest.raises(VideoError, match=r"no such video file"):
        open_source(tmp_path / "none")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Twenty frames of noise, each some thousands of bytes."""
    path = tmp_path_factory.mktemp("noise") / "whole.mp4"
    generator = torch.Generator().manual_seed(0)
    with VideoWriter(path, 64, 48, Fraction(25)) as writer:
        for _ in range(20):
            writer.write(torch.randint(0, 256, (48, 64, 3), generator=generator, dtype=torch.uint8))
    return path


def ends_of_packets(path):
    with av.open(str(path)) as container:
        return sorted(p.pos + p.size for p in container.demux(video=0) if p.size)


@pytest.mark.parametrize("place", ["in the first", "in the middle", "between", "in the last", "the last byte"])
def test_a_video_that_is_cut_off(noise, tmp_path, place):
    ends = ends_of_packets(noise)
    at = {
        "in the first": ends[0] - 100,
        "in the middle": (ends[9] + ends[10]) // 2,
        "between": ends[-4],
        "in the last": (ends[-2] + ends[-1]) // 2,
        "the last byte": ends[-1] - 1,
    }[place]
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(noise.read_bytes()[:at])
    with pytest.raises(VideoError, match=r"cut.mp4: cannot be read beyond frame \d+"):
        list(open_source(cut).read())


def test_a_whole_video_whose_edit_list_leaves_frames_out(noise, tmp_path):
    assert len(list(read_frames(noise))) == 20
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(noise)) as original, av.open(str(trimmed), "w") as remuxed:
        stream = remuxed.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                packet.pts -= 5 * packet.duration  # what is before 0 goes into an edit list
                packet.dts -= 5 * packet.duration
                remuxed.mux(packet)
    with av.open(str(trimmed)) as container:
        assert container.streams.video[0].frames == 20
    assert 0 < len(list(read_frames(trimmed))) <= 20


def test_reading_ahead_keeps_order_and_holds_few():
    fetched = []

    def items():
        for i in range(50):
            fetched.append(i)
            yield i

    seen = []
    for item in ahead(items(), 4):
        seen.append(item)
        assert len(fetched) <= len(seen) + 5  # those that wait, and one in the thread's hand
    assert seen == list(range(50))


def test_reading_ahead_raises_where_it_happened_and_closes():
    closed = threading.Event()

    def items():
        try:
            yield 1
            raise OSError("gone")
        finally:
            closed.set()

    stream = ahead(items(), 4)
    assert next(stream) == 1
    with pytest.raises(OSError, match="gone"):
        next(stream)
    assert closed.is_set()

    endless = ahead(iter(int, 1), 2)
    assert next(endless) == 0
    endless.close()
    assert not [t for t in threading.enumerate() if t.name == "xmemk-read-ahead"]


def test_an_overlay_that_fails_leaves_the_one_that_was_there(tmp_path):
    source = open_source(folder(tmp_path / "v", ["0.png", "1.png", "2.png"]))
    masks = folder(tmp_path / "masks", [])
    draw_videos({"overlay": tmp_path / "overlay.mp4"}, source, masks)
    before = (tmp_path / "overlay.mp4").read_bytes()
    (masks / "1.png").write_bytes(b"no image")
    with pytest.raises(MaskError, match=r"1.png: not an image that can be read"):
        draw_videos({"overlay": tmp_path / "overlay.mp4"}, source, masks)
    assert (tmp_path / "overlay.mp4").read_bytes() == before and len(list(tmp_path.glob("*.mp4"))) == 1


def test_later_masks_are_read_at_their_frame(tmp_path):
    source = open_source(folder(tmp_path / "v", ["0.png", "1.png", "2.png"]))
    masks = folder(tmp_path / "masks", [])
    for name, label in (("0", 0), ("1", 3), ("2", 4)):
        write_mask(masks / f"{name}.png", torch.full((6, 8), label, dtype=torch.uint8))
    whole = (masks / "2.png").read_bytes()
    cut = whole[: whole.index(b"IDAT") + 6]  # the header is whole
    (masks / "2.png").write_bytes(cut)
    files = find_masks(masks, source)
    assert list(files) == [1, 2] and mask_for(source, files[1]).unique().tolist() == [3]
    with pytest.raises(MaskError, match=r"2.png: not an image that can be read"):
        mask_for(source, files[2])
