"""Results packed into the archive that a dataset's server accepts."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..data.whole_files import whole_file
from .layouts import Dataset, DatasetError

# Layouts with a server. True: it expects Annotations/VIDEO/FRAME.png; False: VIDEO/FRAME.png.
_IN_ANNOTATIONS = {"youtube": True, "lvos": True, "mose": False, "davis2017": False, "davis2016": False}


def expect_archive(dataset: Dataset, archive: Path, future: Path | None = None) -> None:
    """Raises DatasetError for a dataset without a server, ValueError for a path that cannot be
    written.

    future: a folder that will exist when the archive is written.
    """
    if dataset.layout not in _IN_ANNOTATIONS:
        raise DatasetError(f"zip: wanted a dataset with a server ({', '.join(_IN_ANNOTATIONS)}), got {dataset.layout}")
    if archive.exists() and not archive.is_file():
        raise ValueError(f"zip: wanted a file to write, got {archive}, which is there and no regular file")
    parent = archive.parent
    if not parent.is_dir() and (future is None or parent.resolve() != future.resolve()):
        raise ValueError(f"zip: wanted a file in a folder that there is, got {archive}")


def pack(dataset: Dataset, results: Path, archive: Path) -> int:
    """Writes a zip of the results for the dataset's server and returns their number.

    The file is replaced only when it is complete. Raises DatasetError where a result is missing,
    and what :func:`expect_archive` raises.
    """
    expect_archive(dataset, archive)
    top = "Annotations/" if _IN_ANNOTATIONS[dataset.layout] else ""
    names = [f"{video.name}/{shot.name}.png" for video in dataset.videos for shot in video.shots if shot.has_result]
    missing = [name for name in names if not (results / name).is_file()]
    if missing:
        raise DatasetError(f"{results}: {len(missing)} of {len(names)} results are missing, {missing[0]} first")
    # PNG is compressed already.
    with whole_file(archive) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as file:
        for name in names:
            file.write(results / name, top + name)
    return len(names)
