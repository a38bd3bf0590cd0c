"""Plots as SVG text for a page of ours: colours come from the page's CSS (classes a, b), numbers only go in, so nothing needs escaping."""

from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 40
Series = Sequence[Sequence[float]]  # one or two: A, then B


def histogram(values: Series, edges: Sequence[float], labels: Sequence[str], x_title: str, alt: str) -> str:
    """Counts between the edges, A and B beside each other. labels: one for each edge, may be empty."""
    counts = [np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] for v in values]
    top = _round_up(max(int(count.max()) for count in counts))
    step = (WIDTH - LEFT - RIGHT) / (len(edges) - 1)
    parts = [_y_axis([(tick, f"{tick:,.0f}") for tick in _ticks(top)], top)]
    for side, count in zip("ab", counts, strict=False):
        width = step * 0.84 / len(counts)
        for n, value in enumerate(count):
            height = (HEIGHT - TOP - BOTTOM) * int(value) / top
            x = LEFT + step * (n + 0.08) + (width if side == "b" else 0)
            if value:
                parts.append(
                    f'<rect class="{side}" x="{x:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
                    f"<title>{int(value)}</title></rect>"
                )
    parts += [_x_label(LEFT + step * n, label) for n, label in enumerate(labels) if label]
    return _svg([*parts, _x_title(x_title)], alt)


def curves(values: Series, x_title: str, alt: str) -> str:
    """Lines through values between 0 and 1 at 1, 2, 3, …"""
    last = len(values[0])
    low = 0.0 if min(min(v) for v in values) < 0.5 else 0.5
    parts = [_y_axis([(tick, f"{tick:g}") for tick in np.linspace(low, 1, 6)], 1.0, low)]
    for side, line in zip("ab", values, strict=False):
        points = " ".join(f"{_x((n - 1) / max(last - 1, 1)):.1f},{_y(v, 1.0, low):.1f}" for n, v in enumerate(line, 1))
        parts.append(f'<polyline class="{side}" points="{points}"/>')
    parts += [_x_label(_x((n - 1) / max(last - 1, 1)), str(n)) for n in (1, 5, 10, 20, 30, 40, 50) if n <= last]
    return _svg([*parts, _x_title(x_title)], alt)


def scatter(a: Sequence[float], b: Sequence[float], measure: str, alt: str) -> str:
    """Each question's value with A (across) and with B (up); larger dots where several lie."""
    ticks = [(tick, f"{tick:g}") for tick in np.linspace(0, 1, 6)]
    parts = [_y_axis(ticks, 1.0), f'<line class="even" x1="{_x(0)}" y1="{_y(0, 1)}" x2="{_x(1)}" y2="{_y(1, 1)}"/>']
    places, counts = np.unique(np.round(np.column_stack([a, b]), 2), axis=0, return_counts=True)
    for (x, y), count in zip(places, counts, strict=True):
        side = "b" if y > x else "a" if y < x else "same"
        radius = min(3 + 1.2 * np.sqrt(count - 1), 12)
        parts.append(
            f'<circle class="{side}" cx="{_x(x):.1f}" cy="{_y(y, 1):.1f}" r="{radius:.1f}">'
            f"<title>A {x:.2f}, B {y:.2f}: {count}</title></circle>"
        )
    parts += [_x_label(_x(tick), label) for tick, label in ticks]
    return _svg([*parts, _x_title(f"{measure} with A (up: with B)")], alt)


def _svg(parts: Sequence[str], alt: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{alt}">{"".join(parts)}</svg>'


def _x(share: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * float(share)


def _y(value: float, top: float, low: float = 0.0) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (float(value) - low) / (top - low)


def _y_axis(ticks: Sequence[tuple[float, str]], top: float, low: float = 0.0) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" y1="{_y(tick, top, low):.1f}" x2="{WIDTH - RIGHT}" y2="{_y(tick, top, low):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{_y(tick, top, low) + 4:.1f}" text-anchor="end">{label}</text>'
        for tick, label in ticks
    )


def _x_label(x: float, label: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{label}</text>'


def _x_title(title: str) -> str:
    return f'<text class="title" x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{title}</text>'


def _round_up(value: int) -> int:
    """The next 1, 2, 4, 5, 6, 8 or 10 times a power of ten."""
    power: int = 10 ** (len(str(max(value, 1))) - 1)
    return next(step * power for step in (1, 2, 4, 5, 6, 8, 10) if step * power >= max(value, 1))


def _ticks(top: int) -> list[int]:
    parts = next((n for n in (5, 4, 3, 2) if top % n == 0), 1)
    return [top * n // parts for n in range(parts + 1)]
