"""Building blocks of the page: elements, tables, legends and charts.

All text passes through `element`, which escapes it: class and file names cannot become markup.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

# Layout of a chart in its own units: the plot area, and margins for axes and tick labels.
WIDTH, HEIGHT = 250, 150
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 8, 36
RADII = {"dot": "2", "ring": "2.5", "best": "5"}  # of the marks of points
MOST_MARKERS = 60  # points of a curve that are marked
NONE = "–"  # in place of a missing value
Child = Element | str


class Bars(NamedTuple):
    """The bars of one kind in a chart.

    Attributes:
        name: Name of the kind.
        style: CSS class of their color.
        heights: One for each bin; 0 or more.
    """

    name: str
    style: str
    heights: Sequence[float]


class Line(NamedTuple):
    """A curve of a chart.

    Attributes:
        name: Name of the curve.
        style: CSS class of its color and dashes.
        points: x and y, in the order of x.
        marker: Mark of each point: "dot", "ring" or nothing.
        best: A point to mark as the best one.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    marker: str = ""
    best: tuple[float, float] | None = None


def element(tag: str, attributes: Mapping[str, str] | None = None, *children: Child) -> Element:
    """Build an element of HTML or SVG.

    Args:
        tag: Name of the element.
        attributes: Its attributes.
        children: Elements and texts.
    """
    made = Element(tag, dict(attributes or {}))
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


def table(
    caption: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]
) -> Element:
    """Build a table.

    Args:
        caption: Caption of the table.
        columns: Column headers, including that of the row names.
        rows: Row names, and a text for each of the other columns.
    """
    head = element("tr", {}, *(element("th", {"scope": "col"}, name) for name in columns))
    body = [
        element(
            "tr",
            {},
            element("th", {"scope": "row"}, name),
            *(element("td", {}, text) for text in texts),
        )
        for name, texts in rows
    ]
    return element(
        "table",
        {},
        element("caption", {}, caption),
        element("thead", {}, head),
        element("tbody", {}, *body),
    )


def scrolling(content: Element, label: str) -> Element:
    """Wrap an element in a box that scrolls if the page is too narrow."""
    attributes = {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label}
    return element("div", attributes, content)


def marks_legend(marks: Mapping[str, str]) -> Element:
    """Build the legend of marks in charts.

    Args:
        marks: Marks by their meaning: those of points, or "end" of a vertical line.
    """
    entries = []
    for name, mark in marks.items():
        if mark == "end":
            drawn = element("path", {"d": "M15 0v10", "class": mark})
        else:
            place = {"cx": "15", "cy": "5", "r": str(min(4.0, float(RADII[mark])))}
            drawn = element("circle", place | {"class": f"{mark} style-0"})
        sample = element("svg", {"viewBox": "0 0 30 10", "aria-hidden": "true"}, drawn)
        entries.append(element("li", {}, sample, name))
    return element("ul", {"class": "legend lines"}, *entries)


def legend(names: Mapping[str, str], place: str = "lines") -> Element:
    """Build a legend.

    Args:
        names: CSS classes of the lines, by name.
        place: "lines" for charts, or "keys" for masks over a photograph.
    """
    entries = []
    for name, style in names.items():
        line = element("path", {"d": "M0 5h30", "class": f"line {style}"})
        sample = element("svg", {"viewBox": "0 0 30 10", "aria-hidden": "true"}, line)
        entries.append(element("li", {}, sample, name))
    return element("ul", {"class": f"legend {place}"}, *entries)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    labels: tuple[str, str],
    top: float | None = None,
    verticals: Mapping[str, float] | None = None,
) -> Element:
    """Draw curves over axes that start at 0; the x axis ends with the curves.

    Args:
        title: Title above the chart.
        lines: One or more curves of one or more points.
        labels: Labels of the x and y axes.
        top: End of the y axis; by default above the largest value.
        verticals: Vertical lines: their x by their names.

    Returns:
        A figure with an SVG, in the colors of the page.
    """
    xs, ys = np.concatenate([np.asarray(line.points, dtype=float) for line in lines]).T
    right = float(xs.max())
    ticks = [
        [x for x in nice_ticks(right) if x <= right],
        nice_ticks(float(ys.max()) if top is None else top),
    ]
    ends = [max(right, 1e-9), ticks[1][-1]]

    def place(x: float, y: float) -> str:
        return f"{LEFT + x / ends[0] * WIDTH:.1f} {TOP + (1 - y / ends[1]) * HEIGHT:.1f}"

    marks = []
    for x in ticks[0]:
        left, low = place(x, 0).split()
        attributes = {"x": left, "y": f"{float(low) + 13}", "text-anchor": "middle"}
        marks.append(element("text", attributes, short(x)))
    for y in ticks[1]:
        _, high = place(0, y).split()
        marks.append(element("path", {"d": f"M{LEFT} {high}h{WIDTH}", "class": "grid"}))
        attributes = {"x": f"{LEFT - 5}", "y": f"{float(high) + 3}", "text-anchor": "end"}
        marks.append(element("text", attributes, short(y)))
    middle = {"x": f"{LEFT + WIDTH / 2}", "y": f"{TOP + HEIGHT + 30}", "text-anchor": "middle"}
    marks.append(element("text", middle, labels[0]))
    curves = [
        element(
            "path",
            {
                "d": "M" + "L".join(place(x, y) for x, y in line.points),
                "class": f"line {line.style}",
            },
            element("title", {}, line.name),
        )
        for line in lines
    ]
    for name, x in (verticals or {}).items():
        high = place(min(x, right), ends[1])
        end = element("path", {"d": f"M{high}v{HEIGHT}", "class": "end"})
        end.append(element("title", {}, f"{name}: {x:g}"))
        curves.append(end)
    for line in lines:
        if line.marker and len(line.points) <= MOST_MARKERS:
            curves.extend(_circle(place(*point), line, line.marker) for point in line.points)
        if line.best:
            best = _circle(place(min(line.best[0], right), line.best[1]), line, "best")
            best.append(element("title", {}, f"best: {line.best[1]:g} at {line.best[0]:g}"))
            curves.append(best)
    names = ", ".join(line.name for line in lines)
    size = f"0 0 {LEFT + WIDTH + RIGHT} {TOP + HEIGHT + BOTTOM}"
    words = f"{labels[1]} over {labels[0]}, {title}: {names}"
    return element(
        "figure",
        {"class": "chart"},
        element("figcaption", {}, title),
        element("svg", {"viewBox": size, "role": "img", "aria-label": words}, *marks, *curves),
    )


def bar_chart(
    title: str, bins: Sequence[str], kinds: Sequence[Bars], *, labels: tuple[str, str]
) -> Element:
    """Draw bars over bins, those of several kinds side by side.

    Args:
        title: Title above the chart.
        bins: Names of the bins.
        kinds: One or more kinds of bars.
        labels: Labels of the x and y axes.

    Returns:
        A figure with an SVG, in the colors of the page; bars have their values as titles.
    """
    ticks = nice_ticks(max(height for kind in kinds for height in kind.heights))
    step = WIDTH / len(bins)
    width = 0.8 * step / len(kinds)
    marks = []
    for y in ticks:
        high = TOP + (1 - y / ticks[-1]) * HEIGHT
        marks.append(element("path", {"d": f"M{LEFT} {high:.1f}h{WIDTH}", "class": "grid"}))
        place = {"x": f"{LEFT - 5}", "y": f"{high + 3:.1f}", "text-anchor": "end"}
        marks.append(element("text", place, short(y)))
    every = math.ceil(len(bins) * max(map(len, bins)) * 6 / WIDTH)  # names that do not overlap
    for number, name in enumerate(bins):
        if number % every == 0:
            place = {
                "x": f"{LEFT + (number + 0.5) * step:.1f}",
                "y": f"{TOP + HEIGHT + 13}",
                "text-anchor": "middle",
            }
            marks.append(element("text", place, name))
        for k, kind in enumerate(kinds):
            height = kind.heights[number] / ticks[-1] * HEIGHT
            box = {
                "x": f"{LEFT + (number + 0.1) * step + k * width:.1f}",
                "y": f"{TOP + HEIGHT - height:.1f}",
                "width": f"{width:.1f}",
                "height": f"{height:.1f}",
                "class": f"bar {kind.style}",
            }
            words = f"{kind.name}, {name}: {kind.heights[number]:.4g}"
            marks.append(element("rect", box, element("title", {}, words)))
    middle = {"x": f"{LEFT + WIDTH / 2}", "y": f"{TOP + HEIGHT + 30}", "text-anchor": "middle"}
    marks.append(element("text", middle, labels[0]))
    size = f"0 0 {LEFT + WIDTH + RIGHT} {TOP + HEIGHT + BOTTOM}"
    names = ", ".join(kind.name for kind in kinds)
    words = f"{labels[1]} by {labels[0]}, {title}: {names}"
    return element(
        "figure",
        {"class": "chart"},
        element("figcaption", {}, title),
        element("svg", {"viewBox": size, "role": "img", "aria-label": words}, *marks),
    )


def _circle(place: str, line: Line, kind: str) -> Element:
    """Draw the mark of a point at x and y of the chart."""
    x, y = place.split()
    attributes = {"cx": x, "cy": y, "r": RADII[kind], "class": f"{kind} {line.style}"}
    return element("circle", attributes)


def nice_ticks(end: float) -> list[float]:
    """Return 0 and a few equally spaced round numbers, the last one at or above `end`."""
    if not end > 0:
        return [0.0, 1.0]
    rough = end / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= 0.999 * rough)
    return [step * number for number in range(math.ceil(0.999 * end / step) + 1)]


def short(value: float) -> str:
    """Format a tick label."""
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:.6g}"
