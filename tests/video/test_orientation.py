"""Frames as a player shows them: display matrices, EXIF, natural order, times, shapes of pixels."""

import random
from fractions import Fraction

import pytest

pytest.importorskip("av")
import av
import files
import numpy as np
import torch
from hypothesis import given, settings
from PIL import Image, ImageOps

from xmemk.data.images import read_image
from xmemk.data.mask_files import find_masks, mask_for
from xmemk.data.masks import MaskError, write_mask
from xmemk.data.order import in_order
from xmemk.data.orientation import EXIF, Orientation, from_matrix
from xmemk.data.source import open_source
from xmemk.data.stream import frames
from xmemk.data.video import VideoError, probe, read_frames

QUARTERS = np.kron(np.array([[250, 20], [90, 160]], np.uint8), np.ones((16, 24), np.uint8))  # each its own grey
PICTURE = np.dstack([QUARTERS] * 3)  # 32 x 48


@pytest.mark.parametrize("matrix", files.MATRICES, ids=str)
def test_a_video_is_read_as_a_player_shows_it(tmp_path, matrix):
    path = tmp_path / "clip.mp4"
    files.write_video(path, [PICTURE] * 2)
    files.turn_video(path, matrix)
    shown = files.MATRICES[matrix](PICTURE)
    source = open_source(path)
    assert (source.height, source.width) == shown.shape[:2]
    for frame in source.read():
        assert np.abs(frame.image.numpy().astype(int) - shown).mean() < 8  # what the codec loses
    small = next(read_frames(path, (shown.shape[1] // 2, shown.shape[0] // 2)))
    assert np.abs(small.numpy().astype(int) - shown[::2, ::2]).mean() < 12
    assert (source.notes == ()) == (matrix == (1, 0, 0, 1))
    # A mask in the shown orientation fits; one as stored is refused where its shape tells.
    write_mask(tmp_path / "shown.png", torch.ones(shown.shape[:2], dtype=torch.uint8))
    assert mask_for(source, find_masks(tmp_path / "shown.png", source)[0]).shape == shown.shape[:2]
    if shown.shape != PICTURE.shape:
        write_mask(tmp_path / "stored.png", torch.ones(PICTURE.shape[:2], dtype=torch.uint8))
        with pytest.raises(MaskError, match=r"stored.png: is 48x32, .* 32x48; .* so turn the mask likewise"):
            find_masks(tmp_path / "stored.png", source)


def test_a_matrix_of_other_angles_is_refused_and_one_of_zeros_is_none(tmp_path):
    assert from_matrix([0] * 9) == Orientation()
    assert from_matrix([131072, 0, 0, 0, 131072, 0, 5, 6, 1 << 30]) == Orientation()
    path = tmp_path / "tilted.mp4"
    files.write_video(path, [PICTURE] * 2)
    files.turn_video(path, (1, 1, -1, 1))
    with pytest.raises(VideoError, match=r"tilted.mp4: .*other than quarter turns"):
        open_source(path)


@pytest.mark.parametrize("value", EXIF)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_an_image_is_read_as_a_viewer_shows_it(tmp_path, value, suffix):
    exif = Image.Exif()
    exif[0x0112] = value
    path = tmp_path / f"image{suffix}"
    Image.fromarray(PICTURE).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        shown = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_image(path).numpy(), shown)
    for matrix, turn in files.MATRICES.items():
        if from_matrix([*matrix[:2], 0, *matrix[2:], 0, 0, 0, 1]) == EXIF[value]:
            assert np.abs(shown.astype(int) - turn(PICTURE)).mean() < 4  # a matrix and EXIF agree
            break
    else:
        pytest.fail("no matrix is the same orientation")


@pytest.mark.parametrize("value", EXIF)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_mask_is_turned_as_its_frame(tmp_path, value, suffix):
    exif = Image.Exif()
    exif[0x0112] = value
    stored = (QUARTERS == 250).astype(np.uint8)
    (tmp_path / "frames").mkdir()
    Image.fromarray(PICTURE).save(tmp_path / "frames" / "0.png", exif=exif)
    Image.fromarray(stored).save(tmp_path / f"0{suffix}", exif=exif)
    source = open_source(tmp_path / "frames")
    (file,) = find_masks(tmp_path / f"0{suffix}", source).values()
    assert np.array_equal(mask_for(source, file).numpy(), EXIF[value].applied(stored))
    Image.fromarray(QUARTERS).save(tmp_path / f"grey{suffix}", exif=exif)
    assert np.array_equal(read_image(tmp_path / f"grey{suffix}")[:, :, 0].numpy(), EXIF[value].applied(QUARTERS))


def test_pixels_that_are_not_square_are_said(tmp_path):
    path = tmp_path / "dv.mp4"
    files.write_video(path, [PICTURE] * 2, aspect=Fraction(4, 3))
    source = open_source(path)
    assert (source.width, source.height, source.pixel_aspect) == (48, 32, Fraction(4, 3))
    assert "48x32, players show 64x32" in source.notes[0]
    write_mask(tmp_path / "wide.png", torch.ones(32, 64, dtype=torch.uint8))  # drawn on what a player shows
    assert mask_for(source, find_masks(tmp_path / "wide.png", source)[0]).shape == (32, 48)
    files.turn_video(path, (0, 1, -1, 0))
    assert probe(path).pixel_aspect == Fraction(3, 4)


@settings(max_examples=12, deadline=None)
@given(files.videos())
def test_a_video_comes_back_turned_in_time_and_whole(tmp_path_factory, video):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    video.write(path)
    source = open_source(path)
    assert (source.height, source.width) == video.shown.shape[:2]
    assert source.pixel_aspect == (1 / video.aspect if source.orientation.transposed else video.aspect)
    read = list(source.read())
    assert [frame.time for frame in read] == video.times
    assert max(np.abs(frame.image.numpy().astype(int) - video.shown).mean() for frame in read) < 12
    assert [frame.time for frame in frames(path, start=1)] == video.times[1:]


@settings(max_examples=15, deadline=None)
@given(files.frame_names())
def test_frames_and_masks_are_in_the_order_of_their_numbers(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("frames")
    masks = tmp_path_factory.mktemp("masks")
    for number, name in random.Random(0).sample(list(enumerate(names)), len(names)):
        Image.new("RGB", (8, 6), (10 * number, 0, 0)).save(folder / name, quality=100)
        write_mask(masks / f"{name.rpartition('.')[0]}.png", torch.full((6, 8), 1 + number, dtype=torch.uint8))
    source = open_source(folder)
    assert list(source.names) == names
    assert [round(int(f.image[0, 0, 0]) / 10) for f in source.read()] == list(range(len(names)))
    assert [int(mask_for(source, file)[0, 0]) for file in find_masks(masks, source).values()] == [
        1 + i for i in range(len(names))
    ]


def test_natural_order(tmp_path):
    names = ["1.png", "2.png", "9a2.png", "9a10.png", "10.png", "010.png", "a.png", "a1b2.png", "a1b10.png", "a2.png"]
    shuffled = [tmp_path / name for name in random.Random(1).sample(names, len(names))]
    ordered = [path.name for path in in_order(shuffled)]
    assert ordered.index("2.png") < ordered.index("10.png") and ordered.index("a1b2.png") < ordered.index("a1b10.png")
    assert ordered.index("9a2.png") < ordered.index("9a10.png") < ordered.index("a.png") < ordered.index("a2.png")
    assert ordered == [path.name for path in in_order(reversed(shuffled))]


def test_a_missing_frame_is_a_choice(tmp_path):
    for number in (0, 1, 2, 3, 4, 6, 7):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"{number:05d}.png")
    with pytest.raises(VideoError, match=r"frame 00005 is missing .*missing='skip' .--missing skip"):
        open_source(tmp_path)
    source = open_source(tmp_path, missing="skip")
    assert [frame.name for frame in source.read()] == [f"{n:05d}" for n in (0, 1, 2, 3, 4, 6, 7)]
    assert (source.frames, source.skipped) == (7, 1) and "1 missing frame" in source.notes[0]
    for file in tmp_path.iterdir():
        file.rename(tmp_path / f"left_{int(file.stem)}b.png")
    with pytest.raises(VideoError, match=r"frame left_5b is missing between left_0b.png and left_7b.png"):
        open_source(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "left_04b.png")
    with pytest.raises(VideoError, match=r"frames left_04b and left_4b have one number"):
        open_source(tmp_path, missing="skip")
    with pytest.raises(ValueError, match="missing: wanted 'error' or 'skip', got 'fill'"):
        open_source(tmp_path, missing="fill")


def test_frames_in_one_line(tmp_path):
    for number in range(5):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"{number}.png")
    stream = frames(tmp_path, "cpu", start=2)
    assert [(f.number, f.time, int(f.image[0, 0, 0])) for f in stream] == [(n, Fraction(n, 25), n) for n in (2, 3, 4)]
    with pytest.raises(VideoError, match="no such video file"):
        frames(tmp_path / "absent")
    with pytest.raises(VideoError, match="has 5 frames, so there is no frame 5"):
        next(frames(tmp_path, start=5))
    with pytest.raises(ValueError, match="start: wanted the number of a frame"):
        frames(tmp_path, start=-1)
    with pytest.raises(ValueError, match="rate: wanted frames per second"):
        frames(tmp_path, rate=Fraction(0))


def test_objects_that_vanish_when_a_mask_is_scaled_are_named(tmp_path):
    files.write_video(tmp_path / "clip.mp4", [PICTURE] * 2)
    source = open_source(tmp_path / "clip.mp4")
    labels = torch.zeros(128, 192, dtype=torch.uint8)
    labels[8:40, 8:60] = 1
    write_mask(tmp_path / "large.png", labels)
    assert mask_for(source, tmp_path / "large.png").unique().tolist() == [0, 1]
    labels[100, 100] = 2
    write_mask(tmp_path / "large.png", labels)
    with pytest.raises(MaskError, match=r"large.png: object 2 has no pixel at the video's size, 48x32"):
        mask_for(source, tmp_path / "large.png")


def test_two_masks_of_one_frame_are_refused(tmp_path):
    files.write_video(tmp_path / "clip.mp4", [PICTURE] * 3)
    (tmp_path / "masks").mkdir()
    for name in ("1", "00001"):
        write_mask(tmp_path / "masks" / f"{name}.png", torch.ones(32, 48, dtype=torch.uint8))
    with pytest.raises(MaskError, match=r"1.png: frame 1 has another mask, 00001.png"):
        find_masks(tmp_path / "masks", open_source(tmp_path / "clip.mp4"))


@pytest.mark.parametrize("opacity", [255, 100])
def test_videos_with_opacity_are_read_or_refused(tmp_path, opacity):
    path = tmp_path / "alpha.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgra"
        pixels = np.dstack([PICTURE, np.full((32, 48), opacity, np.uint8)])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgba").reformat(format="bgra")))
        container.mux(stream.encode(None))
    if opacity == 255:
        assert np.array_equal(next(read_frames(path)).numpy(), PICTURE)
    else:
        with pytest.raises(VideoError, match=r"alpha.mkv: has transparent pixels; save it on a background"):
            next(read_frames(path))


def grey16(path):
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(path)


def transparent(path):
    Image.new("RGBA", (3, 1), (9, 9, 9, 200)).save(path)


@pytest.mark.parametrize(
    ("name", "write", "outcome"),
    [
        ("grey16.png", grey16, [0, 1, 255]),
        ("grey.png", lambda path: Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(path), [0, 7, 255]),
        ("two.png", lambda path: Image.fromarray(np.array([[False, True, True]])).save(path), [0, 255, 255]),
        ("opaque.png", lambda path: Image.new("RGBA", (3, 1), (9, 1, 1, 255)).save(path), [9, 9, 9]),
        ("palette.png", lambda path: files.indexed(np.array([[0, 1, 9]], np.uint8)).save(path), [0, 128, 192]),
        ("cmyk.tif", lambda path: Image.new("CMYK", (3, 1), (255, 0, 0, 0)).save(path), [0, 0, 0]),
        ("clear.png", transparent, "has transparent pixels; save it on a background"),
        ("float.tif", lambda path: Image.new("F", (3, 1), 0.5).save(path), "has 32 bits a channel"),
        ("int.tif", lambda path: Image.new("I", (3, 1), 70000).save(path), "has 32 bits a channel"),
    ],
)
def test_frames_of_other_kinds_are_read_right_or_refused(tmp_path, name, write, outcome):
    write(tmp_path / name)
    if isinstance(outcome, list):
        assert read_image(tmp_path / name)[0, :, 0].tolist() == outcome
    else:
        with pytest.raises(VideoError, match=f"{name}: {outcome}"):
            read_image(tmp_path / name)
