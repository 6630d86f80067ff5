"""Curves as SVG, on logarithmic axes: a straight line is a power, and its slope says which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 900, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 310, 40, 50
_COLOURS = (
    "#1f6feb",
    "#d1495b",
    "#2a9d5c",
    "#e08e0b",
    "#8250df",
    "#0aa2a8",
    "#b3618c",
    "#7a7f85",
    "#5c8001",
    "#a0522d",
)
Point = tuple[float, float]


class Axis(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value is on the picture."""
        share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return self.start + share * (self.end - self.start)

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """From the power of ten, or a fifth or a half of it, below all of them, to that above all."""
        low, high = min(values), max(values)
        ticks = _ticks(low / 10, high * 10)
        below = max((t for t in ticks if t <= low), default=low)
        above = min((t for t in ticks if t >= high and t > below), default=high)
        return cls(below, above, start, end)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two values."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def curves(title: str, across: str, up: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """An SVG document. Points that are not above 0 have no place on such axes, and are left out."""
    shown = {name: [(x, y) for x, y in points if x > 0 and y > 0] for name, points in lines.items()}
    shown = {name: points for name, points in shown.items() if points}
    xs = [x for points in shown.values() for x, _ in points] or [1.0]
    ys = [y for points in shown.values() for _, y in points] or [1.0]
    x_axis = Axis.of(xs, _LEFT, WIDTH - _RIGHT)
    y_axis = Axis.of(ys, HEIGHT - _BOTTOM, _TOP)
    body = [*_frame(title, across, up), *_grid(x_axis, y_axis)]
    for number, (name, points) in enumerate(shown.items()):
        body += _line(name, points, x_axis, y_axis, number)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *body,
            "</svg>",
            "",
        )
    )


def _frame(title: str, across: str, up: str) -> list[str]:
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    turned = f"translate(16 {(_TOP + HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)"
    return [
        f'<text x="{_LEFT}" y="22" font-size="15" fill="#1f2328">{escape(title)}</text>',
        f'<text x="{middle:.0f}" y="{HEIGHT - 10}" text-anchor="middle" fill="#57606a">{escape(across)}</text>',
        f'<text transform="{turned}" text-anchor="middle" fill="#57606a">{escape(up)}</text>',
    ]


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    drawn = []
    for tick in _thinned(_ticks(x_axis.low, x_axis.high)):
        x = x_axis.place(tick)
        drawn.append(f'<path d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}" stroke="#d0d7de"/>')
        drawn.append(
            f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle" fill="#57606a">{_told(tick)}</text>'
        )
    for tick in _thinned(_ticks(y_axis.low, y_axis.high)):
        y = y_axis.place(tick)
        drawn.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#d0d7de"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#57606a">{_told(tick)}</text>')
    return drawn


def _thinned(ticks: Sequence[float]) -> Sequence[float]:
    """Powers of ten alone, if there are too many to be read."""
    powers = [tick for tick in ticks if math.log10(tick) == round(math.log10(tick))]
    return powers if len(ticks) > 9 and len(powers) > 1 else ticks


def _told(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _line(name: str, points: Sequence[Point], x_axis: Axis, y_axis: Axis, number: int) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    dashes = "" if number < len(_COLOURS) else ' stroke-dasharray="5 3"'
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in sorted(points)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    legend = _TOP + 12 + 18 * number
    left = WIDTH - _RIGHT + 14
    return [
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places),
        f'<path d="M{left} {legend - 4}h18" stroke="{colour}" stroke-width="2"{dashes}/>',
        f'<text x="{left + 24}" y="{legend}" fill="#1f2328">{escape(name)}</text>',
    ]
