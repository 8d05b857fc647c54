"""ONNX files whose backbone and box head compute in lower precision.

These two hold most of the weights and, with boxes in common numbers, most of the work. The region
proposals, the final boxes and the rendering of masks stay in float32: a point is rendered where
probabilities are closest to one half, which is where rounding would change the mask.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from point_rend.runtime.description import KEY, Description
from point_rend.utils.files import atomic_path

FLOAT16, INT8 = "float16", "int8"
PRECISIONS = (FLOAT16, INT8)

# Beginnings of the names of the weights of lower precision, as the graphs name their modules.
PARTS = ("backbone.", "detections.heads.")
WITH_WEIGHTS = {"Conv", "Gemm", "MatMul"}
# Operators without weights that stay in float16 where their inputs are, with the number of inputs
# that are values; the others are sizes and scales.
WITHOUT_WEIGHTS = {"Add": 2, "Flatten": 1, "MaxPool": 1, "Relu": 1, "Reshape": 1, "Resize": 1}

Batch = Sequence[np.ndarray]


def quantize(
    path: str | Path, output: str | Path, *, precision: str, batches: Iterable[Batch] = ()
) -> None:
    """Write a copy of an ONNX file with its backbone and box head in lower precision.

    With float16, these store and compute in 16 bits, which halves their size. With int8, their
    convolutions and linear layers have weights of 7 bits and a sign, one scale for each channel,
    and inputs and outputs of 8 bits, in the ranges found in the batches. One bit of the weights is
    left out because processors without VNNI instructions add up products in 16 bits.

    Args:
        path: A file of `pointrend export --format onnx`, in float32.
        output: The file to write.
        precision: "float16" or "int8".
        batches: With int8, the inputs of the graph for each of some typical images: images
            (B, C, H, W), float32, and sizes (B, 2), int64. Each is used once.

    Raises:
        ValueError: If the file has no such part, is quantized already, or there is no batch.
        NotSavedError: If the output cannot be written.
    """
    import onnx

    model = onnx.load(path)
    text = {prop.key: prop.value for prop in model.metadata_props}.get(KEY)
    description = Description.from_json(text, str(path))
    nodes = _nodes_of_parts(model)
    if description.precision != "float32" or not nodes:
        raise ValueError(
            f"{path} cannot be converted to {precision}: expected a whole model in float32, got "
            f"{description.task} in {description.precision}"
        )
    if precision == FLOAT16:
        _halve(model, nodes)
    else:
        model = _quantized(model, nodes, _find_ranges(model, nodes, batches))
    described = dataclasses.replace(description, precision=precision)
    onnx.helper.set_model_props(model, {KEY: described.to_json()})
    with atomic_path(output) as temporary:
        onnx.save(model, temporary)


def _nodes_of_parts(model: Any) -> list[Any]:
    """Return the nodes with weights of the backbone and of the box head."""
    weights = {value.name for value in model.graph.initializer if value.name.startswith(PARTS)}
    return [
        node
        for node in model.graph.node
        if node.op_type in WITH_WEIGHTS and weights.intersection(node.input)
    ]


def _floats(model: Any) -> set[str]:
    """Return the names of all values of type float32 that are computed."""
    import onnx

    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    weights = {value.name for value in model.graph.initializer}
    return {
        value.name
        for value in values
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name not in weights
    }


def _find_ranges(
    model: Any, nodes: Sequence[Any], batches: Iterable[Batch]
) -> dict[str, tuple[np.float32, np.float32]]:
    """Find the least and the greatest value of each input and output of the nodes.

    Raises:
        ValueError: If there is no batch.
    """
    import onnx
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    floats = _floats(model)
    names = sorted({x for node in nodes for x in (*node.input, *node.output)} & floats)
    del probe.graph.output[:]
    for name in names:
        for operator in ("ReduceMin", "ReduceMax"):
            result = f"{name}/{operator}"
            probe.graph.node.append(onnx.helper.make_node(operator, [name], [result], keepdims=0))
            probe.graph.output.append(
                onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, [])
            )
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    inputs = [value.name for value in session.get_inputs()]
    found = [session.run(None, dict(zip(inputs, batch, strict=True))) for batch in batches]
    if not found:
        raise ValueError("int8 needs at least one image to find the ranges of the values")
    table = np.array(found, dtype=np.float32).reshape(len(found), -1, 2)
    ranges = zip(table[..., 0].min(axis=0), table[..., 1].max(axis=0), strict=True)
    return dict(zip(names, ranges, strict=True))


def _quantized(
    model: Any, nodes: Sequence[Any], ranges: dict[str, tuple[np.float32, np.float32]]
) -> Any:
    """Return a copy of the model whose nodes the quantizer of onnxruntime has quantized."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted(WITH_WEIGHTS),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _halve(model: Any, nodes: Sequence[Any]) -> None:
    """Let the nodes, and those without weights between them, compute in float16, in place."""
    import onnx
    from onnx import numpy_helper

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    floats = _floats(model)
    weights = {x.name: x for x in model.graph.initializer if x.data_type == single}
    with_weights = {node.name for node in nodes}
    halves: dict[str, str] = {}  # names of values in float32, and in float16
    ordered = []

    def in_half(name: str) -> str:
        """Return the name of a value in float16, which is converted at its first use."""
        if name not in halves and name in weights:
            values = numpy_helper.to_array(weights[name]).astype(np.float16)
            halves[name] = f"{name}/float16"
            model.graph.initializer.append(numpy_helper.from_array(values, halves[name]))
        elif name not in halves and name in floats:
            halves[name] = f"{name}/float16"
            ordered.append(onnx.helper.make_node("Cast", [name], [halves[name]], to=half))
        return halves.get(name, name)

    for node in model.graph.node:
        values = node.input[: WITHOUT_WEIGHTS.get(node.op_type, 0)]
        ordered.append(node)
        if node.name in with_weights:
            values = node.input
        elif not values or not all(value in halves and value in floats for value in values):
            continue
        ordered.pop()
        node.input[: len(values)] = [in_half(value) for value in values]
        ordered.append(node)
        for number, name in enumerate(node.output):
            halves[name] = node.output[number] = f"{name}/float16"
            # Without a use in float32, this is removed at the end.
            ordered.append(onnx.helper.make_node("Cast", [halves[name]], [name], to=single))
    used = {name for node in ordered for name in node.input}
    used |= {value.name for value in model.graph.output}
    del model.graph.node[:]
    model.graph.node.extend(node for node in ordered if used.intersection(node.output))
    kept = [value for value in model.graph.initializer if value.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
