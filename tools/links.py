"""Checks the links of every Markdown page, offline: links.py [--external]

A link into the repository must lead to a file, and its anchor to a heading. With --external, links
to elsewhere are printed, which nothing here follows.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|srcset|href)=\"([^\"]+)\"|<(https?://[^>\s]+)>")
_BARE = re.compile(r"(?<![(<\"\w])https?://[^\s)>\"`]+")


def pages(root: Path = ROOT) -> list[Path]:
    """The Markdown pages that git knows, or all, where the folder is no checkout."""
    done = subprocess.run(["git", "ls-files", "*.md"], cwd=root, capture_output=True, text=True, check=False)
    names = done.stdout.split() if done.returncode == 0 and done.stdout else []
    return [root / name for name in names] if names else sorted(root.rglob("*.md"))


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links, outside of code."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    for match in _LINK.finditer(text):
        yield match[1] or match[2] or match[3]
    yield from (match[0].rstrip(".,;") for match in _BARE.finditer(text))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    slugs: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for title in re.findall(r"^#{1,6} +(.+?)\s*#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        slugs |= {slug, re.sub(r"-+", "-", slug)}
    return slugs


def broken(page: Path, root: Path = ROOT) -> Iterator[str]:
    """A sentence for every link of a page that leads nowhere in the repository."""
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{page.relative_to(root)}: {target}: no such file"
        elif root not in (file, *file.parents):
            yield f"{page.relative_to(root)}: {target}: outside of the repository"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{page.relative_to(root)}: {target}: no such heading"


def main() -> int:
    if sys.argv[1:] == ["--external"]:
        outward = {target for page in pages() for target in links(page) if target.startswith("http")}
        print("\n".join(sorted(outward)))
        return 0
    problems = [problem for page in pages() for problem in broken(page)]
    print("\n".join(problems) or f"{len(pages())} pages, no broken link")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
