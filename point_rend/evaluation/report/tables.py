"""Metric tables and precision-recall curves."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from point_rend.evaluation.coco_ap import FIGURES, summary
from point_rend.evaluation.coco_results import NAMES
from point_rend.evaluation.report.elements import NONE, Line, element, line_chart, scrolling, table
from point_rend.evaluation.report.matched_items import Item, Result

KINDS = ("segm", "boundary")
COLUMNS = ("", "all", "IoU 0.50", "IoU 0.75", "small", "medium", "large")  # as FIGURES
CURVES = {0: "0.50", 5: "0.75", 8: "0.90"}  # index of a threshold, and its IoU


def mean_curve(precision: np.ndarray, threshold: int) -> list[tuple[float, float]]:
    """Return recall and precision, the mean over the classes that have objects.

    Args:
        precision: (T, R, K, A).
        threshold: Index of the IoU threshold.
    """
    curves = precision[threshold, :, :, 0]
    known = curves[:, curves[0] > -1]
    if not known.size:
        return []
    return list(zip(np.linspace(0, 1, len(known)), known.mean(axis=1), strict=True))


# The tables and curves
def percent(value: float, *, sign: bool = False) -> str:
    """Write a figure with one decimal, with its sign if that is asked for."""
    if math.isnan(value):
        return NONE
    return f"{value:+.1f}".replace("-", "−") if sign else f"{value:.1f}"


def difference(figures: Sequence[float]) -> list[str]:
    """Write how much more the last of several figures is; nothing for one alone."""
    return [percent(figures[-1] - figures[0], sign=True)] if len(figures) > 1 else []


def score_tables(results: Sequence[Result], names: Sequence[str]) -> list[Element]:
    """Show AP by size, a table for each kind, and the APs of single classes."""
    tables = []
    scores = [{k: summary(r.precision[k], names) for k in KINDS} for r in results]
    for kind in KINDS:
        rows = [
            (result.name, [percent(own[kind][name]) for name in FIGURES])
            for result, own in zip(results, scores, strict=True)
        ]
        if len(results) > 1:
            columns = [[own[kind][name] for own in scores] for name in FIGURES]
            rows.append(("difference", [difference(column)[0] for column in columns]))
        caption = f"{NAMES[kind]} in percent"
        tables.append(scrolling(table(caption, COLUMNS, rows), caption))
    return tables


def class_table(
    results: Sequence[Result], categories: Sequence[Mapping[str, Any]], items: Sequence[Item]
) -> Element:
    """Show AP and boundary AP of every class."""
    names = [str(category["id"]) for category in categories]
    heads, columns = ["class", "objects"], []
    for kind in KINDS:
        scores = [summary(result.precision[kind], names) for result in results]
        # With one class alone there are no figures of classes: they are those of all.
        values = [[own.get(f"AP-{name}", own["AP"]) for own in scores] for name in names]
        heads += [f"{NAMES[kind]}, {result.name}" for result in results]
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
    """Show how many objects the results have, and how well those that all have."""
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
    who = "both" if len(results) > 1 else results[0].name
    note = f"The means are over the {len(common)} objects that {who} matched."
    caption = "Single objects"
    return [scrolling(table(caption, heads, rows), caption), element("p", {}, note)]


def precision_charts(results: Sequence[Result]) -> list[Element]:
    """Draw precision over recall, for masks, and for masks with their boundaries."""
    charts = []
    for kind in KINDS:
        for threshold, iou in CURVES.items():
            curves = [(r, mean_curve(r.precision[kind], threshold)) for r in results]
            lines = [Line(r.name, r.style, points) for r, points in curves if points]
            title = f"{NAMES[kind]} at IoU {iou}"
            if lines:
                labels = ("recall", "precision")
                charts.append(line_chart(title, lines, labels=labels, top=1.0))
    return charts
