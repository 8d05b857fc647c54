"""Files in place of models; what they compute is known, see tests.runtime.planted."""

import dataclasses
import sys
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from point_rend.inference.settings import load_exported_settings
from point_rend.runtime.exported_model import ExportedModel, build_exported_model
from point_rend.runtime.files import read_description
from point_rend.runtime.run_config import build_run_config
from point_rend.runtime.sessions import open_session
from tests.checkpoint.nets import log_of
from tests.runtime.planted import SIDE, description, planted, redescribed

RUNTIMES = [
    ("planted.onnx", "onnxruntime"),
    ("planted.onnx", "openvino"),
    ("planted.pt2", None),
    ("planted.ts", None),
]
WHITE, GRAY = 255, 204  # upper boxes of score 0.5 and 0.4


def gray_image(height: int, width: int, value: int) -> Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


@pytest.mark.parametrize(("name", "backend"), RUNTIMES)
def test_every_runtime_returns_the_instances_of_each_image(name: str, backend: str | None):
    session = open_session(planted(name), backend=backend, allow_unsafe=True)
    values = [WHITE, 0, GRAY]  # more images than the graph takes at a time
    sizes = [(50, 70), (90, 33), (64, 64)]
    images = [gray_image(*size, value) for size, value in zip(sizes, values, strict=True)]
    outputs = ExportedModel(session)([{"image": x, "height": 100, "width": 140} for x in images])
    scores = [output["instances"].scores for output in outputs]
    for found, expected in zip(scores, [[0.75, 0.5], [0.75], [0.75, 0.4]], strict=True):
        torch.testing.assert_close(found, torch.tensor(expected))
    instances = outputs[2]["instances"]
    assert instances.image_size == (100, 140)
    assert instances.pred_classes.tolist() == [2, 0]
    expected = torch.tensor([[0.0, 0, 70, 100], [0, 0, 140, 25]])
    torch.testing.assert_close(instances.pred_boxes.tensor, expected)
    left, upper = instances.pred_masks
    assert left[10:90, 5:34].all()
    assert not left[:, 36:].any()
    assert upper[2:23, 10:69].all()
    assert not upper[26:].any()


def test_the_frame_of_the_resized_image_is_that_of_the_graph():
    model = ExportedModel(open_session(planted()))
    (found,) = model.inference([{"image": gray_image(50, 70, WHITE), "height": 100, "width": 140}])
    assert found.image_size == (50, 70)
    assert found.pred_masks.shape == (2, 1, SIDE, SIDE)
    assert found.pred_boxes.tensor[0].tolist() == [0, 0, 35, 50]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_logits_lose_their_padding_and_get_the_size_of_the_image(backend: str):
    model = ExportedModel(open_session(planted("labels.onnx"), backend=backend))
    image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    plain, larger = model([{"image": image}, {"image": image, "height": 100, "width": 140}])
    assert torch.equal(plain["sem_seg"][:3], image.float())
    assert torch.equal(plain["sem_seg"][3], torch.full((50, 70), 128.0))
    assert larger["sem_seg"].shape == (4, 100, 140)
    means = larger["sem_seg"].mean((1, 2)), plain["sem_seg"].mean((1, 2))
    torch.testing.assert_close(*means, atol=1, rtol=0)


def test_a_stricter_threshold_and_fewer_detections_choose_among_the_instances():
    path = planted()

    def scores(*opts: str) -> list[float]:
        cfg = build_run_config(read_description(path), path, opts)
        (output,) = build_exported_model(cfg, path)([{"image": gray_image(64, 64, GRAY)}])
        return output["instances"].scores.tolist()

    assert scores() == pytest.approx([0.75, 0.4])
    assert scores("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5") == [0.75]
    assert scores("TEST.DETECTIONS_PER_IMAGE", "1") == [0.75]
    assert scores("TEST.DETECTIONS_PER_IMAGE", "0") == []


def test_the_config_in_a_file_is_that_of_its_training(tmp_path: Path):
    residual = description("instances", "MODEL.POINT_HEAD.NAME", "ResidualPointHead")
    path = redescribed(tmp_path / "residual.onnx", planted(), residual)
    with log_of("point_rend.config.agreement") as messages:
        load_exported_settings(path)
    assert messages == []


def test_an_image_beyond_the_limits_of_the_graph_is_refused():
    model = ExportedModel(open_session(planted()))
    with pytest.raises(ValueError, match="up to 1344 pixels a side, got 32 x 1345 after resizing"):
        model([{"image": gray_image(32, 1345, 0)}])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.WEIGHTS", "a.pth"], "has weights of its own"),
        (["MODEL.DEVICE", "cuda"], "runs on the CPU only"),
        (["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"], "was exported with 0.05"),
        (["TEST.DETECTIONS_PER_IMAGE", "200"], "was exported with 100"),
        (["TEST.DETECTIONS_PER_IMAGE", "-1"], "was exported with 100"),
        (["TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED is part of"),
        (["TEST.MIXED_PRECISION", "True"], "TEST.MIXED_PRECISION is part of"),
        (["INPUT.FORMAT", "RGB"], "INPUT.FORMAT is part of"),
        (["MODEL.RPN.NMS_THRESH", "0.5"], "again with MODEL.RPN.NMS_THRESH 0.5"),
        (["MODEL.NONSENSE", "0.5"], "unknown config key MODEL.NONSENSE"),
    ],
)
def test_options_that_the_graph_cannot_follow_are_refused(opts: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        build_run_config(description(), "model.onnx", opts)


def test_options_that_only_concern_the_run_are_taken():
    opts = ["INPUT.MIN_SIZE_TEST", "48", "OUTPUT_DIR", "elsewhere", "MODEL.DEVICE", "cpu"]
    cfg = build_run_config(description(), "model.onnx", opts)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.OUTPUT_DIR) == (48, "elsewhere")
    assert cfg.MODEL.WEIGHTS == "model.onnx"


@pytest.mark.parametrize("suffix", [".pt2", ".ts"])
def test_files_that_pytorch_executes_need_permission(suffix: str):
    path = planted(f"planted{suffix}")
    assert read_description(path) == description()
    with pytest.raises(ValueError, match=r"is refused: PyTorch executes .* ONNX files are safe"):
        open_session(path)
    with pytest.raises(ValueError, match="--backend openvino runs ONNX files"):
        open_session(path, backend="openvino", allow_unsafe=True)


@pytest.mark.parametrize(("package", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_runtime_is_named_with_its_extra(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf'^{package} is not installed; .*: pip install "point_rend\[{extra}\]"$'
    with pytest.raises(ValueError, match=message):
        open_session(planted(), backend=package)


NOT_OURS = "is not a model written by `pointrend export`"


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".ts"])
@pytest.mark.parametrize("content", [b"", b"\0", b"PK\x03\x04", b"text" * 99, b"\xff" * 99])
def test_files_without_a_description_are_no_models_of_ours(
    tmp_path: Path, suffix: str, content: bytes
):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=NOT_OURS):
        read_description(path)


def test_models_of_other_programs_are_no_models_of_ours(tmp_path: Path):
    other = redescribed(tmp_path / "model.onnx", planted(), None)
    with pytest.raises(ValueError, match=NOT_OURS):
        open_session(other)
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr("model/data.pkl", b"")
    with pytest.raises(ValueError, match=NOT_OURS):
        open_session(tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"model\.pth is no exported model: expected .*\.onnx"):
        read_description(tmp_path / "model.pth")


def test_the_description_is_the_metadata_that_onnx_writes():
    metadata = onnx.load(planted()).metadata_props
    assert [x.value for x in metadata if x.key == "point_rend"] == [description().to_json()]
    assert read_description(planted()) == description()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_damaged_graph_is_named(tmp_path: Path, backend: str):
    model = onnx.load(planted())
    model.graph.node[0].op_type = "Poetry"
    onnx.save(model, tmp_path / "model.onnx")
    message = rf"model\.onnx cannot be loaded by {backend}: [^\n]{{1,310}}$"
    with pytest.raises(ValueError, match=message):
        open_session(tmp_path / "model.onnx", backend=backend)


def test_outputs_that_no_graph_of_ours_has_are_refused(tmp_path: Path):
    images = [{"image": gray_image(64, 64, WHITE)}]
    two_classes = dataclasses.replace(description(), classes=("a", "b"))
    source = planted()
    path = redescribed(tmp_path / "model.onnx", source, two_classes)
    with pytest.raises(ValueError, match=r"model\.onnx is damaged: its outputs do not fit"):
        ExportedModel(open_session(path))(images)
    path = redescribed(path, source, description("sem_seg"))
    with pytest.raises(ValueError, match=r"model\.onnx failed in onnxruntime"):
        ExportedModel(open_session(path))(images)


def test_a_mask_head_is_no_whole_model(tmp_path: Path):
    alone = dataclasses.replace(description(), task="mask_head")
    path = redescribed(tmp_path / "head.onnx", planted(), alone)
    with pytest.raises(ValueError, match=r"head\.onnx is a mask head without its model"):
        ExportedModel(open_session(path))
    with pytest.raises(ValueError, match=r"head\.onnx is a mask head without its model"):
        build_run_config(read_description(path), path)
