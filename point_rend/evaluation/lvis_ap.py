"""AP of instances by LVIS's rule, with its own package: of boxes, masks, and masks with boundaries.

Importing this module needs the package lvis.

Conventions: figures are in percent; NaN means that no class has an object of the size, or that
there are no results at all. At most 300 results of an image count.

Shape letters: T IoU thresholds, R recalls, K classes, A ranges of area, as in `instance_scores.py`.
"""

import types
from collections.abc import Iterable, Mapping
from typing import Any

import lvis.eval
import numpy as np
from lvis import LVIS, LVISEval, LVISResults

from point_rend.data.checks.rle import compressed_rle
from point_rend.evaluation.boundary_iou import lower_to_boundary_iou
from point_rend.evaluation.coco_ap import FIGURES, mean_in_percent, summary

FREQUENCIES = ("APr", "APc", "APf")

# Its newest version, 0.5.3, uses a name that NumPy has dropped in 1.24: give it back, to it alone.
lvis.eval.np = types.SimpleNamespace(**vars(np) | {"float": float})


class BoundaryEvaluation(LVISEval):
    """LVIS's evaluation of masks, whose matching takes the lesser of mask IoU and Boundary IoU."""

    def compute_iou(self, img_id: int, cat_id: int) -> Any:
        """Compute the IoUs of one class in one image; results by falling score."""
        ious = super().compute_iou(img_id, cat_id)
        truth, found = self._get_gt_dt(img_id, cat_id)
        if not (truth and found):
            return ious
        found = sorted(found, key=lambda result: -result["score"])
        return lower_to_boundary_iou(np.asarray(ious), found, truth)


def lvis_figures(truth: LVIS, results: Iterable[Mapping[str, Any]], kind: str) -> dict[str, float]:
    """Score results on LVIS annotations.

    Args:
        truth: The annotations. What is computed of their masks stays in them.
        results: Records in COCO's result format with the images and categories of the annotations.
        kind: bbox, segm or boundary.

    Returns:
        AP, AP50, AP75, APs, APm, APl, by frequency APr, APc, APf, and "AP-<class>" of each class.
    """
    # With boxes among them LVIS would take the areas of boxes for those of masks.
    wanted = "bbox" if kind == "bbox" else "segmentation"
    records = [
        {key: result[key] for key in ("image_id", "category_id", "score", wanted)}
        for result in results
    ]
    if not records:
        return dict.fromkeys((*FIGURES, *FREQUENCIES), float("nan"))
    if kind != "bbox":
        for record in records:
            image = truth.imgs[record["image_id"]]
            record["segmentation"] = compressed_rle(
                record["segmentation"], image["height"], image["width"]
            )
    evaluation_class = BoundaryEvaluation if kind == "boundary" else LVISEval
    evaluation = evaluation_class(
        truth, LVISResults(truth, records), "bbox" if kind == "bbox" else "segm"
    )
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]
    names = [truth.cats[category]["name"] for category in evaluation.params.cat_ids]
    figures = summary(precision, names)
    by_frequency = {
        figure: mean_in_percent(precision[:, :, group, 0])
        for figure, group in zip(FREQUENCIES, evaluation.freq_groups, strict=True)
    }
    usual = {figure: figures.pop(figure) for figure in FIGURES}
    return usual | by_frequency | figures
