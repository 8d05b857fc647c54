"""Checkpoints of other models, of other projects, and with values that no training leaves."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.complete_model import CompleteModelCheckpointer
from point_rend.checkpoint.finite import check_finite, check_finite_state
from point_rend.checkpoint.foreign import project_of
from tests.checkpoint.nets import arrays, log_of, net, read, write_pickle, zoo_file


class Blocks(nn.Module):
    """A model with numbered layers, as deep as asked."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.res4 = nn.Sequential(*[nn.Conv2d(2, 2, 1) for _ in range(depth)])
        self.norm = nn.BatchNorm2d(2)


def save(path: Path, state: Mapping[str, Any], **more: Any) -> str:
    torch.save({"model": dict(state), **more}, path)
    return str(path)


# A finished model


def test_weights_of_a_deeper_or_a_shallower_model_are_refused(tmp_path: Path):
    deep = save(tmp_path / "deep.pth", Blocks(4).state_dict())
    message = r"deep\.pth has 4 parameters \(res4\.2\.weight, .*that the model lacks.*RESNETS\.DEP"
    with pytest.raises(ValueError, match=message):
        CompleteModelCheckpointer(Blocks(2)).load(deep)
    shallow = save(tmp_path / "shallow.pth", Blocks(2).state_dict())
    with pytest.raises(ValueError, match=r"shallow\.pth lacks 4 .* of the 13 parameters: .*DEPTH"):
        CompleteModelCheckpointer(Blocks(4)).load(shallow)


def test_further_heads_that_the_model_does_not_have_are_no_fault(tmp_path: Path):
    state = Blocks(2).state_dict() | {"sem_seg_head.predictor.weight": torch.zeros(2)}
    model = Blocks(2)
    CompleteModelCheckpointer(model).load(save(tmp_path / "m.pth", state))
    assert torch.equal(model.state_dict()["res4.0.weight"], state["res4.0.weight"])


def test_resuming_needs_every_parameter(tmp_path: Path):
    SafeDetectionCheckpointer(Blocks(2), str(tmp_path)).save("m")
    checkpointer = SafeDetectionCheckpointer(Blocks(3), str(tmp_path))
    with pytest.raises(ValueError, match=r"lacks 2 \(res4\.2\.weight, res4\.2\.bias\)"):
        checkpointer.resume_or_load("", resume=True)


# The start of a training


def test_a_file_of_which_nothing_fits_is_refused_also_as_a_start(tmp_path: Path):
    path = save(tmp_path / "m.pth", {"a.weight": torch.ones(1), "pixel_mean": torch.ones(3)})
    for checkpointer in (SafeDetectionCheckpointer, CompleteModelCheckpointer):
        message = r"m\.pth has none of the 16 parameters of the model.* 1 others \(a\.weight\)"
        with pytest.raises(ValueError, match=message):
            checkpointer(net()).load(path)


def test_a_prefix_that_hides_the_names_is_named(tmp_path: Path):
    path = save(tmp_path / "m.pth", {f"model.{k}": v for k, v in net().state_dict().items()})
    with pytest.raises(
        ValueError, match=r"without the prefix 'model\.' some of them have the name"
    ):
        SafeDetectionCheckpointer(net()).load(path)


def test_a_file_of_which_little_fits_is_a_warning_with_counts(tmp_path: Path):
    state = {f"head.{k}": torch.ones(1) for k in range(20)} | {"backbone.bias": torch.ones(5)}
    with log_of("point_rend.checkpoint.completeness") as messages:
        SafeDetectionCheckpointer(net()).load(save(tmp_path / "m.pth", state))
    (message,) = messages
    assert "only 1 of its 21 parameters are in the model, which has 16" in message


def test_a_backbone_alone_starts_a_training_without_a_warning(tmp_path: Path):
    own = {k: v for k, v in Blocks(2).state_dict().items() if k.startswith("res4")}
    with log_of("point_rend.checkpoint.completeness") as messages:
        SafeDetectionCheckpointer(Blocks(2)).load(save(tmp_path / "m.pth", own))
    assert messages == []


# Values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_first_tensor_that_is_not_finite_is_named_with_the_counts(
    tmp_path: Path, value: float, dtype: torch.dtype
):
    state = Blocks(2).state_dict()
    for key in ("res4.1.weight", "norm.running_mean"):
        state[key] = torch.full_like(state[key], value, dtype=dtype)
    state["res4.1.weight"][0] = 1
    path = save(tmp_path / "m.pth", state)
    message = r"m\.pth: 2 of the 9 tensors .* res4\.1\.weight with 2 of 4 values NaN or infinite"
    for checkpointer in (SafeDetectionCheckpointer, CompleteModelCheckpointer):
        with pytest.raises(ValueError, match=message):
            checkpointer(Blocks(2)).load(path)


def test_weights_of_an_integer_type_are_named_which_would_be_taken_for_numbers(tmp_path: Path):
    state = {k: v.to(torch.int8) for k, v in Blocks(2).state_dict().items()}
    message = r"6 of the 9 tensors .* first is res4\.0\.weight with values of type int8"
    with pytest.raises(ValueError, match=message):
        SafeDetectionCheckpointer(Blocks(2)).load(save(tmp_path / "m.pth", state))


def test_a_variance_below_zero_is_named(tmp_path: Path):
    state = Blocks(2).state_dict() | {"norm.running_var": torch.tensor([1.0, -1e-3])}
    message = r"norm\.running_var with 1 of 2 variances below 0"
    with pytest.raises(ValueError, match=message):
        SafeDetectionCheckpointer(Blocks(2)).load(save(tmp_path / "m.pth", state))


def test_values_of_parameters_that_the_model_does_not_have_are_not_examined(tmp_path: Path):
    state = Blocks(2).state_dict() | {"text.mask": torch.full((2,), -float("inf"))}
    SafeDetectionCheckpointer(Blocks(2)).load(save(tmp_path / "m.pth", state))


def test_types_without_a_test_of_finiteness_are_examined_too():
    check_finite({"a": torch.ones(2).to(torch.float8_e5m2), "b": torch.ones(2).int()})
    with pytest.raises(ValueError, match="a with 1 of 1 values"):
        check_finite({"a": torch.tensor([float("inf")]).to(torch.float8_e5m2)})


def test_the_state_of_an_optimizer_must_be_finite():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(2)
    optimizer.step()
    state = optimizer.state_dict()
    check_finite_state(state)
    state["state"][0]["momentum_buffer"][1] = float("nan")
    with pytest.raises(ValueError, match=r"1 of the 1 tensors of the optimizer .*momentum_buffer"):
        check_finite_state(state)
    state["state"][0]["momentum_buffer"][1] = 0
    state["param_groups"][0]["lr"] = float("inf")
    with pytest.raises(ValueError, match=r"param_groups\.0\.lr with 1 of 1 values"):
        check_finite_state(state)


# Other projects

PROJECTS = {
    "Ultralytics YOLO": ["model.0.conv.weight", "model.22.cv2.0.0.conv.weight"],
    "Segment Anything (SAM)": ["image_encoder.pos_embed", "mask_decoder.iou_token.weight"],
    "Segment Anything 2 (SAM 2)": ["image_encoder.trunk.pos_embed", "sam_mask_decoder.x.weight"],
    "Mask2Former": ["sem_seg_head.predictor.query_feat.weight", "backbone.res2.0.conv1.weight"],
    "MaskFormer": ["sem_seg_head.predictor.query_embed.weight"],
    "mmdetection": ["backbone.layer1.0.conv1.weight", "roi_head.bbox_head.fc_cls.weight"],
    "mmsegmentation": ["backbone.layer1.0.conv1.weight", "decode_head.conv_seg.weight"],
    "torchvision's Mask R-CNN": ["backbone.body.conv1.weight", "roi_heads.box_head.fc6.weight"],
    "torchvision's ResNet": ["conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"],
    "Hugging Face Transformers": ["vit.encoder.layer.0.attention.attention.query.weight"],
    "DETR or a relative of it": ["transformer.encoder.layers.0.norm1.weight", "class_embed.bias"],
    "a vision transformer (DINO, timm)": ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"],
    "a semantic model of PointRend": ["sem_seg_head.coarse_sem_seg_head.predictor.weight"],
}


@pytest.mark.parametrize("project", PROJECTS)
def test_another_projects_weights_are_named_by_their_keys(project: str, tmp_path: Path):
    keys = PROJECTS[project]
    assert project_of(keys) == project
    path = save(tmp_path / "m.pth", {key: torch.ones(1) for key in keys})
    message = re.escape(f"; these look like the weights of {project}")
    with pytest.raises(ValueError, match=message):
        SafeDetectionCheckpointer(Blocks(1)).load(path)


def test_parameters_under_another_name_are_found(tmp_path: Path):
    keys = PROJECTS["mmdetection"]
    path = tmp_path / "m.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": {k: torch.ones(1) for k in keys}}, path)
    with pytest.raises(ValueError, match=r"under 'state_dict': expected .* weights of mmdetection"):
        SafeDetectionCheckpointer(net()).load(str(path))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"a": {"dtype": "F32"}}', "Hugging Face's safetensors"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", "ONNX"),
        (b"", "an empty file"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_files_of_other_kinds_are_named(content: bytes, kind: str, suffix: str, tmp_path: Path):
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} cannot be read, .*; it looks like .*{kind}"):
        read(str(path))


def test_an_object_of_another_project_in_a_file_names_the_project(tmp_path: Path):
    path = tmp_path / "best.pkl"
    path.write_bytes(b"cultralytics.nn.tasks\nSegmentationModel\n.")
    with pytest.raises(ValueError, match=r"asks for ultralytics\.nn\.tasks\.\w+, .*Ultralytics YO"):
        read(str(path))


def test_arrays_are_examined_as_tensors_are(tmp_path: Path):
    state = arrays(Blocks(1))
    state["res4.0.weight"] = np.full_like(state["res4.0.weight"], np.nan)
    path = write_pickle(tmp_path / "m.pkl", zoo_file(state))
    with pytest.raises(ValueError, match=r"res4\.0\.weight with 4 of 4 values NaN"):
        SafeDetectionCheckpointer(Blocks(1)).load(path)
