"""AP of instances as LVIS defines it, computed by its own package: boxes, masks and boundaries.

Importing this module needs the package lvis.

Conventions: metrics are in percent. NaN means that no class has an object of this size, or that
there are no results at all. The 300 results of an image with the highest scores count, or another
number.

Shape letters: T IoU thresholds, R recalls, K classes, A area ranges, as in `coco_ap.py`.
"""

import types
from collections.abc import Iterable, Mapping
from typing import Any

import lvis.eval
import numpy as np
import pycocotools.mask as mask_util
from lvis import LVIS, LVISEval, LVISResults

from point_rend.data.checks.masks import compress_masks
from point_rend.data.checks.rle import Fault
from point_rend.data.datasets.coco import repair_fields
from point_rend.evaluation.boundary_iou import lower_to_boundary_iou
from point_rend.evaluation.coco_ap import METRICS, mean_in_percent, summary
from point_rend.evaluation.limits import LVIS_LIMIT

FREQUENCIES = ("APr", "APc", "APf")

# lvis 0.5.3, the newest version, uses `np.float`, which NumPy 1.24 removed: restore it for lvis.
lvis.eval.np = types.SimpleNamespace(**vars(np) | {"float": float})


class BoundaryEvaluation(LVISEval):
    """LVIS's evaluation of masks, whose matching uses the smaller of mask IoU and Boundary IoU."""

    def compute_iou(self, img_id: int, cat_id: int) -> Any:
        """Compute the IoUs of one class in one image, with results in order of falling score."""
        ious = super().compute_iou(img_id, cat_id)
        ground_truth, detections = self._get_gt_dt(img_id, cat_id)
        if not (ground_truth and detections):
            return ious
        detections = sorted(detections, key=lambda result: -result["score"])
        return lower_to_boundary_iou(np.asarray(ious), detections, ground_truth)


def complete_lvis(ground_truth: LVIS) -> None:
    """Compute the areas that annotations lack, in place; the masks were checked before."""
    annotations = ground_truth.dataset["annotations"]
    repair_fields(annotations)
    for annotation in annotations:
        if "area" not in annotation:
            annotation["area"] = float(mask_util.area(ground_truth.ann_to_rle(annotation)))


def lvis_metrics(
    ground_truth: LVIS,
    results: Iterable[Mapping[str, Any]],
    task: str,
    *,
    max_dets: int = LVIS_LIMIT,
) -> dict[str, float]:
    """Evaluate results on LVIS annotations.

    Args:
        ground_truth: The annotations. Boundaries of their masks are cached in them.
        results: Records in COCO's result format with the images and categories of the annotations.
        task: bbox, segm or boundary.
        max_dets: Number of results of an image that count.

    Returns:
        AP, AP50, AP75, APs, APm, APl, by frequency APr, APc, APf, and "AP-<class>" of each class.
    """
    # If results had boxes, LVIS would use their areas instead of those of the masks.
    field = "bbox" if task == "bbox" else "segmentation"
    records = [
        {key: result[key] for key in ("image_id", "category_id", "score", field)}
        for result in results
    ]
    if not records:
        return dict.fromkeys((*METRICS, *FREQUENCIES), float("nan"))
    if task != "bbox":
        images = [ground_truth.imgs[record["image_id"]] for record in records]
        sizes = [(image["height"], image["width"]) for image in images]
        masks = compress_masks([record["segmentation"] for record in records], sizes)
        for number, (record, mask) in enumerate(zip(records, masks, strict=True)):
            if isinstance(mask, Fault):
                raise ValueError(f"result {number} has no valid mask: {mask.text}")
            record["segmentation"] = mask
    evaluation_class = BoundaryEvaluation if task == "boundary" else LVISEval
    found = LVISResults(ground_truth, records, max_dets=max_dets)
    evaluation = evaluation_class(ground_truth, found, "bbox" if task == "bbox" else "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]
    names = [ground_truth.cats[category]["name"] for category in evaluation.params.cat_ids]
    metrics = summary(precision, names)
    by_frequency = {
        name: mean_in_percent(precision[:, :, group, 0])
        for name, group in zip(FREQUENCIES, evaluation.freq_groups, strict=True)
    }
    overall = {name: metrics.pop(name) for name in METRICS}
    return overall | by_frequency | metrics
