"""The pages that users read, and what is in them to be run."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "design" not in p.parts)]


class Block(NamedTuple):
    """A block of code: its page's path in the repository, its place among the page's, its lines."""

    page: str
    number: int
    text: str


def blocks(language: str) -> list[Block]:
    """The blocks of a language, of all pages."""
    listed = []
    for page in PAGES:
        texts = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
        listed += [Block(page.relative_to(ROOT).as_posix(), number, text) for number, text in enumerate(texts)]
    return listed


def commands() -> dict[str, str]:
    """Each command that a page has, without its comment -> the first page that has it."""
    where: dict[str, str] = {}
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", "").splitlines():
            if command := re.sub(r"\s+#.*", "", line).strip():
                where.setdefault(command, block.page)
    for page in PAGES:
        for command in re.findall(r"`((?:make|xmemk|python|pip) [^`\n]+)`", page.read_text()):
            where.setdefault(command, page.relative_to(ROOT).as_posix())
    return where
