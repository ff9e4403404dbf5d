"""The figures of README.md and docs/benchmarks.md, between two marks each, and the README's chart,
from the committed result files: `python benchmarks/readme.py [--check]`.

Every row of docs/benchmarks.md names the line of the file that its figures come from. With --check
nothing is written, and the exit code is 1 where a file does not hold what the results say.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from xmemk.benchmarks.report import headline, result_files, tables
from xmemk.benchmarks.report.formatting import counted
from xmemk.benchmarks.report.result_files import MachineResults
from xmemk.benchmarks.report.tables import ReportTable

ROOT = Path(__file__).parent.parent
FIGURES = "<!-- figures: written by `python benchmarks/readme.py` from benchmarks/results -->"
HEADLINE = "<!-- headline: written by `python benchmarks/readme.py` from benchmarks/results -->"
END = "<!-- end of figures -->"
CASES = (
    ("memory_read", "480p-full", 1),
    ("memory_read", "480p-full", 5),
    ("memory_read", "1080p-full", 1),
    ("memory_read_dense", "480p-full", 1),
    ("consolidate", "480p-full", 1),
    ("select_prototypes", "480p-full", 1),
    ("evict_lfu", "480p-full", 1),
    ("memory_read_train", "480p-early", 1),
    ("memory_read_dense_train", "480p-early", 1),
    ("frame", "full", 1),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a file differs")
    options = parser.parse_args(arguments)
    for name, right in files(sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))).items():
        path = ROOT / name
        now = path.read_text(encoding="utf-8") if path.exists() else ""
        if options.check and now != right:
            sys.exit(f"{name} does not hold the figures of benchmarks/results: run python benchmarks/readme.py")
        if not options.check:
            path.write_text(right, encoding="utf-8")


def files(results: list[Path]) -> dict[str, str]:
    """What the files should hold: path in the repository -> text."""
    machines, _ = result_files.read(results)
    first = headline.machine_of(machines)
    written = {f"docs/pictures/read-{scheme}.svg": headline.chart(first, scheme) for scheme in headline.SCHEMES}
    blocks = {
        "README.md": (HEADLINE, headline.lines(first)),
        "docs/benchmarks.md": (FIGURES, (line for machine in machines for line in figures(machine))),
    }
    for name, (mark, lines) in blocks.items():
        written[name] = with_figures((ROOT / name).read_text(encoding="utf-8"), mark, lines, name)
    return written


def with_figures(text: str, begin: str, lines: Iterable[str], name: str) -> str:
    """``text`` with these lines between its marks. name: of the file, for the error."""
    before, mark, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{name}: wanted the marks {begin} and {END}")
    return "\n".join([before + begin, *lines, END + after])


def figures(machine: MachineResults) -> Iterator[str]:
    """The lines of one machine."""
    shown = [case for known in CASES if (case := machine.case(*known)) and case.ours]
    if shown:  # the words are of all of them
        alike = {name: getattr(shown[0], name) for name in ("dtype", "device", "threads")}
        shown = [case for known in CASES if (case := machine.case(*known, **alike)) and case.ours]
        runs = [case.source.run for case in shown if case.source]
        dates, commits = sorted({run.date for run in runs}), sorted({run.commit.split()[-1] for run in runs})
        yield ""
        yield textwrap.fill(
            f"Medians of {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(commits)}, on "
            f"{machine.name} with {counted(shown[0].threads, 'thread')} ({machine.machine.get('versions', '')}), "
            f"{shown[0].dtype}. In brackets: how many times xmemk's time. Memory is what a call takes beyond its "
            'inputs. "tidy" is a short plain PyTorch, "original" the released code\'s formulation; their results are '
            f"equal to rounding. {tables.ON_AMD + ' ' if tables.on_amd(machine) else ''}The last column says the "
            "file and line of [benchmarks/results](../benchmarks/results) that a row is from.",
            width=100,
            break_on_hyphens=False,
        )
        yield from markdown(tables.summary(shown))
    for table, hidden in ((tables.claims(machine.claims), "how"), (tables.tracks(machine.tracks), None)):
        yield from markdown(table, hidden)
    yield ""


def markdown(table: ReportTable, hidden: str | None = None) -> Iterator[str]:
    """The lines of a table, without the column ``hidden``; none where it has no rows."""
    columns = [i for i, name in enumerate(table.columns) if name != hidden]
    head: list[Sequence[str]] = [table.columns, tuple("---:" if align == "r" else "---" for align in table.align)]
    if table.rows:
        yield ""
        yield from (f"| {' | '.join(row[i] for i in columns)} |" for row in (*head, *table.rows))


if __name__ == "__main__":
    main()
