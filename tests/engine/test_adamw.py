"""Trainings with AdamW and rates by layer: resumed exactly, and never as another optimizer's."""

from pathlib import Path

import pytest
import torch

from point_rend.cli import train
from tests.config.test_backbone_configs import LEAVES, TINY
from tests.runs import refusal
from tests.tiny_datasets import TINY_MODEL, CocoSet, write_coco

pytestmark = pytest.mark.usefixtures("_restored")
VITDET = str(LEAVES["pointrend_rcnn_ViTDet_B_100ep_LSJ_coco"])


def command(data: CocoSet, output: Path, iterations: int, *more: str) -> list[str]:
    flags = ["--config-file", VITDET, "--register-coco", "tiny", *data]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "()", "INPUT.MASK_FORMAT", "bitmask"]
    schedule = ["SOLVER.MAX_ITER", str(iterations), "SOLVER.WARMUP_ITERS", "1"]
    rest = ["SOLVER.AMP.ENABLED", "False", "OUTPUT_DIR", str(output)]
    first, further = more[: more[:1] == ("--resume",)], more[more[:1] == ("--resume",) :]
    return [*flags, *first, *TINY_MODEL, *TINY, *names, *schedule, *rest, *further]


@pytest.fixture
def data(tmp_path: Path) -> CocoSet:
    return write_coco(tmp_path / "tiny")


def final(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=False)["model"]


def test_a_resumed_training_equals_an_uninterrupted_one(data: CocoSet, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train.main(command(data, whole, 3))
    train.main(command(data, resumed, 2))
    train.main(command(data, resumed, 3, "--resume"))
    expected, found = final(whole), final(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_a_training_with_sgd_is_not_resumed_with_adamw(
    data: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    train.main(command(data, output, 1, "SOLVER.OPTIMIZER", "SGD"))
    found = refusal(command(data, output, 2, "--resume"), capsys)
    assert "its optimizer is SGD, that of this config AdamW: expected the config of the" in found
