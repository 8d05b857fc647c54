"""The feature pyramid and the proposals: the values of Detectron2's, with fewer steps."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_proposal_generator
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.structures import ImageList
from torch import nn

from point_rend.acceleration.prepare import prepare_for_inference
from point_rend.acceleration.proposals import FastRPN
from point_rend.acceleration.pyramid import FastFPN, add_doubled


def small_pyramid(**options: object) -> FPN:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.DEPTH = 4, 50
    torch.manual_seed(0)
    names = ["res3", "res4", "res5"]
    return FPN(build_backbone(cfg), names, 8, **options).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "GN", "fuse_type": "avg"},
        {"norm": "FrozenBN", "top_block": LastLevelMaxPool()},
        {"top_block": LastLevelP6P7(128, 8)},
        {"top_block": LastLevelP6P7(8, 8, in_feature="p5")},
    ],
)
def test_levels_are_those_of_detectron2(options):
    if options.get("norm") == "GN":
        options = options | {"norm": lambda channels: nn.GroupNorm(4, channels)}
    backbone = small_pyramid(**options)
    x = torch.randn(2, 3, 96, 64) / 10
    with torch.no_grad():
        expected = backbone(x)
        assert type(prepare_for_inference(backbone)) is FastFPN
        found = backbone(x)
    assert list(found) == list(expected)
    for name, level in expected.items():
        assert found[name].shape == level.shape
        scale = level.abs().amax().item()
        torch.testing.assert_close(found[name], level, rtol=0, atol=1e-5 * scale)


def test_each_position_is_added_to_the_four_it_covers():
    for order in (torch.contiguous_format, torch.channels_last):
        level = torch.randn(2, 3, 6, 8).contiguous(memory_format=order)
        coarser = torch.randn(2, 3, 3, 4).contiguous(memory_format=order)
        expected = level + coarser.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        add_doubled(level, coarser)
        assert torch.equal(level, expected)


@pytest.mark.parametrize(("before", "after"), [(5, 4), (50, 20), (800, 10**6)])
def test_proposals_are_those_of_detectron2(before: int, after: int):
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32]]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = before, after
    shapes = {f"p{n}": ShapeSpec(channels=8, stride=2**n) for n in (2, 3, 4)}
    torch.manual_seed(0)
    rpn = build_proposal_generator(cfg, shapes).eval()
    with torch.no_grad():
        rpn.rpn_head.conv.bias.fill_(0.3)  # no two anchors have the same score
        rpn.rpn_head.objectness_logits.weight.mul_(100)
        rpn.rpn_head.anchor_deltas.weight.mul_(30)
    sizes = [(64, 96), (50, 40), (64, 30)]
    images = ImageList(torch.zeros(3, 3, 64, 96), sizes)
    features = {
        name: torch.randn(3, 8, 64 // shape.stride, 96 // shape.stride)
        for name, shape in shapes.items()
    }
    with torch.no_grad():
        logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
        anchors = rpn.anchor_generator([features[name] for name in rpn.in_features])
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas]
        logits[0][0, 0] = float("nan")
        expected = rpn.predict_proposals(anchors, logits, deltas, sizes)
        assert type(prepare_for_inference(rpn)) is FastRPN
        found = rpn.predict_proposals(anchors, logits, deltas, sizes)
        whole, _ = rpn(images, features)
    for ours, theirs, size in zip(found, expected, sizes, strict=True):
        assert ours.image_size == theirs.image_size == size
        assert 0 < len(ours) == len(theirs) <= after
        # The last bit of an exponential depends on its place in the tensor.
        boxes = ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=1e-6, atol=1e-5)
        assert torch.equal(ours.objectness_logits, theirs.objectness_logits)
    assert [x.image_size for x in whole] == sizes
