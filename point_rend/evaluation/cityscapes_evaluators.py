"""Cityscapes evaluators that leave no files behind, and boundary AP on Cityscapes."""

import contextlib
import os
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    DatasetEvaluator,
)
from detectron2.evaluation.cityscapes_evaluation import CityscapesEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from point_rend.evaluation.cityscapes_ap import CityscapesAP, Prediction
from point_rend.evaluation.evaluators import BOUNDARY, Records, log_metrics, read_labels
from point_rend.rendering.box_masks import crops

# Endings of Cityscapes' file names: of an image, and of its instance ids.
IMAGE_TO_INSTANCE_IDS = ("_leftImg8bit.png", "_gtFine_instanceIds.png")


class TidyCityscapesEvaluator(CityscapesEvaluator):
    """A Cityscapes evaluator that leaves no files behind.

    The scripts that Detectron2 calls write into the current directory; here it is a temporary one.
    """

    def __init__(self, dataset_name: str) -> None:
        super().__init__(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        gt_dir = os.path.abspath(PathManager.get_local_path(metadata.gt_dir))
        self._metadata = Metadata(**metadata.as_dict() | {"gt_dir": gt_dir})

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Evaluate the processed images.

        Returns:
            Metrics by task; None in all processes but the first.
        """
        # Late, because the scripts read the environment when they are imported.
        from point_rend.evaluation import cityscapes_scripts  # noqa: F401

        with contextlib.chdir(self._temp_dir):
            return super().evaluate()


class TidyCityscapesInstanceEvaluator(TidyCityscapesEvaluator, CityscapesInstanceEvaluator):
    """Detectron2's instance evaluator; leaves no files behind."""


class TidyCityscapesSemSegEvaluator(TidyCityscapesEvaluator, CityscapesSemSegEvaluator):
    """Detectron2's label map evaluator; leaves no files behind."""


class CityscapesBoundaryEvaluator(DatasetEvaluator):
    """Boundary AP of Cityscapes instances.

    Args:
        dataset_name: A registered name; its metadata must have the folder "gt_dir".
    """

    def __init__(self, dataset_name: str) -> None:
        from cityscapesscripts.helpers.labels import labels

        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._gt_dir = Path(PathManager.get_local_path(metadata.gt_dir))
        ids = {label.name: label.id for label in labels}
        self._labels = [ids[name] for name in metadata.thing_classes]
        self._names = dict(zip(self._labels, metadata.thing_classes, strict=True))
        self._void = [label.id for label in labels if label.ignoreInEval]
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._ap = CityscapesAP(self._names, self._void, boundaries=True)

    def process(self, inputs: Records, outputs: Records) -> None:
        """Add images.

        Args:
            inputs: Records with "file_name".
            outputs: Results with "instances".
        """
        for record, output in zip(inputs, outputs, strict=True):
            image = Path(record["file_name"])
            file = self._gt_dir / image.parent.name / image.name.replace(*IMAGE_TO_INSTANCE_IDS)
            instances = output["instances"].to("cpu")
            predictions = [
                Prediction(self._labels[k], score, mask)
                for k, score, mask in zip(
                    instances.pred_classes.tolist(),
                    instances.scores.tolist(),
                    crops(instances.pred_masks),
                    strict=True,
                )
            ]
            self._ap.add(predictions, read_labels(str(file), np.int64))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Evaluate the images of all processes.

        Returns:
            AP, AP50 and "AP-<class>" in percent under "boundary"; None in all processes but the
            first.
        """
        total, *others = comm.gather(self._ap) or [None]
        if total is None:
            return None
        for other in others:
            total.update(other)
        metrics = total.metrics()
        log_metrics(BOUNDARY, self._name, metrics)
        return {BOUNDARY: metrics}
