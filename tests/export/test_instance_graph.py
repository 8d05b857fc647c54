"""Graphs of instance models, and their files, against Detectron2's model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes as DetectedBoxes
from detectron2.structures import Instances
from torch import Tensor, nn

from point_rend.export.build import build_graph
from point_rend.export.instance_graph import InstanceGraph, Pooler
from point_rend.export.quantization import quantize
from point_rend.export.writers import write_onnx, write_torch_export, write_torchscript
from point_rend.runtime.description import INSTANCES, KEY, Description
from tests.export.instance_models import (
    CASCADE,
    detecting_model,
    image_with_one_object,
    infer,
    noise,
)
from tests.tiny_datasets import POINTREND

IMPLICIT = POINTREND.replace("pointrend_rcnn", "implicit_pointrend")
KINDS = {
    "standard": (POINTREND, []),
    "class-agnostic boxes": (POINTREND, ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]),
    "cascade": (POINTREND, CASCADE),
    "sigmoid scores, one level": (
        POINTREND,
        [
            *("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True"),
            *("MODEL.ROI_HEADS.IN_FEATURES", "('p2',)"),
        ],
    ),
    "many proposals": (POINTREND, ["MODEL.RPN.PRE_NMS_TOPK_TEST", "1500"]),  # batched_nms loops
    "implicit": (IMPLICIT, ["MODEL.POINT_HEAD.SUBDIVISION_STEPS", "1"]),
}
DESCRIPTION = Description(
    task=INSTANCES,
    version="1",
    classes=("a", "b", "c"),
    image_format="BGR",
    min_size=64,
    max_size=100,
    divisor=16,
    max_side=8192,
    max_batch=64,
)

Run = Callable[[Tensor, Tensor], list[Tensor]]


class Result(NamedTuple):
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    image: Tensor
    masks: Tensor

    @classmethod
    def of(cls, found: list[Instances]) -> "Result":
        """Put what a model found into one list, as a graph does."""
        return cls(
            torch.cat([x.pred_boxes.tensor for x in found]),
            torch.cat([x.scores for x in found]),
            torch.cat([x.pred_classes for x in found]),
            torch.cat([torch.full((len(x),), n) for n, x in enumerate(found)]),
            torch.cat([x.pred_masks for x in found]),
        )

    def decided(self) -> Tensor:
        """Return the pixels of the masks."""
        return self.masks >= 0.5


def batch(images: list[Tensor], divisor: int) -> tuple[Tensor, Tensor]:
    """Pad images with a value that the graph has to remove."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = (int(-(-side // divisor) * divisor) for side in sizes.amax(dim=0))
    padded = torch.full((len(images), 3, height, width), 200.0)
    for place, image in zip(padded, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return padded, sizes


def batches(model: nn.Module) -> dict[str, tuple[list[Tensor], list[int]]]:
    """Return batches of images, and how many objects Detectron2 finds in them."""
    black, one = noise(64, 96, share=0), image_with_one_object(model, 50, 70)
    return {
        "full": ([noise(64, 96)], [100]),
        "one": ([one], [1]),
        "none": ([black], [0]),
        "all empty": ([black, noise(30, 33, share=0)], [0, 0]),
        "mixed sizes": ([one, noise(112, 40, seed=1), black], [1, 100, 0]),
        "tiny": ([noise(9, 15)], [None]),
    }


def compare(run: Run, model: nn.Module, divisor: int, *, box: float, score: float, pixels: float):
    """Assert the count and order of boxes, equal classes, and bounds on all differences."""
    for name, (images, counts) in batches(model).items():
        found = infer(model, images)
        for instances, count in zip(found, counts, strict=True):
            assert count in (None, len(instances)), name
        expected, result = Result.of(found), Result(*run(*batch(images, divisor)))
        for value, wanted in zip(result, expected, strict=True):
            assert value.dtype == wanted.dtype, name
            assert value.shape == wanted.shape, name
        assert torch.equal(result.classes, expected.classes), name
        assert torch.equal(result.image, expected.image), name
        torch.testing.assert_close(result.boxes, expected.boxes, rtol=0, atol=box)
        torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=score)
        if len(result.masks):  # the mean of nothing is no number
            wrong = (result.decided() != expected.decided()).float().mean()
            assert wrong <= pixels, name
        if name == "full":
            assert 0.1 < expected.decided().float().mean() < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_finds_the_boxes_of_the_model_to_the_bit(kind):
    config_file, opts = KINDS[kind]
    model = detecting_model(*opts, config_file=config_file)
    graph = build_graph(model)
    assert isinstance(graph, InstanceGraph)
    with torch.no_grad():
        compare(graph, model, graph.divisor, box=0, score=0, pixels=1e-5)


def test_boxes_of_all_sizes_read_the_levels_that_the_model_reads():
    generator = torch.Generator().manual_seed(0)
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    pooler = ROIPooler(7, scales, sampling_ratio=0, pooler_type="ROIAlignV2")
    maps = [torch.randn(2, 3, int(512 * x), int(640 * x), generator=generator) for x in scales]
    corners = torch.rand(200, 2, generator=generator) * 200
    sides = 2 ** (torch.rand(200, 2, generator=generator) * 10)
    boxes, image = torch.cat((corners, corners + sides), dim=1), torch.arange(200) // 120
    expected = pooler(maps, [DetectedBoxes(boxes[:120]), DetectedBoxes(boxes[120:])])
    assert torch.equal(Pooler(pooler)(maps, boxes, image), expected)


class Exported(NamedTuple):
    model: nn.Module
    graph: InstanceGraph
    folder: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    """A model, with batch norm in its box head, and its ONNX file."""
    model = detecting_model(
        *("MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.CONV_DIM", "8"),
        *("MODEL.ROI_BOX_HEAD.NORM", "BN"),
    )
    graph = build_graph(model)
    assert isinstance(graph, InstanceGraph)
    folder = tmp_path_factory.mktemp("exported")
    write_onnx(graph, folder / "model.onnx", DESCRIPTION)
    return Exported(model, graph, folder)


def in_onnxruntime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor, sizes: Tensor) -> list[Tensor]:
        arrays = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        return [torch.from_numpy(array) for array in arrays]

    return run


def in_openvino(path: Path) -> Run:
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(images: Tensor, sizes: Tensor) -> list[Tensor]:
        results = compiled([images.numpy(), sizes.numpy()])
        return [torch.from_numpy(np.array(results[name])) for name in InstanceGraph.output_names]

    return run


@pytest.mark.parametrize("runtime", [in_onnxruntime, in_openvino])
def test_an_onnx_file_finds_the_objects_of_the_model(exported: Exported, runtime):
    run = runtime(exported.folder / "model.onnx")
    bounds = {"box": 1e-3, "score": 1e-4, "pixels": 1e-4}
    compare(run, exported.model, exported.graph.divisor, **bounds)


def test_an_onnx_file_has_names_open_sizes_native_suppression_and_its_description(exported):
    path = exported.folder / "model.onnx"
    content = onnx.load(path)
    onnx.checker.check_model(content)
    assert sorted(x.name for x in path.parent.iterdir()) == ["model.onnx"]
    assert [x.name for x in content.graph.input] == ["images", "sizes"]
    assert tuple(x.name for x in content.graph.output) == InstanceGraph.output_names
    shape = content.graph.input[0].type.tensor_type.shape.dim
    assert [bool(axis.dim_param) for axis in shape] == [True, False, True, True]
    used = [node.op_type for node in content.graph.node]
    assert used.count("NonMaxSuppression") == 2
    assert not {node.domain for node in content.graph.node} - {""}
    assert not {"Loop", "If", "Scan", "SequenceConstruct"} & set(used)
    (entry,) = [x for x in content.metadata_props if x.key == KEY]
    assert Description.from_json(entry.value, "model.onnx") == DESCRIPTION


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_lower_precision_is_that_of_all_layers_of_backbone_and_box_head_and_no_others(
    exported, precision, tmp_path
):
    image, size = noise(64, 96)[None], torch.tensor([[64, 96]])
    path, batches = tmp_path / "low.onnx", [(image.numpy(), size.numpy())]
    quantize(exported.folder / "model.onnx", path, precision=precision, batches=batches)
    low = {
        value.name.removesuffix("/float16").removesuffix("_quantized")
        for value in onnx.load(path).graph.initializer
        if value.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8)
    }
    layers = {
        name
        for name, value in exported.graph.named_parameters()
        if name.startswith(("backbone.", "detections.heads.")) and value.dim() > 1
    }
    assert {x for x in low if x.endswith("weight")} == {x for x in layers if x.endswith("weight")}
    boxes, scores, *_, masks = in_onnxruntime(path)(image, size)
    assert boxes.shape == (len(scores), 4)
    assert masks.shape[0] == len(scores) > 0
    assert ((masks >= 0) & (masks <= 1)).all()


@pytest.mark.slow
def test_an_exported_program_finds_the_objects_of_the_model(exported: Exported):
    path = exported.folder.parent / "model.pt2"
    with torch.no_grad():
        write_torch_export(exported.graph, path, DESCRIPTION)
        extra = {KEY: ""}
        program = torch.export.load(path, extra_files=extra)
        operators = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
        assert not any("point_rend" in name for name in operators)
        bounds = {"box": 1e-4, "score": 1e-5, "pixels": 1e-5}
        compare(program.module(), exported.model, exported.graph.divisor, **bounds)
    assert json.loads(extra[KEY])["task"] == INSTANCES


def test_a_trace_finds_the_objects_of_the_model(exported: Exported):
    path = exported.folder.parent / "model.ts"
    write_torchscript(exported.graph, path, DESCRIPTION)
    extra = {KEY: ""}
    trace = torch.jit.load(path, _extra_files=extra)
    assert not any("point_rend" in node.kind() for node in trace.inlined_graph.nodes())
    with torch.no_grad():
        bounds = {"box": 1e-4, "score": 1e-5, "pixels": 1e-5}
        compare(trace, exported.model, exported.graph.divisor, **bounds)
    assert json.loads(extra[KEY])["task"] == INSTANCES
