"""Results as the archive that a dataset's server takes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from .layouts import Dataset, DatasetError

# Whether the server of a layout wants Annotations/VIDEO/FRAME.png; else VIDEO/FRAME.png.
_IN_ANNOTATIONS = {"youtube": True, "lvos": True, "mose": False, "davis2017": False, "davis2016": False}


def expect_archive(dataset: Dataset, archive: Path, made: Path | None = None) -> None:
    """DatasetError where a dataset has no server; ValueError where the archive cannot be written there.

    made: a folder that will be there by then.
    """
    if dataset.layout not in _IN_ANNOTATIONS:
        raise DatasetError(f"zip: wanted a dataset with a server ({', '.join(_IN_ANNOTATIONS)}), got {dataset.layout}")
    if archive.exists() and not archive.is_file():
        raise ValueError(f"zip: wanted a file to write, got {archive}, which is there and no regular file")
    parent = archive.parent
    if not parent.is_dir() and (made is None or parent.resolve() != made.resolve()):
        raise ValueError(f"zip: wanted a file in a folder that there is, got {archive}")


def pack(dataset: Dataset, results: Path, archive: Path) -> int:
    """Writes a zip of the results that the dataset wants, for its server, and returns how many there are.

    All or nothing: a temporary file beside ``archive`` is written and renamed. DatasetError where a result is missing
    or the dataset has no server, ValueError as :func:`expect_archive`.
    """
    expect_archive(dataset, archive)
    top = "Annotations/" if _IN_ANNOTATIONS[dataset.layout] else ""
    names = [f"{video.name}/{shot.name}.png" for video in dataset.videos for shot in video.shots if shot.wanted]
    lost = [name for name in names if not (results / name).is_file()]
    if lost:
        raise DatasetError(f"{results}: {len(lost)} of {len(names)} results are missing, {lost[0]} first")
    temporary = archive.with_name(archive.name + ".part")
    try:
        # PNG is compressed already.
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
            for name in names:
                file.write(results / name, top + name)
        os.replace(temporary, archive)
    finally:
        temporary.unlink(missing_ok=True)
    return len(names)
