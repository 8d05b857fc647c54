"""Masks for given boxes: against the model's own, Detectron2's inference, and one box at a time."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import SemanticSegmentor
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from point_rend import Predictor, load_config
from point_rend.inference import given_boxes
from point_rend.inference.given_boxes import as_boxes, as_scores
from point_rend.meta_arch import PointRendPanopticFPN
from point_rend.rendering.box_masks import BoxMasks
from tests.cli.test_predict import THREE_CLASSES
from tests.tiny_datasets import BASELINE, HEIGHT, POINTREND, TINY_MODEL, WIDTH, scene

IMPLICIT = POINTREND.replace("pointrend_rcnn", "implicit_pointrend")
TWICE = ("INPUT.MIN_SIZE_TEST", "128")  # the size of the image
AGNOSTIC = [
    *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"),
    *("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", "True"),
]


@cache
def build(config: str = POINTREND, *opts: str, paste_masks: bool = True) -> Predictor:
    """Return a predictor with random weights, the same ones whether masks are pasted or not."""
    cfg = load_config(config, [*TINY_MODEL, *THREE_CLASSES, *opts])
    torch.manual_seed(0)
    model = None if paste_masks else build(config, *opts).model
    return Predictor(cfg, paste_masks=paste_masks, model=model)


def image(number: int = 0) -> np.ndarray:
    return scene(number)[0]


def random_boxes(number: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [WIDTH - 10, HEIGHT - 10], (number, 2))
    return np.hstack([corners, corners + rng.uniform(4, 10, (number, 2))])


@pytest.mark.parametrize(
    ("config", "opts"),
    [(POINTREND, ()), (POINTREND, TWICE), (IMPLICIT, ()), (BASELINE, ())],
)
def test_the_models_own_boxes_have_its_own_masks_to_the_bit(
    config: str, opts: tuple[str, ...]
) -> None:
    predictor = build(config, *opts)
    own = predictor(image())["instances"]
    given = predictor.masks_for(image(), own.pred_boxes, own.pred_classes, own.scores)
    assert len(given) == len(own) > 0
    assert given.pred_masks.dtype == torch.bool
    assert torch.equal(given.pred_masks, own.pred_masks)
    assert torch.equal(given.pred_boxes.tensor, own.pred_boxes.tensor)
    assert torch.equal(given.pred_classes, own.pred_classes)
    assert torch.equal(given.scores, own.scores)


def test_boxes_are_scaled_to_the_resized_image_and_back() -> None:
    predictor = build(POINTREND, "INPUT.MIN_SIZE_TEST", "83", paste_masks=False)
    stretched = cv2.resize(image(), None, fx=1.7, fy=1.3)
    own = predictor(stretched)["instances"]
    given = predictor.masks_for(stretched, own.pred_boxes, own.pred_classes)
    assert given.image_size == stretched.shape[:2]
    assert torch.equal(given.pred_masks.boxes, own.pred_masks.boxes)
    # The boxes of the model are rounded to float32 on their way to the image.
    difference = given.pred_masks.probabilities - own.pred_masks.probabilities
    assert difference.abs().max() < 1e-4


def test_the_masks_are_those_of_detectron2s_inference_with_detected_instances() -> None:
    predictor = build()
    boxes, classes = random_boxes(7), [0, 1, 2, 0, 1, 2, 0]
    inputs = predictor.inputs(image())
    detected = Instances(
        inputs["image"].shape[1:],
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
        pred_classes=torch.tensor(classes),
    )
    with torch.no_grad():
        (expected,) = predictor.model.inference([inputs], [detected])
    given = predictor.masks_for(image(), boxes, classes)
    assert torch.equal(given.pred_masks, expected["instances"].pred_masks)


def test_chunks_give_the_masks_of_one_box_at_a_time_with_one_run_of_the_backbone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = build(paste_masks=False)
    boxes, classes = random_boxes(23), np.arange(23) % 3
    each = [
        predictor.masks_for(image(), boxes[k : k + 1], classes[k : k + 1]).pred_masks
        for k in range(23)
    ]
    monkeypatch.setattr(given_boxes, "BOXES_AT_ONCE", 5)
    runs: list[int] = []
    sizes: list[int] = []
    backbone, heads = predictor.model.backbone.forward, predictor.model.roi_heads
    render = heads.forward_with_given_boxes
    monkeypatch.setattr(
        predictor.model.backbone, "forward", lambda x: runs.append(len(x)) or backbone(x)
    )
    monkeypatch.setattr(
        heads,
        "forward_with_given_boxes",
        lambda x, found: sizes.append(len(found[0])) or render(x, found),
    )
    masks = predictor.masks_for(image(), boxes, classes).pred_masks
    assert runs == [1]
    assert sizes == [5, 5, 5, 5, 3]
    expected = torch.cat([mask.probabilities for mask in each])
    torch.testing.assert_close(masks.probabilities, expected, rtol=0, atol=1e-5)


def test_only_the_part_of_a_box_in_the_image_has_a_mask() -> None:
    predictor = build()
    boxes = [
        [-50, -20, 30, 40],
        [10, 10, 10, 30],  # empty
        [WIDTH, 0, WIDTH + 9, 9],  # outside
        [0, 0, 30, 40],
        [80, 50, 1e9, 1e9],
        [80, 50, WIDTH, HEIGHT],
        [5, 5, 5.01, 5.01],
    ]
    found = predictor.masks_for(image(), boxes, [1] * 7)
    assert found.pred_boxes.tensor.tolist() == torch.tensor(boxes).tolist()
    masks = found.pred_masks
    assert torch.equal(masks[0], masks[3])
    assert torch.equal(masks[4], masks[5])
    assert masks.any(dim=(1, 2)).tolist()[1:3] == [False, False]
    alone = predictor.masks_for(image(), boxes[1:3], [1, 1]).pred_masks
    assert not alone.any()


@pytest.mark.parametrize(
    "empty", [[], np.zeros((0, 4)), torch.zeros(0, 4), Boxes(torch.zeros(0, 4))]
)
@pytest.mark.parametrize("paste_masks", [True, False])
def test_no_boxes_have_no_masks(empty: Any, paste_masks: bool) -> None:
    found = build(paste_masks=paste_masks).masks_for(image(), empty, [], [])
    assert len(found) == 0
    assert tuple(found.pred_masks.shape) == (0, HEIGHT, WIDTH)


def test_every_form_of_boxes_classes_and_images_is_the_same(tmp_path: Path) -> None:
    predictor, boxes = build(), random_boxes(4)
    unpasted = build(paste_masks=False)
    Image.fromarray(image()[:, :, ::-1]).save(tmp_path / "a.png")
    expected = predictor.masks_for(image(), boxes, [0, 1, 2, 0]).pred_masks
    later = unpasted.masks_for(image(), boxes, [0, 1, 2, 0]).pred_masks
    assert isinstance(later, BoxMasks)
    assert torch.equal(later.tensor(), expected)
    forms = [
        (tmp_path / "a.png", boxes.tolist(), np.array([0, 1, 2, 0])),
        (Image.open(tmp_path / "a.png"), torch.tensor(boxes), torch.tensor([0, 1, 2, 0])),
        (str(tmp_path / "a.png"), Boxes(torch.tensor(boxes)), (0, 1, 2, 0)),
    ]
    for picture, given, classes in forms:
        assert torch.equal(predictor.masks_for(picture, given, classes).pred_masks, expected)


def test_a_class_agnostic_model_needs_no_classes_and_takes_any() -> None:
    predictor, boxes = build(POINTREND, *AGNOSTIC), random_boxes(3)
    masks = predictor.masks_for(image(), boxes).pred_masks
    found = predictor.masks_for(image(), boxes, [2, 79, 1])
    assert torch.equal(found.pred_masks, masks)
    assert found.pred_classes.tolist() == [2, 79, 1]


@pytest.mark.parametrize(
    ("config", "needed"), [(POINTREND, (0, 1)), (IMPLICIT, (1,)), (BASELINE, (0,))]
)
def test_a_model_is_class_agnostic_if_all_its_mask_heads_are(
    config: str, needed: tuple[int, ...]
) -> None:
    for flags in itertools.product((False, True), repeat=2):
        words = [x for pair in zip(AGNOSTIC[::2], map(str, flags), strict=True) for x in pair]
        cfg = load_config(config, [*TINY_MODEL, *words])
        assert given_boxes.is_class_agnostic(cfg) == all(flags[k] for k in needed)


def test_a_model_of_one_class_needs_no_classes() -> None:
    predictor = build(POINTREND, "MODEL.ROI_HEADS.NUM_CLASSES", "1")
    assert predictor.masks_for(image(), random_boxes(3)).pred_classes.tolist() == [0, 0, 0]


NAN = float("nan")


@pytest.mark.parametrize(
    ("boxes", "classes", "scores", "message"),
    [
        (
            [[0, 0, 9, 9]],
            None,
            None,
            "classes: .* depend on the class: expected an index from 0 to",
        ),
        ([[0, 0, 9, 9]], [3], None, "classes: expected indices from 0 to 2, got 3"),
        ([[0, 0, 9, 9]], [-1], None, "classes: expected indices from 0 to 2, got -1"),
        (
            [[0, 0, 9, 9]],
            [0.0],
            None,
            r"classes: expected 1 integers.*got shape \(1,\) of type flo",
        ),
        ([[0, 0, 9, 9]], [0, 1], None, r"classes: expected 1 integers.*got shape \(2,\)"),
        ([[0, 0, 9, 9]], ["disc"], None, "classes: expected 1 integers"),
        ([[0, 0, 9, 9]], [0], [1, 2], r"scores: expected 1 numbers, got shape \(2,\)"),
        ([[0, 0, 9, 9]], [0], ["a"], "scores: expected 1 numbers, got "),
        ([0, 0, 9, 9], [0], None, r"boxes: expected shape \(N, 4\), got \(4,\)"),
        ([[0, 0, 9]], [0], None, r"boxes: expected shape \(N, 4\), got \(1, 3\)"),
        ([[0, 0, 9, "x"]], [0], None, r"boxes: expected numbers of shape \(N, 4\)"),
        ([[0, 0, 9, 9], [1, 1]], [0], None, r"boxes: expected numbers of shape \(N, 4\)"),
        (
            [[0, 0, 9, 9], [0, 0, NAN, 9]],
            [0, 0],
            None,
            r"box 1 is \[0.0, 0.0, nan, 9.0\], expected f",
        ),
        ([[0, 0, 9, float("inf")]], [0], None, "box 0 is .*inf.* expected finite numbers"),
        ([[9, 0, 0, 9]] * 2, [0, 0], None, r"box 0 is .* \(2 of 2 boxes\), .* with x0 <= x1"),
    ],
)
def test_what_does_not_fit_is_named(boxes: Any, classes: Any, scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build().masks_for(image(), boxes, classes, scores)


@pytest.mark.parametrize(
    ("kind", "opts", "message"),
    [
        (PointRendPanopticFPN, (), "META_ARCHITECTURE is GeneralizedRCNN: .* an instance model"),
        (SemanticSegmentor, (), "META_ARCHITECTURE is GeneralizedRCNN: .* need an instance model"),
        (None, ("TEST.AUG.ENABLED", "True"), "TEST.AUG.ENABLED is True: "),
        (None, ("MODEL.MASK_ON", "False"), "MODEL.MASK_ON is False: "),
    ],
)
def test_other_models_are_one_error(
    kind: type[nn.Module] | None, opts: tuple[str, ...], message: str
) -> None:
    model = build().model if kind is None else kind.__new__(kind)
    if kind is not None:
        nn.Module.__init__(model)
    with pytest.raises(ValueError, match=message):
        given_boxes.check_given_boxes(load_config(POINTREND, [*TINY_MODEL, *opts]), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_boxes_and_scores_of_every_type_of_tensors_are_taken(dtype: torch.dtype) -> None:
    boxes = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(as_boxes(boxes.to(dtype)), boxes.double(), rtol=0, atol=0)
    torch.testing.assert_close(as_scores(torch.ones(2, dtype=dtype), 2), torch.ones(2))
