"""Trainings from annotated points."""

from pathlib import Path

import pytest
import torch

from point_rend.cli import train
from point_rend.data.datasets.point_annotations import write_point_annotations
from tests.runs import metrics, refusal, set_up
from tests.tiny_datasets import POINTREND, TINY_MODEL, CocoSet, write_coco

pytestmark = pytest.mark.usefixtures("_restored")


@pytest.fixture
def masks(tmp_path: Path) -> CocoSet:
    return write_coco(tmp_path / "data")


@pytest.fixture
def points(masks: CocoSet, tmp_path: Path) -> CocoSet:
    target = tmp_path / "points.json"
    write_point_annotations(Path(masks.json_file), target, points=10)
    return CocoSet(str(target), masks.image_root)


def arguments(train: CocoSet, masks: CocoSet, output: Path, *opts: str) -> list[str]:
    sets = ["--register-coco", "tiny_train", *train, "--register-coco", "tiny_val", *masks]
    names = ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
    return [
        *("--config-file", POINTREND, *sets, *TINY_MODEL, *names),
        *("INPUT.POINT_SUP", "True", "OUTPUT_DIR", str(output), *opts),
    ]


def test_a_model_is_trained_from_points_and_evaluated_on_masks(
    masks: CocoSet, points: CocoSet, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    train.main(arguments(points, masks, output, "TEST.VALIDATION_LOSS", "True"))
    logged = {name: value for line in metrics(output) for name, value in line.items()}
    assert logged["loss_mask"] > 0
    assert logged["loss_mask_point"] > 0
    assert logged["validation/loss_mask"] > 0
    assert "segm/AP" in logged


HEADS = {
    "standard": [],
    "implicit": [
        *("MODEL.ROI_MASK_HEAD.NAME", "ImplicitPointRendPointSupHead"),
        *("MODEL.POINT_HEAD.NAME", "ImplicitPointHead", "MODEL.POINT_HEAD.SUBDIVISION_STEPS", "3"),
    ],
    "convolutional": [
        *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsamplePointSupHead"),
        *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    ],
}


@pytest.mark.parametrize(
    "head",
    [pytest.param(x, marks=[pytest.mark.slow] * (x != "standard")) for x in HEADS],
)
def test_a_resumed_training_sees_the_same_points_and_ends_with_the_same_weights(
    masks: CocoSet, points: CocoSet, tmp_path: Path, head: str
) -> None:
    drawn = ["INPUT.SAMPLE_POINTS", "3", "SOLVER.MAX_ITER", "3", "DATASETS.TEST", "()"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for output in (whole, parts):
        argv = arguments(points, masks, output, *drawn, "SOLVER.CHECKPOINT_PERIOD", "1")
        train.main([*argv, *HEADS[head]])
        if output == parts:
            (parts / "model_final.pth").unlink()
            (parts / "last_checkpoint").write_text("model_0000000.pth")
            train.main(["--resume", *argv, *HEADS[head]])
    first, second = (
        torch.load(x / "model_final.pth", weights_only=True)["model"] for x in (whole, parts)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ([], "INPUT.POINT_SUP is True, but none of its 6 annotations has point_coords"),
        (
            ["INPUT.POINT_SUP", "False", "INPUT.SAMPLE_POINTS", "5"],
            "INPUT.SAMPLE_POINTS is 5, but INPUT.POINT_SUP is False",
        ),
        (["INPUT.SAMPLE_POINTS", "-1"], "INPUT.SAMPLE_POINTS must be from 0 to"),
        (["MODEL.MASK_ON", "False"], "INPUT.POINT_SUP is True, but the model has no mask head"),
        (
            [
                *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
                *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"),
            ],
            "MODEL.ROI_MASK_HEAD.NAME must be PointRendMaskHead or ",
        ),
    ],
)
def test_a_training_that_has_no_points_or_no_use_for_them_is_refused(
    masks: CocoSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    opts: list[str],
    text: str,
) -> None:
    assert text in refusal(arguments(masks, masks, tmp_path / "output", *opts), capsys)


def test_an_evaluation_needs_no_points(masks: CocoSet, tmp_path: Path) -> None:
    set_up(["--eval-only", *arguments(masks, masks, tmp_path / "output")])
