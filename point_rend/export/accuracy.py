"""Accuracy of exported files on a data set, before and after their conversion."""

import argparse
import tempfile
from pathlib import Path

from detectron2.config import CfgNode

from point_rend.config.tasks import SEM_SEG, model_outputs
from point_rend.data.datasets.class_matching import build_evaluated_classes
from point_rend.data.datasets.classes import CLASS_COUNTS, check_class_count
from point_rend.engine.setup import register_datasets
from point_rend.engine.trainer import Trainer
from point_rend.evaluation.build import check_evaluators
from point_rend.runtime.exported_model import build_exported_model
from point_rend.runtime.run_config import class_fields


class AccuracyOfFiles:
    """The accuracy of files of one model on DATASETS.TEST: the mask AP, or the mIoU, in percent.

    Args:
        cfg: The config of the model.
        args: With `register_coco`, `register_sem_seg` and `ignore_class_names`.

    Attributes:
        name: Name of the metric.

    Raises:
        FileNotFoundError: If a file of the data set is missing.
        ValueError: If DATASETS.TEST is not one data set that fits the model.
    """

    def __init__(self, cfg: CfgNode, args: argparse.Namespace) -> None:
        register_datasets(args)
        if len(cfg.DATASETS.TEST) != 1:
            raise ValueError(
                f"DATASETS.TEST is {cfg.DATASETS.TEST}: expected the one data set on which --half "
                "and --int8 are compared with float32"
            )
        for count in CLASS_COUNTS:
            if count.output in model_outputs(cfg):
                check_class_count(cfg, count, cfg.DATASETS.TEST, cfg.MODEL.WEIGHTS)
        check_evaluators((), cfg.DATASETS.TEST, outputs=model_outputs(cfg))
        self.name = "mIoU" if model_outputs(cfg) == SEM_SEG else "mask AP"
        self._cfg = cfg
        self._by_position = args.ignore_class_names

    def measure(self, path: Path) -> float:
        """Evaluate a file as `pointrend evaluate` does.

        Raises:
            ValueError: If its classes are not those of the data set.
        """
        model = build_exported_model(self._cfg, path)
        classes = build_evaluated_classes(self._cfg, by_position=self._by_position)
        classes.check(str(path), class_fields(model.description))
        with tempfile.TemporaryDirectory() as folder:
            cfg = self._cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = folder
            results = Trainer.test(cfg, model, class_order=classes.order)
        return results["sem_seg"]["mIoU"] if self.name == "mIoU" else results["segm"]["AP"]
