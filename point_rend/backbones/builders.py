"""Backbones by the names that a config gives in MODEL.BACKBONE.NAME, each with a pyramid p2 to p6.

Their feature maps have the names of a ResNet's, res2 to res5, in MODEL.FPN.IN_FEATURES.
"""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SimpleFeaturePyramid
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from point_rend.backbones.timm_backbone import TimmBackbone
from point_rend.backbones.transformers import mvit, swin, vitdet


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


def build_vitdet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """Build the backbone of ViTDet from MODEL.VIT; it has a pyramid of its own."""
    model = cfg.MODEL.VIT
    return vitdet(
        image_size=model.IMAGE_SIZE,
        embed_dim=model.EMBED_DIM,
        depth=model.DEPTH,
        num_heads=model.NUM_HEADS,
        global_blocks=model.GLOBAL_BLOCKS,
        drop_path_rate=model.DROP_PATH_RATE,
        in_channels=input_shape.channels,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
    )


def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a Swin transformer from MODEL.SWIN, with a feature pyramid."""
    model = cfg.MODEL.SWIN
    bottom_up = swin(
        embed_dim=model.EMBED_DIM,
        depths=model.DEPTHS,
        num_heads=model.NUM_HEADS,
        window_size=model.WINDOW_SIZE,
        drop_path_rate=model.DROP_PATH_RATE,
        in_channels=input_shape.channels,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    return _build_pyramid(cfg, bottom_up, [f"p{n - 2}" for n in _stages(cfg.MODEL.FPN.IN_FEATURES)])


def build_mvit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an MViTv2 from MODEL.MVIT, with a feature pyramid."""
    model = cfg.MODEL.MVIT
    bottom_up = mvit(
        embed_dim=model.EMBED_DIM,
        last_blocks=model.LAST_BLOCKS,
        drop_path_rate=model.DROP_PATH_RATE,
        in_channels=input_shape.channels,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    return _build_pyramid(cfg, bottom_up, [f"scale{n}" for n in _stages(cfg.MODEL.FPN.IN_FEATURES)])


def _stages(levels: Sequence[str]) -> list[int]:
    return [int(level.removeprefix("res")) for level in levels]


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


BUILDERS = (
    build_timm_fpn_backbone,
    build_vitdet_backbone,
    build_swin_fpn_backbone,
    build_mvit_fpn_backbone,
)
