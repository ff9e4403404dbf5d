"""Small datasets in the real layouts: a square that moves over noise, and one that joins later."""

import json
from typing import Any

import numpy as np
from PIL import Image

from xmemk.data.masks import palette

HEIGHT, WIDTH = 32, 48


def labels(number: Any, late: Any = None) -> Any:
    """Objects 1 and, from frame ``late`` on, 2."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[6:18, 4 + number : 16 + number] = 1
    if late is not None and number >= late:
        mask[18:28, 30 - number : 42 - number] = 2
    return mask


def write_frames(folder: Any, names: Any, late: Any = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(1).integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number, name in enumerate(names):
        picture = noise + (np.eye(3, dtype=np.uint8)[labels(number, late) % 3] * 100)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{name}.jpg")


def write_labels(path: Any, mask: Any, colours: Any = None, mode: Any = "P") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8), mode=mode)
    if mode == "P":
        image.putpalette(colours or [v for colour in palette() for v in colour])
    image.save(path)


def write_masks(folder: Any, names: Any, annotated: Any = None, late: Any = None, only_new: Any = False) -> None:
    """Annotations of the frames ``annotated``; only_new: of each frame, only objects that join."""
    seen: set[int] = set()
    for number in range(len(names)) if annotated is None else annotated:
        mask = labels(number, late)
        if only_new:
            mask[np.isin(mask, list(seen))] = 0
            seen |= set(np.unique(mask).tolist()) - {0}
        write_labels(folder / f"{names[number]}.png", mask)


def counted(count: Any, step: Any = 1, digits: Any = 5) -> Any:
    return [f"{step * i:0{digits}d}" for i in range(count)]


def davis(
    root: Any,
    videos: Any = ("bear", "swan"),
    count: Any = 6,
    year: Any = "2017",
    split: Any = "val",
    annotated: Any = None,
) -> Any:
    for video in videos:
        names = counted(count)
        write_frames(root / "JPEGImages" / "480p" / video, names, late=0)
        write_masks(root / "Annotations" / "480p" / video, names, annotated, late=0)
    listed = root / "ImageSets" / year / f"{split}.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(videos) + "\n")
    return root


def youtube(root: Any, split: Any = "valid", count: Any = 6, late: Any = 3) -> Any:
    """Object 2 joins at a later frame; frames in fives, and all of them beside."""
    names = counted(count, 5)
    meta = {"videos": {"0a": {"objects": {"1": {"frames": names[:4]}, "2": {"frames": names[late:5]}}}}}
    write_frames(root / split / "JPEGImages" / "0a", names, late)
    write_masks(root / split / "Annotations" / "0a", names, [0, late], late, only_new=True)
    write_frames(root / "all_frames" / f"{split}_all_frames" / "JPEGImages" / "0a", counted(5 * count - 4))
    (root / split / "meta.json").write_text(json.dumps(meta))
    return root


def lvos(root: Any, split: Any = "valid", count: Any = 6, late: Any = 2) -> Any:
    names = counted(count, digits=8)
    write_frames(root / split / "JPEGImages" / "long", names, late)
    write_masks(root / split / "Annotations" / "long", names, late=late)
    (root / split / f"{split}_meta.json").write_text("{}")
    return root


def mose(root: Any, split: Any = "valid", count: Any = 4) -> Any:
    names = counted(count)
    write_frames(root / split / "JPEGImages" / "3f", names, late=0)
    write_masks(root / split / "Annotations" / "3f", names, [0], late=0)
    return root


def long_video(root: Any, count: Any = 7, annotated: Any = (0, 2, 4, 6)) -> Any:
    names = counted(count)
    write_frames(root / "long_video" / "JPEGImages" / "dressage", names, late=0)
    write_masks(root / "long_video" / "Annotations" / "dressage", names, annotated, late=0)
    return root


def generic(root: Any, count: Any = 5, late: Any = 2) -> Any:
    names = [f"frame{i:03d}" for i in range(count)]
    write_frames(root / "JPEGImages" / "mine", names, late)
    write_masks(root / "Annotations" / "mine", names, late=late)
    return root
