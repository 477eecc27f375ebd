"""Bar and line charts as SVG text, so that a report needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 300  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 34, 46
COLOURS = ("#1b6ca8", "#d1603d", "#5a9367", "#8d6a9f", "#b8a13a", "#444444")


def _text(x: float, y: float, words: str, anchor: str = "middle", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'


def _nice_step(top: float) -> float:
    """1, 2 or 5 times a power of ten, giving at most seven ticks up to `top`."""
    magnitude = 10.0 ** math.floor(math.log10(top))
    return next(s * magnitude for s in (0.2, 0.5, 1.0, 2.0) if top / (s * magnitude) <= 7)


def _frame(title: str, top: float) -> list[str]:
    """Title, horizontal grid and its labels for values from 0 to `top`."""
    parts = [_text(WIDTH / 2, 18, title, size=13)]
    step = _nice_step(top)
    for i in range(int(top / step) + 1):
        y = _y(i * step, top)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 5, y + 4, f"{i * step:g}", "end"))
    return parts


def _y(value: float, top: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)


@dataclass
class Bars:
    """Groups of bars; `series` maps a name to one value for each group, None leaving a gap."""

    title: str
    groups: Sequence[str]
    series: dict[str, list[float | None]]

    def draw(self, colours: dict[str, str]) -> list[str]:
        top = 1.08 * max((v for values in self.series.values() for v in values if v), default=1.0)
        parts = _frame(self.title, top)
        group_width = (WIDTH - LEFT - RIGHT) / max(1, len(self.groups))
        bar = 0.8 * group_width / max(1, len(self.series))
        for i, group in enumerate(self.groups):
            x0 = LEFT + (i + 0.1) * group_width
            parts.append(_text(LEFT + (i + 0.5) * group_width, HEIGHT - BOTTOM + 16, group))
            for j, (name, values) in enumerate(self.series.items()):
                value = values[i]
                if value:
                    x, y = x0 + j * bar, _y(value, top)
                    box = f'x="{x:.1f}" y="{y:.1f}" width="{bar - 1:.1f}" height="{_y(0, top) - y:.1f}"'
                    parts.append(f'<rect {box} fill="{colours[name]}"/>')
                    parts.append(_text(x + bar / 2, y - 3, f"{value:.1f}", size=9))
        y = _y(1, top)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#333"/>')
        return parts


@dataclass
class Lines:
    """Curves through (x, y) points, both axes linear, y from 0."""

    title: str
    x_label: str
    series: dict[str, list[tuple[float, float]]]

    def draw(self, colours: dict[str, str]) -> list[str]:
        points = [p for curve in self.series.values() for p in curve] or [(0.0, 1.0)]
        top = 1.05 * max(y for _, y in points)
        low, high = min(x for x, _ in points), max(x for x, _ in points)
        parts = _frame(self.title, top)

        def at(x: float) -> float:
            return LEFT + 10 + (WIDTH - LEFT - RIGHT - 20) * (x - low) / ((high - low) or 1)

        for x in sorted({x for x, _ in points}):
            parts.append(_text(at(x), HEIGHT - BOTTOM + 15, f"{x:.3g}"))
        parts.append(_text(WIDTH / 2, HEIGHT - 10, self.x_label))
        for name, curve in self.series.items():
            path = " ".join(f"{at(x):.1f},{_y(y, top):.1f}" for x, y in sorted(curve))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
            for x, y in curve:
                centre = f'cx="{at(x):.1f}" cy="{_y(y, top):.1f}"'
                parts.append(f'<circle {centre} r="2.5" fill="{colours[name]}"/>')
        return parts


def figure(panels: Sequence[Bars | Lines]) -> str:
    """The panels side by side over one legend."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    width, height = WIDTH * len(panels), HEIGHT + 18 * math.ceil(len(names) / len(panels)) + 8
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" '
        f'viewBox="0 0 {width} {height}" width="{width}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        parts += [f'<g transform="translate({i * WIDTH} 0)">', *panel.draw(colours), "</g>"]
    for i, name in enumerate(names):
        x, y = LEFT + (i % len(panels)) * WIDTH, HEIGHT + 18 * (i // len(panels)) + 4
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colours[name]}"/>')
        parts.append(_text(x + 18, y + 10, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"
