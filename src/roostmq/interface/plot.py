"""Lines as SVG, without a library: panels side by side under one legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log

WIDTH, HEIGHT = 430, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 34, 40
COLOURS = ("#94a3b8", "#2563eb", "#7c3aed", "#15803d", "#c2410c", "#475569")
TICKS_MAX = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: for each name in the legend its values, one for each x; None leaves a gap at the beginning."""

    title: str
    x_title: str
    xs: Sequence[int]
    lines: Sequence[Sequence[float | None]]
    low: float
    high: float
    unit: str = ""
    logarithmic: bool = False


def draw(panels: Sequence[Panel], names: Sequence[str]) -> str:
    """The picture as the text of an SVG file."""
    width, height = WIDTH * len(panels), HEIGHT + 18 * len(names) + 10
    body = [part for i, panel in enumerate(panels) for part in _panel(panel, i * WIDTH)]
    for i, name in enumerate(names):
        y, colour = HEIGHT + 14 + 18 * i, COLOURS[i % len(COLOURS)]
        body.append(
            f'<line x1="{LEFT}" x2="{LEFT + 28}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="3"/>'
        )
        body.append(f'<text x="{LEFT + 36}" y="{y}">{escape(name)}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *body, "</svg>"]) + "\n"


def _panel(panel: Panel, x0: int) -> list[str]:
    inner, first = WIDTH - LEFT - RIGHT, panel.xs[0]
    span = max(1, panel.xs[-1] - first)

    def x_of(x: int) -> float:
        return x0 + LEFT + (x - first) * inner / span

    def y_of(value: float) -> float:
        low, high, at = panel.low, panel.high, min(max(value, panel.low), panel.high)
        part = log(at / low) / log(high / low) if panel.logarithmic else (at - low) / (high - low)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{x0 + LEFT}" y="18" font-weight="bold">{escape(panel.title)}</text>']
    for value in _marks(panel):
        y = y_of(value)
        parts.append(f'<line x1="{x0 + LEFT}" x2="{x0 + WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{x0 + LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}{panel.unit}</text>')
    for x in panel.xs[:: max(1, -(-len(panel.xs) // TICKS_MAX))]:
        parts.append(f'<text x="{x_of(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x}</text>')
    parts.append(
        f'<text x="{x0 + LEFT + inner / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(panel.x_title)}</text>'
    )
    for i, line in enumerate(panel.lines):
        dots = [(x_of(x), y_of(v)) for x, v in zip(panel.xs, line, strict=True) if v is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in dots]
    return parts


def _marks(panel: Panel) -> list[float]:
    """Values with a line across: doublings, or five even parts."""
    if not panel.logarithmic:
        return [panel.low + (panel.high - panel.low) * i / 5 for i in range(6)]
    marks = [panel.low]
    while marks[-1] * 2 <= panel.high:
        marks.append(marks[-1] * 2)
    return marks
