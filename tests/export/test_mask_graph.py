"""Graphs of the mask heads against the heads themselves."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import openvino
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from point_rend.export.mask_graph import MaskHeadGraph, MaskRendering
from point_rend.export.writers import write_onnx
from point_rend.runtime.description import Description
from tests.synthetic import CHANNELS, IMAGE_SIZE, random_boxes, random_features, random_mask_head

VARIANTS = {
    "standard": (),
    "two levels": ("MODEL.POINT_HEAD.IN_FEATURES", "('p2', 'p3')"),
    "other level": ("MODEL.POINT_HEAD.IN_FEATURES", "('p3',)"),
    "one logit a point": ("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True),
    "one coarse mask": ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True),
    "coarse prediction once": ("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", False),
    "residual, coarse prediction once": (
        *("MODEL.POINT_HEAD.NAME", "ResidualPointHead"),
        *("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", False),
    ),
    "no hidden layer": ("MODEL.POINT_HEAD.NUM_FC", 0),
    "coarse only": ("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False),
    "implicit": (),
    "implicit without features": ("MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED", False),
    "implicit without positions": ("MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED", False),
    "implicit, two levels": ("MODEL.POINT_HEAD.IN_FEATURES", "('p2', 'p3')"),
}
# One step with points after the first grid: a graph that is quick to export.
ONE_STEP = {
    "two levels": ("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2),  # from 7 cells to 14 without a loop
    "implicit": ("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 1),
}
FEW_POINTS = ("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 14**2)
COUNTS = ([3], [0], [1], [2, 3], [0, 4], [0, 0, 0], [5, 0, 30])
DECIDED_OTHERWISE = {"eager": 1e-5, "runtime": 1e-4}  # of the pixels


def head_of(variant: str, *opts: object) -> nn.Module:
    implicit = variant.startswith("implicit")
    return random_mask_head(*VARIANTS[variant], *opts, implicit=implicit).eval()


def inputs_of(counts: list[int]) -> tuple[dict[str, Tensor], list[Instances]]:
    """Return features and detections of images with so many boxes, some beyond the image."""
    generator = torch.Generator().manual_seed(sum(counts))
    detections = []
    for count in counts:
        boxes = random_boxes(count, generator).tensor
        boxes[1::5] += torch.tensor([40.0, 50.0, 40.0, 50.0])
        boxes[2::5] -= 30
        classes = torch.randint(5, (count,), generator=generator)
        detections.append(Instances(IMAGE_SIZE, pred_boxes=Boxes(boxes), pred_classes=classes))
    return random_features(len(counts), seed=sum(counts)), detections


def as_tensors(detections: list[Instances]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boxes, classes and images of all detections."""
    return (
        torch.cat([x.pred_boxes.tensor for x in detections]),
        torch.cat([x.pred_classes for x in detections]),
        torch.cat([torch.full((len(x),), n) for n, x in enumerate(detections)]),
    )


Masks = Callable[..., Tensor]  # (levels, boxes, classes, image)


def assert_renders_the_masks_of(head: nn.Module, masks_of: Masks, share: float) -> None:
    """Compare the pixels that are foreground, for several batches."""
    for counts in COUNTS:
        features, detections = inputs_of(counts)
        expected = torch.cat([x.pred_masks for x in head(features, detections)])
        masks = masks_of(features, *as_tensors(detections))
        assert masks.dtype == torch.float32
        assert masks.shape == expected.shape
        differs = (masks >= 0.5) != (expected >= 0.5)
        assert differs.sum() <= share * differs.numel(), counts


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_graph_renders_the_masks_of_the_head(variant: str):
    head = head_of(variant)
    assert_renders_the_masks_of(head, MaskRendering(head).eval(), DECIDED_OTHERWISE["eager"])


DESCRIPTION = Description(
    task=MaskHeadGraph.task,
    version="1",
    classes=(),
    image_format="BGR",
    min_size=0,
    max_size=0,
    divisor=1,
    max_side=8192,
    max_batch=64,
)


@pytest.fixture(scope="module", params=ONE_STEP)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A mask head, its graph, and the ONNX file of it."""
    head = head_of(request.param, *FEW_POINTS, *ONE_STEP[request.param])
    graph = MaskHeadGraph(head, {"p2": CHANNELS, "p3": CHANNELS, "p4": 1}).eval()
    path = tmp_path_factory.mktemp("mask_head") / "mask_head.onnx"
    write_onnx(graph, path, DESCRIPTION)
    return head, graph, path


Exported = tuple[nn.Module, MaskHeadGraph, Path]


def arrays_of(graph: MaskHeadGraph, features: dict[str, Tensor], *boxes: Tensor) -> dict:
    """Return the arguments of a graph by name."""
    tensors = [features[name] for name in graph.levels] + list(boxes)
    return {k: x.numpy() for k, x in zip(graph.input_names, tensors, strict=True)}


@torch.no_grad()
def test_onnxruntime_renders_the_masks_of_the_head(exported: Exported):
    head, graph, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == list(graph.input_names)
    assert [x.name for x in session.get_outputs()] == ["masks"]

    def masks_of(*inputs) -> Tensor:
        return torch.from_numpy(session.run(None, arrays_of(graph, *inputs))[0])

    assert_renders_the_masks_of(head, masks_of, DECIDED_OTHERWISE["runtime"])


@torch.no_grad()
def test_openvino_renders_the_masks_of_the_head(exported: Exported):
    head, graph, path = exported
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", hints)

    def masks_of(*inputs) -> Tensor:
        return torch.from_numpy(compiled(arrays_of(graph, *inputs))["masks"].copy())

    assert_renders_the_masks_of(head, masks_of, DECIDED_OTHERWISE["runtime"])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning")
@torch.no_grad()
def test_a_trace_and_an_exported_program_render_the_masks_of_the_head(exported: Exported):
    head, graph, _ = exported
    shapes = graph.dynamic_shapes()
    program = torch.export.export(graph, graph.example(), dynamic_shapes=shapes).module()
    for run in (program, torch.jit.trace(graph, graph.example(), check_trace=False)):

        def masks_of(features: dict[str, Tensor], *boxes: Tensor, run=run) -> Tensor:
            return run(*[features[name] for name in graph.levels], *boxes)

        assert_renders_the_masks_of(head, masks_of, DECIDED_OTHERWISE["eager"])


@torch.no_grad()
def test_a_box_that_is_not_finite_gets_an_empty_mask_and_spoils_no_other():
    graph = MaskRendering(head_of("standard")).eval()
    features, detections = inputs_of([3, 3])
    boxes, classes, image = as_tensors(detections)
    expected = graph(features, boxes, classes, image)
    boxes[1, 2], boxes[4, 1] = torch.inf, torch.nan
    masks = graph(features, boxes, classes, image)
    assert not masks[[1, 4]].any()
    assert masks[[0, 2, 3, 5]].equal(expected[[0, 2, 3, 5]])


@pytest.mark.parametrize("variant", ["standard", "implicit"])
def test_steps_that_depend_on_the_box_have_no_graph(variant: str):
    head = head_of(variant, "MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL", 1.5)
    with pytest.raises(ValueError, match=r"SUBDIVISION_CELLS_PER_PIXEL is 1\.5: steps that depend"):
        MaskRendering(head)


@pytest.mark.parametrize("variant", ["standard", "implicit"])
def test_a_point_head_of_ones_own_has_no_graph(variant: str):
    head = head_of(variant)
    head.point_head.__class__ = type("MyPointHead", (type(head.point_head),), {})
    with pytest.raises(ValueError, match=r"POINT_HEAD\.NAME is MyPointHead, which has no graph"):
        MaskRendering(head)


def test_the_channels_of_every_level_are_needed():
    with pytest.raises(ValueError, match="channels: expected those of p3, too"):
        MaskHeadGraph(head_of("two levels"), {"p2": CHANNELS})


def test_a_mask_head_of_another_kind_has_no_graph():
    with pytest.raises(ValueError, match=r"ROI_MASK_HEAD\.NAME is Linear, which has no graph"):
        MaskRendering(nn.Linear(1, 1))
