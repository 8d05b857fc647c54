"""Costs of heads: hand-derived sums of layers, and the paper's Table 2."""

from pathlib import Path
from typing import Any

import pytest

from point_rend import SubdivisionPlan, get_config_file
from point_rend.experiments import costs

INSTANCE = get_config_file("InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml")
IMPLICIT = get_config_file("InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml")
BASELINE = get_config_file("InstanceSegmentation/mask_rcnn_R_50_FPN_1x_coco.yaml")
FEW_BOXES = ["MODEL.RPN.POST_NMS_TOPK_TEST", "1", "TEST.DETECTIONS_PER_IMAGE", "1"]
SEMANTIC = get_config_file("SemanticSegmentation/pointrend_semantic_R_50_FPN_1x_coco.yaml")


@pytest.fixture(scope="module")
def instance_report() -> dict[str, Any]:
    """The costs of the instance config for 100 boxes."""
    return costs.analyze(INSTANCE, [], (480, 640))


def test_the_head_of_four_convolutions_costs_what_its_layers_cost():
    cost = costs.conv_head_cost(in_channels=6, num_classes=3, side=4)
    convolutions = (6 + 3 * 256) * 256 * 9 * 4  # on a grid of 2×2
    assert cost.multiply_adds == convolutions + 256 * 256 * 16 + 256 * 3 * 16
    assert cost.activations == cost.activations_at_once == 4 * 256 * 4 + (256 + 3) * 16


@pytest.mark.parametrize("plan", [SubdivisionPlan(7, 5, 784), SubdivisionPlan(4, 0, 9)])
def test_points_of_steps_add_up_to_those_of_the_plan(plan: SubdivisionPlan):
    points = costs.points_of_steps(plan)
    assert len(points) == plan.steps + 1
    assert sum(points) == plan.num_points


def test_the_instance_config_costs_what_the_paper_states(instance_report: dict[str, Any]):
    report = instance_report
    conv_28, conv_224, _, plain, rendered = report["per_box"]
    giga = [round(cost.multiply_adds / 1e9, 1) for cost in (conv_28, conv_224, plain)]
    assert giga == [0.5, 33.9, 0.9]
    mega = [round(cost.activations_at_once / 1e6, 1) for cost in (conv_28, plain)]
    assert mega == [0.5, 0.7]
    assert plain.points == rendered.points == 4 * 28**2
    assert report["points_per_image"] == 100 * 4 * 28**2
    assert report["image"] == (800, 1088)
    assert rendered.multiply_adds < plain.multiply_adds


def test_the_instance_config_costs_the_sum_of_its_layers(instance_report: dict[str, Any]):
    """Layer by layer: inputs × outputs × positions, with 256 channels and 80 classes."""
    conv_28, conv_224, coarse, plain, _ = instance_report["per_box"]
    for cost, side in ((conv_28, 28), (conv_224, 224)):
        convolutions = 4 * (256 * 256 * 9) * (side // 2) ** 2
        doubling = 256 * 256 * 4 * (side // 2) ** 2  # a 2×2 patch out of every cell
        assert cost.multiply_adds == convolutions + doubling + 256 * 80 * side**2
        assert cost.activations == 4 * 256 * (side // 2) ** 2 + (256 + 80) * side**2
        assert cost.parameters == 4 * (256 * 9 + 1) * 256 + (256 * 4 + 1) * 256 + 257 * 80

    flat, mask = 256 * 7**2, 80 * 7**2
    of_coarse = 256 * 256 * 4 * 7**2 + flat * 1024 + 1024 * 1024 + 1024 * mask
    assert coarse.multiply_adds == of_coarse
    assert coarse.activations == flat + 1024 + 1024 + mask
    assert coarse.parameters == (
        (256 * 4 + 1) * 256 + (flat + 1) * 1024 + 1025 * 1024 + 1025 * mask
    )

    of_point = 3 * (256 + 80) * 256 + (256 + 80) * 80  # the coarse logits enter every layer
    assert plain.points == 28**2 + 3 * 28**2  # all cells of the first grid, then N = 28² a step
    assert plain.multiply_adds == of_coarse + plain.points * of_point
    assert plain.activations == coarse.activations + plain.points * (3 * 256 + 80)
    assert plain.activations_at_once == coarse.activations + 28**2 * (3 * 256 + 80)
    assert plain.parameters == coarse.parameters + 3 * (336 + 1) * 256 + (336 + 1) * 80


def test_the_parts_of_a_model_add_up_to_it(instance_report: dict[str, Any]):
    parts = {part.part: part for part in instance_report["parts"]}
    assert list(parts) == [
        *("backbone, pyramid", "proposals", "boxes of 1000 proposals", "masks of 100 boxes"),
    ]
    assert sum(part.parameters for part in parts.values()) == instance_report["parameters"]
    rendered = instance_report["per_box"][-1]
    assert parts["masks of 100 boxes"].multiply_adds == pytest.approx(
        100 * rendered.multiply_adds, rel=1e-6
    )
    # Two layers of 1024, 80 classes and the background, a box for each class.
    of_box = 256 * 7**2 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80)
    assert parts["boxes of 1000 proposals"].multiply_adds == 1000 * of_box
    # A convolution of 3 x 3, then three anchors with a score and four deltas each.
    cells = sum((800 >> level) * -(-1088 >> level) for level in range(2, 6)) + 13 * 17
    assert parts["proposals"].multiply_adds == cells * (256 * 256 * 9 + 256 * 15)


def test_a_backbone_for_squares_is_counted_on_a_square():
    path = get_config_file("pointrend_rcnn_ViTDet_B_100ep_LSJ_coco")
    depth = ["MODEL.VIT.DEPTH", "1", "MODEL.VIT.GLOBAL_BLOCKS", "[]"]
    deeper = ["MODEL.VIT.DEPTH", "2", "MODEL.VIT.GLOBAL_BLOCKS", "[]"]
    reports = [costs.analyze(path, [*x, *FEW_BOXES], (480, 640)) for x in (depth, deeper)]
    assert [report["image"] for report in reports] == [(1024, 1024)] * 2
    one, two = (report["parts"][0] for report in reports)
    # A block of windows: 4·d + 8·d layers at 70² padded cells of 14² windows, attention in each,
    # and the positions along each axis.
    cells, padded, dim = 64**2, 70**2, 768
    layers = cells * 8 * dim**2 + padded * 4 * dim**2
    attention = padded * 14**2 * dim * 2 + padded * 2 * 14 * dim
    assert two.multiply_adds - one.multiply_adds == layers + attention


def test_the_documents_state_these_costs(instance_report: dict[str, Any]):
    page = Path(__file__).parents[2] / "docs" / "READING_THE_NUMBERS.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    table = lines[lines.index("## What it costs") : lines.index("## The log")]
    rows = [
        line.strip("| ").split(" | ")[2:] for line in table if "×224 |" in line or "×28 |" in line
    ]
    conv_28, conv_224, _, plain, rendered = instance_report["per_box"]
    for cells, cost in zip(rows, (conv_28, conv_224, plain, rendered), strict=True):
        numbers = (
            cost.multiply_adds,
            cost.activations_at_once or cost.activations,
            cost.parameters,
        )
        for cell, expected in zip(cells, numbers, strict=True):
            number, unit = cell.partition(",")[0].split()[:2]
            digits = len(number.partition(".")[2])
            assert f"{expected / {'G': 1e9, 'M': 1e6}[unit]:.{digits}f}" == number


def test_only_the_rendered_cost_depends_on_the_number_of_boxes(instance_report: dict[str, Any]):
    one, many = costs.analyze(INSTANCE, [], (480, 640), 1), instance_report
    assert one["per_box"][:-1] == many["per_box"][:-1]
    assert one["per_box"][-1].multiply_adds > many["per_box"][-1].multiply_adds


def test_boxes_that_stop_early_count_in_full(instance_report: dict[str, Any]):
    opts = ["MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL", "1.0"]
    assert costs.analyze(INSTANCE, opts, (480, 640)) == instance_report


def test_the_implicit_head_predicts_the_parameters_of_its_point_head():
    report = costs.analyze(IMPLICIT, [], (480, 640), 2)
    parameter_head, plain, rendered = report["per_box"][2:]
    assert plain.parameters == parameter_head.parameters
    hidden = (512 + 256 + 256) * 256
    of_points = 4 * 28**2 * (hidden + 80 * 256 + 2 * 128)  # the last: phases of the positions
    assert plain.multiply_adds - parameter_head.multiply_adds == of_points
    assert rendered.points == 4 * 28**2


def test_a_model_without_pointrend_has_the_lines_of_its_kind():
    report = costs.analyze(BASELINE, [], (480, 640))
    assert [cost.head for cost in report["per_box"]] == ["4×conv", "4×conv"]
    assert report["per_image"] == []
    assert report["points_per_image"] == 0


def test_a_semantic_head_evaluates_a_few_of_the_pixels():
    opts = ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.NORM", ""]
    report = costs.analyze(SEMANTIC, opts, (256, 256))
    coarse, everywhere, plain, rendered = report["per_image"]
    height, width = report["image"]
    assert coarse.output == (height // 4, width // 4)
    assert rendered.output == (height, width)
    points = plain.points
    assert report["points_per_image"] == points == rendered.points == 2 * 8192
    of_point = [
        (cost.multiply_adds - coarse.multiply_adds) / cost.points for cost in (plain, everywhere)
    ]
    assert everywhere.points == height * width
    assert of_point[0] == of_point[1] == (256 + 54) * 256 + 2 * 256 * 256 + 256 * 54
