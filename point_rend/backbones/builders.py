"""Backbones by the names that a config gives in MODEL.BACKBONE.NAME, each with a pyramid p2 to p6.

Their feature maps have the names of a ResNet's, res2 to res5, in MODEL.FPN.IN_FEATURES.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from point_rend.backbones.timm_backbone import TimmBackbone


def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the model of timm that MODEL.TIMM.NAME names, with a feature pyramid."""
    model = cfg.MODEL.TIMM
    bottom_up = TimmBackbone(
        model.NAME,
        cfg.MODEL.FPN.IN_FEATURES,
        in_channels=input_shape.channels,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm=model.NORM,
        drop_path_rate=model.DROP_PATH_RATE,
    )
    return _build_pyramid(cfg, bottom_up, cfg.MODEL.FPN.IN_FEATURES)


def _build_pyramid(cfg: CfgNode, bottom_up: Backbone, in_features: list[str]) -> FPN:
    """Build the pyramid of MODEL.FPN, whose last level has half the size of the one before."""
    pyramid = FPN(
        bottom_up,
        in_features,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    pyramid.top_block.in_feature = pyramid._out_features[-2]
    return pyramid


BUILDERS = (build_timm_fpn_backbone,)
