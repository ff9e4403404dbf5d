"""What mkdocs is told while it builds the site: pages to list, links and roles to drop. See
mkdocs.yml.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
BESIDE = (("Benchmarks", "benchmarks.md"), ("How it is verified", "verification.md"))
_ROLE = re.compile(r":(?:func|class|mod|meth|attr):(?=<code>)")
_TARGET = re.compile(r"(?<=<code>)[~.]+(?=[\w])")


def on_config(config: Any) -> Any:
    """Lists pages that are kept elsewhere in the repository's life: benchmarks, verification,
    design.
    """
    listed = [{title: name} for title, name in BESIDE if (DOCS / name).exists()]
    design = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / "design").glob("*.md"))
    config["nav"] = [*config["nav"], *listed, *([{"Design": design}] if design else [])]
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links from docs/ to files outside of it become their names: the site does not hold those
    files.
    """

    def name(match: re.Match[str]) -> str:
        target = (DOCS / page.file.src_uri).parent / match[2].split("#")[0]
        outside = not match[2].startswith(("http", "#")) and DOCS not in target.resolve().parents
        return match[1] if outside else match[0]

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", name, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings name things as Sphinx does; here the name is enough."""
    return _TARGET.sub("", _ROLE.sub("", html))
