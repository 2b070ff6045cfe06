"""Scatter charts as plain geometry: where ticks, dots and labels stand. Pure; the HTML template draws them.

Our own, because matplotlib takes longer to import than a fully cached build takes to run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 340
"""Size of a chart in CSS pixels."""
LEFT, RIGHT, TOP, BOTTOM = 66, 540, 16, 288
"""The frame in which dots stand; ticks and their axis' name are outside of it."""
_RADIUS = 6
_LETTER, _LINE = 6.2, 13  # width and height of the labels' letters, at 11 px
_GAP = 4  # between two labels
_TICKS = 6  # about as many on an axis
_LOG_FROM = 20.0  # greatest over least from which an axis is logarithmic
_OFFSETS: tuple[tuple[int, int, str], ...] = (
    *((dx, dy, anchor) for dy in (4, -9, 17) for dx, anchor in ((11, "start"), (-11, "end"))),
    (0, -11, "middle"),
    (0, 20, "middle"),
    *((dx, dy, anchor) for dy in (-23, 31, -37, 45) for dx, anchor in ((11, "start"), (-11, "end"))),
)
"""Of a label from its dot: dx, dy, anchor. The first that hits least is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is drawn as a dot.

    Attributes:
        title: the whole of it in words, for a pointer that rests on it and for screen readers.
        group: decides its colour.
        picked: drawn with a ring.
    """

    label: str
    title: str
    group: str
    x: float
    y: float
    picked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One dimension.

    Attributes:
        from_zero: it starts at 0, unless its values span so much that it is logarithmic.
        top: no tick beyond this.
    """

    name: str
    text: Callable[[float], str]
    from_zero: bool = True
    top: float = math.inf


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: its pixel along the axis, and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A point in its place: pixels of its centre, and of its label with the side it is anchored at."""

    point: Point
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Everything that is to be drawn."""

    title: str
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...]


def scatter(title: str, points: Sequence[Point], x: Axis, y: Axis) -> Chart:
    """Lay out a chart of at least one point; equal points give equal charts."""
    x_scale, y_scale = _scale(x, [point.x for point in points]), _scale(y, [point.y for point in points])
    placed = [(point, _across(x_scale(point.x)), _up(y_scale(point.y))) for point in points]
    return Chart(
        title=title,
        x_name=x.name,
        y_name=y.name,
        x_ticks=tuple(Tick(_across(x_scale(value)), x.text(value)) for value in x_scale.ticks),
        y_ticks=tuple(Tick(_up(y_scale(value)), y.text(value)) for value in y_scale.ticks),
        dots=_labelled(placed),
    )


def _across(share: float) -> float:
    return round(LEFT + share * (RIGHT - LEFT), 1)


def _up(share: float) -> float:
    return round(BOTTOM - share * (BOTTOM - TOP), 1)


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to shares of an axis, 0 to 1."""

    low: float
    high: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(each) if self.logarithmic else each for each in (self.low, self.high, value))
        return (value - low) / (high - low)


def _scale(axis: Axis, values: Sequence[float]) -> _Scale:
    least, greatest = min(values), max(values)
    if axis.from_zero and least > 0 and greatest / least >= _LOG_FROM:
        return _logarithmic(least, greatest)
    low = 0.0 if axis.from_zero else least
    if low == greatest:  # one value alone, or all the same: some room around it
        low, greatest = low - 0.01 * (abs(low) or 1), greatest + 0.01 * (abs(low) or 1)
    step = _step((greatest - low) / _TICKS)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(min(greatest + 0.05 * (greatest - low), axis.top) / step - 1e-9)
    ticks = tuple(round(number * step, 12) for number in range(first, last + 1))
    return _Scale(ticks[0], ticks[-1], False, ticks)


def _step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, … that is not under ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _logarithmic(least: float, greatest: float) -> _Scale:
    """Ticks at 1, 2, 5 times powers of ten, or at powers of ten alone where those would be too many."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(greatest)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        low = max((tick for tick in ticks if tick <= least), default=ticks[0])
        high = min((tick for tick in ticks if tick >= greatest), default=ticks[-1])
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _TICKS + 2:
            break
    return _Scale(low, high, True, tuple(ticks))


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _labelled(placed: Sequence[tuple[Point, float, float]]) -> tuple[Dot, ...]:
    """Give every dot a place for its label where it hits no dot and no other label, as far as there is one."""
    taken: list[_Box] = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for _, x, y in placed]
    dots = {}
    for position in sorted(range(len(placed)), key=lambda each: (placed[each][2], placed[each][1], each)):
        point, x, y = placed[position]
        width = len(point.label) * _LETTER + _GAP
        choices = [(x + dx, y + dy, anchor) for dx, dy, anchor in _OFFSETS]
        label_x, label_y, anchor = min(choices, key=lambda each: _hidden(_box(each[0], each[1], each[2], width), taken))
        taken.append(_box(label_x, label_y, anchor, width))
        dots[position] = Dot(point, x, y, round(label_x, 1), round(label_y, 1), anchor)
    return tuple(dots[position] for position in range(len(placed)))


def _box(x: float, y: float, anchor: str, width: float) -> _Box:
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return (left, y - _LINE + 3, left + width, y + 3)


def _hidden(box: _Box, taken: Sequence[_Box]) -> float:
    """Pixels of a label that hit something or stand outside of the chart."""
    outside = _shared(box, box) - _shared(box, (LEFT, TOP - 8, WIDTH, BOTTOM))
    return outside + sum(_shared(box, other) for other in taken)


def _shared(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
