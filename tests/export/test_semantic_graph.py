"""The graph of a semantic model against the model: in eager mode and in every format."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, Backbone, SemanticSegmentor
from detectron2.structures import ImageList
from torch import Tensor, nn

from point_rend import PointRendSemanticSegmentor
from point_rend.export.semantic_graph import SemanticGraph
from point_rend.export.writers import write_onnx, write_torch_export, write_torchscript
from point_rend.runtime.description import Description
from point_rend.runtime.exported_model import ExportedModel
from point_rend.runtime.sessions import open_session
from tests.synthetic import CHANNELS, SHAPES, randomize
from tests.synthetic_semantic import small_deeplab_config, small_semantic_config, smooth_images

DIVISOR = 32  # of the backbone, more than the strides: every image has padding
# Batches of one size, of several, and of images with fewer cells than a step has points.
BATCHES = ([(64, 96)], [(40, 52)], [(20, 30)], [(64, 90), (20, 30)], [(37, 61), (96, 64), (4, 4)])
LABELS_DECIDED_OTHERWISE = 5e-5  # by a runtime

POINT_REND = PointRendSemanticSegmentor
VARIANTS = {
    "semantic FPN": (POINT_REND, small_semantic_config()),
    "residual, two levels, coarse logits in each layer": (
        POINT_REND,
        small_semantic_config(
            *("MODEL.POINT_HEAD.IN_FEATURES", ["p2", "p3"]),
            *("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", True),
            *("MODEL.POINT_HEAD.NAME", "ResidualPointHead"),
        ),
    ),
    "DeepLabV3": (POINT_REND, small_deeplab_config("DeepLabV3Head")),
    "DeepLabV3+": (POINT_REND, small_deeplab_config("DeepLabV3PlusHead")),
    "one class": (POINT_REND, small_semantic_config("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1)),
    "whole batches": (SemanticSegmentor, small_semantic_config()),
    **{
        f"plain {name}": (SemanticSegmentor, config)
        for name, config in (
            ("SemSegFPNHead", small_semantic_config()),
            ("DeepLabV3Head", small_deeplab_config("DeepLabV3Head")),
            ("DeepLabV3PlusHead", small_deeplab_config("DeepLabV3PlusHead")),
        )
    },
}
EXPORTED = "DeepLabV3+"


class SmallBackbone(Backbone):
    """Levels of stride 4 and 8; the convolutions of the heads on them see the padding."""

    size_divisibility = DIVISOR

    def __init__(self) -> None:
        super().__init__()
        self.p2 = nn.Conv2d(3, CHANNELS, 4, stride=4)
        self.p3 = nn.Conv2d(CHANNELS, CHANNELS, 2, stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        p2 = self.p2(x)
        return {"p2": p2, "p3": self.p3(p2)}

    def output_shape(self):
        return SHAPES


def model_of(variant: str, **sizes: int) -> SemanticSegmentor:
    meta, cfg = VARIANTS[variant]
    return build(meta, cfg, variant.removeprefix("plain ") if "plain" in variant else None, **sizes)


def build(
    meta: type, cfg: CfgNode, head_name: str | None = None, *, divisor: int = DIVISOR
) -> SemanticSegmentor:
    torch.manual_seed(0)
    name = head_name or cfg.MODEL.SEM_SEG_HEAD.NAME
    model = meta(
        backbone=SmallBackbone(),
        sem_seg_head=SEM_SEG_HEADS_REGISTRY.get(name)(cfg, SHAPES),
        pixel_mean=[110.0, 120.0, 130.0],
        pixel_std=[50.0, 60.0, 70.0],
    )
    model.backbone.size_divisibility = divisor
    randomize(model)
    return model.eval()


def padded(images: list[dict], divisor: int) -> tuple[Tensor, Tensor]:
    batch = ImageList.from_tensors([x["image"] for x in images], divisor, pad_value=77.0)
    return batch.tensor, torch.tensor(batch.image_sizes)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_graph_computes_the_labels_of_the_model(variant: str):
    model = model_of(variant)
    graph = SemanticGraph(model).eval()
    for sizes in BATCHES:
        images = smooth_images(sizes)
        tensor, in_batch = padded(images, graph.divisor)
        logits, labels = graph(tensor, in_batch)
        assert (logits.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert labels.shape == (len(sizes), *tensor.shape[2:])
        for number, (expected, (height, width)) in enumerate(
            zip(model(images), sizes, strict=True)
        ):
            found = logits[number, :, :height, :width]
            torch.testing.assert_close(found, expected["sem_seg"], rtol=1e-5, atol=1e-4)
            assert labels[number, :height, :width].equal(expected["sem_seg"].argmax(0)), sizes


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[SemanticSegmentor, Path]:
    """A model, and the path of its files without their suffix."""
    model, folder = model_of(EXPORTED), tmp_path_factory.mktemp("semantic")
    graph = SemanticGraph(model).eval()
    description = Description(
        task=graph.task,
        version="1",
        classes=("a", "b", "c", "d", "e", "f"),
        image_format="BGR",
        min_size=0,
        max_size=0,
        divisor=graph.divisor,
        max_side=graph.max_side,
        max_batch=graph.max_batch,
    )
    write_onnx(graph, folder / "model.onnx", description)
    write_torch_export(graph, folder / "model.pt2", description)
    write_torchscript(graph, folder / "model.ts", description)
    return model, folder / "model"


@pytest.mark.parametrize(
    ("suffix", "backend"),
    [(".onnx", "onnxruntime"), (".onnx", "openvino"), (".pt2", None), (".ts", None)],
)
def test_a_file_computes_the_labels_of_the_model(exported, suffix, backend):
    model, path = exported
    session = open_session(
        path.with_suffix(suffix), backend=backend, threads=1, allow_unsafe=backend is None
    )
    file = ExportedModel(session)
    different = pixels = 0
    for sizes in BATCHES:
        images = smooth_images(sizes)
        with torch.no_grad():
            expected = [x["sem_seg"] for x in model(images)]
        labels = session(*padded(images, session.description.divisor))["labels"]
        for number, (logits, found) in enumerate(zip(expected, file(images), strict=True)):
            height, width = logits.shape[1:]
            torch.testing.assert_close(found["sem_seg"], logits, rtol=1e-4, atol=1e-3)
            different += (labels[number, :height, :width] != logits.argmax(0)).sum().item()
            different += (found["sem_seg"].argmax(0) != logits.argmax(0)).sum().item()
            pixels += 2 * height * width
    assert different <= LABELS_DECIDED_OTHERWISE * pixels


def export(graph: SemanticGraph) -> nn.Module:
    shapes = graph.dynamic_shapes()
    program = torch.export.export(graph, graph.example(), dynamic_shapes=shapes)
    return program.module(check_guards=False)


def test_a_backbone_without_padding_gives_a_graph_of_any_size():
    model = model_of("plain DeepLabV3Head", divisor=0)
    graph = SemanticGraph(model).eval()
    with torch.no_grad():
        program = export(graph)
        for sizes in ([(40, 56)], [(56, 40), (48, 64)]):  # no multiples of 32
            images = smooth_images(sizes)
            labels = program(*padded(images, 1))[1]
            for number, (expected, (height, width)) in enumerate(
                zip(model(images), sizes, strict=True)
            ):
                assert labels[number, :height, :width].equal(expected["sem_seg"].argmax(0))


def test_averages_over_windows_take_multiples_of_them():
    cfg = small_deeplab_config("DeepLabV3Head")
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [64, 96]
    model = build(POINT_REND, cfg)
    graph = SemanticGraph(model).eval()
    assert (graph.divisor, graph.units) == (DIVISOR, (64, 96))
    with torch.no_grad():
        program = export(graph)
        for size in ((64, 96), (128, 192)):
            images = smooth_images([size])
            expected = model(images)[0]["sem_seg"]
            assert program(*padded(images, DIVISOR))[1][0].equal(expected.argmax(0))


# --- models without a graph -----------------------------------------------------------------------


def test_a_model_of_another_kind_has_no_graph():
    with pytest.raises(ValueError, match="META_ARCHITECTURE is Linear, which has no graph"):
        SemanticGraph(nn.Linear(1, 1))


def test_a_head_derived_from_ours_has_no_graph():
    model = model_of("semantic FPN")
    model.sem_seg_head.__class__ = type("MyHead", (type(model.sem_seg_head),), {})
    with pytest.raises(ValueError, match=r"SEM_SEG_HEAD\.NAME is MyHead, which has no graph"):
        SemanticGraph(model)


def test_a_backbone_of_squares_has_no_graph():
    model = model_of("semantic FPN")
    type(model.backbone).padding_constraints = {"square_size": 64}
    try:
        with pytest.raises(
            ValueError, match="SmallBackbone, which takes squares of 64 pixels only"
        ):
            SemanticGraph(model)
    finally:
        del type(model.backbone).padding_constraints
