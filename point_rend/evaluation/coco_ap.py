"""AP of instances as COCO defines it: box AP, mask AP and boundary AP.

**Boundary AP** is mask AP whose matching uses the smaller of mask IoU and Boundary IoU (see
`boundary_iou.py`).

faster-coco-eval computes the metrics if it is installed; otherwise pycocotools does, with the same
results.

Conventions:
    * Metrics are in percent. NaN: no class has an object of this size (or the class has none).
    * Per image and class, the 100 results with the highest scores count, or another number.
    * The size of an object is its "area" in the ground truth. The size of a result is the area of
      its mask or, for box AP, of its box.

Shape letters: T IoU thresholds, 0.50 to 0.95; R recalls, 0 to 1; K classes; A area ranges: all,
small (up to 32² pixels), medium (up to 96²) and large.
"""

import contextlib
import importlib.util
import io
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from point_rend.data.checks.masks import compress_masks
from point_rend.data.checks.rle import Fault, Record
from point_rend.data.datasets.coco import repair_fields
from point_rend.evaluation.boundary_iou import lower_to_boundary_iou
from point_rend.evaluation.limits import COCO_LIMIT

logger = logging.getLogger(__name__)
TASKS = ("bbox", "segm", "boundary")
PRECISION_SHAPE = (10, 101, 4)  # T, R and A
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CheckedResults(list[Record]):
    """Results with masks as checked, compressed RLE."""


class CocoAP:
    """AP of any number of result lists on one data set, whose annotations are prepared once.

    Args:
        content: An annotation file in COCO's instances format, as `read_coco` returns it.
        max_dets: Number of results of an image and class that count.
    """

    def __init__(self, content: Mapping[str, Any], *, max_dets: int = COCO_LIMIT) -> None:
        self.max_dets = max_dets
        self.categories = sorted(content["categories"], key=lambda category: category["id"])
        # Ids may be anything, but the packages expect small numbers and rely on their order.
        images = sorted(content["images"], key=lambda x: (isinstance(x["id"], str), x["id"]))
        self._sizes = {image["id"]: (image["height"], image["width"]) for image in images}
        self._numbers = {id_: number for number, id_ in enumerate(self._sizes, start=1)}
        self._ground_truth = list(map(dict, content["annotations"]))
        repair_fields(self._ground_truth)
        self._faults: list[str] = []  # of masks
        masks = self._compressed(self._ground_truth)
        for number, (annotation, mask) in enumerate(
            zip(self._ground_truth, masks, strict=True), start=1
        ):
            if isinstance(mask, Fault):
                self._faults.append(f"annotation {annotation['id']!r}: {mask.text}")
                annotation.pop("segmentation", None)
            else:
                annotation["segmentation"] = mask
            annotation["id"] = number  # an id of 0 means "not matched" in the packages
            annotation.setdefault("iscrowd", 0)
            if "area" not in annotation:
                annotation["area"] = area_of(annotation, masks="segmentation" in annotation)
            annotation["image_id"] = self._numbers[annotation["image_id"]]
        # Classes without objects have no precision, but would take as much memory as others.
        with_objects = {annotation["category_id"] for annotation in self._ground_truth}
        self._columns = [
            column for column, x in enumerate(self.categories) if x["id"] in with_objects
        ]
        self._classes = {self.categories[x]["id"]: x for x in self._columns}
        for annotation in self._ground_truth:
            annotation["category_id"] = self._classes[annotation["category_id"]]

    def complete(self, annotations: Sequence[Record]) -> None:
        """Add the fields of which pycocotools needs all, in place, to evaluate keypoints.

        Args:
            annotations: Those of the content.
        """
        for annotation, prepared in zip(annotations, self._ground_truth, strict=True):
            annotation.setdefault("area", prepared["area"])
            annotation.setdefault("iscrowd", 0)
            keypoints = annotation.setdefault("keypoints", [])
            annotation.setdefault("num_keypoints", sum(x > 0 for x in keypoints[2::3]))

    def metrics(self, results: Iterable[Mapping[str, Any]], task: str) -> dict[str, float]:
        """Evaluate results.

        Args:
            results: Records in COCO's result format.
            task: bbox, segm or boundary.

        Returns:
            AP, AP50, AP75, APs, APm and APl, and "AP-<class>" for each class if there are several.
        """
        return summary(self.precision(results, task), distinct_names(self.categories))

    def precision(self, results: Iterable[Mapping[str, Any]], task: str) -> np.ndarray:
        """Compute the interpolated precision of results.

        Args:
            results: Records in COCO's result format.
            task: bbox, segm or boundary.

        Returns:
            (T, R, K, A) in 0..1; -1 if a class has no object of this size.

        Raises:
            ValueError: If masks are compared, and one of them cannot be read.
        """
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        masks = task != "bbox"
        if masks and self._faults:
            raise ValueError(f"the ground truth has no valid mask: {self._faults[0]}")
        if masks and not isinstance(results, CheckedResults):
            results = self.checked(results)
        detections = [
            self._prepared(result, number, masks=masks)
            for number, result in enumerate(results, start=1)
            if result["category_id"] in self._classes
        ]
        precision = np.full((*PRECISION_SHAPE[:2], len(self.categories), PRECISION_SHAPE[2]), -1.0)
        if self._columns:
            evaluate = evaluate_faster if has_faster_coco_eval() else evaluate_with_pycocotools
            truth = self._dataset(self._ground_truth)
            found = evaluate(truth, self._dataset(detections), task, self.max_dets)
            precision[:, :, self._columns] = found
        return precision

    def checked(self, results: Iterable[Mapping[str, Any]]) -> "CheckedResults":
        """Check the masks of results once, for several tasks.

        Raises:
            ValueError: If a mask cannot be read.
        """
        results = list(results)
        checked = CheckedResults()
        for number, (result, mask) in enumerate(
            zip(results, self._compressed(results), strict=True)
        ):
            if isinstance(mask, Fault):
                raise ValueError(f"result {number} has no valid mask: {mask.text}")
            checked.append({**result, "segmentation": mask})
        return checked

    def _prepared(self, result: Mapping[str, Any], number: int, *, masks: bool) -> Record:
        """Return a result with all the fields that the packages read."""
        record = {"score": result["score"], "id": number, "iscrowd": 0}
        record |= {"category_id": self._classes[result["category_id"]]}
        record |= {"image_id": self._numbers[result["image_id"]]}
        record |= {"bbox": result.get("bbox", ())}
        if masks:
            record["segmentation"] = result["segmentation"]
        return record | {"area": area_of(record, masks=masks)}

    def _compressed(self, records: Sequence[Mapping[str, Any]]) -> Iterator[Record | Fault]:
        sizes = [self._sizes[record["image_id"]] for record in records]
        return compress_masks([record.get("segmentation") for record in records], sizes)

    def _dataset(self, annotations: list[Record]) -> dict[str, list[Record]]:
        return {
            "images": [
                {"id": number, "height": height, "width": width}
                for number, (height, width) in zip(
                    self._numbers.values(), self._sizes.values(), strict=True
                )
            ],
            "annotations": annotations,
            "categories": [{"id": column, "name": str(column)} for column in self._columns],
        }


def distinct_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of classes; those of several classes are followed by the id."""
    counts = Counter(category["name"] for category in categories)
    return [
        x["name"] if counts[x["name"]] == 1 else f"{x['name']} (id {x['id']})" for x in categories
    ]


def area_of(record: Mapping[str, Any], *, masks: bool) -> float:
    """Return the area of a record's mask (compressed RLE) or of its box."""
    if masks:
        return float(mask_util.area(record["segmentation"]))
    return record["bbox"][2] * record["bbox"][3]


def has_faster_coco_eval() -> bool:
    """Return whether faster-coco-eval is installed."""
    return importlib.util.find_spec("faster_coco_eval") is not None


def evaluate_faster(
    ground_truth: dict[str, list[Record]],
    detections: dict[str, list[Record]],
    task: str,
    max_dets: int = COCO_LIMIT,
) -> np.ndarray:
    """Compute the precision (T, R, K, A) with faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    evaluation_class = with_boundaries(COCOeval_faster) if task == "boundary" else COCOeval_faster
    evaluation = evaluation_class(
        COCO(ground_truth),
        COCO(detections),
        "bbox" if task == "bbox" else "segm",
        print_function=logger.debug,
    )
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def evaluate_with_pycocotools(
    ground_truth: dict[str, list[Record]],
    detections: dict[str, list[Record]],
    task: str,
    max_dets: int = COCO_LIMIT,
) -> np.ndarray:
    """Compute the precision (T, R, K, A) with pycocotools."""
    evaluation_class = with_boundaries(COCOeval) if task == "boundary" else COCOeval
    indices = [COCO(), COCO()]
    with contextlib.redirect_stdout(io.StringIO()):
        for index, dataset in zip(indices, (ground_truth, detections), strict=True):
            index.dataset = dataset
            index.createIndex()
        evaluation = evaluation_class(*indices, "bbox" if task == "bbox" else "segm")
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def with_boundaries(base: Any) -> Any:
    """Derive an evaluation of masks whose matching also compares boundaries.

    Args:
        base: COCOeval of pycocotools, or its counterpart in faster-coco-eval.
    """

    class BoundaryEvaluation(base):
        def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803
            ious = super().computeIoU(imgId, catId)
            detections, ground_truth = (
                [x for x in index.imgToAnns[imgId] if x["category_id"] == catId]
                for index in (self.cocoDt, self.cocoGt)
            )
            if not (detections and ground_truth):
                return ious
            detections.sort(key=lambda result: -result["score"])
            return lower_to_boundary_iou(ious, detections[: len(ious)], ground_truth)

    return BoundaryEvaluation


def summary(precision: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Derive the usual metrics from precisions.

    Args:
        precision: (T, R, K, A) in 0..1; -1 where there is nothing to find.
        names: Names of the K classes.

    Returns:
        AP, AP50, AP75, APs, APm and APl in percent, and "AP-<class>" if there are several classes.
    """
    all_areas = precision[..., 0]
    by_area = [precision[..., area] for area in (1, 2, 3)]
    parts = [all_areas, all_areas[0], all_areas[5], *by_area]
    metrics = dict(zip(METRICS, map(mean_in_percent, parts), strict=True))
    if len(names) > 1:
        metrics |= {
            f"AP-{name}": mean_in_percent(all_areas[:, :, k]) for k, name in enumerate(names)
        }
    return metrics


def mean_in_percent(precision: np.ndarray) -> float:
    """Return the mean of the precisions that are defined, or NaN if none is."""
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if defined.size else math.nan
