"""Evaluators for Detectron2's evaluation loop, extended by boundary metrics."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    SemSegEvaluator,
)
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools.cocoeval import COCOeval

from point_rend.data.datasets.coco import repair_fields
from point_rend.data.datasets.label_maps import IGNORE_LABEL
from point_rend.evaluation.coco_ap import METRICS, CocoAP
from point_rend.evaluation.limits import Limit, coco_limit, lvis_limit, warn_of_limit
from point_rend.evaluation.postprocessing import coco_records
from point_rend.evaluation.saving import FileSaver, evaluate_all
from point_rend.evaluation.semantic_iou import SemanticIoU
from point_rend.rendering.uncertainty import label_map
from point_rend.utils.pictures import read_label_map

logger = logging.getLogger(__name__)
BOUNDARY = "boundary"  # task name of boundary AP
PREDICTIONS = "instances_predictions.pth"  # of Detectron2
KEYPOINTS = "keypoints"  # task name of keypoint AP
Records = Sequence[Mapping[str, Any]]


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator, with boundary AP and faster-coco-eval.

    Args:
        dataset_name: A registered name.
        tasks: A subset of bbox, segm, boundary and keypoints.
        output_dir: Folder for the predictions.
        kpt_oks_sigmas: Sigmas of the keypoints; those of COCO if empty.
        limit: Number of results of an image and class that count.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str],
        *,
        output_dir: str,
        kpt_oks_sigmas: Sequence[float] = (),
        limit: Limit | None = None,
    ) -> None:
        super().__init__(
            dataset_name,
            tasks,
            output_dir=output_dir,
            use_fast_impl=False,
            kpt_oks_sigmas=kpt_oks_sigmas,
        )
        repair_fields(self._coco_api.dataset.get("annotations", ()))
        self._files, self._output_dir = FileSaver(output_dir), None  # Detectron2 writes nothing
        self._limit = limit or coco_limit()
        self._coco_ap: CocoAP | None = None

    def process(self, inputs: Records, outputs: Records) -> None:
        """Add images.

        Args:
            inputs: Records with "image_id".
            outputs: Results with "instances", "proposals" or both.
        """
        self._predictions += image_predictions(inputs, outputs)

    def evaluate(self, img_ids: Sequence[Any] | None = None) -> Any:
        """Evaluate the images of all processes.

        Returns:
            Metrics in percent by task; none in all processes but the first.

        Raises:
            NotSavedError: If the predictions could not be saved; the metrics have been logged.
        """
        results = super().evaluate(img_ids)
        self._files.finish()
        return results

    def _eval_predictions(
        self, predictions: Iterable[Mapping[str, Any]], img_ids: Sequence[Any] | None = None
    ) -> None:
        if img_ids is not None:
            raise NotImplementedError("img_ids: register the images as a data set of their own")
        predictions = list(predictions)
        self._files.save_tensors(PREDICTIONS, predictions)
        results = [result for image in predictions for result in image["instances"]]
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_contiguous is not None:
            dataset_ids = {contiguous: own for own, contiguous in to_contiguous.items()}
            for result in results:
                result["category_id"] = dataset_ids[result["category_id"]]
        self._files.save_json("coco_instances_results.json", results)
        if not self._do_evaluation:
            logger.info("%s has no annotations: not evaluated", self._metadata.name)
            return

        if self._coco_ap is None:
            self._coco_ap = CocoAP(self._coco_api.dataset, max_dets=self._limit.number)
        warn_of_limit(self._coco_api.dataset, results, self._limit, self._metadata.name)
        checked: Records = results
        if {"segm", BOUNDARY} & set(self._tasks):
            checked = self._coco_ap.checked(results)
        for task in self._tasks:
            if task == KEYPOINTS:  # Detectron2 computes and logs these
                self._results[task] = self._keypoint_metrics(results)
                continue
            if results:
                metrics = self._coco_ap.metrics(checked, task)
            else:  # as in Detectron2
                metrics = dict.fromkeys(METRICS, float("nan"))
            self._results[task] = metrics
            log_metrics(task, self._metadata.name, metrics)

    def _keypoint_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        evaluation = None
        if results:
            assert self._coco_ap is not None
            self._coco_ap.complete(self._coco_api.dataset["annotations"])
            evaluation = _evaluate_predictions_on_coco(
                self._coco_api, results, KEYPOINTS, self._kpt_oks_sigmas, COCOeval
            )
        return self._derive_coco_results(
            evaluation, KEYPOINTS, class_names=self._metadata.get("thing_classes")
        )


class LvisInstanceEvaluator(LVISEvaluator):
    """Detectron2's LVIS evaluator, with boundary AP.

    Args:
        dataset_name: A registered name.
        tasks: A subset of bbox, segm and boundary.
        output_dir: Folder for the predictions.
        limit: Number of results of an image that count.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str],
        *,
        output_dir: str,
        limit: Limit | None = None,
    ) -> None:
        self._limit = limit or lvis_limit()
        self._wants_boundaries = BOUNDARY in tasks
        tasks = tuple(task for task in tasks if task != BOUNDARY)
        super().__init__(
            dataset_name, tasks, output_dir=output_dir, max_dets_per_image=self._limit.number
        )
        if self._do_evaluation:
            # This import also makes lvis work with any NumPy.
            from point_rend.evaluation.lvis_ap import complete_lvis

            complete_lvis(self._lvis_api)
        self._files, self._output_dir = FileSaver(output_dir), None  # Detectron2 writes nothing

    def process(self, inputs: Records, outputs: Records) -> None:
        """Add images; arguments as of :meth:`InstanceEvaluator.process`."""
        self._predictions += image_predictions(inputs, outputs)

    def evaluate(self) -> Any:
        """Evaluate the images of all processes.

        Returns:
            Metrics in percent by task; None in all processes but the first.

        Raises:
            NotSavedError: If the predictions could not be saved; the metrics have been logged.
        """
        results = super().evaluate()
        self._files.finish()
        return results

    def _eval_predictions(self, predictions: Iterable[Mapping[str, Any]]) -> None:
        # This import also makes lvis work with any NumPy.
        from point_rend.evaluation.lvis_ap import lvis_metrics

        predictions = list(predictions)
        self._files.save_tensors(PREDICTIONS, predictions)
        super()._eval_predictions(predictions)  # replaces category ids by those of the data set
        results = [result for image in predictions for result in image["instances"]]
        self._files.save_json("lvis_instances_results.json", results)
        if not self._do_evaluation:
            return
        warn_of_limit(self._lvis_api.dataset, results, self._limit, self._metadata.name)
        if self._wants_boundaries:
            metrics = lvis_metrics(self._lvis_api, results, BOUNDARY, max_dets=self._limit.number)
            self._results[BOUNDARY] = metrics
            log_metrics(BOUNDARY, self._metadata.name, metrics)


class LabelMapEvaluator(SemSegEvaluator):
    """Detectron2's mIoU evaluator with the label maps of this package.

    Its "BoundaryIoU" is disabled: it differs from the published quantity of this name, which
    `BoundaryIoUEvaluator` computes.
    """

    def __init__(self, dataset_name: str, *, output_dir: str) -> None:
        super().__init__(dataset_name, sem_seg_loading_fn=read_labels)
        self._files = FileSaver(output_dir)
        self._compute_boundary_iou = False

    def evaluate(self) -> Any:
        """Evaluate the images of all processes.

        Returns:
            Metrics in percent under "sem_seg"; None in all processes but the first.

        Raises:
            NotSavedError: If the predictions could not be saved; the metrics have been logged.
        """
        results = super().evaluate()
        if results is not None:
            self._files.save_json("sem_seg_predictions.json", self._predictions)
            self._files.save_tensors("sem_seg_evaluation.pth", results["sem_seg"])
            self._files.finish()
        return results


class BoundaryIoUEvaluator(DatasetEvaluator):
    """Boundary IoU of label maps, per class and averaged.

    Args:
        dataset_name: A registered name; its records must have "sem_seg_file_name".
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
        self._iou = SemanticIoU(len(self._classes), ignore_value=self._ignore_value)

    def process(self, inputs: Records, outputs: Records) -> None:
        """Add images.

        Args:
            inputs: Records with "file_name".
            outputs: Results with "sem_seg", (K, H, W) logits or probabilities.
        """
        for record, output in zip(inputs, outputs, strict=True):
            labels = read_labels(self._files[record["file_name"]], np.int64)
            self._iou.add(label_map(output["sem_seg"]).cpu().numpy(), labels)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Evaluate the images of all processes.

        Returns:
            "mIoU" and "IoU-<class>" in percent under "boundary_sem_seg"; None in all processes but
            the first.
        """
        total, *others = comm.gather(self._iou) or [None]
        if total is None:
            return None
        for other in others:
            total.update(other)
        metrics = {"mIoU": total.means()["boundary mIoU"]} | {
            f"IoU-{name}": 100 * float(iou)
            for name, iou in zip(self._classes, total.boundary_iou, strict=True)
        }
        log_metrics("boundary_sem_seg", self._name, metrics)
        return {"boundary_sem_seg": metrics}


class AllEvaluators(DatasetEvaluators):
    """Several evaluators of a data set, all of which evaluate before an error is raised."""

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the images of all processes.

        Returns:
            The results of all evaluators; none in all processes but the first.

        Raises:
            NotSavedError: If a file could not be saved; the metrics have been logged.
        """
        results: dict[str, Any] = {}
        for found in evaluate_all(self._evaluators):
            results |= (found or {}) if comm.is_main_process() else {}
        return results


def image_predictions(inputs: Records, outputs: Records) -> Iterator[dict[str, Any]]:
    """Yield what Detectron2's evaluators keep of each image that has instances or proposals."""
    for record, output in zip(inputs, outputs, strict=True):
        kept: dict[str, Any] = {"image_id": record["image_id"]}
        if "instances" in output:
            kept["instances"] = coco_records(output["instances"].to("cpu"), record["image_id"])
        if "proposals" in output:
            kept["proposals"] = output["proposals"].to("cpu")
        if len(kept) > 1:
            yield kept


def read_labels(file_name: str, dtype: Any) -> np.ndarray:
    """Read a label map (H, W) as a type of NumPy."""
    return read_label_map(file_name).astype(dtype)


def log_metrics(task: str, dataset_name: str, metrics: Mapping[str, float]) -> None:
    """Log the metrics of a task, followed by those of single classes."""
    overall = {name: value for name, value in metrics.items() if "-" not in name}
    logger.info("%s of %s:\n%s", task, dataset_name, create_small_table(overall))
    by_class = [f"{name} {value:.1f}" for name, value in metrics.items() if name not in overall]
    if by_class:
        logger.info("%s of %s by class: %s", task, dataset_name, ", ".join(by_class))
