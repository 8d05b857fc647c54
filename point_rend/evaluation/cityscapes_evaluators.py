"""Cityscapes evaluators that leave no files behind, and boundary AP in their terms."""

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

from point_rend.evaluation.cityscapes_ap import CityscapesScores, Prediction
from point_rend.evaluation.evaluators import BOUNDARY, Records, log_figures, read_labels

PNG_OF_IMAGE = ("_leftImg8bit.png", "_gtFine_instanceIds.png")  # ends of Cityscapes' file names


class TidyCityscapesEvaluator(CityscapesEvaluator):
    """An evaluator of Cityscapes that leaves no file behind.

    The scripts that Detectron2 calls write into the current directory, whatever that is.
    """

    def __init__(self, dataset_name: str) -> None:
        super().__init__(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        gt_dir = os.path.abspath(PathManager.get_local_path(metadata.gt_dir))
        self._metadata = Metadata(**metadata.as_dict() | {"gt_dir": gt_dir})

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Score what `process` was given.

        Returns:
            Figures by name under the name of the task; None in processes other than the first.
        """
        with contextlib.chdir(self._temp_dir):
            return super().evaluate()


class TidyCityscapesInstanceEvaluator(TidyCityscapesEvaluator, CityscapesInstanceEvaluator):
    """Detectron2's evaluator of instances, which leaves no file behind."""


class TidyCityscapesSemSegEvaluator(TidyCityscapesEvaluator, CityscapesSemSegEvaluator):
    """Detectron2's evaluator of label maps, which leaves no file behind."""


class CityscapesBoundaryEvaluator(DatasetEvaluator):
    """Boundary AP of Cityscapes instances.

    Args:
        dataset_name: A registered name, with the folder "gt_dir" in its metadata.
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
        self._scores = CityscapesScores(self._names, self._void, boundaries=True)

    def process(self, inputs: Records, outputs: Records) -> None:
        """Count images.

        Args:
            inputs: Records with "file_name".
            outputs: Results with "instances".
        """
        for record, output in zip(inputs, outputs, strict=True):
            image = Path(record["file_name"])
            file = self._gt_dir / image.parent.name / image.name.replace(*PNG_OF_IMAGE)
            found = output["instances"].to("cpu")
            predictions = [
                Prediction(self._labels[k], score, mask.numpy().astype(bool))
                for k, score, mask in zip(
                    found.pred_classes.tolist(),
                    found.scores.tolist(),
                    found.pred_masks,
                    strict=True,
                )
            ]
            self._scores.add(predictions, read_labels(str(file), np.int64))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Score the images of all processes.

        Returns:
            AP, AP50 and "AP-<class>" in percent under "boundary"; None in processes other than the
            first.
        """
        first, *others = comm.gather(self._scores) or [None]
        if first is None:
            return None
        for scores in others:
            first.update(scores)
        figures = first.figures()
        log_figures(BOUNDARY, self._name, figures)
        return {BOUNDARY: figures}
