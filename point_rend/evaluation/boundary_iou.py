"""Inner bands along the boundaries of masks, and the IoU of masks that looks at them, too.

The **inner band** of a mask are its pixels within Chebyshev distance d of a pixel outside it: the
mask less its erosion, d times, by 3×3. d is a share of the image's diagonal, rounded, at least 1.

Convention: what lies beyond the image is outside every mask, so a mask that reaches the border of
the image has a boundary there.

Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", with
the conventions of the authors' code.

Shape letters: H and W the image sides in pixels; D results, G objects of the truth.
"""

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

# Width of the band along a mask's boundary over the image's diagonal.
BAND_RATIO = 0.02

KERNEL = np.ones((3, 3), np.uint8)


def band_width(size: tuple[int, int], ratio: float = BAND_RATIO) -> int:
    """Return the width in pixels of the bands in images of this height and width."""
    return max(1, round(ratio * math.hypot(*size)))


def inner_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask that lie near its boundary.

    Args:
        mask: (H, W) bool.
        width: of the band in pixels, at least 1.

    Returns:
        (H, W) bool.
    """
    band = np.array(mask, order="C")
    x, y, columns, rows = cv2.boundingRect(band.view(np.uint8))
    # All is 0 around the box of the mask, as beyond the border in the erosion.
    box = np.s_[y : y + rows, x : x + columns]
    if columns:
        core = cv2.erode(
            np.ascontiguousarray(band[box]).view(np.uint8),
            KERNEL,
            iterations=width,
            borderType=cv2.BORDER_CONSTANT,
            borderValue=(0,),
        )
        band[box] &= core == 0
    return band


def band_of_rle(rle: dict[str, Any], ratio: float = BAND_RATIO) -> dict[str, Any]:
    """Return the inner band of a mask.

    Args:
        rle: The mask, in COCO's compressed encoding.
        ratio: Width of the band over the image's diagonal.

    Returns:
        The band, encoded likewise.
    """
    height, width = rle["size"]
    # COCO's arrays are stored by column, OpenCV's by row; a band does not mind the transposition.
    columns = mask_util.decode(rle).T.view(bool)
    band = inner_band(columns, band_width((height, width), ratio))
    return mask_util.encode(band.T.view(np.uint8))


def lower_to_boundary_iou(
    ious: np.ndarray,
    found: Sequence[MutableMapping[str, Any]],
    truth: Sequence[MutableMapping[str, Any]],
) -> np.ndarray:
    """Take the lesser of mask IoU and Boundary IoU; crowds of the truth keep the first.

    A band is computed once and stays under "boundary" in the record of its mask.

    Args:
        ious: (D, G) IoUs of the masks.
        found: D results with "segmentation", in compressed encoding.
        truth: G objects, likewise; those with "iscrowd" are crowds.

    Returns:
        (D, G) IoUs.
    """
    for record in (*found, *truth):
        if "boundary" not in record:
            record["boundary"] = band_of_rle(record["segmentation"])
    crowds = np.array([bool(record.get("iscrowd", 0)) for record in truth])
    bands = ([record["boundary"] for record in records] for records in (found, truth))
    boundary_ious = mask_util.iou(*bands, [0] * len(truth))
    return np.where(crowds, ious, np.minimum(ious, boundary_ious))
