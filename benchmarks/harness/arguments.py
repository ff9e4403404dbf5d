"""What the command lines of the benchmarks share: options of the studies, types of arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from xmemk.benchmarks.report import terminal

QUIET = "no tables, what goes on alone"


def study(description: str | None, quick: str) -> argparse.ArgumentParser:
    """A parser with the options that the studies share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--budget", type=positive, metavar="SECONDS", help="end within so many; say what is left out")
    parser.add_argument("--threads", type=count)
    parser.add_argument("--save", type=result_file, metavar="FILE", help="append the results, a line of JSON")
    parser.add_argument("--quiet", action="store_true", help=QUIET)
    return parser


def parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """The options; torch has the threads asked for."""
    options = parser.parse_args(words)
    terminal.quiet = options.quiet
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
