"""Line charts as SVG, in the colours of the page that they are put into."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34  # margins that hold the axes' numbers and names
COLOURS = 6  # line colours that the page has
POINTS = 400  # most points of a line; means of neighbours replace more
TICKS = 4  # least number of intervals on an axis


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        name: Label in the legend.
        values: Value for each x.
    """

    name: str
    values: Sequence[float]


def line_chart(
    lines: Sequence[Line], xs: Sequence[float], x_name: str, *, has_points: bool = False, has_zero: bool = True
) -> str:
    """Return lines over common xs as SVG; a value that is not finite leaves a gap.

    Args:
        lines: At most `COLOURS` lines.
        xs: Positions on the x axis, increasing.
        x_name: Label of the x axis.
        has_points: Whether every value has a point with a tooltip.
        has_zero: Whether the y axis contains zero.
    """
    assert len(lines) <= COLOURS
    thin = max(1, math.ceil(len(xs) / POINTS))
    at = _means(xs, thin)
    curves = [(line.name, _means(line.values, thin)) for line in lines]
    finite = [value for _, values in curves for value in values if math.isfinite(value)]
    ticks = _ticks(finite + [0.0] * (has_zero or not finite))
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        span = (at[-1] - at[0]) or 1
        across = (x - at[0]) / span if len(at) > 1 else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / (high - low) * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_alt_text(curves))}">']
    for tick in ticks:
        y = place(at[0], tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for x in _x_ticks(at):
        across = place(x, low)[0]
        parts.append(f'<text class="tick" x="{across:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{_short(x)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_name)}</text>')
    for k, (name, values) in enumerate(curves, 1):
        parts.append(f'<path class="line colour-{k}" d="{_path([place(*p) for p in zip(at, values, strict=True)])}"/>')
        for x, value in zip(at, values, strict=True) if has_points else ():
            if math.isfinite(value):
                across, up = place(x, value)
                tip = f"<title>{escape(f'{name}, {x_name} {_short(x)}: {value:.4g}')}</title>"
                parts.append(f'<circle class="point colour-{k}" cx="{across:.1f}" cy="{up:.1f}" r="4">{tip}</circle>')
    return "".join(parts) + "</svg>"


def _means(values: Sequence[float], size: int) -> list[float]:
    return [math.fsum(part) / len(part) for k in range(0, len(values), size) if (part := values[k : k + size])]


def _path(points: list[tuple[float, float]]) -> str:
    """Return the SVG path through points; it has a gap at a point that is not finite."""
    words, is_pen_down = [], False
    for x, y in points:
        if math.isfinite(y):
            words.append(f"{'L' if is_pen_down else 'M'}{x:.1f} {y:.1f}")
        is_pen_down = math.isfinite(y)
    return "".join(words)


def _ticks(values: list[float]) -> list[float]:
    """Return round numbers from at most the lowest value to at least the highest."""
    low, high = min(values), max(values)
    rough = (high - low or abs(high) or 1.0) / TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * k for k in range(first, max(last, first + 1) + 1)]


def _x_ticks(xs: Sequence[float]) -> list[float]:
    if len(xs) <= TICKS + 1:
        return list(xs)
    return [xs[round(k * (len(xs) - 1) / TICKS)] for k in range(TICKS + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _alt_text(curves: list[tuple[str, list[float]]]) -> str:
    """Return the chart's alt text."""
    return "; ".join(f"{name}: from {values[0]:.3g} to {values[-1]:.3g}" for name, values in curves if values)
