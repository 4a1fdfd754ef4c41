"""Bars as SVG: one group for each row of a table, each group on a scale of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

COLOURS = {"roostmq": "#c2410c", "null": "#94a3b8", "bare": "#94a3b8"}
OTHER = "#475569"
WIDTH, LABEL, BAR, GAP = 860, 170, 15, 26

PLOTS = Path(__file__).resolve().parents[1] / "docs" / "plots"

Group = tuple[str, Sequence[tuple[str, float]]]


def bars(path: Path, groups: Sequence[Group]) -> None:
    """Write the picture."""
    body, y = [], 10
    for title, values in groups:
        body.append(f'<text x="10" y="{y + 12}" font-weight="bold">{escape(title)}</text>')
        y += 20
        most = max((value for _, value in values), default=0) or 1
        for name, value in values:
            width = max(1.0, value / most * (WIDTH - LABEL - 110))
            colour = COLOURS.get(name.split()[0], OTHER)
            body.append(f'<text x="{LABEL - 6}" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
            body.append(f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{colour}"/>')
            body.append(f'<text x="{LABEL + width + 5:.1f}" y="{y + 11}">{value:,.4g}</text>')
            y += BAR
        y += GAP - BAR
    path.parent.mkdir(parents=True, exist_ok=True)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="11">'
    )
    ground = f'<rect width="{WIDTH}" height="{y}" fill="white"/>'
    path.write_text("\n".join([head, ground, *body, "</svg>"]) + "\n")
