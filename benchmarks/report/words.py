"""Figures as a person reads them: three digits and a unit, and comparisons in words that follow the figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

SAME = 1.05  # ratios nearer to one than this are called equal


def figure(number: float, digits: int = 3) -> str:
    """``digits`` significant digits, thousands set apart, without an exponent."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    number = float(f"{number:.{digits}g}")
    return f"{number:,.{max(0, digits - 1 - math.floor(math.log10(abs(number))))}f}"


def number(value: float) -> str:
    """A count or a setting, whole where it is."""
    return f"{value:,.10g}"


def duration(seconds: float, digits: int = 3) -> str:
    """In microseconds, milliseconds, seconds or minutes."""
    for bound, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (300, 1, "s")):
        if float(f"{seconds:.{digits}g}") < bound:
            return f"{figure(factor * seconds, digits)} {unit}"
    return f"{figure(seconds / 60, digits)} min"


def size(count: float, digits: int = 3) -> str:
    """Bytes in kB, MB or GB of powers of ten."""
    for bound, factor, unit in ((1e6, 1e3, "kB"), (1e9, 1e6, "MB")):
        if float(f"{count:.{digits}g}") < bound:
            return f"{figure(count / factor, digits)} {unit}"
    return f"{figure(count / 1e9, digits)} GB"


def times(ratio: float) -> str:
    """A ratio: 23, 3.7, 1.05, 0.62."""
    return figure(ratio, 3 if 0.95 < ratio < 1.095 else 2)


def percent(share: float) -> str:
    return f"{figure(100 * share, 2)} %"


def speed(ratio: float, other: str) -> str:
    """How fast xmemk is against another, which takes ``ratio`` times as long."""
    if ratio >= SAME:
        return f"{times(ratio)} times as fast as {other}"
    if ratio <= 1 / SAME:
        return f"slower than {other}, which takes {times(ratio)} of xmemk's time"
    return f"about as fast as {other}"


def share(ours: float, theirs: float, other: str) -> str:
    """How much of what another takes, ``theirs``, ``ours`` is."""
    if theirs <= 0 or ours <= 0:
        return f"against {size(theirs)} of {other}"
    if ours > SAME * theirs:
        return f"{times(ours / theirs)} times the {size(theirs)} of {other}"
    if theirs > SAME * ours:
        return f"{percent(ours / theirs)} of the {size(theirs)} of {other}"
    return f"about the {size(theirs)} of {other}"


def span(low: float, high: float) -> str:
    """From low to high, once where they look alike."""
    return times(low) if times(low) == times(high) else f"{times(low)} to {times(high)}"


def listed(words: Sequence[str]) -> str:
    """a, b and c; where commas are in them, a, a; b, b; and c."""
    if len(words) < 2:
        return "".join(words)
    if any("," in word for word in words):
        return f"{'; '.join(words[:-1])}; and {words[-1]}"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def verb(subjects: Sequence[str], one: str, many: str) -> str:
    """The form of a verb for so many."""
    return one if len(subjects) == 1 else many


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1 case, 24,580 tokens."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
