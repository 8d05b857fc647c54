"""The evaluator that belongs to a data set."""

import contextlib
import importlib.util
import os
import types
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
)
from detectron2.utils.file_io import PathManager

# By the `evaluator_type` of a data set: the packages that its loader and evaluator need beyond the
# requirements of this one.
PACKAGES: dict[str, tuple[str, ...]] = {
    "coco": (),
    "lvis": ("lvis",),
    "cityscapes_instance": ("cityscapesscripts", "shapely"),
}


def check_evaluators(train: Sequence[str], test: Sequence[str]) -> None:
    """Refuse data sets that nobody here can load or evaluate: before a training, not after it.

    Args:
        train: Names of the training sets.
        test: Names of the sets that are evaluated.

    Raises:
        ValueError: If no evaluator is known for a test set, or if a package is missing.
    """
    for name in test:
        if _kind(name) not in PACKAGES:
            raise ValueError(_unknown(name))
    for name in [*train, *test]:
        for package in PACKAGES.get(_kind(name), ()):
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
    raise ValueError(_unknown(dataset_name))


class TidyCityscapesInstanceEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's evaluator, which leaves no file behind.

    The scripts that it calls write a `matches.json` into the current directory, whatever that is.
    """

    def __init__(self, dataset_name: str) -> None:
        super().__init__(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        gt_dir = os.path.abspath(PathManager.get_local_path(metadata.gt_dir))
        self._metadata = Metadata(**metadata.as_dict() | {"gt_dir": gt_dir})

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Score what `process` was given.

        Returns:
            "AP" and "AP50" under "segm"; None in processes other than the first.
        """
        with contextlib.chdir(self._temp_dir):
            return super().evaluate()


def _kind(dataset_name: str) -> str:
    return MetadataCatalog.get(dataset_name).get("evaluator_type", "")


def _unknown(dataset_name: str) -> str:
    return (
        f"cannot evaluate on {dataset_name}: its evaluator_type is {_kind(dataset_name)!r}, "
        f"expected one of {', '.join(PACKAGES)}"
    )


def _mend_lvis() -> None:
    """Give lvis the name `np.float` back, for itself alone.

    Its newest version, 0.5.3, uses the name when it sums up; NumPy has dropped it in 1.24.
    """
    import lvis.eval

    lvis.eval.np = types.SimpleNamespace(**vars(np) | {"float": float})
