"""The code and the layouts on the page about deploying, against files and graphs."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head

from point_rend import get_config_file, load_config
from point_rend.export.mask_graph import MaskHeadGraph
from tests.conftest import REPOSITORY
from tests.runtime.planted import planted

PAGE = (REPOSITORY / "docs" / "DEPLOYING.md").read_text(encoding="utf-8")
TYPES = {"TYPE_FP32": torch.float32, "TYPE_INT64": torch.int64}


def test_the_examples_for_files_are_short_and_linked_on_the_page():
    examples = sorted((REPOSITORY / "examples").glob("*_onnx.py"))
    assert len(examples) == 2
    for example in examples:
        assert len(example.read_text(encoding="utf-8").splitlines()) <= 60
        assert f"](../examples/{example.name})" in PAGE


def test_an_onnx_file_names_no_folder_of_the_machine_that_wrote_it():
    content = planted().read_bytes()
    for folder in (str(REPOSITORY), "site-packages", str(Path.home())):
        assert folder.encode() not in content


def test_openvino_reads_the_onnx_file_as_the_page_shows():
    (code,) = re.findall(r"```python\n(import openvino\n.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 4
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 64, 96)).astype(np.float32)
    values = {"images": images, "sizes": np.array([[60, 96], [64, 90]])}
    session = onnxruntime.InferenceSession(planted(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    expected = session.run(names, values)
    exec(code.replace("model.onnx", str(planted())), values)
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(values[name], value, rtol=0, atol=1e-4)


def test_the_layout_for_triton_names_the_inputs_and_outputs_of_the_mask_head():
    (text,) = re.findall(r'```\n(name: "pointrend_mask_head".*?)```', PAGE, re.DOTALL)
    pattern = r'name: "(\w+)" data_type: (\w+) dims: \[ ([\d, -]+) \]'
    inputs, outputs = (re.findall(pattern, part) for part in text.split("output ["))
    (config,) = re.findall(r"pointrend export --config-file (\S+) \\\n +--part mask-head", PAGE)
    cfg = load_config(get_config_file(config))
    shapes = {
        level: ShapeSpec(channels=cfg.MODEL.FPN.OUT_CHANNELS, stride=stride)
        for level, stride in (("p2", 4), ("p3", 8), ("p4", 16), ("p5", 32))
    }
    head = build_mask_head(cfg, shapes).eval()
    graph = MaskHeadGraph(head, {level: shape.channels for level, shape in shapes.items()})
    arguments = graph.example()
    (dynamic,) = graph.dynamic_shapes()
    assert [name for name, *_ in inputs] == list(graph.input_names)
    for (_, kind, dims), value, free in zip(inputs, arguments, dynamic, strict=True):
        assert value.dtype == TYPES[kind]
        fixed = [-1 if axis in free else side for axis, side in enumerate(value.shape)]
        assert list(map(int, dims.split(", "))) == fixed
    with torch.no_grad():
        masks = graph(*arguments)
    ((name, kind, dims),) = outputs
    assert (name,) == graph.output_names
    assert masks.dtype == TYPES[kind]
    assert list(map(int, dims.split(", "))) == [-1, *masks.shape[1:]]
    assert "max_batch_size: 0\n" in text  # dims have all axes
