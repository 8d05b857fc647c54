"""Boxes of objects against the anchors of a config.

Shape letters: N objects, A anchors of different shapes, S scales.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from point_rend.inspection.settings import Anchors

RATIO_EDGES = (0, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1, 3 / 2, 2, 3, 4, 8, np.inf)  # height / width
SAMPLE = 20_000  # objects with which other anchors are tried
SIZE_FACTORS = (1.0, 0.5, 0.75, 1.5, 2.0)
RATIOS = ((0.5, 1.0, 2.0), (1 / 3, 1.0, 3.0), (0.25, 0.5, 1.0, 2.0, 4.0))
# What another choice has to gain: it costs time, and the weights of a pretrained proposal network.
GAIN, COST_OF_SIZES, COST_OF_RATIO = 0.05, 0.01, 0.01


class Fit(NamedTuple):
    """Fit of anchors to objects, at the best position of an anchor.

    Attributes:
        below_foreground: Share of the objects whose best IoU is below MODEL.RPN.IOU_THRESHOLDS[1]:
            only their single best anchor is trained as an object.
        below_middle: Below the mean of both thresholds.
        below_background: Below MODEL.RPN.IOU_THRESHOLDS[0].
        mean_iou: Mean of the best IoUs.
    """

    below_foreground: float
    below_middle: float
    below_background: float
    mean_iou: float


class AnchorReport(NamedTuple):
    """Aspect ratios of objects, and the fit of anchors.

    Attributes:
        anchors: The anchors.
        fit: Their fit.
        ratios: Shares of the aspect ratios (height / width) between `RATIO_EDGES`.
        ratio_percentiles: Aspect ratios at 5, 50 and 95 %.
        better: Anchors that fit clearly better, if any.
        better_fit: Their fit.
    """

    anchors: Anchors
    fit: Fit
    ratios: list[float]
    ratio_percentiles: list[float]
    better: Anchors | None
    better_fit: Fit | None


def anchor_shapes(anchors: Anchors) -> np.ndarray:
    """Return the widths and heights of all anchors (A, 2) in pixels, as Detectron2 makes them."""
    shapes = [
        (size / np.sqrt(ratio), size * np.sqrt(ratio))
        for sizes, ratios in zip(anchors.sizes, anchors.ratios, strict=True)
        for size in sizes
        for ratio in ratios
    ]
    return np.unique(np.array(shapes), axis=0)


def best_ious(sides: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Compute the largest IoU (N,) of each box (N, 2) with anchors (A, 2) at its center."""
    best = np.zeros(len(sides))
    areas = sides.prod(axis=1)
    for shape in shapes:
        shared = np.minimum(sides, shape).prod(axis=1)
        np.maximum(best, shared / (areas + shape.prod() - shared), out=best)
    return best


def measure_fit(sides: np.ndarray, scales: np.ndarray, anchors: Anchors) -> Fit:
    """Measure the fit of anchors, averaged over S equally probable scales.

    Args:
        sides: (N, 2) width and height of the boxes in pixels of the image, above 0.
        scales: (S, N).
        anchors: The anchors.
    """
    shapes = anchor_shapes(anchors)
    middle = (anchors.background + anchors.foreground) / 2
    rows = []
    for scale in scales:
        ious = best_ious(sides * scale[:, None], shapes)
        limits = (anchors.foreground, middle, anchors.background)
        rows.append([*(np.mean(ious < limit) for limit in limits), ious.mean()])
    return Fit(*map(float, np.mean(rows, axis=0)))


def compare_anchors(sides: np.ndarray, scales: np.ndarray, anchors: Anchors) -> AnchorReport | None:
    """Compare boxes with anchors, and look for anchors that fit better.

    Args:
        sides: (N, 2) as of :func:`measure_fit`.
        scales: (S, N); not finite if the size of the image is unknown.
        anchors: The anchors of the config.

    Returns:
        The comparison; None without objects.
    """
    known = np.isfinite(scales).all(axis=0) & (sides > 0).all(axis=1)
    sides, scales = sides[known], scales[:, known]
    if not len(sides):
        return None
    ratios = sides[:, 1] / sides[:, 0]
    counts, _ = np.histogram(ratios, RATIO_EDGES)
    better = _better_anchors(sides, scales, anchors)
    return AnchorReport(
        anchors,
        measure_fit(sides, scales, anchors),
        (counts / len(ratios)).tolist(),
        np.percentile(ratios, (5, 50, 95)).tolist(),
        better,
        None if better is None else measure_fit(sides, scales, better),
    )


def _better_anchors(sides: np.ndarray, scales: np.ndarray, anchors: Anchors) -> Anchors | None:
    """Find the anchors with the fewest objects far from all of them, if they gain enough."""
    chosen = np.unique(np.linspace(0, len(sides) - 1, SAMPLE).astype(int))
    sides, scales = sides[chosen], scales[:, chosen]
    present = max(map(len, anchors.ratios))

    def cost(factor: float, ratios: Sequence[float] | None) -> float:
        fit = measure_fit(sides, scales, _changed(anchors, factor, ratios))
        more = max(0, len(ratios) - present) if ratios else 0
        return fit.below_middle + COST_OF_SIZES * (factor != 1) + COST_OF_RATIO * more

    own = cost(1.0, None)
    costs = {
        choice: cost(*choice)
        for choice in itertools.product(SIZE_FACTORS, (None, *RATIOS))
        if choice != (1.0, None)
    }
    best = min(costs, key=lambda choice: costs[choice])
    return _changed(anchors, *best) if own - costs[best] >= GAIN else None


def _changed(anchors: Anchors, factor: float, ratios: Sequence[float] | None) -> Anchors:
    """Return anchors with scaled sizes and, if given, other ratios."""
    sizes = tuple(tuple(factor * size for size in level) for level in anchors.sizes)
    return anchors._replace(
        sizes=sizes, ratios=anchors.ratios if ratios is None else (tuple(ratios),) * len(sizes)
    )
