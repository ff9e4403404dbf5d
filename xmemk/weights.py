"""The networks that XMem's authors released: where they are, how they are fetched and checked,
where they are kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

ADDRESS = "https://github.com/hkchengrex/XMem/releases/download/v1.0"
LICENCE = "MIT licence, Ho Kei Cheng; https://github.com/hkchengrex/XMem"
CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
BEGINNINGS = (b"PK\x03\x04", b"\x80\x02")  # of what torch.save writes: a zip archive, before torch 1.6 a pickle
Progress = Callable[[int, int | None], None]


class WeightsError(OSError):
    """A download that failed; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class Release:
    """A released file. size, sha256: None where no public source that could be compared states
    them; then the sum of the first download is kept beside the file and later ones are held to it
    (trust on first use).
    """

    name: str
    about: str
    size: int | None = None
    sha256: str | None = None

    @property
    def file(self) -> str:
        return f"{self.name}.pth"


RELEASES = {
    release.name: release
    for release in (
        Release(
            "XMem",
            "the paper's network, trained on static images, DAVIS and YouTube-VOS",
            249_026_057,
            "27776291d2f0639b4e6b372a67651579b51180aa4d8f8f89bbff2dcc09ebf6f9",
        ),
        Release("XMem-s012", "the same, trained on the synthetic BL30K as well"),
        Release("XMem-no-sensory", "without sensory memory"),
        Release("XMem-with-mose", "trained on MOSE as well"),
    )
}


def folder() -> Path:
    """Where weights are kept: ``$XDG_CACHE_HOME/xmemk``, or ``~/.cache/xmemk``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xmemk"


def find(name: str = "XMem") -> Path:
    """The file of a release that is already there: in :func:`folder`, in ``saves``, where XMem's
    scripts put it, or here. FileNotFoundError that says how to get it.
    """
    release = _release(name)
    for place in (folder(), Path("saves"), Path()):
        if (place / release.file).is_file():
            return place / release.file
    raise FileNotFoundError(
        f"no {release.file} in {folder()}, saves or here: `xmemk weights` downloads it, or name a file with --weights"
    )


def fetch(
    name: str = "XMem", into: Path | None = None, *, address: str = ADDRESS, progress: Progress | None = None
) -> Path:
    """The file of a release in a folder, :func:`folder` by default; downloaded unless it is there
    and whole.

    A download that stops leaves ``<file>.part``, from which the next one goes on. progress: called
    with the bytes there are and the bytes there will be. WeightsError where it fails; ValueError
    for a name that is none.
    """
    release = _release(name)
    into = folder() if into is None else into
    target, part = into / release.file, into / f"{release.file}.part"
    by_hand = f"fetch {address}/{release.file} by other means and put it at {target}"
    if target.is_file():
        _check(release, target, f"delete it and run again, or {by_hand}")
        return target
    into.mkdir(parents=True, exist_ok=True)
    try:
        _download(f"{address}/{release.file}", part, progress, by_hand)
    except urllib.error.HTTPError as error:
        raise WeightsError(
            f"{address}/{release.file}: the server says {error.code} {error.reason}; {by_hand}"
        ) from None
    except urllib.error.URLError as error:
        raise WeightsError(f"{address} cannot be reached ({error.reason}): {by_hand}") from None
    except (HTTPException, TimeoutError, ConnectionError) as error:
        why = str(error) or type(error).__name__
        raise WeightsError(f"{release.file}: the download stopped ({why}); run again, and it goes on") from None
    try:
        _check(release, part, f"nothing was kept; run again, or {by_hand}")
    except WeightsError:
        part.unlink()
        raise
    part.replace(target)
    return target


def _release(name: str) -> Release:
    release = RELEASES.get(name.removesuffix(".pth"))
    if release is None:
        raise ValueError(f"wanted one of {', '.join(RELEASES)}, got {name!r}")
    return release


def _download(url: str, part: Path, progress: Progress | None, by_hand: str) -> None:
    """The rest of a file, at the end of ``part``."""
    there = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # no such range: all of it is there, or another file is
            raise
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if total and int(total[1]) == there:
            return None
        part.unlink()
        return _download(url, part, progress, by_hand)
    with answer:
        kind = answer.headers.get_content_type()
        if kind.startswith("text/"):
            raise WeightsError(f"{url}: a page ({kind}) came instead of the file, from a proxy perhaps; {by_hand}")
        ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        goes_on = answer.status == 206 and ranged is not None and int(ranged[1]) == there
        length = answer.headers.get("Content-Length")
        there = there if goes_on else 0
        total_bytes = None if length is None else there + int(length)
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                there += len(chunk)
                if progress is not None:
                    progress(there, total_bytes)
    if total_bytes is not None and there < total_bytes:
        raise ConnectionError(f"{there:,} of {total_bytes:,} bytes came")
    return None


def _check(release: Release, file: Path, otherwise: str) -> None:
    """WeightsError unless the file is the release's; its sum is kept where none is known."""
    with file.open("rb") as opened:
        if not opened.read(4).startswith(BEGINNINGS):
            raise WeightsError(f"{file}: not a file that torch.save wrote; {otherwise}")
    if release.size is not None and file.stat().st_size != release.size:
        raise WeightsError(f"{file}: wanted {release.size:,} bytes, got {file.stat().st_size:,}; {otherwise}")
    kept = file.with_name(f"{release.file}.sha256")
    checksum = release.sha256 or (kept.read_text().split()[0] if kept.is_file() else None)
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    if checksum is None:
        kept.write_text(f"{digest.hexdigest()}  {release.file}\n")  # as sha256sum -c reads it
    elif digest.hexdigest() != checksum:
        raise WeightsError(f"{file}: wanted the checksum {checksum}, got {digest.hexdigest()}; {otherwise}")
