"""Evaluators for Detectron2's loop, which measure boundaries beside the usual figures."""

import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    SemSegEvaluator,
)
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from PIL import Image
from pycocotools.cocoeval import COCOeval

from point_rend.data.datasets.label_maps import IGNORE_LABEL
from point_rend.evaluation.coco_ap import FIGURES, InstanceScores
from point_rend.evaluation.semantic_iou import SemanticScores
from point_rend.rendering.uncertainty import label_map
from point_rend.utils.files import write_text

logger = logging.getLogger(__name__)
BOUNDARY = "boundary"  # the task of boundary AP
KEYPOINTS = "keypoints"  # the task of keypoint AP
Records = Sequence[Mapping[str, Any]]


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's evaluator of instances by COCO's rule, with other engines and with boundary AP.

    Args:
        dataset_name: A registered name.
        tasks: Of bbox, segm, boundary and keypoints.
        output_dir: Folder for the predictions.
        kpt_oks_sigmas: Of the keypoints; those of COCO if empty.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str],
        *,
        output_dir: str,
        kpt_oks_sigmas: Sequence[float] = (),
    ) -> None:
        super().__init__(
            dataset_name,
            tasks,
            output_dir=output_dir,
            use_fast_impl=False,
            kpt_oks_sigmas=kpt_oks_sigmas,
        )
        self._scores: InstanceScores | None = None

    def _eval_predictions(
        self, predictions: Iterable[Mapping[str, Any]], img_ids: Sequence[Any] | None = None
    ) -> None:
        if img_ids is not None:
            raise NotImplementedError("img_ids: register the images as a data set of their own")
        found = [result for image in predictions for result in image["instances"]]
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_contiguous is not None:
            ids = {contiguous: own for own, contiguous in to_contiguous.items()}
            for result in found:
                result["category_id"] = ids[result["category_id"]]
        path = os.path.join(self._output_dir, "coco_instances_results.json")
        write_text(path, json.dumps(found))
        if not self._do_evaluation:
            logger.info("%s: %s has no annotations to score it on", path, self._metadata.name)
            return

        if self._scores is None:
            self._scores = InstanceScores(self._coco_api.dataset)
        for task in self._tasks:
            if task == KEYPOINTS:  # which Detectron2 scores, and logs
                self._results[task] = self._keypoint_figures(found)
                continue
            if found:
                figures = self._scores.figures(found, task)
            else:  # as Detectron2 has it
                figures = dict.fromkeys(FIGURES, float("nan"))
            self._results[task] = figures
            log_figures(task, self._metadata.name, figures)

    def _keypoint_figures(self, found: list[dict[str, Any]]) -> dict[str, float]:
        scored = None
        if found:
            scored = _evaluate_predictions_on_coco(
                self._coco_api, found, KEYPOINTS, self._kpt_oks_sigmas, COCOeval
            )
        return self._derive_coco_results(
            scored, KEYPOINTS, class_names=self._metadata.get("thing_classes")
        )


class LvisInstanceEvaluator(LVISEvaluator):
    """Detectron2's evaluator of instances by LVIS's rule, with boundary AP.

    Args:
        dataset_name: A registered name.
        tasks: Of bbox, segm and boundary.
        output_dir: Folder for the predictions.
    """

    def __init__(self, dataset_name: str, tasks: Sequence[str], *, output_dir: str) -> None:
        self._wants_boundaries = BOUNDARY in tasks
        tasks = tuple(task for task in tasks if task != BOUNDARY)
        super().__init__(dataset_name, tasks, output_dir=output_dir)

    def _eval_predictions(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        from point_rend.evaluation.lvis_ap import (
            lvis_figures,  # importing it lets lvis run on any NumPy
        )

        predictions = list(predictions)
        super()._eval_predictions(predictions)  # which turns the categories into those of the file
        if self._wants_boundaries and self._do_evaluation:
            found = itertools.chain.from_iterable(image["instances"] for image in predictions)
            figures = lvis_figures(self._lvis_api, found, BOUNDARY)
            self._results[BOUNDARY] = figures
            log_figures(BOUNDARY, self._metadata.name, figures)


class LabelMapEvaluator(SemSegEvaluator):
    """Detectron2's mIoU, which reads label maps under any NumPy.

    Its "BoundaryIoU" is left out: that is another quantity than the one published under the name,
    which `BoundaryIoUEvaluator` gives.
    """

    def __init__(self, dataset_name: str, *, output_dir: str) -> None:
        super().__init__(dataset_name, output_dir=output_dir, sem_seg_loading_fn=read_labels)
        self._compute_boundary_iou = False


class BoundaryIoUEvaluator(DatasetEvaluator):
    """Boundary IoU of label maps, by class and as a mean.

    Args:
        dataset_name: A registered name; its records have "sem_seg_file_name".
    """

    def __init__(self, dataset_name: str) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._classes = metadata.stuff_classes
        self._ignore_value = metadata.get("ignore_label", IGNORE_LABEL)
        self._files = {
            record["file_name"]: record["sem_seg_file_name"]
            for record in DatasetCatalog.get(dataset_name)
        }
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._scores = SemanticScores(len(self._classes), ignore_value=self._ignore_value)

    def process(self, inputs: Records, outputs: Records) -> None:
        """Count images.

        Args:
            inputs: Records with "file_name".
            outputs: Results with "sem_seg", (K, H, W) logits or probabilities.
        """
        for record, output in zip(inputs, outputs, strict=True):
            labels = read_labels(self._files[record["file_name"]], np.int64)
            self._scores.add(label_map(output["sem_seg"]).cpu().numpy(), labels)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Score the images of all processes.

        Returns:
            "mIoU" and "IoU-<class>" in percent under "boundary_sem_seg"; None in processes other
            than the first.
        """
        first, *others = comm.gather(self._scores) or [None]
        if first is None:
            return None
        for scores in others:
            first.update(scores)
        figures = {"mIoU": first.means()["boundary mIoU"]} | {
            f"IoU-{name}": 100 * float(iou)
            for name, iou in zip(self._classes, first.boundary_iou, strict=True)
        }
        log_figures("boundary_sem_seg", self._name, figures)
        return {"boundary_sem_seg": figures}


def read_labels(file_name: str, dtype: Any) -> np.ndarray:
    """Read a label map (H, W)."""
    with PathManager.open(file_name, "rb") as file, Image.open(file) as labels:
        return np.array(labels, dtype=dtype)


def log_figures(task: str, dataset_name: str, figures: Mapping[str, float]) -> None:
    """Log the figures of a task, those of single classes below the others."""
    overall = {name: figure for name, figure in figures.items() if "-" not in name}
    logger.info("%s of %s:\n%s", task, dataset_name, create_small_table(overall))
    by_class = [f"{name} {figure:.1f}" for name, figure in figures.items() if name not in overall]
    if by_class:
        logger.info("%s of %s by class: %s", task, dataset_name, ", ".join(by_class))
