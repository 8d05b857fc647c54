"""Initial weights: the same seed gives those of the stock project, in the same order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head, build_model, build_sem_seg_head
from torch import nn

from point_rend import get_config_file, load_config, stock_heads
from point_rend.coarse_mask_head import CoarseMaskHead
from point_rend.point_head import POINT_HEAD_REGISTRY
from tests.parity.test_mask_heads import VARIANTS as MASK_HEADS
from tests.parity.test_points import HEADS as POINT_HEADS
from tests.parity.test_semantic_seg import VARIANTS as SEMANTIC_HEADS
from tests.synthetic import SHAPES, small_head_config
from tests.synthetic_semantic import small_semantic_config
from tests.tiny_datasets import TINY_MODEL

stock_point_head = pytest.importorskip("detectron2.projects.point_rend.point_head")
stock_mask_head = pytest.importorskip("detectron2.projects.point_rend.mask_head")

MORE_MASK_HEADS = {
    "coarse-only": (False, ("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False)),
    "one-layer": (False, ("MODEL.POINT_HEAD.NUM_FC", 1, "MODEL.ROI_MASK_HEAD.NUM_FC", 3)),
    "no-hidden-layer": (False, ("MODEL.POINT_HEAD.NUM_FC", 0)),
    "one-class": (False, ("MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.POINT_HEAD.NUM_CLASSES", 1)),
    "as-many-channels": (False, ("MODEL.ROI_MASK_HEAD.CONV_DIM", 16)),
    "implicit-features-only": (True, ("MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED", False)),
    "implicit-two-layers": (True, ("MODEL.POINT_HEAD.NUM_FC", 2)),
}


def assert_same_start(build: Callable[[], nn.Module], build_stock: Callable[[], nn.Module]) -> None:
    """Compare key order, weights, parameter order, and the random state after construction."""
    modules, states = [], []
    for build_one in (build, build_stock):
        torch.manual_seed(0)
        modules.append(build_one())
        states.append(torch.get_rng_state())
    ours, stock = modules
    assert list(ours.state_dict()) == list(stock.state_dict())
    for name, expected in stock.state_dict().items():
        assert torch.equal(ours.state_dict()[name], expected), name
    names = [[name for name, _ in module.named_parameters()] for module in modules]
    assert names[0] == names[1]
    assert torch.equal(*states)


def with_stock_heads(build: Callable[..., nn.Module], *args: Any) -> nn.Module:
    with stock_heads():
        module = build(*args)
    assert any(
        type(part).__module__.startswith("detectron2.projects.point_rend")
        for part in module.modules()
    )
    return module


@pytest.mark.parametrize("variant", MASK_HEADS | MORE_MASK_HEADS)
def test_a_mask_head_starts_as_the_stock_one(variant):
    implicit, opts = (MASK_HEADS | MORE_MASK_HEADS)[variant]
    cfg = small_head_config("MODEL.POINT_HEAD.NUM_CLASSES", 5, *opts, implicit=implicit)
    assert_same_start(
        lambda: build_mask_head(cfg, SHAPES),
        lambda: with_stock_heads(build_mask_head, cfg, SHAPES),
    )


@pytest.mark.parametrize("variant", SEMANTIC_HEADS)
def test_a_semantic_head_starts_as_the_stock_one(variant):
    cfg = small_semantic_config(*SEMANTIC_HEADS[variant])
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert_same_start(
        lambda: build_sem_seg_head(cfg, SHAPES),
        lambda: with_stock_heads(build_sem_seg_head, cfg, SHAPES),
    )


@pytest.mark.parametrize("variant", POINT_HEADS)
def test_a_point_head_starts_as_the_stock_one(variant):
    name, opts = POINT_HEADS[variant]
    keys = ("MODEL.POINT_HEAD.NAME", name, "MODEL.POINT_HEAD.NUM_CLASSES", 5)
    cfg = small_head_config(*keys, *opts)
    shape = ShapeSpec(channels=17, width=1, height=1)
    registries = (POINT_HEAD_REGISTRY, stock_point_head.POINT_HEAD_REGISTRY)
    assert_same_start(*(lambda r=r: r.get(name)(cfg, shape) for r in registries))


@pytest.mark.parametrize("channels", [16, 8])
@pytest.mark.parametrize("output_shape", [(5, 7, 7), (1234,)])
def test_a_coarse_head_starts_as_the_stock_one(channels, output_shape):
    arguments = {
        "input_shape": ShapeSpec(channels=channels, height=14, width=14),
        "conv_dim": 8,
        "fc_dims": [32, 16],
        "output_shape": output_shape,
    }
    assert_same_start(
        lambda: CoarseMaskHead(**arguments), lambda: stock_mask_head.ConvFCHead(**arguments)
    )


@pytest.mark.parametrize(
    "config",
    [
        "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml",
        "InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml",
    ],
)
def test_a_whole_model_starts_as_the_stock_one(config):
    cfg = load_config(get_config_file(config), [*TINY_MODEL, "MODEL.POINT_HEAD.NUM_CLASSES", "80"])
    assert_same_start(lambda: build_model(cfg), lambda: with_stock_heads(build_model, cfg))


def test_a_whole_semantic_model_starts_as_the_stock_one():
    cfg = load_config(get_config_file("Demo/pointrend_semantic_streets.yaml"), [])
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    cfg.MODEL.DEVICE = "cpu"
    stock_cfg = cfg.clone()
    stock_cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    assert_same_start(lambda: build_model(cfg), lambda: with_stock_heads(build_model, stock_cfg))
