"""Small figures on logarithmic axes, as SVG inside a page: no library, nothing loaded."""

import math
from html import escape

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 42


def figure(title, xlabel, ylabel, *, lines=(), bands=(), points=(), marks=(), linear_x=False, linear_y=False):
    """An SVG of ``lines`` [(name, xs, ys, dashed)], ``bands`` [(xs, lows, highs)], ``points`` [(x, low, y, high)] and
    upright ``marks`` [(x, words)]. Both axes are logarithmic unless told otherwise; values must be above 0 there.
    ``title`` says what it shows to whoever cannot see it.
    """
    xs = [x for _, line, _, _ in lines for x in line] + [p[0] for p in points] + [x for x, _ in marks]
    ys = [y for _, _, line, _ in lines for y in line] + [v for p in points for v in p[1:]]
    ys += [v for _, low, high in bands for v in (*low, *high)]
    ys = [y for y in ys if math.isfinite(y) and (linear_y or y > 0)]
    if not xs or not ys:
        return ""
    across, down = _axis(xs, LEFT, WIDTH - RIGHT, linear_x), _axis(ys, HEIGHT - BOTTOM, TOP, linear_y)
    x0, x1, y0, y1 = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value, words in _ticks(xs, linear_x):
        x = across(value)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {y0}V{y1}"/><text x="{x:.1f}" y="{y0 + 15}" class="mid">{words}</text>'
        )
    for value, words in _ticks(ys, linear_y):
        y = down(value)
        parts.append(
            f'<path class="grid" d="M{x0} {y:.1f}H{x1}"/><text x="{x0 - 5}" y="{y + 4:.1f}" class="end">{words}</text>'
        )
    for line, low, high in bands:
        edge = [*zip(line, high, strict=True), *reversed(list(zip(line, low, strict=True)))]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in edge if math.isfinite(y))
        parts.append(f'<polygon class="band" points="{path}"/>')
    for place, (name, line, values, dashed) in enumerate(lines):
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(line, values, strict=True) if math.isfinite(y))
        parts.append(f'<polyline class="line{" dashed" if dashed else ""}" points="{path}"/>')
        if name:
            parts.append(
                f'<text x="{x0 + 8}" y="{y0 - 23 + 15 * place}">{"- - " if dashed else "—— "}{escape(name)}</text>'
            )
    for x, low, y, high in points:
        low, high = (v if math.isfinite(v) and (linear_y or v > 0) else y for v in (low, high))
        parts.append(f'<path class="bar" d="M{across(x):.1f} {down(low):.1f}V{down(high):.1f}"/>')
        parts.append(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3"/>')
    for x, words in marks:
        side = "end" if across(x) > WIDTH / 2 else "start"
        shift = -4 if side == "end" else 4
        parts.append(f'<path class="mark" d="M{across(x):.1f} {y0}V{y1}"/>')
        parts.append(f'<text class="{side}" x="{across(x) + shift:.1f}" y="{y1 + 10}">{escape(words)}</text>')
    parts.append(f'<text class="mid" x="{(x0 + x1) / 2}" y="{HEIGHT - 6}">{escape(xlabel)}</text>')
    parts.append(
        f'<text class="mid" transform="translate(11 {(y0 + y1) / 2}) rotate(-90)">{escape(ylabel)}</text></svg>'
    )
    return "".join(parts)


def _axis(values, start, end, linear=False):
    low, high = min(values), max(values)
    scale = (lambda v: v) if linear else math.log
    low, high = scale(low), scale(high)
    pad = 0.04 * (high - low) or 0.5
    low, high = low - pad, high + pad
    return lambda value: start + (scale(value) - low) / (high - low) * (end - start)


def _ticks(values, linear=False):
    """(value, words) of some four ticks: powers of ten, or of two where those are too few, or round numbers."""
    low, high = min(values), max(values)
    if linear:
        step = 10 ** math.floor(math.log10((high - low) or 1.0))
        step *= next((k for k in (1, 2, 5) if (high - low) / (step * k) <= 5), 10)
        at = [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    else:
        at = [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
        if len(at) < 3:
            at = [k * 10.0**p for p in range(-12, 13) for k in (1, 2, 5) if low <= k * 10.0**p <= high]
        at = at[:: max(1, len(at) // 5)]
    return [(value, _words(value)) for value in at]


def _words(value):
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}"
