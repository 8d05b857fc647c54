"""Conversion of ONNX files to lower precision, on a file of a few nodes with known weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from point_rend.export.quantization import quantize
from point_rend.runtime.description import KEY, Description

DESCRIPTION = Description(
    task="instances",
    version="1.0",
    classes=("star",),
    image_format="BGR",
    min_size=0,
    max_size=0,
    divisor=1,
    max_side=64,
    max_batch=4,
)
WEIGHTS = {
    "backbone.first.weight": (4, 3, 3, 3),
    "backbone.first.bias": (4,),
    "backbone.second.weight": (4, 4, 1, 1),
    "proposals.weight": (2, 4, 1, 1),
    "detections.heads.0.fc.weight": (6, 4),
    "masks.weight": (5, 6),
}
OUTPUTS = {"proposals": 4, "masks": 2}


def weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(size=shape).astype(np.float32) for name, shape in WEIGHTS.items()
    }


def compute(images: torch.Tensor, w: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model of the file, in PyTorch."""
    first = F.relu(F.conv2d(images, w["backbone.first.weight"], w["backbone.first.bias"]))
    second = F.conv2d(F.max_pool2d(first, 2), w["backbone.second.weight"])
    features = F.interpolate(second, scale_factor=2, mode="nearest") + first
    box = F.relu(features.mean(dim=(2, 3)) @ w["detections.heads.0.fc.weight"].t())
    return {
        "proposals": F.conv2d(features, w["proposals.weight"]),
        "masks": box @ w["masks.weight"].t(),
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a file, whose names are those of the graphs."""
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Conv", ["images", "backbone.first.weight", "backbone.first.bias"], {}),
        ("Relu", ["0"], {}),
        ("MaxPool", ["1"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["2", "backbone.second.weight"], {}),
        ("Resize", ["3", "", "scales"], {"mode": "nearest", "nearest_mode": "floor",
                                         "coordinate_transformation_mode": "asymmetric"}),
        ("Add", ["4", "1"], {}),
        ("Conv", ["5", "proposals.weight"], {}),
        ("ReduceMean", ["5", "axes"], {"keepdims": 0}),
        ("Gemm", ["7", "detections.heads.0.fc.weight"], {"transB": 1}),
        ("Relu", ["8"], {}),
        ("Gemm", ["9", "masks.weight"], {"transB": 1}),
    ]  # fmt: skip
    names = {6: "proposals", 10: "masks"}
    nodes = [
        helper.make_node(op, inputs, [names.get(n, str(n))], name=f"node_{n}", **attributes)
        for n, (op, inputs, attributes) in enumerate(steps)
    ]
    constants = {**weights(), "scales": np.float32([1, 1, 2, 2]), "axes": np.int64([2, 3])}
    graph = helper.make_graph(
        nodes,
        "model",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, "H", "W"]),
            helper.make_tensor_value_info("sizes", TensorProto.INT64, ["B", 2]),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
            for name, rank in OUTPUTS.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    save(onnx.shape_inference.infer_shapes(model), path, DESCRIPTION)
    return path


def save(model: onnx.ModelProto, path: Path, description: Description | None) -> None:
    texts = {} if description is None else {KEY: description.to_json()}
    helper.set_model_props(model, texts)
    onnx.save(model, path)


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(1)
    images = generator.normal(size=(count, 2, 3, 10, 14)).astype(np.float32)
    return [(batch, np.array([[10, 14], [9, 14]])) for batch in images]


def run(path: Path, batch: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUTS), dict(zip(("images", "sizes"), batch, strict=True)))
    return dict(zip(OUTPUTS, found, strict=True))


def in_torch(rounded: type = np.float32) -> dict[str, torch.Tensor]:
    """The weights, those of the backbone and the box head rounded to a type."""
    kept = ("proposals.weight", "masks.weight")
    return {
        name: torch.from_numpy(value if name in kept else value.astype(rounded).astype(np.float32))
        for name, value in weights().items()
    }


def description_of(path: Path) -> Description:
    (text,) = [x.value for x in onnx.load(path).metadata_props if x.key == KEY]
    return Description.from_json(text, str(path))


def test_float16_holds_the_weights_of_backbone_and_box_head_in_16_bits_and_no_others(
    file, tmp_path
):
    quantize(file, tmp_path / "half.onnx", precision="float16")
    onnx.checker.check_model(tmp_path / "half.onnx", full_check=True)
    found = {
        value.name.removesuffix("/float16"): value.data_type
        for value in onnx.load(tmp_path / "half.onnx").graph.initializer
    }
    halves = {name for name in WEIGHTS if name.startswith(("backbone", "detections"))}
    assert {name for name, kind in found.items() if kind == TensorProto.FLOAT16} == halves
    assert set(found) == {*WEIGHTS, "scales", "axes"}


def test_float16_computes_between_its_layers_in_16_bits_and_elsewhere_in_32(file, tmp_path):
    quantize(file, tmp_path / "half.onnx", precision="float16")
    model = onnx.load(tmp_path / "half.onnx")
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    of_nodes = {node.name: kinds[node.output[0]] for node in model.graph.node if node.name}
    half = {f"node_{n}" for n in (0, 1, 2, 3, 4, 5, 8, 9)}
    assert {name for name, kind in of_nodes.items() if kind == TensorProto.FLOAT16} == half
    assert len(of_nodes) == 11
    # The images, the features' mean and what the others read: no value is converted twice.
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 4


def test_float16_computes_the_model_of_the_rounded_weights(file, tmp_path):
    quantize(file, tmp_path / "half.onnx", precision="float16")
    (batch,) = batches(1)
    expected = compute(torch.from_numpy(batch[0]), in_torch(np.float16))
    for name, found in run(tmp_path / "half.onnx", batch).items():
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=0.02)
    assert description_of(tmp_path / "half.onnx") == dataclasses.replace(
        DESCRIPTION, precision="float16"
    )


def test_int8_quantizes_the_layers_of_backbone_and_box_head_and_no_others(file, tmp_path):
    quantize(file, tmp_path / "int8.onnx", precision="int8", batches=batches(3))
    onnx.checker.check_model(tmp_path / "int8.onnx", full_check=True)
    model = onnx.load(tmp_path / "int8.onnx")
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    quantized = {
        node.name
        for node in model.graph.node
        if node.name.startswith("node_")
        and all(producers.get(name) == "DequantizeLinear" for name in node.input)
    }
    assert {"node_0", "node_3", "node_8"} <= quantized
    assert not {"node_6", "node_10"} & quantized
    stored = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    eight = {name: value for name, value in stored.items() if name.endswith("weight_quantized")}
    assert len(eight) == 3
    for value in eight.values():
        assert value.dtype == np.int8
        assert np.abs(value.astype(int)).max() in (63, 64)  # 7 bits and a sign: sums of 16 bits
    assert stored["masks.weight"].dtype == np.float32


def test_int8_computes_the_model_up_to_the_steps_of_its_ranges(file, tmp_path):
    quantize(file, tmp_path / "int8.onnx", precision="int8", batches=batches(4))
    for batch in batches(4):
        expected = compute(torch.from_numpy(batch[0]), in_torch())
        for name, found in run(tmp_path / "int8.onnx", batch).items():
            scale = expected[name].abs().max()
            assert 0 < np.abs(found - expected[name].numpy()).max() < 0.03 * scale
    assert description_of(tmp_path / "int8.onnx").precision == "int8"


def test_int8_cuts_off_what_is_beyond_the_images_of_the_calibration(file, tmp_path):
    (batch,) = batches(1)
    dark = (batch[0] / 10, batch[1])
    quantize(file, tmp_path / "dark.onnx", precision="int8", batches=iter([dark]))
    expected = compute(torch.from_numpy(dark[0]), in_torch())["masks"].numpy()
    found = run(tmp_path / "dark.onnx", dark)["masks"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.03 * np.abs(expected).max())
    bright = compute(torch.from_numpy(batch[0]), in_torch())["masks"].numpy()
    error = np.abs(run(tmp_path / "dark.onnx", batch)["masks"] - bright).max()
    assert error > 0.2 * np.abs(bright).max()


def test_int8_needs_an_image(file, tmp_path):
    with pytest.raises(ValueError, match="int8 needs at least one image"):
        quantize(file, tmp_path / "int8.onnx", precision="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_only_a_whole_model_in_float32_is_converted(file, tmp_path, precision):
    quantize(file, tmp_path / "half.onnx", precision="float16")
    message = "cannot be converted to .*: expected a whole model in float32, got {}"
    with pytest.raises(ValueError, match=message.format("instances in float16")):
        quantize(tmp_path / "half.onnx", tmp_path / "other.onnx", precision=precision)
    model = onnx.load(file)
    for value in model.graph.initializer:
        value.name = value.name.replace("backbone", "b").replace("detections", "d")
    for node in model.graph.node:
        node.input[:] = [x.replace("backbone", "b").replace("detections", "d") for x in node.input]
    head = dataclasses.replace(DESCRIPTION, task="mask_head")
    save(model, tmp_path / "head.onnx", head)
    with pytest.raises(ValueError, match=message.format("mask_head in float32")):
        quantize(tmp_path / "head.onnx", tmp_path / "other.onnx", precision=precision)
    save(model, tmp_path / "foreign.onnx", None)
    with pytest.raises(ValueError, match="is not a model written by `pointrend export`"):
        quantize(tmp_path / "foreign.onnx", tmp_path / "other.onnx", precision=precision)
    assert not (tmp_path / "other.onnx").exists()
