"""Checks across config keys."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)

from point_rend.config.defaults import OF_DATASET, point_head_num_classes, value_of
from point_rend.config.tasks import PANOPTIC, meta_architecture, model_outputs
from point_rend.utils.errors import did_you_mean
from point_rend.utils.pictures import ORDERS

# Mask heads that do their own pooling. CoarseMaskHead is the oldest name of the first one;
# PointRendROIHeads still builds it under that name.
POINT_MASK_HEADS = ("PointRendMaskHead", "ImplicitPointRendMaskHead", "CoarseMaskHead")


def check_config(cfg: CfgNode, *, training: bool) -> None:
    """Refuse contradictions between keys, before anything is built from them.

    Args:
        cfg: A complete config.
        training: Whether the config is about to train a model.

    Raises:
        ValueError: If keys contradict each other; the message names them.
    """
    _check_numbers(cfg, training=training)
    check_max_dets(cfg.TEST.MAX_DETS_PER_IMAGE)
    _check_registered_names(cfg)
    if training:
        _check_short_sides(cfg)
        _check_data_loader(cfg)
    if training or cfg.TEST.MIXED_PRECISION:
        _check_mixed_precision(cfg)
    if meta_architecture(cfg).has_semantic_head:
        _check_crop_of_deeplab(cfg)
    elif cfg.TEST.BOUNDARY_METRICS and not cfg.MODEL.MASK_ON:
        raise ValueError(
            "TEST.BOUNDARY_METRICS is True, but MODEL.MASK_ON is False: boundary metrics need masks"
        )
    if cfg.MODEL.MASK_ON:
        _check_mask_head(cfg, training=training)


MINIMA = {"DATALOADER.NUM_WORKERS": 0}
TRAINING_MINIMA = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 0,
}


def _check_numbers(cfg: CfgNode, *, training: bool) -> None:
    for key, least in (MINIMA | (TRAINING_MINIMA if training else {})).items():
        value = value_of(cfg, key)
        if value < least:
            raise ValueError(f"{key} must be {least} or more, got {value}")


MAX_DETS = "TEST.MAX_DETS_PER_IMAGE"
MOST_DETS = 1_000_000


def check_max_dets(number: int, setting: str = MAX_DETS) -> None:
    """Refuse an impossible limit on the results of an image that count for AP.

    Args:
        number: The limit, or `OF_DATASET`.
        setting: Config key or flag that sets it, for the message.

    Raises:
        ValueError: If it is impossible.
    """
    if number != OF_DATASET and not 1 <= number <= MOST_DETS:
        raise ValueError(
            f"{setting}: expected 1 to {MOST_DETS}, or {OF_DATASET} for the limit of the data set "
            f"(100 for COCO, 300 for LVIS), got {number}"
        )


RESNET_DEPTHS = (18, 34, 50, 101, 152)  # of Detectron2's own ResNets
RESNETS = ("build_resnet_backbone", "build_resnet_fpn_backbone")


def _check_registered_names(cfg: CfgNode) -> None:
    model = cfg.MODEL
    if cfg.INPUT.FORMAT not in ORDERS:
        raise ValueError(f"INPUT.FORMAT must be BGR, RGB or L, got {cfg.INPUT.FORMAT!r}")
    if model.BACKBONE.NAME in RESNETS and model.RESNETS.DEPTH not in RESNET_DEPTHS:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH must be one of {RESNET_DEPTHS}, got {model.RESNETS.DEPTH}"
        )
    used = {"MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY, "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY}
    if meta_architecture(cfg).has_roi_heads:
        used["MODEL.ROI_HEADS.NAME"] = ROI_HEADS_REGISTRY
        if model.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals":  # stands for no generator
            used["MODEL.PROPOSAL_GENERATOR.NAME"] = PROPOSAL_GENERATOR_REGISTRY
        if model.MASK_ON and model.ROI_MASK_HEAD.NAME != "CoarseMaskHead":
            used["MODEL.ROI_MASK_HEAD.NAME"] = ROI_MASK_HEAD_REGISTRY
    if meta_architecture(cfg).has_semantic_head:
        used["MODEL.SEM_SEG_HEAD.NAME"] = SEM_SEG_HEADS_REGISTRY
    for key, registry in used.items():
        name = value_of(cfg, key)
        if name not in registry:
            known = [known_name for known_name, _ in registry]
            raise ValueError(
                f"{key} is {name!r}, which is not registered" + did_you_mean(name, known)
            )


def _check_short_sides(cfg: CfgNode) -> None:
    for key in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN"):
        if not np.size(cfg.INPUT[key]) or np.min(cfg.INPUT[key]) < 1:
            raise ValueError(f"INPUT.{key} must be 1 pixel or more, got {cfg.INPUT[key]}")
    sides, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling not in ("choice", "range"):
        raise ValueError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING must be choice or range, got {sampling!r}")
    if sampling == "range" and len(sides) != 2:
        raise ValueError(
            "INPUT.MIN_SIZE_TRAIN_SAMPLING is range: INPUT.MIN_SIZE_TRAIN must be the smallest and "
            f"the largest short side, got {tuple(sides)}"
        )


def _check_mixed_precision(cfg: CfgNode) -> None:
    if cfg.SOLVER.AMP.DTYPE not in ("float16", "bfloat16"):
        raise ValueError(
            f"SOLVER.AMP.DTYPE must be float16 or bfloat16, got {cfg.SOLVER.AMP.DTYPE!r}"
        )


def _check_data_loader(cfg: CfgNode) -> None:
    reaction = cfg.DATALOADER.ON_CORRUPT_IMAGE
    if reaction not in ("stop", "skip"):
        raise ValueError(f"DATALOADER.ON_CORRUPT_IMAGE must be stop or skip, got {reaction!r}")


def _check_crop_of_deeplab(cfg: CfgNode) -> None:
    """Check the crop against the window over which DeepLab's heads average."""
    head, crop = cfg.MODEL.SEM_SEG_HEAD, cfg.INPUT.CROP
    name = head.NAME
    if name == "PointRendSemSegHead":
        name = cfg.MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME
    if not (name.startswith("DeepLab") and crop.ENABLED):
        return
    if crop.TYPE != "absolute":
        raise ValueError(
            f"INPUT.CROP.TYPE is {crop.TYPE!r}, but {name} needs crops of one size: set it to "
            "absolute, or INPUT.CROP.ENABLED to False"
        )
    if name == "DeepLabV3Head" and any(side % head.COMMON_STRIDE for side in crop.SIZE):
        raise ValueError(
            f"INPUT.CROP.SIZE is {tuple(crop.SIZE)}, but for {name} both sides must be multiples "
            f"of MODEL.SEM_SEG_HEAD.COMMON_STRIDE, which is {head.COMMON_STRIDE}"
        )


def _check_mask_head(cfg: CfgNode, *, training: bool) -> None:
    model = cfg.MODEL
    mask_head = model.ROI_MASK_HEAD
    mask_format = cfg.INPUT.MASK_FORMAT
    if training and mask_format not in ("bitmask", "polygon"):
        raise ValueError(f"INPUT.MASK_FORMAT must be bitmask or polygon, got {mask_format!r}")
    if mask_head.NAME not in POINT_MASK_HEADS:
        return

    if mask_head.POINT_HEAD_ON or mask_head.NAME == "ImplicitPointRendMaskHead":
        point_head_num_classes(cfg, model.ROI_HEADS.NUM_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES")
    if mask_head.NAME != "CoarseMaskHead" and mask_head.POOLER_TYPE:
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.NAME {mask_head.NAME} samples the feature maps itself: "
            f'MODEL.ROI_MASK_HEAD.POOLER_TYPE must be "", got {mask_head.POOLER_TYPE!r}'
        )


def check_test_time_augmentation(cfg: CfgNode) -> None:
    """Refuse settings under TEST.AUG that cannot work.

    Raises:
        ValueError: If they cannot.
    """
    augmentation = cfg.TEST.AUG
    if not augmentation.ENABLED:
        return
    if not augmentation.MIN_SIZES or min(augmentation.MIN_SIZES) < 1:
        raise ValueError(
            "TEST.AUG.MIN_SIZES: expected one or more short sides in pixels, got "
            f"{tuple(augmentation.MIN_SIZES)}"
        )
    if model_outputs(cfg) == PANOPTIC:
        raise ValueError(
            "TEST.AUG.ENABLED is True, but there is no test-time augmentation for "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
        )
