"""Tracing: one trace serves any number of boxes, including none, and images of any size."""

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from tests.synthetic import (
    IMAGE_SIZE,
    random_boxes,
    random_features,
    random_mask_head,
    randomize,
    small_head_config,
)
from tests.synthetic_semantic import smooth_images, tiny_model_config

# torch warns in every trace that sizes used in Python become constants, and that constants are
# registered; these tests show that this does no harm here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning"),
]


class TensorsIn(nn.Module):
    """A mask head whose input and output are tensors."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, p2, p3, boxes, classes):
        instances = Instances(IMAGE_SIZE, pred_boxes=Boxes(boxes), pred_classes=classes)
        return self.head({"p2": p2, "p3": p3}, [instances])[0].pred_masks


def inputs_of(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    features = random_features(1, seed)
    boxes = random_boxes(count, generator).tensor
    return (*features.values(), boxes, torch.randint(5, (count,), generator=generator))


VARIANTS = {
    "standard": (False, ()),
    "two-levels": (False, ("MODEL.POINT_HEAD.IN_FEATURES", "('p2', 'p3')")),
    "class-agnostic": (False, ("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True)),
    "residual": (False, ("MODEL.POINT_HEAD.NAME", "ResidualPointHead")),
    "coarse-only": (False, ("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False)),
    "implicit": (True, ()),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trace_with_three_boxes_serves_any_number(variant):
    implicit, opts = VARIANTS[variant]
    steps = ("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2 if implicit else 4)
    model = TensorsIn(random_mask_head(*opts, *steps, implicit=implicit)).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, inputs_of(3), check_trace=False)
        side = 7 if variant == "coarse-only" else 112
        for count in (3, 1, 7, 0):
            inputs = inputs_of(count, seed=count)
            eager, masks = model(*inputs), traced(*inputs)
            assert masks.dtype == torch.float32
            assert masks.shape == eager.shape == (count, 1, side, side)
            torch.testing.assert_close(masks, eager)


@pytest.mark.parametrize("seed", range(8))
def test_a_trace_differs_from_the_head_in_equally_uncertain_cells_only(seed):
    """As Detectron2's test of the stock head, whose masks of other sizes are equal to rounding.

    A trace samples before it multiplies. Where that rounds two uncertainties into another order,
    another cell is predicted, and the one that is not keeps its interpolated value. The steps after
    it interpolate the two cells: an exchange in the first of three steps reaches 2 · 10² cells.
    """
    torch.manual_seed(seed)
    model = TensorsIn(random_mask_head("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 5)).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, inputs_of(5, seed), check_trace=False)
        inputs = inputs_of(30, seed + 100)
        eager, masks = model(*inputs), traced(*inputs)
    differences = (eager - masks).abs()
    assert (differences > 1e-6).sum() <= 2 * 10**2  # of 30 · 224²: at most one exchange
    assert differences.max() <= 0.01
    assert ((eager > 0.5) != (masks > 0.5)).float().mean() <= 1e-5


def tiny_model() -> nn.Module:
    cfg = small_head_config(
        *("MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
        *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_HEADS.IN_FEATURES", "('p2', 'p3', 'p4', 'p5')"),
        *("MODEL.RPN.PRE_NMS_TOPK_TEST", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 6),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "TEST.DETECTIONS_PER_IMAGE", 4),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 3),
    )
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    randomize(model.roi_heads.mask_head)
    return model


def test_a_whole_model_is_traced_and_serves_other_images():
    model = tiny_model()

    def image(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(256, (3, 64, 96), generator=generator).float()

    def infer(model, inputs):
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

    adapter = TracingAdapter(model, [{"image": image(0)}], infer).eval()
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        for seed in (0, 1):
            (expected,) = infer(model, [{"image": image(seed)}])
            (result,) = adapter.outputs_schema(traced(image(seed)))
            expected, result = expected["instances"], result["instances"]
            assert len(result) == len(expected) > 0
            assert result.pred_masks.shape == (len(expected), 1, 56, 56)
            torch.testing.assert_close(result.pred_boxes.tensor, expected.pred_boxes.tensor)
            torch.testing.assert_close(result.pred_masks, expected.pred_masks)


@pytest.mark.parametrize("meta_architecture", ["PointRendSemanticSegmentor", "SemanticSegmentor"])
def test_a_trace_of_a_semantic_model_serves_images_of_other_sizes(meta_architecture):
    """The first grid of the smallest image has fewer cells than a step of the plan has points."""
    torch.manual_seed(0)
    model = build_model(tiny_model_config(meta_architecture)).eval()
    randomize(model.sem_seg_head)
    inputs = smooth_images([(96, 150), (64, 90), (20, 30)])
    unlabeled = [{"image": image["image"]} for image in inputs]
    adapter = TracingAdapter(model, unlabeled[:1]).eval()
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        for image in unlabeled:
            expected = model([image])[0]["sem_seg"]
            (logits,) = traced(image["image"])
            assert logits.shape == expected.shape == (6, *image["image"].shape[1:])
            torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)
            assert torch.equal(logits.argmax(0), expected.argmax(0))
