"""Metric tables and precision-recall curves."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from point_rend.evaluation.coco_ap import METRICS, summary
from point_rend.evaluation.coco_results import TASK_NAMES
from point_rend.evaluation.report.elements import NONE, Line, element, line_chart, scrolling, table
from point_rend.evaluation.report.matched_items import TASKS, Item, Result

COLUMNS = ("", "all", "IoU 0.50", "IoU 0.75", "small", "medium", "large")  # titles of METRICS
CURVES = {0: "0.50", 5: "0.75", 8: "0.90"}  # IoU by index of the threshold


def mean_curve(precision: np.ndarray, threshold: int) -> list[tuple[float, float]]:
    """Return the points of a precision-recall curve, averaged over the classes with objects.

    Args:
        precision: (T, R, K, A).
        threshold: Index of the IoU threshold.
    """
    curves = precision[threshold, :, :, 0]
    defined = curves[:, curves[0] > -1]
    if not defined.size:
        return []
    return list(zip(np.linspace(0, 1, len(defined)), defined.mean(axis=1), strict=True))


def percent(value: float, *, sign: bool = False) -> str:
    """Format a value with one decimal, on request with its sign."""
    if math.isnan(value):
        return NONE
    return f"{value:+.1f}".replace("-", "−") if sign else f"{value:.1f}"


def difference(values: Sequence[float]) -> list[str]:
    """Format the difference of the last and the first value; nothing for a single value."""
    return [percent(values[-1] - values[0], sign=True)] if len(values) > 1 else []


def metric_tables(results: Sequence[Result], names: Sequence[str]) -> list[Element]:
    """Build a table for each task: AP, AP at two thresholds, and AP by size."""
    tables = []
    metrics = [{k: summary(r.precision[k], names) for k in TASKS} for r in results]
    for task in TASKS:
        rows = [
            (result.name, [percent(own[task][name]) for name in METRICS])
            for result, own in zip(results, metrics, strict=True)
        ]
        if len(results) > 1:
            columns = [[own[task][name] for own in metrics] for name in METRICS]
            rows.append(("difference", [difference(column)[0] for column in columns]))
        caption = f"{TASK_NAMES[task]} in percent"
        tables.append(scrolling(table(caption, COLUMNS, rows), caption))
    return tables


def class_table(
    results: Sequence[Result], categories: Sequence[Mapping[str, Any]], items: Sequence[Item]
) -> Element:
    """Build the table of AP and boundary AP of each class."""
    names = [str(category["id"]) for category in categories]
    heads, columns = ["class", "objects"], []
    for task in TASKS:
        metrics = [summary(result.precision[task], names) for result in results]
        # A single class has no metrics of its own; they equal the overall ones.
        values = [[own.get(f"AP-{name}", own["AP"]) for own in metrics] for name in names]
        heads += [f"{TASK_NAMES[task]}, {result.name}" for result in results]
        heads += ["difference"] * (len(results) > 1)
        columns.append([[*map(percent, row), *difference(row)] for row in values])
    counts = Counter(item.annotation["category_id"] for item in items)
    rows = [
        (category["name"], [str(counts[category["id"]]), *masks, *boundaries])
        for category, masks, boundaries in zip(categories, *columns, strict=True)
    ]
    caption = "AP by class in percent"
    return scrolling(table(caption, heads, rows), caption)


def object_table(results: Sequence[Result], items: Sequence[Item]) -> list[Element]:
    """Build the table of matched objects, and of the mean IoUs of those matched by all results."""
    rows = []
    common = [item for item in items if None not in item.matches]
    for k, result in enumerate(results):
        matched = sum(item.matches[k] is not None for item in items)
        matches = [item.matches[k] for item in common]
        means = [
            f"{np.mean([getattr(match, measure) for match in matches]):.3f}" if common else NONE
            for measure in ("iou", "boundary_iou")
        ]
        rows.append((result.name, [f"{matched} of {len(items)}", *means]))
    heads = ("", "objects matched", "mean mask IoU", "mean Boundary IoU")
    models = "both" if len(results) > 1 else results[0].name
    note = f"The means are over the {len(common)} objects that {models} matched."
    caption = "Single objects"
    return [scrolling(table(caption, heads, rows), caption), element("p", {}, note)]


def precision_charts(results: Sequence[Result]) -> list[Element]:
    """Draw precision over recall, for mask AP and boundary AP."""
    charts = []
    for task in TASKS:
        for threshold, iou in CURVES.items():
            curves = [(r, mean_curve(r.precision[task], threshold)) for r in results]
            lines = [Line(r.name, r.style, points) for r, points in curves if points]
            title = f"{TASK_NAMES[task]} at IoU {iou}"
            if lines:
                labels = ("recall", "precision")
                charts.append(line_chart(title, lines, labels=labels, top=1.0))
    return charts
