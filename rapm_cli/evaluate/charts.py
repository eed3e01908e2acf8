"""Line charts as SVG, in the colours of the page that they are put into."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34  # margins that hold the axes' numbers and names
COLOURS = 6  # that the page has
POINTS = 400  # of a line; more are thinned by means of neighbours
TICKS = 4


@dataclass(frozen=True)
class Line:
    """A named line.

    Args:
        name: In the legend.
        values: One for each x.
    """

    name: str
    values: Sequence[float]


def line_chart(
    lines: Sequence[Line], xs: Sequence[float], x_name: str, *, has_points: bool = False, has_zero: bool = True
) -> str:
    """Lines over common xs; values that are not finite leave a gap.

    Args:
        lines: As many as the page has colours.
        xs: Rising.
        x_name: Below the axis.
        has_points: Mark every value, with its number as a tooltip.
        has_zero: Show zero, however far the values are from it.
    """
    assert len(lines) <= COLOURS
    thin = max(1, math.ceil(len(xs) / POINTS))
    at = _means(xs, thin)
    drawn = [(line.name, _means(line.values, thin)) for line in lines]
    finite = [value for _, values in drawn for value in values if math.isfinite(value)]
    ticks = _ticks(finite + [0.0] * (has_zero or not finite))
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        span = (at[-1] - at[0]) or 1
        across = (x - at[0]) / span if len(at) > 1 else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / (high - low) * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_spoken(drawn))}">']
    for tick in ticks:
        y = place(at[0], tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for x in _x_ticks(at):
        across = place(x, low)[0]
        parts.append(f'<text class="tick" x="{across:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{_short(x)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_name)}</text>')
    for k, (name, values) in enumerate(drawn, 1):
        parts.append(f'<path class="line colour-{k}" d="{_path([place(*p) for p in zip(at, values, strict=True)])}"/>')
        for x, value in zip(at, values, strict=True) if has_points else ():
            if math.isfinite(value):
                across, up = place(x, value)
                told = f"<title>{escape(f'{name}, {x_name} {_short(x)}: {value:.4g}')}</title>"
                parts.append(f'<circle class="point colour-{k}" cx="{across:.1f}" cy="{up:.1f}" r="4">{told}</circle>')
    return "".join(parts) + "</svg>"


def _means(values: Sequence[float], size: int) -> list[float]:
    return [math.fsum(part) / len(part) for k in range(0, len(values), size) if (part := values[k : k + size])]


def _path(points: list[tuple[float, float]]) -> str:
    """Straight from point to point; a gap where one is not finite."""
    words, is_pen_down = [], False
    for x, y in points:
        if math.isfinite(y):
            words.append(f"{'L' if is_pen_down else 'M'}{x:.1f} {y:.1f}")
        is_pen_down = math.isfinite(y)
    return "".join(words)


def _ticks(values: list[float]) -> list[float]:
    """Round numbers from below the lowest value to above the highest."""
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


def _spoken(drawn: list[tuple[str, list[float]]]) -> str:
    """What somebody who does not see it is told."""
    return "; ".join(f"{name}: from {values[0]:.3g} to {values[-1]:.3g}" for name, values in drawn if values)
