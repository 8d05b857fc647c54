"""Whole models prepared for inference: the results of the unprepared model, for any batch."""

import contextlib
import copy
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from point_rend.acceleration.prepare import (
    FASTER,
    prepare_for_inference,
    prepared_for_inference,
)
from tests.config.test_semantic_configs import sample
from tests.test_models_on_a_gpu import KINDS, config_of

CASCADE = (
    *("MODEL.ROI_HEADS.NAME", "PointRendCascadeROIHeads"),
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
)
SIZES = ((64, 128), (96, 64), (70, 80))
WINDOW = (64, 128)  # DeepLab pools over as many pixels as it was trained on


def detector_config() -> CfgNode:
    """Return the config of one of Detectron2's own detectors, without ROI heads."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.FPN.OUT_CHANNELS = 4, 16
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    return cfg


def model_of(kind: str) -> nn.Module:
    """Build a small model with activations of magnitude 1 and predictions that differ."""
    torch.manual_seed(0)
    if kind == "retinanet":
        cfg = detector_config()
    else:
        cfg = config_of("standard" if kind == "cascade" else kind)
        cfg.defrost()
        cfg.MODEL.PIXEL_STD = [60.0, 60.0, 60.0]
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        cfg.merge_from_list(list(CASCADE) if kind == "cascade" else [])
    model = build_model(cfg).eval()
    norms = (FrozenBatchNorm2d, nn.BatchNorm2d)
    hooks = [
        module.register_forward_pre_hook(fit_statistics)
        for module in model.backbone.modules()
        if isinstance(module, norms)
    ]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "objectness_logits" in name or "head.cls_score" in name:
                parameter.mul_(10)
        model.backbone(torch.randn(1, 3, 64, 96))
    for hook in hooks:
        hook.remove()
    return model


def fit_statistics(norm: Any, inputs: tuple[Tensor]) -> None:
    x = inputs[0].transpose(0, 1).flatten(1)
    norm.running_mean.copy_(x.mean(dim=1))
    norm.running_var.copy_(x.var(dim=1) + 0.1)
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_(std=0.2)


def images(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator),
            "height": size[0] + 7,
            "width": size[1],
        }
        for size in sizes
    ]


def predict(model: nn.Module, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with torch.no_grad():
        return model(batch)


def assert_equivalent(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare results: the same boxes, classes, order and decisions, values up to rounding."""
    assert found.keys() == expected.keys()
    if "instances" in expected:
        ours, theirs = found["instances"], expected["instances"]
        assert len(ours) == len(theirs) > 0
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-5)
        boxes = ours.pred_boxes.tensor, theirs.pred_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=0, atol=1e-3)
        if theirs.has("pred_masks"):
            assert (ours.pred_masks != theirs.pred_masks).double().mean() < 1e-4
    if "sem_seg" in expected:
        ours, theirs = found["sem_seg"], expected["sem_seg"]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().amax().item())
        assert (ours.argmax(0) != theirs.argmax(0)).double().mean() < 1e-3
    if "panoptic_seg" in expected:
        assert (found["panoptic_seg"][0] != expected["panoptic_seg"][0]).double().mean() < 1e-3


@pytest.mark.parametrize("kind", [*KINDS, "cascade", "retinanet"])
def test_a_prepared_model_gives_the_results_of_the_model(kind: str):
    model = model_of(kind)
    state = copy.deepcopy(model.state_dict())
    prepared = prepare_for_inference(copy.deepcopy(model))
    assert any(type(module) in FASTER.values() for module in prepared.modules())
    sizes = (WINDOW, WINDOW) if kind == "deeplab" else SIZES
    for batch in (images(sizes[0]), images(*sizes)):
        pairs = zip(predict(prepared, batch), predict(model, batch), strict=True)
        for found, expected in pairs:
            assert_equivalent(found, expected)
    assert prepared.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in prepared.state_dict().items())


def test_after_its_context_a_model_is_the_one_it_was():
    model = model_of("standard")
    classes = [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    expected = predict(model, images(SIZES[0]))[0]
    with contextlib.suppress(KeyError), prepared_for_inference(model):
        assert [type(module) for module in model.modules()] != classes
        assert_equivalent(predict(model, images(SIZES[0]))[0], expected)
        raise KeyError
    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == attributes
    found = predict(model, images(SIZES[0]))[0]["instances"]
    assert torch.equal(found.scores, expected["instances"].scores)
    assert torch.equal(found.pred_boxes.tensor, expected["instances"].pred_boxes.tensor)


@pytest.mark.parametrize("kind", ["standard", "deeplab"])
def test_a_prepared_model_trains_bit_for_bit_as_before(kind: str):
    model = model_of(kind)
    prepared = prepare_for_inference(copy.deepcopy(model))
    predict(prepared, images(SIZES[0]))
    losses = []
    for one in (model, prepared):
        torch.manual_seed(0)
        data = sample(config_of(kind))
        torch.manual_seed(1)
        with EventStorage():
            losses.append(one.train()([data]))
        sum(losses[-1].values()).backward()
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    ours = dict(prepared.named_parameters())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (ours[name].grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, ours[name].grad)
