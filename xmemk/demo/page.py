"""The demo's page: one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from .memory_view import MemoryView
from .records import ReadTotals


def write_page(
    path: Path, report: Any, totals: ReadTotals, folder: Path, line: float, memory: MemoryView, plots: str
) -> None:
    """Writes the page to ``path``, with the film and the pictures of ``folder`` and of the memory
    embedded. line: where the original ends and the result begins at first, in percent.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(ms=_milliseconds, mb=_megabytes)
    page = environment.get_template("page.html").render(
        r=report,
        t=totals,
        video=_embedded((folder / "compare.mp4").read_bytes()),
        sheet=_embedded((folder / "contact.png").read_bytes()),
        usage=[(caption, _picture(picture)) for caption, picture in memory.usage],
        reading=[(caption, _picture(picture)) for caption, picture in memory.reading],
        memory=memory,
        line=round(line),
        plots=Markup(plots),
    )
    path.write_text(page, encoding="utf-8")


def _embedded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _picture(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return _embedded(buffer.getvalue())


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.0f} MB"
