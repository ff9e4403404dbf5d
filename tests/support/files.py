"""Mask files as annotation tools write them, turned videos, damage; and strategies for them."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from xmemk.data.palette import palette

Labels = NDArray[np.uint8]
COLOURS = np.array(palette(), np.uint8)
# a, b, c, d of a display matrix: the picture that a player shows of a stored one.
MATRICES: dict[tuple[int, int, int, int], Callable[[Any], Any]] = {
    (1, 0, 0, 1): lambda x: x,
    (0, 1, -1, 0): lambda x: np.rot90(x, -1),
    (-1, 0, 0, -1): lambda x: np.rot90(x, 2),
    (0, -1, 1, 0): lambda x: np.rot90(x, 1),
    (-1, 0, 0, 1): lambda x: x[:, ::-1],
    (1, 0, 0, -1): lambda x: x[::-1],
    (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
    (0, -1, -1, 0): lambda x: np.rot90(x, 2).swapaxes(0, 1),
}


def png(
    path: Path, rows: list[bytes], size: tuple[int, int], bits: int, kind: int, chunks: tuple[Any, ...] = ()
) -> None:
    """A PNG of packed rows, for what Pillow does not write. kind: 0 grey, 3 palette."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    extra = b"".join(chunk(*pair) for pair in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b""))


def packed_rows(labels: Labels, bits: int) -> list[bytes]:
    """Rows of a PNG whose pixels have at most eight bits."""
    planes = (labels[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row).tobytes() for row in planes.reshape(len(labels), -1)]


def interlaced(path: Path, labels: Labels) -> None:
    """An 8-bit grey PNG in the seven passes of Adam7."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    parts = [labels[y::dy, x::dx] for y, dy, x, dx in passes]
    rows = [row.tobytes() for part in parts if part.size for row in part]
    png(path, rows, (labels.shape[1], labels.shape[0]), 8, 0)
    content = bytearray(path.read_bytes())
    content[28] = 1  # the interlace method, the last byte of the header
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def indexed(labels: Labels, entries: int = 256) -> Image.Image:
    """A palette image with this many of DAVIS' colours, however large its labels are."""
    image = Image.fromarray(labels, mode="P")
    image.putpalette(COLOURS[:entries].ravel().tolist())
    return image


def turned(path: Path, labels: Labels) -> None:
    """Stored on its side, with the EXIF tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    indexed(np.ascontiguousarray(np.rot90(labels))).save(path, exif=exif)


def _few_bits(bits: int, kind: int, entries: int = 256) -> Callable[[Path, Labels], None]:
    def write(path: Path, labels: Labels) -> None:
        chunks = ((b"PLTE", COLOURS[: min(1 << bits, entries)].tobytes()),) if kind == 3 else ()
        png(path, packed_rows(labels, bits), (labels.shape[1], labels.shape[0]), bits, kind, chunks)

    return write


def _transparent(path: Path, labels: Labels) -> None:
    alpha = np.where(labels == 0, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([COLOURS[labels], alpha])).save(path)


# name -> (largest label, suffix, writer). Each is read as the labels that were written.
MASK_WRITERS: dict[str, tuple[int, str, Callable[[Path, Labels], Any]]] = {
    "palette": (255, ".png", lambda path, x: indexed(x).save(path)),
    "palette of the labels alone": (255, ".png", lambda path, x: indexed(x, int(x.max()) + 1).save(path)),
    "palette with missing entries": (255, ".png", _few_bits(8, 3, 2)),
    "palette with a transparent entry": (255, ".png", lambda path, x: indexed(x).save(path, transparency=0)),
    "palette of 1 bit": (1, ".png", _few_bits(1, 3)),
    "palette of 2 bits": (3, ".png", _few_bits(2, 3)),
    "palette of 4 bits": (15, ".png", _few_bits(4, 3)),
    "palette, BMP": (255, ".bmp", lambda path, x: indexed(x).save(path)),
    "palette on its side": (255, ".png", turned),
    "grey of 1 bit": (1, ".png", _few_bits(1, 0)),
    "grey of 2 bits": (3, ".png", _few_bits(2, 0)),
    "grey of 4 bits": (15, ".png", _few_bits(4, 0)),
    "grey of 8 bits": (255, ".png", lambda path, x: Image.fromarray(x).save(path)),
    "grey of 16 bits": (255, ".png", lambda path, x: Image.fromarray(x.astype(np.uint16)).save(path)),
    "grey of 16 bits, TIFF": (255, ".tif", lambda path, x: Image.fromarray(x.astype(np.uint16)).save(path)),
    "float, TIFF": (255, ".tiff", lambda path, x: Image.fromarray(x.astype(np.float32)).save(path)),
    "interlaced": (255, ".png", interlaced),
    "equal red, green and blue": (255, ".png", lambda path, x: Image.fromarray(np.dstack([x] * 3)).save(path)),
    "colours of DAVIS": (254, ".png", lambda path, x: Image.fromarray(COLOURS[x]).save(path)),
    "colours of DAVIS on transparency": (254, ".png", _transparent),
}


def turn_video(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes a, b, c, d of a display matrix into the first track of an MP4 file."""
    content = bytearray(path.read_bytes())
    at = content.find(b"tkhd") + 44
    a, b, c, d = (65536 * value for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def write_video(path: Path, images: list[Any], times: list[Fraction] | None = None, aspect: Any = 1) -> None:
    """Frames [H, W, 3] uint8 of even size as MPEG-4, at 25 a second or at ``times`` in seconds."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = int(1000 * (Fraction(number, 25) if times is None else times[number]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@st.composite
def label_images(draw: st.DrawFn, largest: int = 255) -> Labels:
    """Label images [H, W] uint8 of some rectangles, each at least 3 x 3, on background."""
    height, width = draw(st.integers(4, 40)), draw(st.integers(4, 40))
    labels = np.zeros((height, width), np.uint8)
    for label in draw(st.lists(st.integers(1, largest), min_size=1, max_size=4)):
        y, x = draw(st.integers(0, height - 3)), draw(st.integers(0, width - 3))
        labels[y : draw(st.integers(y + 3, height)), x : draw(st.integers(x + 3, width))] = label
    return labels


@st.composite
def frame_names(draw: st.DrawFn) -> list[str]:
    """Names of frames in the order of their numbers: consecutive, padded or not, with a prefix."""
    first, count = draw(st.integers(0, 120)), draw(st.integers(1, 12))
    prefix, digits = draw(st.sampled_from(["", "frame", "img_", "v2-"])), draw(st.sampled_from([1, 5]))
    suffix = draw(st.sampled_from([".png", ".jpg", ".PNG"]))
    return [f"{prefix}{number:0{digits}d}{suffix}" for number in range(first, first + count)]


@dataclass(frozen=True)
class VideoCase:
    """A video of plain grey quarters: the stored size, the times of frames, the display matrix."""

    width: int
    height: int
    times: list[Fraction]
    matrix: tuple[int, int, int, int]
    aspect: Fraction

    @property
    def stored(self) -> Any:
        """The stored picture [H, W, 3], each quarter of its own grey."""
        scale = np.ones((self.height // 2, self.width // 2), np.uint8)
        return np.repeat(np.kron(np.array([[250, 20], [90, 160]], np.uint8), scale)[:, :, None], 3, axis=2)

    @property
    def shown(self) -> Any:
        """The picture that a player shows, but for the shape of its pixels."""
        return MATRICES[self.matrix](self.stored)

    def write(self, path: Path) -> None:
        write_video(path, [self.stored] * len(self.times), self.times, self.aspect)
        turn_video(path, self.matrix)


@st.composite
def videos(draw: st.DrawFn) -> VideoCase:
    """Videos of two to eight frames, whose steps in time differ."""
    steps = draw(st.lists(st.integers(1, 400), min_size=2, max_size=8))
    times = [Fraction(sum(steps[:i]), 1000) for i in range(len(steps))]
    width, height = (16 * draw(st.integers(1, 4)) for _ in range(2))
    aspect = draw(st.sampled_from([Fraction(1), Fraction(4, 3), Fraction(16, 15)]))
    return VideoCase(width, height, times, draw(st.sampled_from(sorted(MATRICES))), aspect)


def damaged(content: bytes, source: random.Random) -> bytes:
    """Bits flipped, bytes put in, taken out or overwritten, the end cut off; one to five times."""
    damage = bytearray(content)
    for _ in range(source.choice([1, 1, 2, 5])):
        if not damage:
            break
        # Headers are a small part of a file, but most of what readers trust.
        at = source.randrange(min(len(damage), source.choice([200, len(damage)])))
        kind, count = source.randrange(6), source.choice([1, 4, 50])
        if kind <= 1:
            damage[at] ^= 1 << source.randrange(8)
        elif kind == 2:
            del damage[at:]
        elif kind == 3:
            damage[at:at] = source.randbytes(count)
        elif kind == 4:
            del damage[at : at + count]
        else:
            damage[at : at + 4] = source.choice([b"\xff" * 4, b"\0" * 4, source.randbytes(4)])
    return bytes(damage)
