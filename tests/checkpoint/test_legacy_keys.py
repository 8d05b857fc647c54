"""Parameter names of older versions, alone and in whole models."""

from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from point_rend import get_config_file, load_config
from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.legacy_keys import upgrade_state_dict
from tests.checkpoint.nets import (
    assert_same_state,
    load_with_report,
    log_of,
    write_pickle,
    zoo_file,
)

LEGACY = {
    "roi_heads.mask_point_head.fc1.weight": "roi_heads.mask_head.point_head.fc1.weight",
    "mask_point_head.predictor.bias": "mask_head.point_head.predictor.bias",
    "roi_heads.mask_coarse_head.prediction.bias": "roi_heads.mask_head.coarse_head.prediction.bias",
    "roi_heads.mask_coarse_head.coarse_mask_fc2.weight": (
        "roi_heads.mask_head.coarse_head.fc2.weight"
    ),
    "roi_heads.mask_head.coarse_head.coarse_mask_fc1.bias": (
        "roi_heads.mask_head.coarse_head.fc1.bias"
    ),
    "coarse_mask_fc12.weight": "fc12.weight",
    "module.roi_heads.mask_point_head.fc1.weight": (
        "module.roi_heads.mask_head.point_head.fc1.weight"
    ),
}


@pytest.mark.parametrize(("old", "new"), LEGACY.items())
def test_each_historical_key_gets_its_present_name(old: str, new: str):
    state = {old: 1}
    assert upgrade_state_dict(state) == [(old, new)]
    assert state == {new: 1}


@pytest.mark.parametrize("new", [*LEGACY.values(), "xmask_point_head.w", "mask_point_header.w"])
def test_other_keys_stay_silently(new: str):
    state = {new: 1}
    with log_of("point_rend.checkpoint") as messages:
        assert upgrade_state_dict(state) == []
    assert state == {new: 1}
    assert messages == []


def test_renaming_keeps_order_and_metadata_and_warns_once():
    state = OrderedDict([("a", 1), *((old, i) for i, old in enumerate(LEGACY)), ("z", 2)])
    state._metadata = {"": {"version": 1}}
    with log_of("point_rend.checkpoint") as messages:
        renames = upgrade_state_dict(state)
    assert renames == list(LEGACY.items())
    assert list(state) == ["a", *LEGACY.values(), "z"]
    assert list(state.values()) == [1, *range(len(LEGACY)), 2]
    assert state._metadata == {"": {"version": 1}}
    (message,) = messages
    assert message.startswith(
        f"WARNING The checkpoint is of an older PointRend: {len(LEGACY)} keys"
    )


def test_only_keys_behind_the_prefix_are_renamed():
    state = {"a.mask_point_head.w": 1, "b.mask_point_head.w": 2}
    assert upgrade_state_dict(state, "a.") == [("a.mask_point_head.w", "a.mask_head.point_head.w")]
    assert state == {"a.mask_head.point_head.w": 1, "b.mask_point_head.w": 2}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("mask_point_head.w", "mask_head.point_head.w"),
        ("mask_head.point_head.w", "mask_point_head.w"),
        ("mask_coarse_head.fc1.w", "mask_coarse_head.coarse_mask_fc1.w"),
    ],
)
def test_a_key_in_old_and_new_style_is_an_error_that_names_both(first: str, second: str):
    state = {"mask_point_head.other": 0, first: 1, second: 2}
    before = dict(state)
    with pytest.raises(ValueError, match="twice") as error:
        upgrade_state_dict(state)
    assert repr(first) in str(error.value)
    assert repr(second) in str(error.value)
    assert state == before


SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *(
        "MODEL.RESNETS.OUT_FEATURES",
        "['res2', 'res3']",
        "MODEL.FPN.IN_FEATURES",
        "['res2', 'res3']",
    ),
    *("MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4']", "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32]]", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3"),
    *("MODEL.POINT_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.FC_DIM", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
)


@cache
def small_model(
    roi_heads: str = "PointRendROIHeads", name: str = "pointrend_rcnn_R_50_FPN_1x_coco"
):
    cfg = load_config(
        get_config_file(f"InstanceSegmentation/{name}.yaml"),
        [*SMALL, "MODEL.ROI_HEADS.NAME", roi_heads],
    )
    return build_model(cfg)


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.empty_like(value).uniform_(generator=generator)
        for key, value in model.state_dict().items()
    }


def emptied(model: nn.Module) -> nn.Module:
    for value in model.state_dict().values():
        value.zero_()
    return model


def present(key: str) -> str:
    return key


def coarse_mask_fc(key: str) -> str:
    return key.replace("coarse_head.fc", "coarse_head.coarse_mask_fc")


def sibling_heads(key: str) -> str:
    key = key.replace("mask_head.point_head", "mask_point_head")
    return key.replace("mask_head.coarse_head", "mask_coarse_head")


def sibling_heads_with_coarse_mask_fc(key: str) -> str:
    return sibling_heads(coarse_mask_fc(key))


FORMATS = [present, coarse_mask_fc, sibling_heads, sibling_heads_with_coarse_mask_fc]


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    return random_state(small_model())


def write_model(path: Path, state: dict[str, torch.Tensor]) -> str:
    if path.suffix == ".pkl":
        return write_pickle(path, zoo_file({key: value.numpy() for key, value in state.items()}))
    torch.save({"model": state, "iteration": 7}, path)
    return str(path)


# Plain StandardROIHeads never sees keys outside its mask head: only our loader renames them.
CASES = [
    (checkpointer, roi_heads, names)
    for checkpointer in (DetectionCheckpointer, SafeDetectionCheckpointer)
    for roi_heads in ("PointRendROIHeads", "StandardROIHeads")
    for names in FORMATS
    if not (
        checkpointer is DetectionCheckpointer
        and roi_heads == "StandardROIHeads"
        and names in (sibling_heads, sibling_heads_with_coarse_mask_fc)
    )
]


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize(("checkpointer", "roi_heads", "names"), CASES)
def test_each_historical_format_loads_without_missing_or_unexpected_key(
    tmp_path: Path,
    trained: dict[str, torch.Tensor],
    checkpointer: type[DetectionCheckpointer],
    roi_heads: str,
    names: Callable[[str], str],
    suffix: str,
):
    old = {names(key): value for key, value in trained.items()}
    assert (set(old) == set(trained)) == (names is present)
    path = write_model(tmp_path / f"model{suffix}", old)
    model = emptied(small_model(roi_heads))
    report = load_with_report(checkpointer(model), path)
    assert (report.missing_keys, report.unexpected_keys, report.incorrect_shapes) == ([], [], [])
    assert_same_state(model.state_dict(), trained)


def test_an_implicit_model_loads_without_missing_or_unexpected_key(tmp_path: Path):
    model = small_model(name="implicit_pointrend_R_50_FPN_1x_coco")
    trained = random_state(model)
    path = write_model(tmp_path / "model.pkl", trained)
    report = load_with_report(SafeDetectionCheckpointer(emptied(model)), path)
    assert (report.missing_keys, report.unexpected_keys, report.incorrect_shapes) == ([], [], [])
    assert_same_state(model.state_dict(), trained)
