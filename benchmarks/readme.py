"""The README's figures, between two marks, from the committed result files: `python benchmarks/readme.py [--check]`.

Every row names the line of the file that its figures come from; with --check nothing is written, and the exit code is 1
where README.md does not hold what the files say.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from xmemk.benchmarks.harness.arguments import Parser
from xmemk.benchmarks.report import conclusions, limits, reading
from xmemk.benchmarks.report import words as w
from xmemk.benchmarks.report.reading import Case, Place, Row

ROOT = Path(__file__).parent.parent
BEGIN = "<!-- figures: written by `python benchmarks/readme.py` from benchmarks/results -->"
END = "<!-- end of figures -->"
CASES = (
    ("read", "480p-full", 1),
    ("read", "480p-full", 5),
    ("read", "1080p-full", 1),
    ("dense", "480p-full", 1),
    ("consolidate", "480p-full", 1),
    ("select", "480p-full", 1),
    ("evict", "480p-full", 1),
    ("train", "480p-early", 1),
    ("train-dense", "480p-early", 1),
    ("frame", "full", 1),
)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where README.md differs")
    options = parser.parse_args(arguments)
    path = ROOT / "README.md"
    now = path.read_text(encoding="utf-8")
    wanted = with_figures(now, sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")))
    if options.check and now != wanted:
        sys.exit("README.md does not hold the figures of benchmarks/results: run python benchmarks/readme.py")
    if not options.check:
        path.write_text(wanted, encoding="utf-8")


def with_figures(text: str, files: list[Path]) -> str:
    """``text`` with the figures of the result files between its marks."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"README.md: wanted the marks {BEGIN} and {END}")
    places, _ = reading.read(files)
    return "\n".join([before + BEGIN, *(line for place in places for line in figures(place)), END + after])


def figures(place: Place) -> Iterator[str]:
    """The lines of one machine."""
    shown = [case for known in CASES if (case := place.case(*known)) and case.ours]
    if shown:  # what the words say of all
        alike = {name: getattr(shown[0], name) for name in ("dtype", "device", "threads")}
        shown = [case for known in CASES if (case := place.case(*known, **alike)) and case.ours]
    dates, commits = (sorted({getattr(case.source, name) for case in shown}) for name in ("date", "commit"))
    if shown:
        yield ""
        threads, versions = w.counted(shown[0].threads, "thread"), place.machine.get("versions", "")
        yield textwrap.fill(
            f"Medians of {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {w.verb(commits, 'commit', 'commits')} "
            f"{w.listed([commit.split()[-1] for commit in commits])}, on {place.name} with {threads} ({versions}), "
            f"{shown[0].dtype}. In brackets: how many times xmemk's time. Memory is what a call takes beyond its "
            'inputs. "tidy" is a short plain PyTorch, "original" the released code\'s formulation; their results are '
            f"equal to rounding. {''.join(said + ' ' for said in limits.slow_products(place))}The last column says the "
            "file and line of [benchmarks/results](benchmarks/results) that a row is from.",
            width=120,
        )
        yield ""
        yield "| | xmemk | fastest other way (who) | tidy | original | memory: xmemk, tidy, original | line |"
        yield "|---|---|---|---|---|---|---|"
        yield from map(_row, shown)
        yield ""
    said = [(sentence, claim.source) for claim in place.claims for sentence in conclusions.claimed([claim])]
    said += [(sentence, track.source) for track in place.tracks for sentence in conclusions.along([track])]
    yield from (f"- {sentence} ({source.place})" for sentence, source in said)
    if said:
        yield ""


def _row(case: Case) -> str:
    ours = case.ours
    assert ours is not None
    tidy = case.row("tidy PyTorch")
    original = next((row for row in case.timed if row.peer in ("original", "original (threshold)")), None)
    memory = ", ".join(
        "-" if row is None or row.extra_bytes is None else w.size(row.extra_bytes) for row in (ours, tidy, original)
    )
    objects = f", {w.counted(case.objects, 'object')}" if case.op not in ("select", "evict") else ""
    name = f"{conclusions.noun(case.op)}, {case.workload}{objects}"
    fastest = next(iter(case.rivals), None)
    cells = [name, w.duration(ours.time or 0.0), _other(case, fastest, named=True)]
    cells += [_other(case, tidy), _other(case, original)]
    return f"| {' | '.join(cells)} | {'' if memory == '-, -, -' else memory} | {case.source.place} |"


def _other(case: Case, row: Row | None, named: bool = False) -> str:
    if row is None:
        return ""
    ratio = case.ratio(row)
    name = f"{row.peer}: " if named else ""
    return f"{name}{w.duration(row.time or 0.0)}" + ("" if ratio is None else f" ({w.times(ratio)})")


if __name__ == "__main__":
    main()
