"""The folder layouts of video object segmentation datasets, read into one form: videos of shots.

==========  =====================================================================  =====
layout      what the folder has                                                    joins
==========  =====================================================================  =====
davis2017   ImageSets/2017/SPLIT.txt, JPEGImages/480p (or Full-Resolution),        no
            Annotations/480p
davis2016   ImageSets/2016 (or 480p)/SPLIT.txt, else as davis2017; all objects     no
            count as one
youtube     SPLIT/meta.json, SPLIT/JPEGImages, SPLIT/Annotations,                  yes
            all_frames/SPLIT_all_frames/JPEGImages
lvos        SPLIT/*_meta.json (or SPLIT in a folder named LVOS),                   yes
            SPLIT/JPEGImages, SPLIT/Annotations
mose        SPLIT/JPEGImages, SPLIT/Annotations                                    yes
long        long_video/JPEGImages, or a folder of that name; only annotated        no
            frames need results
generic     JPEGImages/VIDEO, Annotations/VIDEO                                    yes
==========  =====================================================================  =====

joins, no: the tracker gets the first annotation of a video. yes: it gets each object at that
object's first annotation. All other annotations serve as ground truth alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.images import IMAGES, image_files
from ..data.order import in_order, natural_key

LAYOUTS = ("davis2016", "davis2017", "youtube", "lvos", "mose", "long", "generic")
SPLITS = ("val", "valid", "test", "test-dev", "train")  # in the order in which they are looked for
_SHOWN = 8  # names that an error lists


class DatasetError(ValueError):
    """A dataset folder that lacks something; the message says what, and what is there instead."""


@dataclass(frozen=True)
class Shot:
    """One frame of a video in order of play.

    name: of its result, without suffix. has_result: whether a result is to be written.
    """

    name: str
    image: Path
    annotation: Path | None
    has_result: bool = True


@dataclass(frozen=True)
class Video:
    """One video of a dataset.

    joins: whether objects join at their first annotation; else all are in the video's first one.
    merged: whether all objects count as one. labels: the objects that the dataset lists, or None.
    """

    name: str
    folder: Path
    shots: tuple[Shot, ...]
    joins: bool
    merged: bool = False
    labels: frozenset[int] | None = None


@dataclass(frozen=True)
class Dataset:
    """The videos of a split.

    rule: which frames are judged, see :func:`xmemk.evaluation.metrics.judge`. repeat: times each
    video is played.
    """

    root: Path
    layout: str
    split: str | None
    videos: tuple[Video, ...]
    rule: str
    repeat: int = 1


def open_dataset(
    root: str | Path,
    layout: str | None = None,
    split: str | None = None,
    videos: Sequence[str] | None = None,
    *,
    repeat: int = 1,
    all_frames: bool | None = None,
    resolution: str | None = None,
) -> Dataset:
    """Reads the lists of a dataset, without opening an image.

    layout: one of LAYOUTS; None recognises it.
    split: such as "val"; None takes the first of SPLITS that exists.
    videos: the names of the only ones to read.
    repeat: how often each video is played, back and forth (Sec. 3.1).
    all_frames: of YouTube-VOS, all frames instead of every fifth; None takes all that exist.
    resolution: of DAVIS, the folder in JPEGImages.

    Raises DatasetError.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    if layout is not None and layout not in LAYOUTS:
        raise DatasetError(f"layout: wanted one of {', '.join(LAYOUTS)}, got {layout!r}")
    if repeat < 1:
        raise DatasetError(f"repeat: wanted at least 1, got {repeat}")
    layout = layout or recognise(root)
    if layout.startswith("davis"):
        dataset = _davis(root, layout, split, resolution)
    elif layout in ("youtube", "lvos", "mose"):
        dataset = _by_split(root, layout, split, all_frames)
    else:
        dataset = _flat(root, layout)
    if videos is not None:
        dataset = replace(dataset, videos=_chosen(dataset, videos))
    played = tuple(back_and_forth(video, repeat) for video in dataset.videos)
    return replace(dataset, videos=played, repeat=repeat)


def recognise(root: Path) -> str:
    """The layout of a folder. Raises DatasetError where it has none of LAYOUTS."""
    if any((root / "ImageSets" / "2017").glob("*.txt")):
        return "davis2017"
    if any(path for year in ("2016", "480p") for path in (root / "ImageSets" / year).glob("*.txt")):
        return "davis2016"
    for part in _split_folders(root):
        if (part / "meta.json").is_file():
            return "youtube"
        if any(part.glob("*_meta.json")) or "lvos" in str(root.resolve().name).lower():
            return "lvos"
        if part != root:
            return "mose"
    if _long_folder(root) is not None:
        return "long"
    if (root / "JPEGImages").is_dir():
        return "generic"
    raise DatasetError(
        f"{root}: no dataset; looked for ImageSets/2017 and ImageSets/2016 (DAVIS), {{{','.join(SPLITS)}}}/JPEGImages "
        "with meta.json (YouTube-VOS), with *_meta.json (LVOS) or alone (MOSE), long_video/JPEGImages (Long-time "
        f"Video), JPEGImages (generic); found {_listing(root)}"
    )


def back_and_forth(video: Video, times: int) -> Video:
    """The video played ``times`` times, forwards and backwards in turn.

    The frame at a turn is shown once. Results of the n-th pass are named ``<frame>_x<n>``.
    """
    shots = list(video.shots)
    for number in range(2, times + 1):
        turned = video.shots[-2::-1] if number % 2 == 0 else video.shots[1:]
        shots += [replace(shot, name=f"{shot.name}_x{number}") for shot in turned]
    return replace(video, shots=tuple(shots))


def _davis(root: Path, layout: str, split: str | None, resolution: str | None) -> Dataset:
    years = ("2017",) if layout == "davis2017" else ("2016", "480p")
    lists = {path.stem: path for year in reversed(years) for path in (root / "ImageSets" / year).glob("*.txt")}
    split = _split(split, list(lists), f"{root}: ImageSets/{' or '.join(years)}/SPLIT.txt")
    sizes = ("480p", "Full-Resolution") if resolution is None else (resolution,)
    size = next((s for s in sizes if (root / "JPEGImages" / s).is_dir()), None)
    if size is None:
        expected = " or ".join(f"JPEGImages/{s}" for s in sizes)
        raise DatasetError(f"{root}: wanted {expected}, found {_listing(root / 'JPEGImages')}")
    try:
        lines = [line.split() for line in lists[split].read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{lists[split]}: cannot be read as a list of videos ({error})") from error
    # Lists of 2016 have a line for each frame: "/JPEGImages/480p/VIDEO/00000.jpg /Annotations/...".
    names = dict.fromkeys(Path(words[0]).parent.name if "/" in words[0] else words[0] for words in lines)
    _expect_names(lists[split], split, names)
    videos = _videos(
        root / "JPEGImages" / size,
        root / "Annotations" / size,
        names,
        joins=False,
        merged=layout == "davis2016",
        listed=lists[split],
    )
    return Dataset(root, layout, split, videos, "davis")


def _by_split(root: Path, layout: str, split: str | None, all_frames: bool | None) -> Dataset:
    parts = {part.name: part for part in _split_folders(root)}
    split = _split(split, list(parts), f"{root}: SPLIT/JPEGImages")
    part = parts[split]
    if layout != "youtube":
        images, annotations = part / "JPEGImages", part / "Annotations"
        return Dataset(root, layout, split, _videos(images, annotations, None, joins=True), "all")
    images = part.parent / "all_frames" / f"{split}_all_frames" / "JPEGImages"
    if all_frames and not images.is_dir():
        raise DatasetError(f"{root}: wanted all_frames/{split}_all_frames/JPEGImages, found {_listing(part.parent)}")
    if all_frames is False or not images.is_dir():
        images = part / "JPEGImages"
    meta = _meta(part / "meta.json")
    _expect_names(part / "meta.json", split, meta)
    videos = _videos(images, part / "Annotations", list(meta), joins=True, listed=part / "meta.json")
    return Dataset(root, layout, split, tuple(_named(v, *meta[v.name]) for v in videos), "all")


def _flat(root: Path, layout: str) -> Dataset:
    top = _long_folder(root) or root if layout == "long" else root
    if not (top / "JPEGImages").is_dir():
        raise DatasetError(f"{root}: wanted JPEGImages, found {_listing(root)}")
    joins = layout == "generic"
    videos = _videos(top / "JPEGImages", top / "Annotations", None, joins=joins)
    if joins:
        return Dataset(root, layout, None, videos, "all")
    videos = tuple(_only(video, lambda shot: shot.annotation is not None) for video in videos)
    return Dataset(root, layout, None, videos, "davis")


def _videos(
    images: Path,
    annotations: Path,
    names: Collection[str] | None,
    *,
    joins: bool,
    merged: bool = False,
    listed: Path | None = None,
) -> tuple[Video, ...]:
    """One video for each folder of images, or for each of ``names``, which the file ``listed`` has.

    Raises DatasetError for a video without frames or masks, or with a mask that has no frame.
    """
    if not annotations.is_dir():
        raise DatasetError(f"{annotations}: wanted a folder of masks, found none")
    if names is None:
        names = [folder.name for folder in in_order(p for p in images.iterdir() if p.is_dir())]
        if not names:
            raise DatasetError(f"{images}: wanted a folder for each video, found {_listing(images)}")
    videos = []
    for name in names:
        frames, masks = _files(images / name, IMAGES), _files(annotations / name, (".png",))
        if not frames:
            raise DatasetError(
                f"{images / name}: wanted the frames of video {name}, found {_listing(images / name)}"
                + ("" if listed is None else f"; {listed} names the video")
            )
        if not masks:
            raise DatasetError(
                f"{annotations / name}: wanted masks of video {name}, found {_listing(annotations / name)}"
            )
        lost = sorted(set(masks) - set(frames), key=natural_key)
        if lost:
            raise DatasetError(f"{masks[lost[0]]}: video {name} has no frame {lost[0]}; it has {_range(frames)}")
        shots = tuple(Shot(stem, image, masks.get(stem)) for stem, image in frames.items())
        videos.append(Video(name, images / name, shots, joins, merged))
    return tuple(videos)


def _expect_names(listed: Path, split: str, names: Collection[str]) -> None:
    """Raises DatasetError for a list without names, or with others than those of folders."""
    if not names:
        raise DatasetError(f"{listed}: the list of split {split!r} names no video")
    for name in names:
        if name in ("", ".", "..") or not name.isprintable() or Path(name).name != name:
            raise DatasetError(f"{listed}: wanted names of folders, got {name!r}")


def _meta(path: Path) -> dict[str, tuple[frozenset[int], frozenset[str]]]:
    """Of each video in YouTube-VOS' meta.json: its labels, and the frames that need results."""
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))["videos"]
        listed = {}
        for name, video in videos.items():
            objects = video["objects"]
            frames = {str(frame) for one in objects.values() for frame in one["frames"]}
            listed[str(name)] = frozenset(int(label) for label in objects), frozenset(frames)
        return listed
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f'{path}: wanted {{"videos": {{VIDEO: {{"objects": {{LABEL: {{"frames": [...]}}}}}}}}}} ({error!r})'
        ) from error


def _named(video: Video, labels: frozenset[int], frames: frozenset[str]) -> Video:
    lost = sorted(frames - {shot.name for shot in video.shots}, key=natural_key)
    if lost:
        raise DatasetError(f"{video.folder}: frame {lost[0]}, which meta.json names, is missing")
    return replace(_only(video, lambda shot: shot.name in frames), labels=labels)


def _only(video: Video, has_result: Callable[[Shot], bool]) -> Video:
    """The video with results of these shots alone."""
    return replace(video, shots=tuple(replace(shot, has_result=has_result(shot)) for shot in video.shots))


def _split_folders(root: Path) -> list[Path]:
    """The folders of splits in the root, or the root itself if it is one."""
    parts = [root / split for split in SPLITS if (root / split / "JPEGImages").is_dir()]
    is_split = root.name in SPLITS or any(root.glob("*meta.json"))
    return parts or ([root] if is_split and (root / "JPEGImages").is_dir() else [])


def _long_folder(root: Path) -> Path | None:
    for top in (root / "long_video", root):
        if top.name.startswith("long_video") and (top / "JPEGImages").is_dir():
            return top
    return None


def _split(split: str | None, existing: list[str], place: str) -> str:
    """``split``, or the first of SPLITS that exists. ``place``: where splits are, for an error."""
    splits = [s for s in SPLITS if s in existing] + sorted(set(existing) - set(SPLITS))
    if not splits or (split is not None and split not in splits):
        raise DatasetError(
            f"{place}: split {split!r} wanted, found {', '.join(splits) or 'none'}"
            if split
            else f"{place} wanted, found none"
        )
    return split or splits[0]


def _chosen(dataset: Dataset, names: Sequence[str]) -> tuple[Video, ...]:
    by_name = {video.name: video for video in dataset.videos}
    unknown = [name for name in names if name not in by_name]
    if unknown or not names:
        some = _first_names(list(by_name))
        raise DatasetError(f"videos: wanted some of {some}, got {', '.join(unknown) or 'none'}")
    return tuple(by_name[name] for name in dict.fromkeys(names))


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files by stem, in natural order."""
    if not folder.is_dir():
        return {}
    return {file.stem: file for file in image_files(folder, DatasetError, suffixes)}


def _range(frames: dict[str, Path]) -> str:
    stems = list(frames)
    return f"{stems[0]} to {stems[-1]}"


def _listing(folder: Path) -> str:
    """What is in a folder, in the words of an error."""
    if not folder.is_dir():
        return "no such folder"
    return _first_names([path.name for path in in_order(folder.iterdir())]) or "nothing"


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
