"""Matching of results with ground-truth objects, and the quality of each match.

Results and objects of one image and class are paired one to one, in order of falling mask IoU. (AP
matches by score, separately for each threshold, and does not measure the quality of single masks.)

Shape letters: D results and G objects of one image and class.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util

from point_rend.evaluation.boundary_iou import band_of_rle

# Masks with a smaller overlap are considered unrelated.
MIN_IOU = 0.1


class Match(NamedTuple):
    """The result that matches an object.

    Attributes:
        result: Index of the result.
        iou: IoU of the masks.
        boundary_iou: IoU of the inner bands along their boundaries.
    """

    result: int
    iou: float
    boundary_iou: float


def match_objects(
    objects: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> list[Match | None]:
    """Match the objects of a data set with results.

    Args:
        objects: Records with "image_id", "category_id" and "segmentation" as compressed RLE.
        results: Records with the same fields.

    Returns:
        One entry per object; None for an object without a result that overlaps it by `MIN_IOU`.
    """
    matches: list[Match | None] = [None] * len(objects)
    result_groups = _by_image_and_class(results)
    for key, indices in _by_image_and_class(objects).items():
        candidates = result_groups.get(key, [])
        masks = [results[d]["segmentation"] for d in candidates]
        gt_masks = [objects[g]["segmentation"] for g in indices]
        for d, g in greedy_pairs(_ious(masks, gt_masks)):
            mask, gt_mask = masks[d], gt_masks[g]
            (band_iou,) = _ious([band_of_rle(mask)], [band_of_rle(gt_mask)]).flat
            iou = _ious([mask], [gt_mask]).item()
            matches[indices[g]] = Match(candidates[d], iou, float(band_iou))
    return matches


def greedy_pairs(ious: np.ndarray, min_iou: float = MIN_IOU) -> list[tuple[int, int]]:
    """Pair rows and columns in order of falling IoU; each row and column is used at most once.

    Args:
        ious: (D, G) in 0..1.
        min_iou: Smallest IoU of a pair.

    Returns:
        Rows and columns of the pairs. Among equal IoUs, the first row and column win.
    """
    pairs: list[tuple[int, int]] = []
    remaining = np.array(ious, dtype=float)
    while remaining.size and remaining.max() >= min_iou:
        row, column = np.unravel_index(int(remaining.argmax()), remaining.shape)
        pairs.append((int(row), int(column)))
        remaining[row] = -1
        remaining[:, column] = -1
    return pairs


def _by_image_and_class(records: Sequence[Mapping[str, Any]]) -> dict[Any, list[int]]:
    groups = defaultdict(list)
    for index, record in enumerate(records):
        groups[record["image_id"], record["category_id"]].append(index)
    return groups


def _ious(first: list[Any], second: list[Any]) -> np.ndarray:
    """Compute the (D, G) IoUs of masks in compressed RLE."""
    shape = (len(first), len(second))
    return np.reshape(mask_util.iou(first, second, [0] * len(second)), shape)
