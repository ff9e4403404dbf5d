"""Command lines of the benchmarks: what is wrong with one is a sentence, exit code 2."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch


class Parser(argparse.ArgumentParser):
    """argparse's, but that an error is one sentence without the usage before it."""

    def __init__(self, description: str | None = None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"wanted one of {known}, got {value!r}")


class StudyParser(Parser):
    """The options that the studies share. ``order``: what a process of a study was started for."""

    def __init__(self, description: str | None, quick: str) -> None:
        super().__init__(description)
        self.add_argument("--quick", action="store_true", help=quick)
        self.add_argument("--threads", type=count)
        self.add_argument("--save", type=result_file, metavar="FILE", help="append the results, a line of JSON")
        self.add_argument("--order", type=json.loads, help=argparse.SUPPRESS)

    def parse(self, words: Sequence[str] | None) -> argparse.Namespace:
        """The options; torch has the threads asked for."""
        options = self.parse_args(words)
        if options.threads:
            torch.set_num_threads(options.threads)
        return options


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"wanted a number above 0, got {text!r}")
    return number


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number above 0, got {text!r}")
    return int(text)


def device(text: str) -> str:
    """The CPU, or an NVIDIA GPU that is there."""
    name, _, index = text.partition(":")
    if name not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise argparse.ArgumentTypeError(f"wanted cpu, cuda or cuda:INDEX, got {text!r}")
    if name == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"no NVIDIA GPU {index or 0} here; --device cpu --try tries the script")
    return text


def result_file(text: str) -> Path:
    """A file that lines can be appended to: tried before hours of measuring, not after."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as wrong:
        raise argparse.ArgumentTypeError(f"wanted a file to append to, got {text!r}: {wrong.strerror}") from wrong
    return path
