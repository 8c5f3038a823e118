"""A row as one small picture: score and interval against chance and the controls."""

from __future__ import annotations

from evaluation.probe_results import ResultRow
from evaluation.report.markup import Markup, element, joined
from evaluation.report.numbers import interval, written

_WIDTH, _HEIGHT, _EDGE = 200, 20, 6
_MIDDLE = _HEIGHT / 2


def plot(row: ResultRow, *, controls: bool = True) -> Markup:
    """An SVG of 200 x 20 that takes its colours from the page. Shares lie on 0 to 100 %, all else from 0 to its most.

    Chance is a bar, the score a disc on its interval, blind a circle, bag a square, truth a diamond.
    """
    known = (row.score, row.low, row.high, row.chance, row.blind, row.bag, row.truth)
    values = [value for value in known if value is not None]
    least = min([0.0, *values])
    most = max([1.0, *values]) if row.unit == "share" else max([1e-9, *values]) * 1.05

    def x(value: float) -> float:
        return round(_EDGE + (value - least) / (most - least) * (_WIDTH - 2 * _EDGE), 2)

    parts = [_line(x(least), _MIDDLE, x(most), _MIDDLE, "axis")]
    if row.chance is not None:
        parts.append(_line(x(row.chance), 1, x(row.chance), _HEIGHT - 1, "chance"))
    if controls:
        if row.truth is not None:
            parts.append(_diamond(x(row.truth)))
        if row.bag is not None:
            parts.append(_square(x(row.bag)))
        if row.blind is not None:
            parts.append(_circle(x(row.blind), 3.5, "blind"))
    if row.low is not None and row.high is not None:
        parts.append(_line(x(row.low), _MIDDLE, x(row.high), _MIDDLE, "interval"))
    if row.score is not None:
        parts.append(_circle(x(row.score), 4, "score"))
    label = f"score {written(row.score, row.unit)}, interval {interval(row)}, chance {written(row.chance, row.unit)}"
    attributes = {"class": "plot", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": label}
    return element("svg", attributes, *parts)


def legend() -> Markup:
    """What the marks of `plot` mean."""
    marks = {
        "score and 95 % interval": (_line(1, _MIDDLE, 29, _MIDDLE, "interval"), _circle(15, 4, "score")),
        "chance": (_line(15, 1, 15, _HEIGHT - 1, "chance"),),
        "blind: no picture": (_circle(15, 3.5, "blind"),),
        "bag of words": (_square(15),),
        "truth: knows every scene": (_diamond(15),),
    }
    items = [
        element(
            "li", None, element("svg", {"class": "mark", "viewBox": "0 0 30 20", "aria-hidden": "true"}, *mark), name
        )
        for name, mark in marks.items()
    ]
    return element("ul", {"class": "legend"}, joined(*items))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("line", {"class": kind, "x1": f"{x1:g}", "y1": f"{y1:g}", "x2": f"{x2:g}", "y2": f"{y2:g}"})


def _circle(x: float, radius: float, kind: str) -> Markup:
    return element("circle", {"class": kind, "cx": f"{x:g}", "cy": f"{_MIDDLE:g}", "r": f"{radius:g}"})


def _square(x: float) -> Markup:
    box = {"class": "bag", "x": f"{x - 3:g}", "y": f"{_MIDDLE - 3:g}", "width": "6", "height": "6"}
    return element("rect", box)


def _diamond(x: float) -> Markup:
    points = f"{x - 4:g},{_MIDDLE:g} {x:g},{_MIDDLE - 4:g} {x + 4:g},{_MIDDLE:g} {x:g},{_MIDDLE + 4:g}"
    return element("polygon", {"class": "truth", "points": points})
