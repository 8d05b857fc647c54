"""Which result belongs to which object of the truth, and how well the two agree.

Results and objects of one image and one class are paired one to one, the best mask IoU first. (AP
pairs by score, for each threshold anew, and does not say how good a single mask is.)

Shape letters: D results and G objects of one image and class.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util

from point_rend.evaluation.boundary_iou import band_of_rle

# Masks that overlap less have nothing to do with each other.
MIN_IOU = 0.1


class Match(NamedTuple):
    """The result that was paired with an object.

    Attributes:
        result: Its index.
        iou: IoU of the masks.
        boundary_iou: IoU of the inner bands along their boundaries.
    """

    result: int
    iou: float
    boundary_iou: float


def match_objects(
    objects: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> list[Match | None]:
    """Pair the objects of a data set with results.

    Args:
        objects: Records with "image_id", "category_id" and "segmentation" in compressed encoding.
        results: Records likewise.

    Returns:
        One entry per object; None for an object that no result overlaps by `MIN_IOU`.
    """
    matches: list[Match | None] = [None] * len(objects)
    found = _by_image_and_class(results)
    for key, indices in _by_image_and_class(objects).items():
        rivals = found.get(key, [])
        masks = [results[d]["segmentation"] for d in rivals]
        truths = [objects[g]["segmentation"] for g in indices]
        for d, g in pairs(_ious(masks, truths)):
            mask, truth = masks[d], truths[g]
            (band_iou,) = _ious([band_of_rle(mask)], [band_of_rle(truth)]).flat
            iou = _ious([mask], [truth]).item()
            matches[indices[g]] = Match(rivals[d], iou, float(band_iou))
    return matches


def pairs(ious: np.ndarray, least: float = MIN_IOU) -> list[tuple[int, int]]:
    """Pair rows and columns, the highest IoU first; every row and column once at most.

    Args:
        ious: (D, G) in 0..1.
        least: Lower IoUs make no pair.

    Returns:
        Rows and columns of the pairs. Of equal IoUs that of the first row and column counts.
    """
    taken: list[tuple[int, int]] = []
    left = np.array(ious, dtype=float)
    while left.size and left.max() >= least:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        taken.append((int(row), int(column)))
        left[row] = -1
        left[:, column] = -1
    return taken


def _by_image_and_class(records: Sequence[Mapping[str, Any]]) -> dict[Any, list[int]]:
    groups = defaultdict(list)
    for index, record in enumerate(records):
        groups[record["image_id"], record["category_id"]].append(index)
    return groups


def _ious(first: list[Any], second: list[Any]) -> np.ndarray:
    """Compute the (D, G) IoUs of masks in compressed encoding."""
    shape = (len(first), len(second))
    return np.reshape(mask_util.iou(first, second, [0] * len(second)), shape)
