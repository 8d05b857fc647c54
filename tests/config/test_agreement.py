"""A config that differs from that of the training in keys that no shape shows."""

import pytest

from point_rend import get_config_file, load_config
from point_rend.config.agreement import (
    COMMON_KEYS,
    INSTANCE_KEYS,
    SEMANTIC_KEYS,
    warn_if_trained_otherwise,
)
from point_rend.config.defaults import value_of
from point_rend.config.dumping import dump_config
from tests.checkpoint.nets import log_of

INSTANCE = get_config_file("InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml")
SEMANTIC = get_config_file("SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml")


def warnings(config: str, trained: list[str], now: list[str]) -> list[str]:
    stored = dump_config(load_config(config, trained))
    with log_of("point_rend.config.agreement") as messages:
        warn_if_trained_otherwise(load_config(config, now), stored, "m.pth")
    return messages


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "RGB"),
        ("MODEL.PIXEL_STD", "[57.375, 57.12, 58.395]"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", "False"),
        ("MODEL.POINT_HEAD.NAME", "ResidualPointHead"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [256]]"),
    ],
)
def test_a_difference_that_no_shape_shows_is_a_warning_with_both_values(key: str, value: str):
    (message,) = warnings(INSTANCE, [key, value], [])
    default = value_of(load_config(INSTANCE), key)
    assert message.startswith("WARNING m.pth was trained with another config")
    assert f"{key} {value} (now {default})" in message.replace("'", "")


def test_settings_of_the_run_and_of_other_models_are_no_difference():
    run = [
        "MODEL.DEVICE",
        "cpu",
        "SOLVER.BASE_LR",
        "3.0",
        "MODEL.POINT_HEAD.SUBDIVISION_STEPS",
        "4",
    ]
    run += ["INPUT.MIN_SIZE_TEST", "600", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.9"]
    assert warnings(INSTANCE, [], run) == []
    assert warnings(SEMANTIC, [], ["MODEL.RPN.BBOX_REG_WEIGHTS", "(2.0, 2.0, 2.0, 2.0)"]) == []


def test_a_checkpoint_without_a_config_or_with_that_of_another_program_is_none_either():
    cfg = load_config(INSTANCE)
    with log_of("point_rend.config.agreement") as messages:
        warn_if_trained_otherwise(cfg, None, "m.pth")
        warn_if_trained_otherwise(cfg, "epochs: 12", "m.pth")
        residual = load_config(INSTANCE, ["MODEL.POINT_HEAD.NAME", "ResidualPointHead"])
        warn_if_trained_otherwise(residual, None, "R-50.pkl", has_point_head=False)
        warn_if_trained_otherwise(residual, None, "")
    assert messages == []


@pytest.mark.parametrize("key", [*COMMON_KEYS, *INSTANCE_KEYS, *SEMANTIC_KEYS])
def test_every_compared_key_exists(key: str):
    value_of(load_config(INSTANCE), key)


@pytest.mark.parametrize("section", ["MODEL.POINT_HEAD", "MODEL.SEM_SEG_HEAD.POINT_HEAD"])
def test_a_residual_head_with_weights_of_an_unknown_head_is_a_warning(section: str):
    cfg = load_config(INSTANCE, [f"{section}.NAME", "ResidualPointHead"])
    with log_of("point_rend.config.agreement") as messages:
        warn_if_trained_otherwise(cfg, None, "m.pkl")
    (message,) = messages
    assert message.startswith("WARNING m.pkl has no config of its training: ")
