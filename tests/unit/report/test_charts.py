from __future__ import annotations

import itertools

import pytest

from pipeline.report import charts
from pipeline.report.charts import Axis, Chart, Dot, Point

X = Axis(name="x", text=str)


def point(x: float, y: float, label: str = "onnx_int8") -> Point:
    return Point(label=label, title=label, group="fp32", x=x, y=y)


def scatter(*points: Point, x: Axis = X, y: Axis = X) -> Chart:
    return charts.scatter("title", points, x, y)


def box(dot: Dot) -> tuple[float, float, float, float]:
    width = 6 * len(dot.point.label)
    left = dot.label_x - {"start": 0, "middle": width / 2, "end": width}[dot.anchor]
    return left, dot.label_y - 9, left + width, dot.label_y


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_dots_stand_where_their_values_are() -> None:
    chart = scatter(point(0.55, 1000), point(0.9, 1900))
    assert [tick.text for tick in chart.x_ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [tick.text for tick in chart.y_ticks] == ["0.0", "500.0", "1000.0", "1500.0", "2000.0"]
    assert (chart.x_ticks[0].at, chart.x_ticks[-1].at) == (charts.LEFT, charts.RIGHT)
    assert (chart.y_ticks[0].at, chart.y_ticks[-1].at) == (charts.BOTTOM, charts.TOP)
    left, right = chart.dots
    assert left.x == pytest.approx(charts.LEFT + 0.55 * (charts.RIGHT - charts.LEFT), abs=0.1)
    assert left.y == chart.y_ticks[2].at
    assert right.y < left.y  # up is more


def test_a_wide_range_is_logarithmic() -> None:
    chart = scatter(point(0.5, 1), point(50, 2))
    assert [tick.text for tick in chart.x_ticks] == ["0.5", "1.0", "2.0", "5.0", "10.0", "20.0", "50.0"]
    gaps = [right.at - left.at for left, right in itertools.pairwise(chart.x_ticks)]
    assert gaps[0] == pytest.approx(gaps[3], abs=0.2)  # a factor of 2 each
    assert (chart.dots[0].x, chart.dots[1].x) == (charts.LEFT, charts.RIGHT)


def test_a_very_wide_range_has_powers_of_ten() -> None:
    ticks = scatter(point(0.3, 1), point(70_000, 2)).x_ticks
    assert [tick.text for tick in ticks] == ["0.1", "1.0", "10.0", "100.0", "1000.0", "10000.0", "100000.0"]


@pytest.mark.parametrize("values", [(0.98,), (0.98, 0.98, 0.98), (1.0,), (0.0,)])
def test_equal_values_get_room_around_them(values: tuple[float, ...]) -> None:
    accuracy = Axis(name="accuracy", text="{:.3f}".format, from_zero=False, top=1.0)
    chart = scatter(*[point(number + 1, value) for number, value in enumerate(values)], y=accuracy)
    assert 2 <= len(chart.y_ticks) <= 12
    assert all(charts.TOP <= dot.y <= charts.BOTTOM for dot in chart.dots)
    assert max(float(tick.text) for tick in chart.y_ticks) <= 1.0
    assert len({tick.text for tick in chart.y_ticks}) == len(chart.y_ticks)


def test_labels_of_crowded_dots_hit_neither_each_other_nor_a_dot() -> None:
    crowd = [point(10 + step * 0.05, 98 + step * 0.01, f"variant_{step}") for step in range(8)]
    chart = scatter(*crowd, point(99, 50, "at_the_right_edge"), point(0.1, 1, "corner"))
    boxes = [box(dot) for dot in chart.dots]
    assert not any(overlap(one, other) for one, other in itertools.combinations(boxes, 2))
    dots = [(dot.x - 5, dot.y - 5, dot.x + 5, dot.y + 5) for dot in chart.dots]
    assert not any(overlap(label, dot) for label, dot in itertools.product(boxes, dots))
    assert all(left >= 0 and right <= charts.WIDTH for left, _, right, _ in boxes)


def test_the_same_points_give_the_same_chart() -> None:
    points = [point(1, 2, "a"), point(1, 2, "b"), point(3, 1, "c")]
    assert scatter(*points) == scatter(*points)
