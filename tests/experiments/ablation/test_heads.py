"""`pointrend ablate heads`: the models that it trains, and its refusals."""

import statistics
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from point_rend import load_config
from point_rend.cli import ablate
from point_rend.config.checks import check_config
from point_rend.engine.arguments import build_parser
from point_rend.engine.setup import read_config
from point_rend.experiments.ablation.heads import head_settings
from point_rend.experiments.ablation.results import shown_metrics
from point_rend.experiments.ablation.settings import as_options
from tests.config.test_published_configs import differing_keys
from tests.experiments.ablation.tiny import (
    PlantedTrainings,
    refusal,
    semantic_options,
    training_options,
)
from tests.tiny_datasets import BASELINE, TINY_MODEL

BOUNDARY = "TEST.BOUNDARY_METRICS"
PREDICTED = "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES"
INSTANCES, SEMANTIC = "InstanceSegmentation", "SemanticSegmentation"


def model_with(head: str, config: str, *opts: str) -> CfgNode:
    """The config of a training with a head."""
    options = ["--config-file", config, *opts]
    setting = head_settings(options, [head])[head]
    return read_config(build_parser().parse_args([*options, *as_options(setting.values)]))


@pytest.mark.parametrize(
    ("config", "published", "opts", "differences"),
    [
        *(
            (
                f"{INSTANCES}/pointrend_rcnn_R_50_FPN_1x_{data}.yaml",
                f"{INSTANCES}/mask_rcnn_R_50_FPN_1x_{data}.yaml",
                [],
                {BOUNDARY, "INPUT.MASK_FORMAT"},
            )
            for data in ("coco", "cityscapes")
        ),
        (
            "Demo/pointrend_shapes.yaml",
            "Demo/mask_rcnn_shapes.yaml",
            [PREDICTED, "True"],  # of which the demo keeps this one
            {BOUNDARY, "OUTPUT_DIR"},
        ),
        *(
            (f"{SEMANTIC}/pointrend_{name}.yaml", f"{SEMANTIC}/{name}.yaml", [], {BOUNDARY})
            for name in (
                "semantic_R_101_FPN_1x_cityscapes",
                "semantic_R_101_FPN_P3-P5_1x_cityscapes",
                "deeplab_v3_R_103_os16_90k_cityscapes",
                "deeplab_v3_R_103_os8_90k_cityscapes",
                "deeplab_v3_plus_R_103_os16_90k_cityscapes",
            )
        ),
    ],
)
def test_the_baseline_of_a_published_model_is_the_published_one(
    config: str, published: str, opts: list[str], differences: set[str]
):
    ours = model_with("baseline", config, *opts)
    check_config(ours, training=True)
    found = differing_keys(ours, load_config(published))
    assert {key for key in found if not key.startswith("MODEL.POINT_HEAD.")} == differences


@pytest.mark.parametrize("head", ["standard", "residual"])
@pytest.mark.parametrize(
    ("config", "section"),
    [
        (f"{INSTANCES}/pointrend_rcnn_R_50_FPN_1x_coco.yaml", ["POINT_HEAD"]),
        (f"{SEMANTIC}/pointrend_semantic_R_101_FPN_P3-P5_1x_cityscapes.yaml", ["POINT_HEAD"]),
        (
            "PanopticSegmentation/pointrend_panoptic_R_50_FPN_1x_coco.yaml",
            ["POINT_HEAD", "SEM_SEG_HEAD.POINT_HEAD"],
        ),
    ],
)
def test_another_point_head_changes_its_name_alone(head: str, config: str, section: list[str]):
    found = differing_keys(model_with(head, config), load_config(config))
    names = {f"MODEL.{name}.NAME" for name in section} if head == "residual" else set()
    assert found == {BOUNDARY} | names


def test_an_implicit_head_is_the_published_one():
    ours = model_with("implicit", f"{INSTANCES}/pointrend_rcnn_R_50_FPN_1x_coco.yaml")
    published = load_config(f"{INSTANCES}/implicit_pointrend_R_50_FPN_1x_coco.yaml")
    assert differing_keys(ours, published) == {BOUNDARY, "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON"}


def test_the_baseline_of_a_panoptic_model_has_no_point_head():
    config = "PanopticSegmentation/pointrend_panoptic_R_50_FPN_1x_coco.yaml"
    ours = model_with("baseline", config, *TINY_MODEL, "MODEL.DEVICE", "meta")
    check_config(ours, training=True)
    with torch.device("meta"):
        modules = {type(module).__name__ for module in build_model(ours).modules()}
    assert {"PanopticFPN", "SemSegFPNHead", "MaskRCNNConvUpsampleHead"} <= modules
    assert not any("Point" in name for name in modules)


def test_the_baseline_starts_from_the_weights_of_the_published_one():
    config = f"{SEMANTIC}/pointrend_semantic_R_101_FPN_P3-P5_1x_cityscapes.yaml"
    published = load_config(config.replace("pointrend_", ""), [*TINY_MODEL])
    weights = []
    for cfg in (model_with("baseline", config, *TINY_MODEL), published):
        torch.manual_seed(3)
        weights.append(build_model(cfg).state_dict())
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_options_decide_on_boxes_and_boundary_metrics():
    config = f"{INSTANCES}/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
    cfg = model_with("baseline", config, PREDICTED, "True", BOUNDARY, "False")
    assert cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES is True
    assert cfg.TEST.BOUNDARY_METRICS is False


def test_heads_are_trained_with_every_seed_and_shown_with_boundary_metrics(
    tmp_path: Path, planted: Callable[..., PlantedTrainings]
):
    trainings, output = planted(others={"boundary/AP": 7.0}), tmp_path / "output"
    argv = ["heads", "--output", str(output), "--heads", "baseline,standard"]
    ablate.main([*argv, "--seeds", "1,2", "--", *training_options(tmp_path)])
    runs = [f"{head}_seed{seed}" for seed in (1, 2) for head in ("baseline", "standard")]
    assert trainings.folders == runs
    deviation = f"1.50 ± {statistics.stdev([1, 2]):.2f}"
    assert (output / "heads.md").read_text().splitlines() == [
        "| head | segm/AP | boundary/AP | seeds |",
        "|---|---:|---:|---:|",
        f"| 4×conv, 28×28 | {deviation} | 7.00 ± 0.00 | 2 |",
        f"| PointRend | {deviation} | 7.00 ± 0.00 | 2 |",
    ]
    assert cv2.imread(str(output / "heads.png")).shape == (480, 1080, 3)


def test_learning_curves_have_a_line_and_files_for_each_length(
    tmp_path: Path, planted: Callable[..., PlantedTrainings]
):
    trainings = planted(metric="sem_seg/mIoU")
    output, options = tmp_path / "output", semantic_options(tmp_path)
    schedule = ["SOLVER.MAX_ITER", "300", "SOLVER.STEPS", "(225,280)"]
    argv = ["heads", "--output", str(output), "--heads", "baseline,standard"]
    argv += ["--iterations", "200,100", "--metric", "sem_seg/mIoU"]
    # One command for each seed, and one for the table.
    for seeds in ("2", "5", "2,5"):
        ablate.main([*argv, "--seeds", seeds, "--", *options, *schedule])
    names = [f"{head}_{n}it" for n in (100, 200) for head in ("baseline", "standard")]
    assert trainings.folders == [f"{name}_seed{seed}" for seed in (2, 5) for name in names]
    assert [(x["SOLVER.MAX_ITER"], x["SOLVER.STEPS"]) for x in trainings.options[:4]] == [
        *[("100", "(75, 93)")] * 2,
        *[("200", "(150, 187)")] * 2,
    ]
    values = f"3.50 ± {statistics.stdev([2, 5]):.2f} | 2 |"
    assert (output / "heads.md").read_text().splitlines() == [
        "| head | iterations | sem_seg/mIoU | seeds |",
        "|---|---:|---:|---:|",
        *(
            f"| {title} | {length} | {values}"
            for length in (100, 200)
            for title in ("dense head, bilinear", "PointRend")
        ),
    ]
    assert (output / "heads.png").stat().st_size > 0


def test_a_star_stands_for_all_classes():
    measured = {"sem_seg/mIoU": 3.0, "sem_seg/IoU-box": 1.0, "sem_seg/ACC-box": 1.0}
    measured |= {"sem_seg/IoU-disc": 2.0, "boundary_sem_seg/mIoU": 4.0}
    shown = shown_metrics(["sem_seg/mIoU", "sem_seg/IoU-*"], measured)
    assert shown == ["sem_seg/mIoU", "sem_seg/IoU-box", "sem_seg/IoU-disc"]
    assert shown_metrics(["sem_seg/PQ-*"], measured) == ["sem_seg/PQ-*"]  # which has no value
    assert shown_metrics(["sem_seg/mIoU", "sem_seg/m*"], measured) == ["sem_seg/mIoU"]
    assert shown_metrics([], measured, boundary=True) == ["sem_seg/mIoU", "boundary_sem_seg/mIoU"]


def test_each_data_set_has_its_metrics():
    sets, metrics = ("a", "b/c"), ("segm/AP50", "segm/AP", "boundary/AP")
    measured = {f"{x}{name}/{y}": 1.0 for x in ("", "ema/") for name in sets for y in metrics}
    assert shown_metrics([], measured) == ["a/segm/AP", "b/c/segm/AP"]
    assert shown_metrics([], measured, boundary=True)[2:] == ["a/boundary/AP", "b/c/boundary/AP"]


@pytest.mark.parametrize(
    ("own", "changed", "message"),
    [
        ([], ["MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False"], "expected the config of a PointRend"),
        ([], ["MODEL.MASK_ON", "False"], "expected the config of a PointRend model"),
        (["--metric", "segm/APx"], [], "--metric is 'segm/APx', which the evaluations"),
        (["--metric", "segm/A*,x/*"], [], "--metric is 'x/*', which matches no metric of the"),
        (
            ["--iterations", "0"],
            [],
            "--iterations: expected numbers from 1, separated by commas, got '0'",
        ),
        (["--heads", "conv"], [], "expected some of baseline, standard, residual, implicit"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_first_training(
    tmp_path: Path,
    planted: Callable[..., PlantedTrainings],
    capsys: pytest.CaptureFixture[str],
    own: list[str],
    changed: list[str],
    message: str,
):
    trainings = planted()
    argv = ["heads", "--output", str(tmp_path / "output"), *own]
    assert message in refusal([*argv, "--", *training_options(tmp_path), *changed], capsys)
    assert trainings.folders == []


def test_a_semantic_model_has_no_implicit_head(tmp_path: Path):
    with pytest.raises(ValueError, match="implicit: expected a model for instances alone"):
        head_settings(semantic_options(tmp_path), ["implicit"])


def test_a_model_without_points_is_refused():
    with pytest.raises(ValueError, match=r"mask_rcnn.*expected the config of a PointRend model"):
        head_settings(["--config-file", BASELINE], ["standard"])
