"""Feature maps of the backbones that a config can name, and contradictions between their keys."""

from collections.abc import Collection
from itertools import pairwise

from detectron2.config import CfgNode

from point_rend.config.schema import (
    DEEPLAB_RESNETS,
    MVIT_FPN,
    OWN,
    RESNET_FPN,
    RESNETS,
    STRIDES,
    SWIN_FPN,
    TIMM_FPN,
    VITDET,
)
from point_rend.config.timm_models import check_timm


def check_backbone(cfg: CfgNode, *, training: bool) -> None:
    """Refuse contradictions between the keys of a backbone, and images that it does not take.

    Args:
        cfg: A config whose values fit their rules.
        training: Whether it is about to train a model.

    Raises:
        ValueError: If there is one.
    """
    backbone, resnets = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS
    if backbone in RESNETS and resnets.DEPTH in (18, 34):
        required = {"RES2_OUT_CHANNELS": 64, "RES5_DILATION": 1, "NUM_GROUPS": 1}
        for name, value in required.items():
            if resnets[name] != value:
                raise ValueError(
                    f"MODEL.RESNETS.{name} must be {value} for MODEL.RESNETS.DEPTH "
                    f"{resnets.DEPTH}, got {resnets[name]}"
                )
        if any(resnets.DEFORM_ON_PER_STAGE):
            raise ValueError(
                "MODEL.RESNETS.DEFORM_ON_PER_STAGE must be False for MODEL.RESNETS.DEPTH "
                f"{resnets.DEPTH}, got {resnets.DEFORM_ON_PER_STAGE}"
            )
    if backbone in DEEPLAB_RESNETS and resnets.RES4_DILATION == 2 and resnets.RES5_DILATION != 4:
        raise ValueError(
            "MODEL.RESNETS.RES5_DILATION must be 4 for RES4_DILATION 2, got "
            f"{resnets.RES5_DILATION}"
        )
    if backbone in RESNET_FPN:
        levels = resnets.OUT_FEATURES
        _check_pyramid(cfg, levels, f"MODEL.RESNETS.OUT_FEATURES, which are {', '.join(levels)}")
    if backbone in OWN and backbone != VITDET:
        _check_pyramid(cfg, STRIDES, ", ".join(STRIDES))
    if backbone == TIMM_FPN:
        check_timm(cfg)
    if backbone in (SWIN_FPN, MVIT_FPN):
        _check_stages(cfg)
    if backbone == VITDET:
        _check_vision_transformer(cfg)
        _check_squares(cfg, training=training)


def _check_stages(cfg: CfgNode) -> None:
    """Check a transformer of four stages, whose last one would otherwise not be trained."""
    backbone, levels = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.IN_FEATURES
    if levels[-1] != "res5":
        raise ValueError(f"MODEL.FPN.IN_FEATURES must end with res5 for {backbone}, got {levels}")
    swin, blocks = cfg.MODEL.SWIN, cfg.MODEL.MVIT.LAST_BLOCKS
    if backbone == SWIN_FPN:
        for stage, heads in enumerate(swin.NUM_HEADS):
            _check_divisible("MODEL.SWIN.EMBED_DIM", swin.EMBED_DIM << stage, "NUM_HEADS", heads)
    elif any(b <= a for a, b in pairwise(blocks)):
        raise ValueError(f"MODEL.MVIT.LAST_BLOCKS must ascend, got {blocks}")


def _check_divisible(key: str, width: int, name: str, divisor: int) -> None:
    if width % divisor:
        raise ValueError(f"{key}: a width of {width} is no multiple of {name}, {divisor}")


def _check_vision_transformer(cfg: CfgNode) -> None:
    vit = cfg.MODEL.VIT
    _check_divisible("MODEL.VIT.EMBED_DIM", vit.EMBED_DIM, "NUM_HEADS", vit.NUM_HEADS)
    if vit.IMAGE_SIZE % max(STRIDES.values()):
        raise ValueError(
            f"MODEL.VIT.IMAGE_SIZE must be a multiple of {max(STRIDES.values())}, got "
            f"{vit.IMAGE_SIZE}"
        )
    if any(block >= vit.DEPTH for block in vit.GLOBAL_BLOCKS):
        raise ValueError(
            f"MODEL.VIT.GLOBAL_BLOCKS must be less than MODEL.VIT.DEPTH, which is {vit.DEPTH}, got "
            f"{vit.GLOBAL_BLOCKS}"
        )
    if not cfg.MODEL.FPN.NORM:
        raise ValueError(f'MODEL.FPN.NORM must be LN or another one for {VITDET}, got ""')
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT must be 0 for {VITDET}, which has no stages, got "
            f"{cfg.MODEL.BACKBONE.FREEZE_AT}"
        )


def _check_squares(cfg: CfgNode, *, training: bool) -> None:
    """Check that no image is larger than the square to which all are padded: it would be cut."""
    square, inputs = cfg.MODEL.VIT.IMAGE_SIZE, cfg.INPUT
    sizes = {"INPUT.MAX_SIZE_TEST": inputs.MAX_SIZE_TEST}
    if cfg.TEST.AUG.ENABLED:
        sizes["TEST.AUG.MAX_SIZE"] = cfg.TEST.AUG.MAX_SIZE
    if training and inputs.LSJ.ENABLED:
        sizes["INPUT.LSJ.SIZE"] = max(inputs.LSJ.SIZE)
    elif training and inputs.CROP.ENABLED and inputs.CROP.TYPE.startswith("absolute"):
        sizes["INPUT.CROP.SIZE"] = max(inputs.CROP.SIZE)
    elif training:
        sizes["INPUT.MAX_SIZE_TRAIN"] = inputs.MAX_SIZE_TRAIN
    for key, size in sizes.items():
        if size > square:
            raise ValueError(
                f"{key} must be at most MODEL.VIT.IMAGE_SIZE, which is {square}, for {VITDET}, got "
                f"{size}"
            )
    if not inputs.MIN_SIZE_TEST:
        raise ValueError(
            f"INPUT.MIN_SIZE_TEST must be above 0 for {VITDET}, which takes images of up to "
            f"{square} pixels"
        )


def _check_pyramid(cfg: CfgNode, available: Collection[str], text: str) -> None:
    levels = cfg.MODEL.FPN.IN_FEATURES
    numbers = [int(level[3:]) for level in levels if level in available and level != "stem"]
    if len(numbers) != len(levels) or any(b != a + 1 for a, b in pairwise(numbers)):
        raise ValueError(f"MODEL.FPN.IN_FEATURES must be successive levels of {text}, got {levels}")


def feature_strides(cfg: CfgNode) -> dict[str, int] | None:
    """Return the feature maps of a backbone and their strides, None for one of other packages."""
    backbone, resnets = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS
    if backbone not in (*RESNETS, *DEEPLAB_RESNETS, *OWN):
        return None
    strides = {"stem": 4, **STRIDES}
    if backbone in DEEPLAB_RESNETS and resnets.RES4_DILATION == 2:
        strides |= {"res4": 8, "res5": 8}
    elif backbone not in OWN and resnets.RES5_DILATION != 1:
        strides["res5"] = 16
    if backbone not in (*RESNET_FPN, *OWN):
        return {name: strides[name] for name in resnets.OUT_FEATURES}
    used = STRIDES if backbone == VITDET else cfg.MODEL.FPN.IN_FEATURES
    levels = {int(name[3:]): strides[name] for name in used}
    top = max(levels)
    further = (1, 2) if "retinanet" in backbone else (1,)
    levels |= {top + n: levels[top] << n for n in further}
    return {f"p{level}": stride for level, stride in levels.items()}
