"""Sizes of objects, as they are and after the resize of the config.

The size of an object is the square root of its area, in pixels.
"""

from typing import NamedTuple

import numpy as np

SMALL, LARGE = 32**2, 96**2  # areas between COCO's small, medium and large objects
EDGES = (0, 2, 4, 8, 16, 32, 64, 128, 256, 512, np.inf)  # of the histogram, in pixels
TINY = (1, 2)  # pixels of the shorter side of a box
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


class Sizes(NamedTuple):
    """Distribution of the sizes of objects at one stage.

    Attributes:
        stage: original, train or test.
        small: Share of the objects below 32² pixels; so are medium and large.
        medium: From 32² to below 96².
        large: From 96².
        histogram: Shares between `EDGES`.
        percentiles: Sizes in pixels at `PERCENTILES`.
        below_one: Share of the boxes whose shorter side is below 1 pixel.
        below_two: Below 2 pixels.
        below_stride: Below the stride of the finest feature map; None if that is unknown.
        below_anchor: Share of the objects below half the smallest anchor; None without anchors.
    """

    stage: str
    small: float
    medium: float
    large: float
    histogram: list[float]
    percentiles: list[float]
    below_one: float
    below_two: float
    below_stride: float | None
    below_anchor: float | None


def measure_sizes(
    stage: str,
    area: np.ndarray,
    sides: np.ndarray,
    scales: np.ndarray,
    *,
    stride: int | None = None,
    smallest_anchor: float | None = None,
) -> Sizes | None:
    """Measure the sizes of N objects, averaged over S equally probable scales.

    Args:
        stage: Name of the stage.
        area: (N,) in pixels of the image.
        sides: (N, 2) of the boxes.
        scales: (S, N).
        stride: Of the finest feature map.
        smallest_anchor: Size of the smallest anchor.

    Returns:
        The distribution; None without objects.
    """
    known = np.isfinite(scales).all(axis=0)
    area, sides, scales = area[known], sides[known], scales[:, known]
    if not area.size:
        return None
    roots, shorter = np.sqrt(area), sides.min(axis=1)
    rows, histograms, percentiles = [], [], []
    for scale in scales:
        size, side = roots * scale, shorter * scale
        counts, _ = np.histogram(size, EDGES)
        histograms.append(counts / len(size))
        percentiles.append(np.percentile(size, PERCENTILES))
        rows.append(
            [
                np.mean(size**2 < SMALL),
                np.mean((size**2 >= SMALL) & (size**2 < LARGE)),
                np.mean(size**2 >= LARGE),
                *(np.mean(side < limit) for limit in TINY),
                np.mean(side < (stride or 0)),
                np.mean(size < (smallest_anchor or 0) / 2),
            ]
        )
    small, medium, large, one, two, below_stride, below_anchor = map(float, np.mean(rows, axis=0))
    return Sizes(
        stage,
        small,
        medium,
        large,
        np.mean(histograms, axis=0).tolist(),
        np.mean(percentiles, axis=0).tolist(),
        one,
        two,
        None if stride is None else below_stride,
        None if smallest_anchor is None else below_anchor,
    )
