"""Shapes that do not fit, and class counts that may differ."""

from pathlib import Path

import pytest
import torch

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from tests.checkpoint.nets import (
    assert_same_state,
    detectron_blobs,
    detectron_net,
    log_of,
    net,
    save_net,
    write_pickle,
)
from tests.checkpoint.test_legacy_keys import sibling_heads

CLASS_KEYS = [
    "box_predictor.cls_score.weight",
    "box_predictor.cls_score.bias",
    "box_predictor.bbox_pred.weight",
    "box_predictor.bbox_pred.bias",
    "mask_head.predictor.weight",
    "mask_head.predictor.bias",
    "mask_head.coarse_head.prediction.weight",
    "mask_head.coarse_head.prediction.bias",
    "mask_head.parameter_head.prediction.weight",
    "mask_head.parameter_head.prediction.bias",
    "mask_head.point_head.fc1.weight",
    "mask_head.point_head.predictor.weight",
    "mask_head.point_head.predictor.bias",
]


@pytest.mark.parametrize("strict", [True, False])
def test_every_shape_that_does_not_fit_is_listed_in_one_error(tmp_path: Path, strict: bool):
    path = save_net(tmp_path / "model.pth", width=6)
    with pytest.raises(ValueError, match="these shapes do not fit") as error:
        SafeDetectionCheckpointer(net(), strict_shapes=strict).load(path)
    message = str(error.value)
    assert path in message
    assert "backbone.weight: (6, 4) in the file, (5, 4) in the model" in message
    expected = net(width=6).state_dict()
    actual = net().state_dict()
    misfits = {key for key in expected if expected[key].shape != actual[key].shape}
    if not strict:  # the inputs of this layer are the width and the classes
        misfits.remove("mask_head.point_head.predictor.weight")
    assert {line.split(":")[0].strip() for line in message.splitlines()[1:]} == misfits


def test_other_class_counts_are_an_error_by_default(tmp_path: Path):
    path = save_net(tmp_path / "model.pth", classes=7)
    with pytest.raises(ValueError, match="these shapes do not fit") as error:
        SafeDetectionCheckpointer(net()).load(path)
    keys = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert keys == CLASS_KEYS


def test_layers_of_another_class_count_keep_their_values_with_one_warning_where_allowed(
    tmp_path: Path,
):
    path = save_net(tmp_path / "model.pth", classes=7)
    source, before, model = net(classes=7, seed=9), net(), net()
    checkpointer = SafeDetectionCheckpointer(model, strict_shapes=False)
    with log_of("fvcore.common.checkpoint") as messages:
        checkpointer.load(path)
    warnings = [message for message in messages if message.startswith("WARNING")]
    (warning,) = warnings
    assert [line.split(":")[0].strip() for line in warning.splitlines()[1:]] == CLASS_KEYS
    expected = source.state_dict() | {key: before.state_dict()[key] for key in CLASS_KEYS}
    assert_same_state(model.state_dict(), expected)


@pytest.mark.parametrize("key", CLASS_KEYS)
def test_only_the_dimension_of_the_classes_may_differ(tmp_path: Path, key: str):
    state = net().state_dict()
    state[key] = torch.zeros(*state[key].shape, 2)
    path = str(tmp_path / "model.pth")
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        SafeDetectionCheckpointer(net(), strict_shapes=False).load(path)


def test_shapes_are_checked_under_the_present_names(tmp_path: Path):
    state = {sibling_heads(key): value for key, value in net(classes=7).state_dict().items()}
    path = str(tmp_path / "model.pth")
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=r"mask_head\.point_head\.fc1\.weight: \(5, 12, 1\)"):
        SafeDetectionCheckpointer(net()).load(path)


def test_a_shape_that_does_not_fit_is_an_error_for_matched_names_too(tmp_path: Path):
    path = write_pickle(tmp_path / "model.pkl", detectron_blobs())
    with pytest.raises(ValueError, match="these shapes do not fit") as error:
        SafeDetectionCheckpointer(detectron_net(width=6), strict_shapes=False).load(path)
    message = str(error.value)
    assert "roi_heads.box_head.fc1.weight: (5, 4) in the file, (6, 4) in the model" in message
    assert "roi_heads.box_predictor.cls_score.weight: (4, 5) in the file, (4, 6)" in message
