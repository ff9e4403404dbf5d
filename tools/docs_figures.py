"""The figures of docs/kernels.md as SVG: docs_figures.py writes them to docs/pictures."""

from __future__ import annotations

import random
from pathlib import Path

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
INK, MUTED, BLUE, ORANGE, GREEN = "#7a7f87", "#b9bec6", "#3b7dd8", "#e07b39", "#3f9b62"


class Figure:
    """Shapes on a canvas of a fixed size, in colours that serve light and dark pages."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-size="13" '
            f'font-family="system-ui, sans-serif"><title>{title}</title>'
        ]

    def box(self, x: float, y: float, w: float, h: float, fill: str = "none", line: str = INK) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="2" fill="{fill}" stroke="{line}"/>'
        )

    def text(self, x: float, y: float, words: str, anchor: str = "start", colour: str = INK) -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = INK, dash: str = "") -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>')

    def done(self) -> str:
        return "\n".join([*self.parts, "</svg>\n"])


def groups() -> str:
    """Top-k by groups: maxima, the best groups, their tokens rescored."""
    f, rng, k, size, count = Figure(720, 250, "Top-k by groups"), random.Random(4), 3, 8, 10
    scores = [[rng.random() for _ in range(size)] for _ in range(count)]
    best = sorted(range(count), key=lambda g: -max(scores[g]))[:k]
    tokens = sorted(((s, g, t) for g in best for t, s in enumerate(scores[g])), reverse=True)[:k]
    chosen = {(g, t) for _, g, t in tokens}
    f.text(0, 14, "scores of one query, in groups of consecutive tokens (16 in the kernel, 8 drawn)")
    for g in range(count):
        for t, s in enumerate(scores[g]):
            x, h = 4 + g * 71 + t * 8, 90 * s
            colour = ORANGE if (g, t) in chosen else BLUE if g in best else MUTED
            f.box(x, 120 - h, 6, h, colour, colour)
        f.box(1 + g * 71, 26, 66, 98, line=BLUE if g in best else MUTED)
        f.box(20 + g * 71, 150, 28, 20, BLUE if g in best else "none")
        f.line(34 + g * 71, 126, 34 + g * 71, 148, MUTED)
    f.text(0, 192, "1  each group's largest score is kept", colour=INK)
    f.text(0, 212, f"2  the k groups with the largest maxima (blue, k = {k}) hold the k best tokens", colour=BLUE)
    f.text(0, 232, "3  their tokens are rescored without cancellation; the k best remain (orange)", colour=ORANGE)
    return f.done()


def bar() -> str:
    """The C++ kernel's bar per query, which rises, and what passes it."""
    f, rng = Figure(720, 210, "A bar that rises"), random.Random(7)
    best: list[float] = []
    f.text(0, 14, "scores of one query, tile after tile of keys; the bar is the k-th best so far")
    bar = None
    for i in range(64):
        if i % 16 == 0:
            f.line(4 + i * 11, 24, 4 + i * 11, 160, MUTED, "2 3")
            bar = min(best) if len(best) == 5 else None
        s = rng.random()
        passes = bar is None or s > bar
        f.box(6 + i * 11, 160 - 120 * s, 7, 120 * s, ORANGE if passes else MUTED, ORANGE if passes else MUTED)
        best = sorted([*best, s], reverse=True)[:5]
        if bar is not None:
            f.line(4 + i * 11, 160 - 120 * bar, 15 + i * 11, 160 - 120 * bar, GREEN)
    f.text(0, 182, "orange: kept for the selection; grey: below the bar (green), seen once and left", colour=ORANGE)
    f.text(0, 202, "the further the scan, the fewer pass: most tiles cost a comparison a score")
    return f.done()


def first_look() -> str:
    """The first look: bounds from 8-bit scores, and the few tokens that get their float32 score."""
    f, rng = Figure(720, 232, "The first look in 8 bits"), random.Random(11)
    scores = [rng.random() for _ in range(36)]
    level, width = sorted(scores)[-4], 0.09  # of the bar, and of a bound to either side
    f.text(0, 14, "scores of one query: each grey line is where the 8-bit look says that a score must lie")
    height = 160 - 120 * level
    f.line(0, height, 720, height, GREEN)
    for i, score in enumerate(scores):
        x, look = 14 + 19.5 * i, score + width * (2 * rng.random() - 1)
        passes = look + width >= level
        top, bottom = 160 - 120 * (look + width), 160 - 120 * (look - width)
        f.line(x, top, x, bottom, ORANGE if passes else MUTED)
        f.line(x - 4, top, x + 4, top, ORANGE if passes else MUTED)
        if passes:
            y = 160 - 120 * score
            f.box(x - 3, y - 3, 6, 6, ORANGE, ORANGE)
    f.text(0, 182, "grey: the upper end lies below the bar (green), so the token cannot be among the k best")
    f.text(
        0, 202, "orange: it may be, and gets its float32 score (the dot), the very same bits as without", colour=ORANGE
    )
    f.text(0, 222, "one instruction makes 64 products of 8 bits; most tokens get nothing else")
    return f.done()


def certificate() -> str:
    """Split products and the bound that certifies a tile."""
    f = Figure(720, 190, "The certificate")
    for i, (name, colour) in enumerate((("high float16", BLUE), ("low float16", ORANGE))):
        f.box(4, 30 + 50 * i, 110, 34, colour, colour)
        f.text(59, 52 + 50 * i, name, "middle", "#fff")
    f.text(4, 18, "a float32 factor, split in two")
    f.line(120, 72, 156, 72)
    f.box(162, 40, 150, 64)
    f.text(237, 68, "5 or 6 products on", "middle")
    f.text(237, 86, "matrix units", "middle")
    f.line(318, 72, 354, 72)
    f.box(360, 40, 130, 64)
    f.text(425, 68, "error bound of", "middle")
    f.text(425, 86, "this tile: ok?", "middle")
    f.line(496, 58, 534, 40, GREEN)
    f.line(496, 86, 534, 112, ORANGE)
    f.text(540, 44, "yes: the scores stand", colour=GREEN)
    f.text(540, 118, "no: a fallback kernel,", colour=ORANGE)
    f.text(540, 134, "direct form of Eq. 2", colour=ORANGE)
    f.text(4, 170, "The bound is computed on the device from the numbers at hand. The host never waits for it.")
    return f.done()


def potentiation() -> str:
    """Selection of prototypes and potentiation, Eq. 3."""
    f, rng = Figure(720, 230, "Selection and potentiation"), random.Random(2)
    usage = [rng.random() ** 3 for _ in range(40)]
    chosen = sorted(range(40), key=lambda i: -usage[i])[:5]
    f.text(0, 14, "candidates: tokens of the frames that leave working memory, by usage")
    for i, u in enumerate(usage):
        colour = ORANGE if i in chosen else MUTED
        f.box(4 + i * 17.5, 90 - 62 * u, 12, 62 * u + 2, colour, colour)
    for n, i in enumerate(sorted(chosen)):
        x = 90 + n * 130
        for j in range(40):
            if abs(i - j) < 7:
                f.line(10 + j * 17.5, 94, x + 20, 150, MUTED)
        f.line(10 + i * 17.5, 94, x + 20, 150, ORANGE)
        f.box(x, 150, 40, 26, ORANGE, ORANGE)
    f.text(0, 200, "the P most used become prototypes (orange) and keep their keys", colour=ORANGE)
    f.text(0, 220, "their values and shrinkage become the mean of all candidates', weighted by affinity (Eq. 3)")
    return f.done()


def figures() -> dict[str, str]:
    """Name -> SVG."""
    drawn = {
        "groups": groups,
        "bar": bar,
        "first-look": first_look,
        "certificate": certificate,
        "potentiation": potentiation,
    }
    return {name: draw() for name, draw in drawn.items()}


if __name__ == "__main__":
    for name, svg in figures().items():
        (PICTURES / f"{name}.svg").write_text(svg)
