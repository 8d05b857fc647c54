"""Comparison of a config with the config of the training that wrote a checkpoint."""

import logging

from detectron2.config import CfgNode

from point_rend.config.defaults import value_of
from point_rend.config.loading import parse_config
from point_rend.config.tasks import meta_architecture

logger = logging.getLogger(__name__)

# Keys that change what a model sees or computes, but the shape of no parameter.
COMMON_KEYS = (
    "INPUT.FORMAT",
    "INPUT.CHANNELS",
    "INPUT.BITS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.BACKBONE.NAME",
    "MODEL.TIMM.NAME",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.RESNETS.RES4_DILATION",
    "MODEL.RESNETS.RES5_DILATION",
    "MODEL.RESNETS.RES5_MULTI_GRID",
    "MODEL.FPN.FUSE_TYPE",
    "MODEL.POINT_HEAD.IN_FEATURES",
    "MODEL.POINT_HEAD.NAME",  # the residual head has the parameters of the standard one
)
INSTANCE_KEYS = (
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.ANCHOR_GENERATOR.OFFSET",
    "MODEL.RPN.IN_FEATURES",
    "MODEL.RPN.BBOX_REG_WEIGHTS",
    "MODEL.ROI_HEADS.IN_FEATURES",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
    "MODEL.ROI_MASK_HEAD.IN_FEATURES",
)
SEMANTIC_KEYS = (
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE",
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS",
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.NAME",
)
# A head with the parameters of another one, and the keys that may name it.
RESIDUAL = "ResidualPointHead"
POINT_HEADS = ("MODEL.POINT_HEAD.NAME", "MODEL.SEM_SEG_HEAD.POINT_HEAD.NAME")


def warn_if_trained_otherwise(
    cfg: CfgNode, stored: str | None, source: str, *, has_point_head: bool = True
) -> None:
    """Warn if a model has a config by which the results of its weights change silently.

    Args:
        cfg: The config of the model.
        stored: The config of the training as YAML, as a checkpoint stores it; None if unknown.
        source: The checkpoint, for the message; empty without one.
        has_point_head: Whether the checkpoint has weights of a point head.
    """
    if stored is None:
        if source and has_point_head and any(value_of(cfg, x) == RESIDUAL for x in POINT_HEADS):
            logger.warning(
                "%s has no config of its training: %s expects weights that were trained with it, "
                "not those of StandardPointHead",
                source,
                RESIDUAL,
            )
        return
    try:
        trained = parse_config(stored, f"the config in {source}")
    except ValueError:  # of another version or another program
        return
    kind = meta_architecture(cfg)
    keys = COMMON_KEYS + INSTANCE_KEYS * kind.has_roi_heads + SEMANTIC_KEYS * kind.has_semantic_head
    differences = []
    for key in keys:
        was, now = value_of(trained, key), value_of(cfg, key)
        if _plain(was) != _plain(now):
            differences.append(f"{key} {was} (now {now})")
    if differences:
        logger.warning(
            "%s was trained with another config, which changes its results: %s",
            source,
            ", ".join(differences),
        )


def _plain(value: object) -> object:
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value
