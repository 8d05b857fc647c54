"""Scales by which the config enlarges or reduces images, without reading them.

Shape letters: S equally probable scales of an image, I images.
"""

import numpy as np

from point_rend.inspection.settings import Crop, Resizing

STEPS = 9  # values that stand for a range


def resize_scales(resizing: Resizing, sizes: np.ndarray) -> np.ndarray:
    """Compute the scales of images.

    Args:
        resizing: The resizing of the config. A range is replaced by equally spaced values, a crop
            of random size before the resizing by one of its mean size.
        sizes: (I, 2) width and height in pixels; NaN if unknown.

    Returns:
        (S, I) pixels of the network's input per pixel of the image, before rounding.
    """
    width, height = np.asarray(sizes, dtype=np.float64).T
    if resizing.jitter is not None:
        low, high, (target_height, target_width) = resizing.jitter
        fitting = np.minimum(target_height / height, target_width / width)
        return np.linspace(low, high, STEPS)[:, None] * fitting
    if resizing.crop_before is not None:
        height, width = _cropped(height, width, resizing.crop_before)
    sides = np.array(resizing.short_sides, dtype=np.float64)
    if resizing.is_range:
        sides = np.unique(np.linspace(sides.min(), sides.max(), STEPS).round())
    scales = sides[:, None] / np.minimum(height, width)
    scales = np.minimum(scales, resizing.longest / np.maximum(height, width))
    scales[sides == 0] = 1.0  # a side of 0 leaves images as they are
    return scales


def _cropped(height: np.ndarray, width: np.ndarray, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean height and width of the crops of images."""
    if crop.kind == "relative":
        return height * crop.size[0], width * crop.size[1]
    if crop.kind == "relative_range":
        return height * (1 + crop.size[0]) / 2, width * (1 + crop.size[1]) / 2
    if crop.kind == "absolute":
        return np.minimum(height, crop.size[0]), np.minimum(width, crop.size[1])
    low, high = crop.size  # absolute_range: of both sides
    return tuple((np.minimum(side, low) + np.minimum(side, high)) / 2 for side in (height, width))
