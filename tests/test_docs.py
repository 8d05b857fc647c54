"""Checks of the documents against the repository: links, layers, and the examples' code."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from examples import (
    entropy_uncertainty,
    gated_point_head,
    own_augmentation,
    own_network,
    point_supervision,
)
from point_rend import (
    FineGrainedFeatures,
    SubdivisionPlan,
    build_point_head,
    get_config_file,
    load_config,
)
from point_rend.cli import module_of
from point_rend.evaluation import boundary_iou as boundaries
from point_rend.evaluation import cityscapes_ap as cityscapes_scores
from point_rend.evaluation.boundary_iou import inner_band
from point_rend.evaluation.semantic_iou import SemanticIoU
from point_rend.experiments.costs import analyze
from point_rend.rendering.bound_head import _BoundForward, bind_point_head
from point_rend.rendering.uncertainty import top2_margin_uncertainty
from tests.conftest import REPOSITORY
from tests.synthetic import randomize
from tests.test_architecture import MAY_IMPORT
from tests.tiny_datasets import POINTREND, TINY_MODEL, process_state_restored, write_coco

COCO = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
# Those of exported files, of Spark and of other detectors are tested elsewhere.
ELSEWHERE = ("_onnx", "_predict", "_detections")
EXAMPLES = sorted(
    x for x in (REPOSITORY / "examples").glob("*.py") if not x.stem.endswith(ELSEWHERE)
)
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "tools/README.md"]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", flags=re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def text_of(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = HEADING.findall(text_of(page))
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings}


# --- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(text_of(page)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_page():
    linked = {link.partition("#")[0] for link in LINK.findall(text_of(REPOSITORY / "README.md"))}
    assert {name(page) for page in PAGES} - {"README.md"} <= linked


@pytest.mark.parametrize("command", ["predict", "refine", "merge", "visualize"])
def test_every_option_of_predicting_is_explained(command: str):
    page = (REPOSITORY / "docs" / "PREDICTING.md").read_text(encoding="utf-8")
    actions = module_of(command).build_parser()._actions
    options = {option for action in actions for option in action.option_strings}
    missing = {x for x in options if x.startswith("--") and not re.search(rf"{x}(?![\w-])", page)}
    assert missing <= {"--help"}


def test_the_table_of_layers_is_the_one_that_is_enforced():
    page = (REPOSITORY / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
    table: dict[str, set[str]] = {}
    for rooms, allowed in re.findall(r"^\| (`[^|]+) \| [^|]+ \| ([^|]+) \|", page, re.MULTILINE):
        names = re.findall(r"`(\w+)`", allowed)
        lower = table[names[0]] if allowed.startswith("as ") else set()
        for room in re.findall(r"`(\w+)`", rooms):
            table[room] = {*lower, *names[allowed.startswith("as ") :]}
    assert table == {room: may for room, may in MAY_IMPORT.items() if room != "__main__"}


# --- figures ------------------------------------------------------------------------------------


def rows_of(page: str, *starts: str) -> list[list[str]]:
    """The cells of the table rows that begin with some words."""
    lines = (REPOSITORY / "docs" / page).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in rows if row[0].startswith(starts)]


def test_the_steps_that_the_page_explains_are_those_of_the_published_config():
    cfg = load_config(get_config_file(COCO))
    point = cfg.MODEL.POINT_HEAD
    side = cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
    plan = SubdivisionPlan(side, point.SUBDIVISION_STEPS, point.SUBDIVISION_NUM_POINTS)
    sides = [side * 2**step for step in range(1, plan.steps + 1)]
    rows = rows_of("HOW_IT_WORKS.md", *(f"{side}×{side}" for side in sides))
    assert [int(cells) for _, cells, _, _ in rows] == [side**2 for side in sides]
    for _, cells, points, share in rows:
        number = min(int(cells), plan.points_per_step)
        assert points in ("all", "all 784", str(number))
        assert float(share.removesuffix(" %")) == pytest.approx(100 * number / int(cells), abs=0.05)
    assert plan.without_covered_steps().num_points == 4 * 784 == 50176 // 16


def test_the_costs_that_the_page_explains_are_those_of_the_tool():
    costs = analyze(get_config_file(COCO), [], (480, 640))["per_box"]
    tool = [round(cost.multiply_adds / 1e6) for cost in costs if "PointRend" in cost.head]
    names = ("first layer", "second and", "predictor", "coarse logits in", "coarse head", "in all")
    rows = rows_of("HOW_IT_WORKS.md", *names)
    assert len(rows) == len(names)
    for column, in_all in enumerate(tool, start=1):
        parts = [re.search(r"(\d+) M$", row[column]) for row in rows]
        *millions, total = (int(part[1]) for part in parts if part)
        assert total == sum(millions) == in_all


@pytest.mark.parametrize("row", rows_of("READING_THE_NUMBERS.md", "r = "), ids=lambda row: row[0])
def test_the_ious_of_squares_are_those_of_drawn_squares(row):
    half, excess = map(int, re.findall(r"= (\d+)", row[0]))
    distance = np.abs(np.mgrid[:640, :640] - 319.5).max(axis=0)  # of pixels from the middle
    squares = [distance < side for side in (half, half + excess)]
    bands = [inner_band(square, 16) for square in squares]
    for cell, (one, other) in zip(row[1:], (squares, bands), strict=True):
        expected = float(cell.rpartition("=")[2])
        assert (one & other).sum() / (one | other).sum() == pytest.approx(expected, abs=0.0051)


def test_the_widths_of_bands_are_those_of_the_code():
    rows = rows_of("READING_THE_NUMBERS.md", "COCO, LVIS", "built-in shapes", "Cityscapes")
    assert len(rows) == 4
    for name, image, share, width in rows:
        size = tuple(map(int, re.findall(r"\d+", image)[:2]))
        ratio = cityscapes_scores.BAND_RATIO if "instances" in name else boundaries.BAND_RATIO
        assert float(share) == ratio
        assert width == f"{boundaries.band_width(size, ratio)} pixels"


# --- examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_an_example_has_less_than_60_lines_and_stands_whole_in_its_page(example):
    code = example.read_text(encoding="utf-8")
    assert len(code.splitlines()) < 60
    page = (REPOSITORY / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in page


def test_all_examples_are_tested_here():
    tested = {entropy_uncertainty, own_augmentation, own_network, point_supervision}
    tested |= {gated_point_head}
    assert {Path(module.__file__) for module in tested} == set(EXAMPLES)


def test_the_entropy_is_that_of_the_probabilities_and_orders_two_classes_as_the_margin_does():
    logits = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Categorical(logits=logits.transpose(1, 2)).entropy()
    rated = entropy_uncertainty.entropy(logits)
    assert rated.shape == (2, 1, 40)
    torch.testing.assert_close(rated[:, 0], expected)
    two = logits[:, :2]
    by_margin = top2_margin_uncertainty(two).argsort()
    assert torch.equal(entropy_uncertainty.entropy(two).argsort(), by_margin)


def test_the_example_of_an_uncertainty_renders_at_other_points(capsys):
    first, *later = entropy_uncertainty.main()
    assert first == 1  # every cell
    assert later
    assert all(0 < share < 1 for share in later)
    assert "EntropySemSegHead" in SEM_SEG_HEADS_REGISTRY
    assert capsys.readouterr().out.startswith("points in common: 100%, ")


def gated_head() -> gated_point_head.GatedPointHead:
    cfg = load_config(
        get_config_file(COCO),
        ["MODEL.POINT_HEAD.NAME", "GatedPointHead", "MODEL.POINT_HEAD.FC_DIM", "8"],
    )
    return build_point_head(cfg, gated_point_head.ShapeSpec(channels=6), num_classes=4)


@pytest.mark.parametrize("of_classes", [False, True])
@pytest.mark.parametrize("in_boxes", [False, True])
@pytest.mark.parametrize("num_points", [1, 10**6])  # which decides what is done in advance
def test_the_example_of_a_point_head_binds_what_its_forward_says(of_classes, in_boxes, num_points):
    head = gated_head()
    randomize(head)
    generator = torch.Generator().manual_seed(0)
    regions = 3
    maps = torch.randn(1 if in_boxes else regions, 6, 8, 12, generator=generator)
    fine = FineGrainedFeatures([maps], [torch.tensor([48.0, 32.0]) if in_boxes else 1.0])
    corners = 24 * torch.rand(regions, 2, generator=generator)
    boxes = torch.cat((corners, corners + 8), dim=1) if in_boxes else None
    classes = torch.tensor([3, 0, 2]) if of_classes else None
    coarse = torch.randn(regions, 4, 7, 7, generator=generator)
    coords = torch.rand(regions, 50, 2, generator=generator)
    with torch.no_grad():
        bound = bind_point_head(head, fine, regions, num_points)
        assert isinstance(bound, gated_point_head.BoundGated)
        logits = bound.at(coarse, boxes, classes)(coords)
        plain = _BoundForward(head, fine).at(coarse, boxes, classes)(coords)
    assert logits.shape == (regions, 1 if of_classes else 4, 50)
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-5)


def test_the_gate_of_the_example_chooses_between_the_coarse_logits_and_the_mlp(capsys):
    fine, coarse, head = torch.rand(2, 6, 30), torch.randn(2, 4, 30), gated_head()
    for bias, expected in ((-1e3, coarse), (1e3, head.mlp(fine, coarse))):
        torch.nn.init.constant_(head.gate.predictor.bias, bias)
        torch.testing.assert_close(head(fine, coarse), expected)
    gated_point_head.main()
    assert capsys.readouterr().out.startswith("logits (1, 80, 784), largest difference ")


def test_the_example_of_point_supervision_learns_masks_from_labels_of_points(capsys):
    head = point_supervision.main()
    (printed,) = re.findall(r"^IoU (\d+)%$", capsys.readouterr().out, flags=re.MULTILINE)
    assert int(printed) >= 90
    centers = (torch.arange(224) + 0.5) / 224 - 0.5
    truth = torch.hypot(centers[:, None], centers) < 0.5
    for _ in range(5):
        features, ellipse, _ = point_supervision.draw_ellipse()
        mask = head(features, [ellipse])[0].pred_masks[0, 0] > 0.5
        assert (mask == truth).float().mean() > 0.9  # 0.785 if it were full


def boundary_iou(logits: torch.Tensor, masks: torch.Tensor) -> float:
    scores = SemanticIoU(2)
    for found, truth in zip(logits[:, 0] > 0, masks[:, 0] > 0, strict=True):
        scores.add(found.numpy(), truth.numpy())
    return scores.means()["boundary mIoU"]


def test_the_example_of_an_augmentation_trains_on_rotated_and_shaded_images(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["own_augmentation.py"])
    drawn = []
    shade = own_augmentation.Shade.apply_image
    monkeypatch.setattr(
        own_augmentation.Shade, "apply_image", lambda self, x: drawn.append(shade(self, x)) or x
    )
    with process_state_restored():
        written = write_coco(tmp_path / "data")
        names = ["DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"]
        flags = ["--config-file", POINTREND, "--register-coco", "own", *written]
        output = ["OUTPUT_DIR", str(tmp_path / "output")]
        own_augmentation.main(
            [*flags, *TINY_MODEL, *names, *output], trainer=own_augmentation.MyTrainer
        )
    assert (tmp_path / "output" / "model_final.pth").exists()
    assert len(drawn) >= 2


def test_a_shaded_image_has_the_brightness_of_its_two_sides():
    white = own_augmentation.np.full((2, 5, 3), 200, dtype="uint8")
    shaded = own_augmentation.Shade(0.5, 1.0).apply_image(white)
    assert shaded.dtype == white.dtype
    assert shaded[1, :, 2].tolist() == [100, 125, 150, 175, 200]


def test_the_example_of_a_network_of_ones_own_gets_its_boundaries_right(capsys):
    torch.manual_seed(0)
    network = own_network.Network()
    own_network.train(network)
    assert re.findall(r"^\d+ cells", capsys.readouterr().out, flags=re.MULTILINE) == [
        "8 cells",
        "64 cells",
    ]
    images, masks = own_network.draw_stars(20)
    coarse, rendered = network.render(images)
    assert rendered.shape == masks.shape
    enlarged = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    assert boundary_iou(enlarged, masks) < 60
    assert boundary_iou(rendered, masks) > boundary_iou(enlarged, masks) + 25
