"""The tool that counts what heads cost: planted numbers, fvcore, the paper's Table 2."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn

from point_rend import StandardPointHead, SubdivisionPlan, get_config_file
from point_rend.cli import analyze
from point_rend.coarse_mask_head import CoarseMaskHead
from point_rend.experiments import costs
from point_rend.rendering.projected_sampling import Affine, linear_at_points

INSTANCE = get_config_file("InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml")
IMPLICIT = get_config_file("InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml")
BASELINE = get_config_file("InstanceSegmentation/mask_rcnn_R_50_FPN_1x_coco.yaml")
SEMANTIC = get_config_file("SemanticSegmentation/pointrend_semantic_R_50_FPN_1x_coco.yaml")


def coarse_head() -> CoarseMaskHead:
    shape = ShapeSpec(channels=6, height=4, width=4)
    return CoarseMaskHead(input_shape=shape, conv_dim=5, fc_dims=[7], output_shape=(3, 2, 2))


def point_head() -> StandardPointHead:
    return StandardPointHead(in_channels=6, coarse_channels=3, num_classes=3, fc_dim=8, num_fc=2)


def test_a_coarse_head_costs_what_its_layers_cost():
    cost = costs.count(coarse_head(), torch.zeros(1, 6, 4, 4))
    convolutions = 6 * 5 * 16 + 5 * 5 * 4 * 4  # 1×1 on a grid of 4×4; 2×2 with stride 2
    assert cost == (convolutions + 20 * 7 + 7 * 12, 5 * 16 + 5 * 4 + 7 + 12)


def test_a_point_head_costs_its_layers_at_every_point():
    cost = costs.count(point_head(), torch.zeros(1, 6, 10), torch.zeros(1, 3, 10))
    assert cost == (10 * (9 * 8 + 11 * 8 + 11 * 3), 10 * (8 + 8 + 3))


def test_the_head_of_four_convolutions_costs_what_its_layers_cost():
    cost = costs.conv_head_cost(in_channels=6, num_classes=3, side=4)
    convolutions = (6 + 3 * 256) * 256 * 9 * 4  # on a grid of 2×2
    assert cost.multiply_adds == convolutions + 256 * 256 * 16 + 256 * 3 * 16
    assert cost.activations == cost.activations_at_once == 4 * 256 * 4 + (256 + 3) * 16


@pytest.mark.parametrize("build", [coarse_head, point_head])
def test_layers_are_counted_as_fvcore_counts_them(build: Callable[[], nn.Module]):
    head = build()
    inputs: tuple[Tensor, ...] = (torch.zeros(2, 6, 4, 4),)
    if isinstance(head, StandardPointHead):
        inputs = torch.zeros(2, 6, 10), torch.zeros(2, 3, 10)
    flops = FlopCountAnalysis(head, inputs).unsupported_ops_warnings(False).total()
    activations = ActivationCountAnalysis(head, inputs).unsupported_ops_warnings(False).total()
    assert costs.count(head, *inputs) == (flops, activations)


def test_a_layer_on_a_map_costs_its_positions_and_four_reads_per_point():
    maps, layer = torch.zeros(1, 6, 4, 5), Affine(torch.zeros(8, 6))

    def read() -> None:
        list(linear_at_points(maps, [layer], 100)(torch.zeros(1, 100, 2))(slice(None)))

    assert costs.count(read).multiply_adds == 4 * 5 * 6 * 8 + 100 * 4 * 8


def test_a_layer_at_few_points_costs_reading_and_multiplying_them():
    maps, layer = torch.zeros(1, 6, 4, 5), Affine(torch.zeros(8, 6))

    def read() -> None:
        list(linear_at_points(maps, [layer], 3)(torch.zeros(1, 3, 2))(slice(None)))

    assert costs.count(read) == (3 * 4 * 6 + 3 * 6 * 8, 3 * 8)


def test_products_with_weights_of_each_box_are_counted():
    weights, rows, bias = torch.zeros(4, 6, 8), torch.zeros(4, 10, 6), torch.zeros(4, 1, 8)
    expected = (4 * 10 * 6 * 8, 4 * 10 * 8)
    assert costs.count(torch.bmm, rows, weights) == expected
    assert costs.count(torch.baddbmm, bias, rows, weights) == expected


def test_a_product_added_in_place_is_counted():
    sums = torch.zeros(10, 8)
    assert costs.count(sums.addmm_, torch.zeros(10, 6), torch.zeros(6, 8)) == (10 * 6 * 8, 80)


@pytest.mark.parametrize("plan", [SubdivisionPlan(7, 5, 784), SubdivisionPlan(4, 0, 9)])
def test_points_of_steps_add_up_to_those_of_the_plan(plan: SubdivisionPlan):
    points = costs.points_of_steps(plan)
    assert len(points) == plan.steps + 1
    assert sum(points) == plan.num_points


def test_the_instance_config_costs_what_the_paper_says():
    report = costs.analyze(INSTANCE, [], image=(480, 640))
    conv_28, conv_224, _, plain, rendered = report["per_box"]
    giga = [round(cost.multiply_adds / 1e9, 1) for cost in (conv_28, conv_224, plain)]
    assert giga == [0.5, 33.9, 0.9]
    mega = [round(cost.activations_at_once / 1e6, 1) for cost in (conv_28, plain)]
    assert mega == [0.5, 0.7]
    assert plain.points == rendered.points == 4 * 28**2
    assert report["points_per_image"] == 100 * 4 * 28**2
    assert report["image"] == (800, 1088)
    assert rendered.multiply_adds < plain.multiply_adds


def test_the_instance_config_costs_what_a_hand_counts():
    """Layer by layer: inputs × outputs × places, of 256 channels and 80 classes."""
    conv_28, conv_224, coarse, plain, _ = costs.analyze(INSTANCE, [], (480, 640))["per_box"]
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


def test_the_readme_has_these_costs():
    lines = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()
    table = lines[lines.index("### Cost") : lines.index("### Speed")]
    rows = [
        line.strip("| ").split(" | ")[2:] for line in table if "×224 |" in line or "×28 |" in line
    ]
    conv_28, conv_224, _, plain, rendered = costs.analyze(INSTANCE, [], (480, 640))["per_box"]
    for cells, cost in zip(rows, (conv_28, conv_224, plain, rendered), strict=True):
        figures = (
            cost.multiply_adds,
            cost.activations_at_once or cost.activations,
            cost.parameters,
        )
        for cell, figure in zip(cells, figures, strict=True):
            number, unit = cell.partition(",")[0].split()[:2]
            digits = len(number.partition(".")[2])
            assert f"{figure / {'G': 1e9, 'M': 1e6}[unit]:.{digits}f}" == number


def test_the_definition_at_one_box_does_not_depend_on_the_number_of_boxes():
    one, many = (costs.analyze(INSTANCE, [], (480, 640), boxes) for boxes in (1, 50))
    assert one["per_box"][:-1] == many["per_box"][:-1]
    assert one["per_box"][-1].multiply_adds > many["per_box"][-1].multiply_adds


def test_boxes_that_stop_early_count_in_full():
    opts = ["MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL", "1.0"]
    with_key = costs.analyze(INSTANCE, opts, (480, 640), 3)
    assert with_key == costs.analyze(INSTANCE, [], (480, 640), 3)


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


def test_the_figures_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "new" / "cost.json"
    analyze.main(["--config-file", INSTANCE, "--boxes", "2", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "| 4×conv | 28×28 | 530 M | 464 k | 464 k |" in printed
    written = json.loads(output.read_text())
    assert written["boxes"] == 2
    assert [row["points"] for row in written["per_box"]] == [0, 0, 0, 3136, 3136]
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "–"), (7, "7"), (923_400_000, "923 M"), (33_900_000_000, "33.9 G"), (1000, "1.00 k")],
)
def test_numbers_have_three_digits_and_a_unit(number: int | None, text: str):
    assert analyze.with_unit(number) == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--boxes", "0"], "--boxes: expected 1 or more, got 0"),
        (["--image", "480", "0"], "--image: expected a height and a width of 1 or more, got (480,"),
        (["--boxes", "1", "--output", f"{__file__}/cost.json"], "cannot be written: "),
        (["--image", "0", "0", "--output", str(Path(__file__).parent)], "it is a folder, expected"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        analyze.main(["--config-file", INSTANCE, *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
