"""Figures as a person reads them: three significant digits and a unit."""

from __future__ import annotations

import math


def figure(number: float, digits: int = 3) -> str:
    """``digits`` significant digits, thousands set apart, without an exponent."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    number = float(f"{number:.{digits}g}")
    return f"{number:,.{max(0, digits - 1 - math.floor(math.log10(abs(number))))}f}"


def number(value: float) -> str:
    """A count or a setting, whole where it is."""
    return f"{value:,.10g}"


def _scaled(value: float, digits: int, units: tuple[tuple[float, float, str], ...]) -> str:
    """In the first unit (bound, divisor, name) whose bound is above the rounded value."""
    rounded = float(f"{value:.{digits}g}")
    _, divisor, unit = next((u for u in units if rounded < u[0]), units[-1])
    return f"{figure(value / divisor, digits)} {unit}"


def duration(seconds: float | None, digits: int = 3) -> str:
    """In microseconds, milliseconds, seconds or minutes; "" for None."""
    units = ((1e-3, 1e-6, "us"), (1.0, 1e-3, "ms"), (300.0, 1.0, "s"), (math.inf, 60.0, "min"))
    return "" if seconds is None else _scaled(seconds, digits, units)


def size(count: float | None, digits: int = 3) -> str:
    """Bytes in kB, MB or GB of powers of ten; "" for None."""
    units = ((1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (math.inf, 1e9, "GB"))
    return "" if count is None else _scaled(count, digits, units)


def times(ratio: float | None) -> str:
    """A ratio: 23, 3.7, 1.05, 0.62; "" for None."""
    return "" if ratio is None else figure(ratio, 3 if 0.95 < ratio < 1.095 else 2)


def percent(share: float | None) -> str:
    return "" if share is None else f"{figure(100 * share, 2)} %"


def exponent(value: float | None) -> str:
    """An error: 1.4e-06; "" for None."""
    return "" if value is None else f"{value:.1e}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1 case, 24,580 tokens."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
