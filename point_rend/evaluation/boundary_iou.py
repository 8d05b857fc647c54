"""Boundary IoU: the IoU of the bands along the boundaries of masks.

The **inner band** of a mask is the set of its pixels within Chebyshev distance d of a pixel outside
it: the mask minus its erosion by a 3×3 kernel, iterated d times. d is a fixed fraction of the image
diagonal, rounded, at least 1.

Convention: everything beyond the image is outside every mask, so a mask that touches the image
border has a boundary there.

Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", with
the conventions of the authors' code.

Shape letters: H and W image height and width in pixels; D detections, G ground-truth objects.
"""

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

from point_rend.rendering.box_masks import Crop, rle_of_crop

# Width of the band along a mask's boundary, as a fraction of the image diagonal.
BAND_RATIO = 0.02

KERNEL = np.ones((3, 3), np.uint8)


def band_width(size: tuple[int, int], ratio: float = BAND_RATIO) -> int:
    """Return the width of the bands in pixels, for an image of this height and width."""
    return max(1, round(ratio * math.hypot(*size)))


def inner_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask near its boundary.

    Args:
        mask: (H, W) bool.
        width: Width of the band in pixels, at least 1.

    Returns:
        (H, W) bool.
    """
    crop = _cropped_band(mask, width)
    band = np.zeros(mask.shape, dtype=bool)
    band[crop.window] = crop.mask
    return band


def _cropped_band(mask: np.ndarray, width: int) -> Crop:
    """Return the inner band of a mask (H, W) in the box of the mask."""
    mask = np.ascontiguousarray(mask)
    left, top, columns, rows = cv2.boundingRect(mask.view(np.uint8))
    # Everything around the box of the mask is 0, like the border value of the erosion.
    band = np.array(mask[top : top + rows, left : left + columns], order="C")
    if columns:
        core = cv2.erode(
            band.view(np.uint8),
            KERNEL,
            iterations=width,
            borderType=cv2.BORDER_CONSTANT,
            borderValue=(0,),
        )
        band &= core == 0
    return Crop(band, top, left)


def band_of_rle(rle: dict[str, Any], ratio: float = BAND_RATIO) -> dict[str, Any]:
    """Return the inner band of a mask.

    Args:
        rle: The mask, as compressed RLE.
        ratio: Width of the band as a fraction of the image diagonal.

    Returns:
        The band, as compressed RLE.
    """
    height, width = rle["size"]
    # COCO's arrays are column-major, OpenCV's row-major; the band of a transposed mask is the same.
    columns = mask_util.decode(rle).T.view(bool)
    band, left, top = _cropped_band(columns, band_width((height, width), ratio))
    return rle_of_crop(Crop(band.T, top, left), (height, width))


def lower_to_boundary_iou(
    ious: np.ndarray,
    detections: Sequence[MutableMapping[str, Any]],
    ground_truth: Sequence[MutableMapping[str, Any]],
) -> np.ndarray:
    """Return the smaller of mask IoU and Boundary IoU; ground-truth crowds keep the mask IoU.

    Each band is computed once and cached as "boundary" in the record of its mask.

    Args:
        ious: (D, G) IoUs of the masks.
        detections: D results with "segmentation" as compressed RLE.
        ground_truth: G objects with the same field; those with "iscrowd" are crowds.

    Returns:
        (D, G) IoUs.
    """
    for record in (*detections, *ground_truth):
        if "boundary" not in record:
            record["boundary"] = band_of_rle(record["segmentation"])
    crowds = np.array([bool(record.get("iscrowd", 0)) for record in ground_truth])
    bands = ([record["boundary"] for record in records] for records in (detections, ground_truth))
    boundary_ious = mask_util.iou(*bands, [0] * len(ground_truth))
    return np.where(crowds, ious, np.minimum(ious, boundary_ious))
