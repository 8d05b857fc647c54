"""Boxes of annotations, compared with the boxes of their masks.

Shape letter: N annotations.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

CLOSE = 0.9  # IoU of boxes of the same object in the same format
DIFFERENT = 0.5  # IoU below which a box is not that of its mask,
TOLERANCE = 2.0  # unless no side is farther away, in pixels
BETTER = 0.05  # difference of IoU by which another format has to fit better

CORNERS = "x0, y0, x1, y1"
CENTERS = "center x, center y, width, height"
EXCHANGED = "y, x, height, width"
EXCHANGED_CORNERS = "y0, x0, y1, x1"
SHARES = "shares of the image's sides"

MANY_BEYOND = 0.2  # share of boxes that reach beyond their images only if the format is wrong


class Comparison(NamedTuple):
    """Result of a comparison.

    Attributes:
        differs: For each annotation, whether its box is not that of its mask (N,).
        fits: For each other format, the number of boxes that fit only in it.
        number: Number of boxes.
    """

    differs: np.ndarray
    fits: Mapping[str, int]
    number: int

    @property
    def suspected(self) -> str | None:
        """The format in which most boxes are those of their masks, or None."""
        best = max(self.fits, key=self.fits.__getitem__)
        return best if 2 * self.fits[best] > self.number else None

    @property
    def fitting(self) -> int:
        """Number of the boxes that fit only in this format."""
        return self.fits[self.suspected] if self.suspected else 0


def compare_boxes(boxes: np.ndarray, of_masks: np.ndarray, sides: np.ndarray) -> Comparison:
    """Compare boxes with those of their masks, and look for the format of those that differ.

    Args:
        boxes: (N, 4) as x, y, width, height.
        of_masks: (N, 4) as x0, y0, x1, y1.
        sides: Width and height of the images (N, 2), NaN if unknown.
    """
    corners = _from_sides(boxes)
    limits = np.where(np.isfinite(sides), sides, np.inf)
    within = np.hstack([np.maximum(of_masks[:, :2], 0), np.minimum(of_masks[:, 2:], limits)])
    own = np.maximum(_iou(corners, of_masks), _iou(corners, within))
    far = np.minimum(*(np.abs(corners - x).max(axis=1) for x in (of_masks, within)))
    differs = (own < DIFFERENT) & (far > TOLERANCE)

    scales = np.tile(np.where(np.isfinite(sides), sides, 1), 2)
    formats = {
        CORNERS: boxes,
        CENTERS: _from_center(boxes),
        EXCHANGED: _from_sides(boxes[:, [1, 0, 3, 2]]),
        EXCHANGED_CORNERS: boxes[:, [1, 0, 3, 2]],
        f"x, y, width, height in {SHARES}": corners * scales,
        f"{CORNERS} in {SHARES}": boxes * scales,
        f"{CENTERS} in {SHARES}": _from_center(boxes) * scales,
    }
    fits = {}
    for name, candidate in formats.items():
        ious = np.maximum(_iou(candidate, of_masks), _iou(candidate, within))
        fits[name] = int(((ious >= CLOSE) & (ious > own + BETTER)).sum())
    return Comparison(differs, fits, len(boxes))


def beyond_images(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return the numbers of the boxes that reach beyond their images, if they are many.

    Args:
        boxes: (N, 4) as x, y, width, height.
        sides: Width and height of the images (N, 2), NaN if unknown.
    """
    beyond = np.flatnonzero(reach_beyond(boxes, sides))
    return beyond if are_many(beyond.size, len(boxes)) else beyond[:0]


def reach_beyond(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return for each box whether it reaches beyond its image (N,); see :func:`beyond_images`."""
    with np.errstate(invalid="ignore"):
        return (boxes[:, :2] + boxes[:, 2:] > sides + 1).any(axis=1)


def are_many(beyond: int, total: int) -> bool:
    """Return whether so many boxes reach beyond their images that their format is wrong."""
    return beyond > MANY_BEYOND * total


class Shares:
    """Whether all boxes of a data set seem to be shares of the sides; see :func:`seem_shares`."""

    def __init__(self) -> None:
        self._some_is_large = False
        self._all_are_small = True

    def add(self, boxes: np.ndarray, sides: np.ndarray) -> None:
        """Add boxes (N, 4) of images with sides (N, 2)."""
        large = ~(sides <= 1).all(axis=1)
        self._some_is_large |= bool(large.any())
        self._all_are_small &= bool((np.abs(boxes[large]) <= 1).all())

    def __bool__(self) -> bool:
        return self._some_is_large and self._all_are_small


def seem_shares(boxes: np.ndarray, sides: np.ndarray) -> bool:
    """Return whether boxes, or those of masks, lie within the first pixel of larger images.

    Args:
        boxes: (N, 4) with any two corners, or one corner and the sides.
        sides: Width and height of the images (N, 2), NaN if unknown.
    """
    shares = Shares()
    shares.add(boxes, sides)
    return bool(shares)


def _from_sides(boxes: np.ndarray) -> np.ndarray:
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def _from_center(boxes: np.ndarray) -> np.ndarray:
    return np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2])


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the IoU of each pair of boxes (N, 4) as x0, y0, x1, y1; 0 for empty ones."""
    low, high = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    areas = [np.maximum(x[:, 2:] - x[:, :2], 0).prod(axis=1) for x in (first, second)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
