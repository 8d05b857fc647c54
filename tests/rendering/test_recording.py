"""Recordings of renderings, against the rendered masks.

Shapes: N regions, P points, H and W rows and columns of a grid.
"""

import copy
import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from point_rend import ImplicitPointRendMaskHead, PointRendMaskHead, PointRendSemSegHead
from point_rend.rendering.recording import Step, recorded_renderings
from tests.synthetic import (
    IMAGE_SIZE,
    SHAPES,
    as_detections,
    random_features,
    random_mask_head,
    random_proposals,
    randomize,
    small_head_config,
)
from tests.synthetic_semantic import pointwise_head, random_labels, small_semantic_config

MASK_HEADS = {False: PointRendMaskHead, True: ImplicitPointRendMaskHead}
CHUNKS = ("MODEL.POINT_HEAD.SUBDIVISION_BOXES_PER_CHUNK", 2)


def mask_head(*opts: object, implicit: bool = False) -> nn.Module:
    return random_mask_head(*opts, implicit=implicit).eval()


@torch.no_grad()
def rendered_and_repeated(
    head: nn.Module, boxes_per_image: list[int]
) -> tuple[torch.Tensor, list[list[Step]]]:
    """Return the masks (N, 1, S, S) of a head that is recorded, and the steps of each chunk."""
    detections = as_detections(random_proposals(boxes_per_image))
    features = random_features(len(boxes_per_image))
    plain = head(features, copy.deepcopy(detections))
    with recorded_renderings(head) as renderings:
        found = head(features, detections)
    for one, other in zip(plain, found, strict=True):
        assert torch.equal(one.pred_masks, other.pred_masks)
    return torch.cat([x.pred_masks for x in found]), [list(x.steps()) for x in renderings]


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("opts", [(), CHUNKS])
def test_the_last_step_of_a_mask_equals_the_rendered_one_bit_for_bit(implicit, opts):
    masks, steps = rendered_and_repeated(mask_head(*opts, implicit=implicit), [3, 0, 2])
    last = torch.cat([x[-1].logits for x in steps])
    assert last.shape == masks.shape == (5, 1, 224, 224)
    assert torch.equal(last.sigmoid(), masks)
    assert [x.logits.shape[-1] for x in steps[0]] == [28, 56, 112, 224]
    if opts:
        assert [x[0].logits.shape[0] for x in steps] == [2, 1, 2]


def test_the_points_of_a_step_are_the_most_uncertain_cells_of_its_map():
    _, ((first, *steps),) = rendered_and_repeated(mask_head(), [2])
    assert first.uncertainty is None
    assert first.coords.shape == (2, 28 * 28, 2)
    for step in steps:
        side = step.logits.shape[-1]
        assert step.coords.shape == (2, 784, 2)
        cells = (step.coords * side - 0.5).round().long()
        indices = cells[..., 1] * side + cells[..., 0]  # (N, P)
        for scores, chosen in zip(step.uncertainty.flatten(1), indices, strict=True):
            others = torch.ones(side * side, dtype=torch.bool)
            others[chosen] = False
            assert others.sum() == side * side - 784
            assert scores[chosen].min() >= scores[others].max()


@torch.no_grad()
def test_the_last_step_of_an_image_equals_the_rendered_one_bit_for_bit():
    head = pointwise_head().eval()
    randomize(head)
    features = random_features(2)
    sizes = [IMAGE_SIZE, (40, 52)]
    with recorded_renderings(head) as renderings:
        logits, _ = head(features, None, sizes)
    assert len(renderings) == 2
    for rendering, expected, (height, width) in zip(renderings, logits, sizes, strict=True):
        first, *_, last = rendering.steps()
        assert torch.equal(first.logits, rendering.coarse)
        assert first.coords.shape == (1, 0, 2)
        assert torch.equal(last.logits[0, :, :height, :width], expected)


def test_the_coarse_logits_are_those_of_the_rendered_classes():
    head = mask_head()
    instances = as_detections(random_proposals([3]))
    with torch.no_grad(), recorded_renderings(head) as renderings:
        head(random_features(1), instances)
    (rendering,) = renderings
    assert rendering.coarse.shape == (3, 5, 7, 7)
    assert rendering.coarse_logits.shape == (3, 1, 7, 7)
    for region, category in enumerate(instances[0].pred_classes):
        assert torch.equal(rendering.coarse_logits[region, 0], rendering.coarse[region, category])


def left_first(logits: torch.Tensor) -> torch.Tensor:
    """Rate by the column alone; points (N, C, P) by their order."""
    columns = torch.arange(logits.shape[-1], dtype=torch.float32)
    return -columns.expand(logits.shape[0], 1, *logits.shape[2:])


def assert_leftmost(steps: list[Step], points: int) -> None:
    for step in steps:
        assert step.coords.shape[1] == points
        rows, columns = step.logits.shape[-2:]
        assert (step.coords[..., 0] * columns < math.ceil(points / rows)).all()


@pytest.mark.parametrize("implicit", [False, True])
def test_boxes_are_rendered_at_the_points_that_the_heads_own_uncertainty_prefers(implicit):
    torch.manual_seed(0)
    cfg = small_head_config(implicit=implicit)
    head = MASK_HEADS[implicit](cfg, SHAPES, uncertainty=left_first).eval()
    with torch.no_grad(), recorded_renderings(head) as renderings:
        head(random_features(1), as_detections(random_proposals([2])))
    _, *steps = renderings[0].steps()
    assert renderings[0].uncertainty is left_first
    assert_leftmost(steps, 784)


def test_images_are_rendered_at_the_points_that_the_heads_own_uncertainty_prefers():
    head = PointRendSemSegHead(small_semantic_config(), SHAPES, uncertainty=left_first).eval()
    with torch.no_grad(), recorded_renderings(head) as renderings:
        head(random_features(1), None)
    _, *steps = renderings[0].steps()
    assert len(steps) == 2
    assert_leftmost(steps, 200)


@pytest.mark.parametrize("semantic", [False, True])
def test_training_points_are_those_that_the_heads_own_uncertainty_prefers(semantic):
    rated_shapes = []

    def rate(logits: torch.Tensor) -> torch.Tensor:
        rated_shapes.append(logits.shape)
        return left_first(logits)

    if semantic:
        cfg = small_semantic_config("MODEL.POINT_HEAD.TRAIN_NUM_POINTS", 40)
        head = PointRendSemSegHead(cfg, SHAPES, uncertainty=rate)
        head(random_features(2), random_labels(2, 6))
        assert rated_shapes == [(2, 6, 3 * 40)]
    else:
        cfg = small_head_config("MODEL.POINT_HEAD.TRAIN_NUM_POINTS", 40)
        head = PointRendMaskHead(cfg, SHAPES, uncertainty=rate)
        with EventStorage():
            head(random_features(1), random_proposals([3]))
        assert rated_shapes == [(3, 1, 3 * 40)]  # the class of each box


def test_an_implicit_head_has_no_coarse_logits():
    head = mask_head(implicit=True)
    with torch.no_grad(), recorded_renderings(head) as renderings:
        head(random_features(1), as_detections(random_proposals([1])))
    assert renderings[0].coarse.dim() == 2
    assert renderings[0].coarse_logits is None


def test_a_head_is_as_before_after_recording_even_after_an_error():
    head = mask_head()
    point_head, names = head.point_head, list(head.state_dict())
    with pytest.raises(KeyError), recorded_renderings(head):
        head({}, as_detections(random_proposals([1])))
    assert head.point_head is point_head
    assert list(head.state_dict()) == names


def test_a_head_that_renders_nothing_is_refused():
    head = mask_head("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False)
    with pytest.raises(ValueError, match="POINT_HEAD_ON True"), recorded_renderings(head):
        pass
