"""AP of instances by COCO's rule: of boxes, of masks, and of masks and their boundaries.

**Boundary AP** is mask AP whose matching takes the lesser of mask IoU and Boundary IoU (see
`boundaries.py`).

faster-coco-eval computes; where it is not installed pycocotools does, to the same figures.

Conventions:
    * Figures are in percent. NaN: no class has an object of the size (or the class has none).
    * At most 100 results of an image and a class count, those of the highest scores.
    * The size of an object is its "area" in the truth, that of a result the area of its mask, or of
      its box for AP of boxes.

Shape letters: T IoU thresholds, 0.50 to 0.95; R recalls, 0 to 1; K classes; A ranges of area: all,
small (to 32² pixels), medium (to 96²) and large.
"""

import contextlib
import importlib.util
import io
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from point_rend.data.checks.rle import Record, compressed_rle
from point_rend.evaluation.boundary_iou import lower_to_boundary_iou

logger = logging.getLogger(__name__)
KINDS = ("bbox", "segm", "boundary")
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class InstanceScores:
    """AP of any number of results on one data set; what belongs to the truth is computed once.

    Args:
        content: An annotation file in COCO's instances format, as `read_coco` returns it.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.categories = sorted(content["categories"], key=lambda category: category["id"])
        # Ids may be anything; the evaluations want numbers of a few digits, and go by their order.
        images = sorted(content["images"], key=lambda x: (isinstance(x["id"], str), x["id"]))
        self._sizes = {image["id"]: (image["height"], image["width"]) for image in images}
        self._numbers = {id_: number for number, id_ in enumerate(self._sizes, start=1)}
        self._truth = list(map(dict, content["annotations"]))
        for number, annotation in enumerate(self._truth, start=1):
            annotation["id"] = number  # 0 means "not matched" to the evaluations
            annotation.setdefault("iscrowd", 0)
            has_mask = bool(annotation.get("segmentation"))
            if has_mask:
                annotation["segmentation"] = self._compressed(annotation)
            if "area" not in annotation:
                annotation["area"] = area_of(annotation, masks=has_mask)
            annotation["image_id"] = self._numbers[annotation["image_id"]]

    def figures(self, results: Iterable[Mapping[str, Any]], kind: str) -> dict[str, float]:
        """Score results.

        Args:
            results: Records in COCO's result format.
            kind: bbox, segm or boundary.

        Returns:
            AP, AP50, AP75, APs, APm and APl, and "AP-<class>" of every class if there are several.
        """
        names = [category["name"] for category in self.categories]
        return summary(self.precision(results, kind), names)

    def precision(self, results: Iterable[Mapping[str, Any]], kind: str) -> np.ndarray:
        """Compute the interpolated precision of results.

        Args:
            results: Records in COCO's result format.
            kind: bbox, segm or boundary.

        Returns:
            (T, R, K, A) in 0..1; -1 where a class has no object of a size.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        masks = kind != "bbox"
        found = [
            self._prepared(result, number, masks=masks)
            for number, result in enumerate(results, start=1)
        ]
        evaluate = evaluate_faster if has_faster_coco_eval() else evaluate_with_pycocotools
        return evaluate(self._dataset(self._truth), self._dataset(found), kind)

    def _prepared(self, result: Mapping[str, Any], number: int, *, masks: bool) -> Record:
        """Complete a record by what the evaluations read."""
        record = {key: result[key] for key in ("category_id", "score")}
        record |= {"image_id": self._numbers[result["image_id"]], "id": number, "iscrowd": 0}
        record |= {"bbox": result.get("bbox", ())}
        if masks:
            record["segmentation"] = self._compressed(result)
        return record | {"area": area_of(record, masks=masks)}

    def _compressed(self, record: Mapping[str, Any]) -> Record:
        return compressed_rle(record["segmentation"], *self._sizes[record["image_id"]])

    def _dataset(self, annotations: list[Record]) -> dict[str, list[Record]]:
        return {
            "images": [
                {"id": number, "height": height, "width": width}
                for number, (height, width) in zip(
                    self._numbers.values(), self._sizes.values(), strict=True
                )
            ],
            "annotations": annotations,
            "categories": self.categories,
        }


def area_of(record: Mapping[str, Any], *, masks: bool) -> float:
    """Return the area of a record's mask, in compressed encoding, or else of its box."""
    if masks:
        return float(mask_util.area(record["segmentation"]))
    return record["bbox"][2] * record["bbox"][3]


def has_faster_coco_eval() -> bool:
    """Tell whether faster-coco-eval is installed."""
    return importlib.util.find_spec("faster_coco_eval") is not None


def evaluate_faster(
    truth: dict[str, list[Record]], found: dict[str, list[Record]], kind: str
) -> np.ndarray:
    """Compute the precision (T, R, K, A) with faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    evaluation_class = with_boundaries(COCOeval_faster) if kind == "boundary" else COCOeval_faster
    evaluation = evaluation_class(
        COCO(truth),
        COCO(found),
        "bbox" if kind == "bbox" else "segm",
        print_function=logger.debug,
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def evaluate_with_pycocotools(
    truth: dict[str, list[Record]], found: dict[str, list[Record]], kind: str
) -> np.ndarray:
    """Compute the precision (T, R, K, A) with pycocotools."""
    evaluation_class = with_boundaries(COCOeval) if kind == "boundary" else COCOeval
    indices = [COCO(), COCO()]
    with contextlib.redirect_stdout(io.StringIO()):
        for index, dataset in zip(indices, (truth, found), strict=True):
            index.dataset = dataset
            index.createIndex()
        evaluation = evaluation_class(*indices, "bbox" if kind == "bbox" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def with_boundaries(base: Any) -> Any:
    """Derive an evaluation of masks whose matching looks at boundaries, too.

    Args:
        base: COCOeval of pycocotools, or what faster-coco-eval has in its place.
    """

    class BoundaryEvaluation(base):
        def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803
            ious = super().computeIoU(imgId, catId)
            found, truth = (
                [x for x in index.imgToAnns[imgId] if x["category_id"] == catId]
                for index in (self.cocoDt, self.cocoGt)
            )
            if not (found and truth):
                return ious
            found.sort(key=lambda result: -result["score"])
            return lower_to_boundary_iou(ious, found[: len(ious)], truth)

    return BoundaryEvaluation


def summary(precision: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Draw the usual figures from precisions.

    Args:
        precision: (T, R, K, A) in 0..1; -1 where there is nothing to find.
        names: Of the K classes.

    Returns:
        AP, AP50, AP75, APs, APm and APl in percent, and "AP-<class>" if there are several classes.
    """
    every = precision[..., 0]
    parts = [every, every[0], every[5], *(precision[..., size] for size in (1, 2, 3))]
    figures = dict(zip(FIGURES, map(mean_in_percent, parts), strict=True))
    if len(names) > 1:
        figures |= {f"AP-{name}": mean_in_percent(every[:, :, k]) for k, name in enumerate(names)}
    return figures


def mean_in_percent(precision: np.ndarray) -> float:
    """Return the mean of the precisions that are there, or NaN."""
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else math.nan
