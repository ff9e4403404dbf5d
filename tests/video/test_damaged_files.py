"""Damaged files of every kind: read, or refused in one sentence with the file's name.

XMEMK_DAMAGED is the number of damaged files of each kind, 60 without it.
"""

import os
import random

import pytest

pytest.importorskip("av")
import files
import layouts
import numpy as np
from PIL import Image

from xmemk.data.images import read_image
from xmemk.data.masks import MaskError, read_mask
from xmemk.data.source import open_source
from xmemk.data.video import VideoError
from xmemk.evaluation.layouts import DatasetError, open_dataset

COUNT = int(os.environ.get("XMEMK_DAMAGED", "60"))
NOISE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
EXIF = Image.Exif()
EXIF[0x0112] = 6


def images(folder):
    image = Image.fromarray(NOISE)
    options = {"b.jpg": {"progressive": True}, "c.tif": {"compression": "tiff_lzw"}, "d.bmp": {}, "e.webp": {}}
    for name, more in {"a.png": {"exif": EXIF}, "f.tiff": {}, "g.jpg": {"exif": EXIF}, **options}.items():
        image.save(folder / name, **more)
    Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 200).save(folder / "h.png")
    return sorted(folder.iterdir()), read_image


def masks(folder):
    for number, (largest, suffix, write) in enumerate(files.MASK_WRITERS.values()):
        write(
            folder / f"{number}{suffix}",
            np.kron(np.array([[0, 1], [largest, 0]], np.uint8), np.ones((12, 16), np.uint8)),
        )
    return sorted(folder.iterdir()), read_mask


def videos(folder):
    for suffix in (".mp4", ".mov", ".mkv", ".avi"):
        files.write_video(folder / f"clip{suffix}", [np.roll(NOISE, i, 1) for i in range(6)])
    return sorted(folder.iterdir()), lambda path: list(open_source(path).read())


def datasets(folder):
    def read(path):
        for video in open_dataset(next(root for root in roots if root in path.parents)).videos:
            list(open_source(video.folder).read())
            for shot in video.shots:
                if shot.annotation is not None:
                    read_mask(shot.annotation)

    roots = [layouts.davis(folder / "davis", videos=("bear",), count=3), layouts.youtube(folder / "youtube", count=4)]
    return sorted(path for path in folder.rglob("*") if path.is_file()), read


@pytest.mark.parametrize("kind", [images, masks, videos, datasets])
@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
def test_damaged_files(tmp_path, kind):
    paths, read = kind(tmp_path)
    for path in paths:
        read(path)  # as it is, each can be read
    refused = 0
    for number in range(COUNT):
        path = paths[number % len(paths)]
        sound = path.read_bytes()
        damage = files.damaged(sound, random.Random(number))
        path.write_bytes(damage)
        try:
            read(path)
        except (MaskError, VideoError, DatasetError) as error:
            refused += 1
            assert path.name in str(error) or path.parent.name in str(error), (number, path, damage)
            assert "\n" not in str(error)
        finally:
            path.write_bytes(sound)
    assert refused > COUNT / 4
