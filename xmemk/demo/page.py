"""The demo's page: one self-contained HTML file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from .records import ReadTotals


def write_page(path: Path, report: Any, totals: ReadTotals, video: Path, sheet: Path, plots: str) -> None:
    """Writes the page to ``path``, with the video and the contact sheet embedded."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(ms=_milliseconds, mb=_megabytes)
    page = environment.get_template("page.html").render(
        r=report, t=totals, video=_embedded(video), sheet=_embedded(sheet), plots=Markup(plots)
    )
    path.write_text(page, encoding="utf-8")


def _embedded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.0f} MB"
