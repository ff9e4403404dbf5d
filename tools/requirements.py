"""Prints the requirements of an extra of pyproject.toml, its own extras resolved, one word each:
requirements.py EXTRA

Runs before anything is installed, so it reads pyproject.toml with what Python has (tomllib came
with 3.11).
"""

import re
import sys
from pathlib import Path


def lists(text: str) -> dict[str, list[str]]:
    """The lists of strings of the two tables that name requirements."""
    found = {}
    for name, body in re.findall(r"^(\w+) = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL):
        found[name] = re.findall(r'"([^"]+)"', re.sub(r"#.*", "", body))
    return found


def resolve(extra: str, known: dict[str, list[str]]) -> list[str]:
    words = []
    for requirement in known[extra]:
        own = re.fullmatch(r"xmemk\[([\w,]+)\]", requirement)
        parts = [word for name in own[1].split(",") for word in resolve(name, known)] if own else [requirement]
        words += parts
    return words


if __name__ == "__main__":
    known = lists((Path(__file__).parent.parent / "pyproject.toml").read_text())
    print(" ".join(dict.fromkeys(known["dependencies"] + resolve(sys.argv[1], known))))
