"""The choice of the evaluator for a data set."""

import importlib.util
import logging
import os
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from point_rend.config.tasks import INSTANCES, PANOPTIC, SEM_SEG
from point_rend.evaluation.cityscapes_evaluators import (
    CityscapesBoundaryEvaluator,
    TidyCityscapesInstanceEvaluator,
    TidyCityscapesSemSegEvaluator,
)
from point_rend.evaluation.evaluators import (
    BOUNDARY,
    KEYPOINTS,
    AllEvaluators,
    BoundaryIoUEvaluator,
    InstanceEvaluator,
    LabelMapEvaluator,
    LvisInstanceEvaluator,
)
from point_rend.evaluation.limits import coco_limit, lvis_limit
from point_rend.evaluation.panoptic_evaluator import PanopticEvaluator

logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """Requirements of an evaluation.

    Attributes:
        outputs: Fields that the model must return.
        packages: Optional packages that the loader and the evaluator need.
    """

    outputs: frozenset[str]
    packages: tuple[str, ...] = ()


EVALUATIONS = {  # by the `evaluator_type` of a data set
    "coco": Evaluation(INSTANCES),
    "lvis": Evaluation(INSTANCES, ("lvis",)),
    "cityscapes_instance": Evaluation(INSTANCES, ("cityscapesscripts", "shapely")),
    "sem_seg": Evaluation(SEM_SEG),
    "cityscapes_sem_seg": Evaluation(SEM_SEG, ("cityscapesscripts",)),
    "coco_panoptic_seg": Evaluation(PANOPTIC),
    "cityscapes_panoptic_separated": Evaluation(PANOPTIC, ("cityscapesscripts", "shapely")),
}


def check_evaluators(
    train: Sequence[str], test: Sequence[str], *, outputs: Collection[str] = PANOPTIC
) -> None:
    """Refuse data sets that cannot be loaded or evaluated: before a training, not after it.

    Args:
        train: Names of the training sets.
        test: Names of the test sets.
        outputs: Fields that the model returns: a subset of instances, sem_seg, panoptic_seg.

    Raises:
        ValueError: If no evaluator is known for a test set, if it needs a field that the model does
            not return, or if a package is missing.
    """
    for name in test:
        if _evaluator_type(name) not in EVALUATIONS:
            raise ValueError(_unknown(name))
        lacking = sorted(EVALUATIONS[_evaluator_type(name)].outputs - {*outputs})
        if lacking:
            raise ValueError(
                f"cannot evaluate on {name}: its evaluator_type {_evaluator_type(name)!r} needs "
                f"{', '.join(lacking)}, the results of the model are {', '.join(sorted(outputs))}"
            )
    for name in [*train, *test]:
        evaluation = EVALUATIONS.get(_evaluator_type(name))
        for package in evaluation.packages if evaluation else ():
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"{name} needs the package {package}: pip install {package}")


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Build the evaluator for the `evaluator_type` of a data set.

    Args:
        cfg: The config.
        dataset_name: A registered name.

    Returns:
        The evaluator; it writes predictions to OUTPUT_DIR/inference/DATASET_NAME.

    Raises:
        ValueError: If the `evaluator_type` is unknown.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    tasks, boundaries = build_tasks(cfg), cfg.TEST.BOUNDARY_METRICS
    evaluators: list[DatasetEvaluator] = []
    evaluator_type = _evaluator_type(dataset_name)
    max_dets, of_model = cfg.TEST.MAX_DETS_PER_IMAGE, cfg.TEST.DETECTIONS_PER_IMAGE
    choose_limit = lvis_limit if evaluator_type == "lvis" else coco_limit
    limit = choose_limit(max_dets, of_model=of_model if of_model >= 0 else None)
    if evaluator_type in EVALUATIONS and "sem_seg" in EVALUATIONS[evaluator_type].outputs:
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("ignore_label") is None:  # Detectron2's evaluator requires it
            metadata.set(ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)

    build_instance_evaluator = partial(
        InstanceEvaluator,
        dataset_name,
        [*tasks, KEYPOINTS] if cfg.MODEL.KEYPOINT_ON else tasks,
        output_dir=folder,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        limit=limit,
    )
    match evaluator_type:
        case "coco":
            evaluators = [build_instance_evaluator()]
        case "lvis":
            evaluators = [
                LvisInstanceEvaluator(dataset_name, tasks, output_dir=folder, limit=limit)
            ]
        case "cityscapes_instance":
            evaluators = [TidyCityscapesInstanceEvaluator(dataset_name)]
            if boundaries:
                evaluators.append(CityscapesBoundaryEvaluator(dataset_name))
        case "sem_seg":
            evaluators = [LabelMapEvaluator(dataset_name, output_dir=folder)]
        case "cityscapes_sem_seg":
            evaluators = [TidyCityscapesSemSegEvaluator(dataset_name)]
        case "coco_panoptic_seg":
            evaluators = [
                LabelMapEvaluator(dataset_name, output_dir=folder),
                build_instance_evaluator(),
            ]
            if MetadataCatalog.get(dataset_name).get("panoptic_json"):
                evaluators.append(PanopticEvaluator(dataset_name, folder))
            else:
                logger.warning(
                    "%s: mIoU and AP are computed, but panoptic quality is not; it needs "
                    "panoptic_json and panoptic_root in the metadata of the data set",
                    dataset_name,
                )
        case "cityscapes_panoptic_separated":
            evaluators = [
                LabelMapEvaluator(dataset_name, output_dir=folder),
                TidyCityscapesInstanceEvaluator(dataset_name),
                PanopticEvaluator(dataset_name, folder),
            ]
            if boundaries:
                evaluators.append(CityscapesBoundaryEvaluator(dataset_name))
        case _:
            raise ValueError(_unknown(dataset_name))
    if boundaries and "sem_seg" in EVALUATIONS[evaluator_type].outputs:
        evaluators.append(BoundaryIoUEvaluator(dataset_name))
    return evaluators[0] if len(evaluators) == 1 else AllEvaluators(evaluators)


def build_tasks(cfg: CfgNode) -> list[str]:
    """Return the tasks of an evaluation of instances, without keypoints.

    Detectron2 infers them from the results, and leaves out masks if there are no detections.
    """
    tasks = ["bbox", "segm"] if cfg.MODEL.MASK_ON else ["bbox"]
    return [*tasks, BOUNDARY] if cfg.TEST.BOUNDARY_METRICS and cfg.MODEL.MASK_ON else tasks


def _evaluator_type(dataset_name: str) -> str:
    return MetadataCatalog.get(dataset_name).get("evaluator_type", "")


def _unknown(dataset_name: str) -> str:
    return (
        f"cannot evaluate on {dataset_name}: its evaluator_type is "
        f"{_evaluator_type(dataset_name)!r}, expected one of {', '.join(EVALUATIONS)}"
    )
