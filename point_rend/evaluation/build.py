"""The evaluator that belongs to a data set."""

import contextlib
import importlib.util
import logging
import os
import types
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    SemSegEvaluator,
)
from detectron2.evaluation.cityscapes_evaluation import CityscapesEvaluator
from detectron2.utils.file_io import PathManager
from PIL import Image


class Evaluation(NamedTuple):
    """What an evaluation needs.

    Attributes:
        outputs: Fields of the model's results.
        packages: Packages beyond the requirements of this one, for loader and evaluator.
    """

    outputs: frozenset[str]
    packages: tuple[str, ...] = ()


INSTANCES = frozenset({"instances"})
SEM_SEG = frozenset({"sem_seg"})
PANOPTIC = INSTANCES | SEM_SEG | {"panoptic_seg"}
EVALUATIONS = {  # by the `evaluator_type` of a data set
    "coco": Evaluation(INSTANCES),
    "lvis": Evaluation(INSTANCES, ("lvis",)),
    "cityscapes_instance": Evaluation(INSTANCES, ("cityscapesscripts", "shapely")),
    "sem_seg": Evaluation(SEM_SEG),
    "cityscapes_sem_seg": Evaluation(SEM_SEG, ("cityscapesscripts",)),
    "coco_panoptic_seg": Evaluation(PANOPTIC),
}

logger = logging.getLogger(__name__)


def check_evaluators(
    train: Sequence[str], test: Sequence[str], *, outputs: Collection[str] = PANOPTIC
) -> None:
    """Refuse data sets that nobody here can load or evaluate: before a training, not after it.

    Args:
        train: Names of the training sets.
        test: Names of the sets that are evaluated.
        outputs: Fields of the model's results: of instances, sem_seg, panoptic_seg.

    Raises:
        ValueError: If no evaluator is known for a test set, if it needs what the model has not, or
            if a package is missing.
    """
    for name in test:
        if _kind(name) not in EVALUATIONS:
            raise ValueError(_unknown(name))
        lacking = sorted(EVALUATIONS[_kind(name)].outputs - {*outputs})
        if lacking:
            raise ValueError(
                f"cannot evaluate on {name}: its evaluator_type {_kind(name)!r} needs "
                f"{', '.join(lacking)}, the results of the model are {', '.join(sorted(outputs))}"
            )
    for name in [*train, *test]:
        for package in EVALUATIONS[_kind(name)].packages if _kind(name) in EVALUATIONS else ():
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"{name} needs the package {package}: pip install {package}")


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Build the evaluator that a data set's `evaluator_type` asks for.

    Args:
        cfg: The config.
        dataset_name: A registered name.

    Returns:
        The evaluator; it writes predictions to OUTPUT_DIR/inference/DATASET_NAME.

    Raises:
        ValueError: If the data set is of an unknown type.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    # Left to guess, Detectron2 forgets the masks of a model that finds nothing.
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    match _kind(dataset_name):
        case "coco":
            return COCOEvaluator(dataset_name, tasks, output_dir=folder)
        case "lvis":
            _mend_lvis()
            return LVISEvaluator(dataset_name, tasks, output_dir=folder)
        case "cityscapes_instance":
            return TidyCityscapesInstanceEvaluator(dataset_name)
        case "sem_seg":
            return LabelMapEvaluator(dataset_name, output_dir=folder)
        case "cityscapes_sem_seg":
            return TidyCityscapesSemSegEvaluator(dataset_name)
        case "coco_panoptic_seg":
            evaluators = [
                LabelMapEvaluator(dataset_name, output_dir=folder),
                COCOEvaluator(dataset_name, tasks, output_dir=folder),
            ]
            if importlib.util.find_spec("panopticapi") is None:
                logger.warning(
                    "%s: mIoU and AP, but no panoptic quality, which needs panopticapi "
                    "(pip install git+https://github.com/cocodataset/panopticapi.git)",
                    dataset_name,
                )
            else:
                evaluators.append(COCOPanopticEvaluator(dataset_name, folder))
            return DatasetEvaluators(evaluators)
    raise ValueError(_unknown(dataset_name))


class LabelMapEvaluator(SemSegEvaluator):
    """Detectron2's mIoU, which reads label maps under any NumPy.

    Its "BoundaryIoU" is left out: that is another quantity than the one published under the name.
    """

    def __init__(self, dataset_name: str, *, output_dir: str) -> None:
        super().__init__(dataset_name, output_dir=output_dir, sem_seg_loading_fn=_read_labels)
        self._compute_boundary_iou = False


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


def _read_labels(file_name: str, dtype: Any) -> np.ndarray:
    with PathManager.open(file_name, "rb") as file, Image.open(file) as labels:
        return np.array(labels, dtype=dtype)


def _kind(dataset_name: str) -> str:
    return MetadataCatalog.get(dataset_name).get("evaluator_type", "")


def _unknown(dataset_name: str) -> str:
    return (
        f"cannot evaluate on {dataset_name}: its evaluator_type is {_kind(dataset_name)!r}, "
        f"expected one of {', '.join(EVALUATIONS)}"
    )


def _mend_lvis() -> None:
    """Give lvis the name `np.float` back, for itself alone.

    Its newest version, 0.5.3, uses the name when it sums up; NumPy has dropped it in 1.24.
    """
    import lvis.eval

    lvis.eval.np = types.SimpleNamespace(**vars(np) | {"float": float})
