"""Evaluation without pasted masks: the same files and metrics, and tensors for other evaluators."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from point_rend.engine.trainer import Trainer
from point_rend.evaluation.build import build_evaluator
from point_rend.rendering.box_masks import BoxMasks
from tests.runs import set_up
from tests.tiny_datasets import POINTREND, TINY_MODEL, write_coco

pytestmark = pytest.mark.usefixtures("_restored")


class Watching(DatasetEvaluator):
    """Our evaluator, which keeps the kinds of masks that it gets."""

    kinds: set[type]

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self.evaluator = evaluator
        self.reset, self.evaluate = evaluator.reset, evaluator.evaluate
        Watching.kinds = set()

    def process(self, inputs: Any, outputs: Any) -> None:
        Watching.kinds |= {type(output["instances"].pred_masks) for output in outputs}
        self.evaluator.process(inputs, outputs)


class TrainerOfOthers(Trainer):
    """A trainer with an evaluator of its own."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return Watching(build_evaluator(cfg, dataset_name))


def test_files_and_metrics_are_those_of_pasted_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = write_coco(tmp_path / "tiny")
    files, metrics, kinds = {}, {}, {}
    for name, trainer in {"ours": Trainer, "others": TrainerOfOthers}.items():
        flags = ["--config-file", POINTREND, "--eval-only", "--register-coco", "tiny", *tiny]
        sets = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('tiny',)"]
        more = ["OUTPUT_DIR", str(tmp_path / name), "TEST.BOUNDARY_METRICS", "True"]
        more += ["MODEL.PIXEL_STD", "[6e4, 6e4, 6e4]"]  # random layers amplify
        cfg = set_up([*flags, *TINY_MODEL, *sets, *more]).cfg
        torch.manual_seed(3)
        model = Trainer.build_model(cfg)
        if trainer is Trainer:
            watched = "point_rend.engine.trainer.build_evaluator"
            monkeypatch.setattr(watched, lambda *args: Watching(build_evaluator(*args)))
        metrics[name] = trainer.test(cfg, model)
        kinds[name] = Watching.kinds
        folder = tmp_path / name / "inference" / "tiny"
        files[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert kinds == {"ours": {BoxMasks}, "others": {torch.Tensor}}
    assert files["ours"] == files["others"]
    assert len(files["ours"]["coco_instances_results.json"]) > 1000
    np.testing.assert_equal(metrics["ours"], metrics["others"])
