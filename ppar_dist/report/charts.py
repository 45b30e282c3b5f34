"""Inline SVG charts for the report: text in, markup out, coloured by the page's CSS variables.

Drawn here rather than by a plotting library so that one file follows the reader's light or dark
theme, weighs a few kilobytes and can be read by a screen reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

MARGIN_LEFT, MARGIN_TOP, MARGIN_BOTTOM = 44, 22, 34
_SPOKEN = 12  # series whose last value a screen reader says
_CHARACTER = 7.1  # widest usual pixels of a label's letter


@dataclass(frozen=True)
class Series:
    """One line: points (x, y), an optional band (low, high) around it, and a CSS class.

    ``tone`` is one of ``main`` (the accent), ``second``, ``third`` (quieter, dashed) or ``context``.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str = "main"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Span:
    """A named stretch of the x axis, drawn as a band behind the lines."""

    label: str
    start: float
    end: float
    short: str = ""  # instead of a label that does not fit


def bin_mean(x: Sequence[float], y: Sequence[float], points: int = 200) -> tuple[list[float], list[float]]:
    """Average neighbours until at most ``points`` points are left; non-finite values are dropped."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    size = max(1, math.ceil(len(pairs) / points))
    bins = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [sum(a for a, _ in part) / len(part) for part in bins], [
        sum(b for _, b in part) / len(part) for part in bins
    ]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], about ``count`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A figure for people: 12k, 3.5, 0.02."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{round(value, 10):.4g}"


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    spans: Sequence[Span] = (),
    y_range: tuple[float | None, float | None] = (None, None),
    reference: float | None = None,
    width: int = 500,
    height: int = 210,
) -> Markup:
    """Lines over the steps, labelled at their ends; ``spans`` lie behind them.

    ``y_range`` fixes a bound where it is not None; ``reference`` draws a dotted horizontal line.
    Series of tone ``main`` are drawn on top.
    """
    drawn = [item for item in series if len(item.x)]
    if not drawn:
        return Markup('<p class="missing">not recorded</p>')
    frame = _Frame.around(drawn, spans, y_range, reference, (width, height))
    parts = [_spans(frame, spans), _axes(frame)]
    if reference is not None:
        parts.append(_rule("reference", frame, frame.py(reference)))
    parts += [_line(frame, item) for item in sorted(drawn, key=lambda item: item.tone == "main")]
    parts.append(_end_labels(frame, drawn))
    spoken = ", ".join(f"{item.label} {_last(item)}" for item in drawn[:_SPOKEN])
    return _svg(width, height, f"{title}; at the end: {spoken}", "".join(parts))


def matrix_chart(
    values: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    title: str,
    figure: Callable[[float], str] | None = None,
) -> Markup:
    """A square matrix of figures in [-1, 1]: the accent above 0, grey below, as text on top.

    ``figure`` makes the text; None: two decimals.
    """
    size = len(labels)
    cell = min(56, max(24, 420 // max(1, size)))
    left, top = 96, 76
    parts = []
    for i, row in enumerate(values):
        middle = (i + 0.5) * cell
        parts.append(_text(left - 8, top + middle + 4, "label end", labels[i]))
        turn = f' transform="translate({left + middle + 4},{top - 8}) rotate(-45)"'
        parts.append(f'<text class="label"{turn}>{escape(labels[i])}</text>')
        parts += [
            _cell(left + j * cell, top + i * cell, cell, value, f"{labels[i]}, {labels[j]}", figure or signed)
            for j, value in enumerate(row)
        ]
    return _svg(left + size * cell + 40, top + size * cell + 4, title, "".join(parts), fluid=False)


def bar_chart(values: Sequence[float], labels: Sequence[str], *, title: str) -> Markup:
    """Horizontal bars from 0, one per label, with their figures; negative values point left."""
    row, left, width = 26, 96, 420
    finite = [value for value in values if math.isfinite(value)]
    high, low = max([*finite, 1e-9]), min([*finite, 0.0])
    zero = left + width * (-low) / (high - low)
    parts = []
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = i * row
        parts.append(_text(left - 8, y + 17, "label end", label))
        if not math.isfinite(value):
            parts.append(_text(zero + 6, y + 17, "label quiet", "absent"))
            continue
        end = zero + width * value / (high - low)
        start, stop = min(zero, end), max(zero, end)
        box = f'x="{start:.1f}" y="{y + 5}" width="{max(1.0, stop - start):.1f}" height="16" rx="2"'
        parts.append(f'<rect class="bar" {box}/>')
        parts.append(_text(stop + 6, y + 17, "label figure", signed(value)))
    spoken = ", ".join(f"{name} {signed(value)}" for name, value in zip(labels, values, strict=True))
    return _svg(left + width + 60, len(labels) * row + 4, f"{title}: {spoken}", "".join(parts), fluid=False)


def signed(value: float) -> str:
    """Two decimals with a true minus sign."""
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class _Frame:
    """Pixel coordinates of a chart and the range of its axes."""

    x0: float
    x1: float
    y0: float
    y1: float
    right: float
    height: int

    @classmethod
    def around(
        cls,
        series: Sequence[Series],
        spans: Sequence[Span],
        y_range: tuple[float | None, float | None],
        reference: float | None,
        size: tuple[int, int],
    ) -> _Frame:
        """The frame that holds all series and spans, with some room where ``y_range`` sets no end."""
        xs = [x for item in series for x in item.x] + [
            edge for span in spans for edge in (span.start, span.end)
        ]
        ys = [y for item in series for part in (item.y, item.low or (), item.high or ()) for y in part]
        ys += [] if reference is None else [reference]
        low, high = min(ys), max(ys)
        room = 0.06 * (high - low) or max(abs(high) * 0.1, 0.1)
        y0 = low - room if y_range[0] is None else y_range[0]
        y1 = high + room if y_range[1] is None else y_range[1]
        x0, x1 = min(xs), max(xs)
        names = max(len(f"{item.label} {_last(item)}") for item in series)
        right = size[0] - 12 - _CHARACTER * names
        return cls(x0, x1 if x1 > x0 else x0 + 1, y0, y1 if y1 > y0 else y0 + 1, right, size[1])

    @property
    def bottom(self) -> int:
        return self.height - MARGIN_BOTTOM

    def px(self, x: float) -> float:
        return MARGIN_LEFT + (x - self.x0) / (self.x1 - self.x0) * (self.right - MARGIN_LEFT)

    def py(self, y: float) -> float:
        inside = min(max((y - self.y0) / (self.y1 - self.y0), 0.0), 1.0)
        return self.bottom - inside * (self.bottom - MARGIN_TOP)


def _svg(width: float, height: float, title: str, body: str, *, fluid: bool = True) -> Markup:
    style = "width:100%" if fluid else f"width:100%;max-width:{width:.0f}px"
    box = f"0 0 {width:.0f} {height:.0f}"
    label = escape(title)
    return Markup(f'<svg viewBox="{box}" style="{style}" role="img" aria-label="{label}">{body}</svg>')


def _text(x: float, y: float, css: str, content: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'


def _cell(x: float, y: float, size: int, value: float, names: str, text: Callable[[float], str]) -> str:
    tone = "cell-positive" if value >= 0 else "cell-negative"
    box = (
        f'x="{x}" y="{y}" width="{size - 2}" height="{size - 2}" rx="3" fill-opacity="{_opacity(value):.2f}"'
    )
    title = f"<title>{escape(names)}: {text(value) or 0}</title>"
    css = "cell-text strong" if value > 0.7 else "cell-text"
    figure = _text(x + size / 2 - 1, y + size / 2 + 3, css, text(value)) if size >= 34 else ""
    return f'<g class="cell">{title}<rect class="{tone}" {box}/>{figure}</g>'


def _axes(frame: _Frame) -> str:
    parts = []
    for value in ticks(frame.y0, frame.y1, 4):
        y = frame.py(value)
        parts.append(_rule("gridline", frame, y) + _text(MARGIN_LEFT - 6, y + 3.5, "tick end", number(value)))
    for value in ticks(frame.x0, frame.x1, 5):
        parts.append(_text(frame.px(value), frame.bottom + 14, "tick middle", number(value)))
    parts.append(_rule("axis", frame, frame.bottom))
    parts.append(_text((MARGIN_LEFT + frame.right) / 2, frame.height - 5, "tick middle", "step"))
    return "".join(parts)


def _rule(css: str, frame: _Frame, y: float) -> str:
    return f'<line class="{css}" x1="{MARGIN_LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _spans(frame: _Frame, spans: Sequence[Span]) -> str:
    parts = []
    for i, span in enumerate(spans):
        left, right = frame.px(span.start), frame.px(span.end)
        shade = "span-odd" if i % 2 else "span-even"
        box = f'x="{left:.1f}" y="{MARGIN_TOP}" width="{max(0.0, right - left):.1f}"'
        parts.append(f'<rect class="{shade}" {box} height="{frame.bottom - MARGIN_TOP}"/>')
        fitting = [text for text in (span.label, span.short) if text and right - left >= 6.2 * len(text)]
        if fitting:
            parts.append(_text((left + right) / 2, MARGIN_TOP - 7, "tick middle", fitting[0]))
    return "".join(parts)


def _line(frame: _Frame, item: Series) -> str:
    path = " ".join(f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in zip(item.x, item.y, strict=True))
    parts = []
    if item.low is not None and item.high is not None:
        upper = [f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in zip(item.x, item.high, strict=True)]
        lower = [f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in zip(item.x, item.low, strict=True)]
        parts.append(f'<polygon class="band {item.tone}" points="{" ".join(upper + lower[::-1])}"/>')
    parts.append(f'<polyline class="line {item.tone}" points="{path}"/>')
    if len(item.x) <= 24:
        parts += [
            f'<circle class="dot {item.tone}" cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}" r="2.6">'
            f"<title>{escape(item.label)}: {number(y)} at {number(x)}</title></circle>"
            for x, y in zip(item.x, item.y, strict=True)
        ]
    return "".join(parts)


def _end_labels(frame: _Frame, series: Sequence[Series]) -> str:
    """Names and last values right of the lines, pushed apart where they would overlap."""
    wanted = sorted((frame.py(item.y[-1]), i) for i, item in enumerate(series))
    placed: list[float] = []
    for y, _ in wanted:
        placed.append(max(y, placed[-1] + 13) if placed else max(y, MARGIN_TOP + 4))
    overflow = max(0.0, placed[-1] - frame.bottom)
    parts = []
    for (_, i), y in zip(wanted, placed, strict=True):
        item = series[i]
        x = max(frame.px(item.x[-1]), MARGIN_LEFT) + 7
        parts.append(
            f'<text class="label {item.tone}" x="{x:.1f}" y="{y - overflow + 4:.1f}">{escape(item.label)} '
            f'<tspan class="figure">{_last(item)}</tspan></text>'
        )
    return "".join(parts)


def _last(item: Series) -> str:
    return number(float(f"{item.y[-1]:.3g}"))


def _opacity(value: float) -> float:
    if not math.isfinite(value):
        return 0.0
    return 0.06 + (0.8 if value > 0 else 0.5) * min(1.0, abs(value))
