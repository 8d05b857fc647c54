"""Rendering of masks: chunks, boxes of different sizes, compiled, and on a GPU."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from point_rend.rendering.bound_head import bind_point_head
from point_rend.rendering.mask_renderer import MaskRenderer
from point_rend.rendering.subdivision import SubdivisionPlan, subdivide
from point_rend.rendering.uncertainty import foreground_uncertainty
from tests.memory import LargestTensor
from tests.pairwise import pairwise_rows
from tests.synthetic import (
    CHANNELS,
    IMAGE_SIZE,
    as_detections,
    random_features,
    random_mask_head,
    random_proposals,
)

BOTH = pytest.mark.parametrize("implicit", [False, True], ids=["standard", "implicit"])
KEY = "MODEL.POINT_HEAD.SUBDIVISION_"


def build(*opts: object, **changes) -> nn.Module:
    return random_mask_head(*opts, **changes).eval()


def masks_of(
    head, boxes_per_image: list[int], num_classes: int = 5, features: dict | None = None
) -> list[torch.Tensor]:
    detections = as_detections(random_proposals(boxes_per_image, num_classes))
    with torch.no_grad():
        results = head(features or random_features(len(boxes_per_image)), detections)
    return [x.pred_masks for x in results]


# --- features -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "layout", "implicit"),
    pairwise_rows(
        [("p2",), ("p2", "p2"), ("p2", "p3")],
        [torch.contiguous_format, torch.channels_last],
        [False, True],
    ),
)
def test_rendering_leaves_the_features_as_they_were(levels, layout, implicit):
    names = ("MODEL.POINT_HEAD.IN_FEATURES", levels, "MODEL.POINT_HEAD.FC_DIM", CHANNELS)
    head = build(*names, implicit=implicit)
    features = {
        name: level.contiguous(memory_format=layout) for name, level in random_features(2).items()
    }
    kept = {name: level.clone() for name, level in features.items()}
    masks = []
    for _ in range(2):
        masks.append(masks_of(head, [10, 10], features=features))
        for name, level in features.items():
            assert torch.equal(level, kept[name])
    for first, again in zip(*masks, strict=True):
        assert torch.equal(first, again)


# --- chunks -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("chunk", [1, 3, 0])
def test_masks_do_not_depend_on_how_many_are_rendered_together(implicit, chunk):
    expected = masks_of(build(f"{KEY}BOXES_PER_CHUNK", 64, implicit=implicit), [5, 0, 3])
    masks = masks_of(build(f"{KEY}BOXES_PER_CHUNK", chunk, implicit=implicit), [5, 0, 3])
    for ours, all_together in zip(masks, expected, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == all_together.shape
        # In another order of additions, and so with another choice among equals.
        assert ((ours > 0.5) != (all_together > 0.5)).sum() <= 2
        torch.testing.assert_close(ours, all_together, rtol=0, atol=0.02)


def test_chunks_are_of_equal_size_and_no_larger_than_allowed():
    for num_boxes, limit in ((100, 64), (7, 3), (1, 64), (64, 64), (65, 64)):
        renderer = MaskRenderer(SubdivisionPlan(28, 3, 784), boxes_per_chunk=limit)
        boxes = torch.arange(num_boxes)[:, None].expand(-1, 4)
        parts = [boxes[chosen] for _, chosen in renderer._chunks(boxes)]
        assert torch.equal(torch.cat(parts), boxes)
        assert max(map(len, parts)) <= limit
        assert len(parts) == math.ceil(num_boxes / limit)
        assert max(map(len, parts)) - min(map(len, parts)) <= len(parts)


@pytest.mark.parametrize(("key", "value"), [("BOXES_PER_CHUNK", -1), ("CELLS_PER_PIXEL", -1.0)])
def test_negative_settings_are_refused_with_their_key(key, value):
    with pytest.raises(ValueError, match=f"{KEY}{key}.*got {value}"):
        build(f"{KEY}{key}", value)


def test_memory_is_bounded_by_the_chunk_however_many_boxes_and_classes_there_are():
    head = build(num_classes=1203)
    with LargestTensor() as largest:
        masks_of(head, [130], 1203)  # three chunks
    side = 224
    assert largest.bytes <= 130 * 1203 * 7 * 7 * 4  # the coarse logits, which no chunk bounds
    assert largest.bytes >= 130 * side**2 * 4  # it sees the masks, which are the result


# --- small boxes --------------------------------------------------------------------------------


def sized(*longer_sides: float) -> Boxes:
    return Boxes(torch.tensor([[2.0, 3, 2 + side, 3 + side / 2] for side in longer_sides]))


class CountedPoints:
    """A bound head that counts the points of each region and predicts a disc."""

    def __init__(self):
        self.points = {}

    def at(self, coarse, _boxes=None, classes=None):
        def predict(coords):
            for region in classes.tolist():
                self.points[region] = self.points.get(region, 0) + coords.shape[1]
            radius = 0.1 + 0.05 * coarse[:, :1]
            return (radius - (coords - 0.5).norm(dim=2))[:, None]

        return predict


@pytest.mark.parametrize("cells_per_pixel", [0.5, 1.0, 2.0])
def test_the_steps_of_a_box_follow_from_its_size(cells_per_pixel):
    plan = SubdivisionPlan(7, 4, 20)
    sides = [3.0, 7.0, 7.5, 14.0, 29.0, 56.0, 500.0]
    expected_steps = []
    for side in sides:
        steps = 0
        while steps < plan.steps and 7 * 2**steps < side * cells_per_pixel:
            steps += 1
        expected_steps.append(steps)
    bound, number = CountedPoints(), torch.arange(len(sides))
    detections = Instances(IMAGE_SIZE, pred_boxes=sized(*sides), pred_classes=number)
    renderer = MaskRenderer(plan, boxes_per_chunk=2, cells_per_pixel=cells_per_pixel)
    (masks,) = renderer.render([bound], [detections], number[:, None].float())
    assert [bound.points[n] for n in number.tolist()] == [49 + 20 * n for n in expected_steps]
    assert masks.shape == (len(sides), 1, 112, 112)
    for region, steps in enumerate(expected_steps):
        predict = CountedPoints().at(torch.tensor([[float(region)]]), classes=torch.tensor([0]))
        grid = (torch.stack(torch.meshgrid([torch.arange(7)] * 2, indexing="xy"), -1) + 0.5) / 7
        oracle = subdivide(
            predict(grid.view(1, 49, 2)).view(1, 1, 7, 7),
            predict,
            foreground_uncertainty,
            steps=steps,
            points_per_step=20,
        )
        oracle = torch.nn.functional.interpolate(oracle, size=7 * 2**steps)
        for _ in range(plan.steps - steps):
            oracle = torch.nn.functional.interpolate(oracle, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(masks[region], oracle[0].sigmoid(), rtol=0, atol=1e-6)


@BOTH
def test_with_many_cells_per_pixel_no_box_is_too_small(implicit):
    expected = masks_of(build(implicit=implicit), [4])
    masks = masks_of(build(f"{KEY}CELLS_PER_PIXEL", 1e6, implicit=implicit), [4])
    torch.testing.assert_close(masks, expected, rtol=0, atol=1e-5)


@BOTH
def test_a_head_of_float64_renders_the_same_masks(implicit):
    head = build(implicit=implicit)
    (expected,) = masks_of(head, [4])
    features = {name: level.double() for name, level in random_features(1).items()}
    (masks,) = masks_of(head.double(), [4], features=features)
    assert masks.dtype == torch.float32
    assert ((masks > 0.5) != (expected > 0.5)).float().mean() <= 1e-4


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_small_boxes_get_their_own_steps_too(implicit, dtype):
    head = build(f"{KEY}CELLS_PER_PIXEL", 1.0, implicit=implicit)
    (expected,) = masks_of(head, [6])
    with torch.autocast("cpu", dtype):
        (masks,) = masks_of(head, [6])
    assert masks.dtype == torch.float32
    assert ((masks > 0.5) != (expected > 0.5)).float().mean() <= 0.05


@BOTH
def test_a_nan_box_affects_its_own_mask_only(implicit):
    head = build(implicit=implicit)
    (detections,) = as_detections(random_proposals([5]))
    with torch.no_grad():
        kept = head(random_features(1), [detections])[0].pred_masks.clone()
        detections.pred_boxes.tensor[2, 0] = torch.nan
        masks = head(random_features(1), [detections])[0].pred_masks
    others = [0, 1, 3, 4]
    torch.testing.assert_close(masks[others], kept[others], rtol=0, atol=1e-5)


# --- compiled, and on a GPU ---------------------------------------------------------------------


def rendering(head):
    """The rendering of one image as a function of tensors, and its arguments."""
    (detections,) = as_detections(random_proposals([4]))
    refinement = head.refinement
    coarse = torch.randn(4, 5, 7, 7, generator=torch.Generator().manual_seed(8))

    def render(p2, coarse, boxes, classes):
        (image,) = refinement.reader.images({"p2": p2})
        plan = refinement.renderer.plan
        bound = bind_point_head(head.point_head, image, 4, plan.num_points)
        return refinement.renderer._render_together(
            bound, coarse, boxes, classes, head.uncertainty, steps=plan.steps
        )

    boxes = detections.pred_boxes.tensor
    return render, (random_features(1)["p2"], coarse, boxes, detections.pred_classes)


def test_rendering_compiles_without_a_break_in_the_graph(monkeypatch):
    monkeypatch.setattr("point_rend.rendering.bound_head.ROWS_PER_TILE", 128)  # two tiles a step
    head = build(f"{KEY}NUM_POINTS", 49, f"{KEY}STEPS", 1)
    render, arguments = rendering(head)
    with torch.no_grad():
        compiled = torch.compile(render, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*arguments), render(*arguments), rtol=0, atol=1e-5)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_gpu
@BOTH
def test_masks_of_a_gpu_are_those_of_the_cpu(implicit):
    head = build(implicit=implicit)
    (expected,) = masks_of(head, [6])
    head = head.cuda()
    (detections,) = as_detections(random_proposals([6]))
    features = {name: level.cuda() for name, level in random_features(1).items()}
    with torch.no_grad():
        (result,) = head(features, [detections.to("cuda")])
    masks = result.pred_masks.cpu()
    assert ((masks > 0.5) != (expected > 0.5)).float().mean() <= 1e-4


@needs_gpu
def test_the_loop_never_waits_for_the_gpu():
    head = build().cuda()
    render, arguments = rendering(head)
    arguments = [x.cuda() for x in arguments]
    refinement = head.refinement
    (image,) = refinement.reader.images({"p2": arguments[0]})
    plan = refinement.renderer.plan
    bound = bind_point_head(head.point_head, image, 4, plan.num_points)
    with torch.no_grad():
        render(*arguments)  # loads kernels
        coords = torch.rand(4, 28 * 28, 2, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            predict = bound.at(*arguments[1:])
            subdivide(
                predict(coords).unflatten(2, (28, 28)),
                predict,
                foreground_uncertainty,
                steps=3,
                points_per_step=784,
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
