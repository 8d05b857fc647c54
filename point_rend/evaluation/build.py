"""The evaluator that belongs to a data set."""

import importlib.util
import logging
import os
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator, DatasetEvaluators

from point_rend.config.tasks import INSTANCES, PANOPTIC, SEM_SEG
from point_rend.evaluation.cityscapes_evaluators import (
    CityscapesBoundaryEvaluator,
    TidyCityscapesInstanceEvaluator,
    TidyCityscapesSemSegEvaluator,
)
from point_rend.evaluation.evaluators import (
    BOUNDARY,
    KEYPOINTS,
    BoundaryIoUEvaluator,
    InstanceEvaluator,
    LabelMapEvaluator,
    LvisInstanceEvaluator,
)

logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """What an evaluation needs.

    Attributes:
        outputs: Fields of the model's results.
        packages: Packages beyond the requirements of this one, for loader and evaluator.
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
}


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
    tasks = ["bbox", "segm"] if cfg.MODEL.MASK_ON else ["bbox"]
    boundaries = cfg.TEST.BOUNDARY_METRICS
    if boundaries and cfg.MODEL.MASK_ON:
        tasks.append(BOUNDARY)
    evaluators: list[DatasetEvaluator] = []
    kind = _kind(dataset_name)
    if kind in EVALUATIONS and "sem_seg" in EVALUATIONS[kind].outputs:
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("ignore_label") is None:  # what Detectron2's evaluator cannot do without
            metadata.set(ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)

    of_instances = partial(
        InstanceEvaluator,
        dataset_name,
        [*tasks, KEYPOINTS] if cfg.MODEL.KEYPOINT_ON else tasks,
        output_dir=folder,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
    )
    match kind:
        case "coco":
            evaluators = [of_instances()]
        case "lvis":
            evaluators = [LvisInstanceEvaluator(dataset_name, tasks, output_dir=folder)]
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
                of_instances(),
            ]
            if importlib.util.find_spec("panopticapi") is None:
                logger.warning(
                    "%s: mIoU and AP, but no panoptic quality, which needs panopticapi "
                    "(pip install git+https://github.com/cocodataset/panopticapi.git)",
                    dataset_name,
                )
            else:
                evaluators.append(COCOPanopticEvaluator(dataset_name, folder))
        case _:
            raise ValueError(_unknown(dataset_name))
    if boundaries and "sem_seg" in EVALUATIONS[kind].outputs:
        evaluators.append(BoundaryIoUEvaluator(dataset_name))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _kind(dataset_name: str) -> str:
    return MetadataCatalog.get(dataset_name).get("evaluator_type", "")


def _unknown(dataset_name: str) -> str:
    return (
        f"cannot evaluate on {dataset_name}: its evaluator_type is {_kind(dataset_name)!r}, "
        f"expected one of {', '.join(EVALUATIONS)}"
    )
