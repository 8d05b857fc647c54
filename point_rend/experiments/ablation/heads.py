"""Heads of one model: PointRend's point heads, and the dense heads that they are compared with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode

from point_rend.config.backbones import feature_strides
from point_rend.config.defaults import semantic_point_head_section
from point_rend.config.schema import (
    MASK_RCNN_HEADS,
    OWN,
    RESNET_FPN,
    VITDET,
    semantic_head_name,
)
from point_rend.config.tasks import meta_architecture, model_outputs
from point_rend.engine.arguments import build_parser
from point_rend.engine.setup import read_config
from point_rend.experiments.ablation.settings import as_options
from point_rend.experiments.ablation.trainings import Results, train_settings

MASK_HEAD, SEMANTIC_HEAD = "PointRendMaskHead", "PointRendSemSegHead"
POINT_HEADS = {"standard": "StandardPointHead", "residual": "ResidualPointHead"}
TITLES = {
    "standard": "PointRend",
    "residual": "PointRend, residual",
    "implicit": "Implicit PointRend",
}
PREDICTED_BOXES = "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES"
BOUNDARY_METRICS = "TEST.BOUNDARY_METRICS"


class HeadSetting(NamedTuple):
    """A head of a model.

    Attributes:
        title: Title in the table.
        values: Values of the config, by dotted key.
    """

    title: str
    values: dict[str, object]


def head_settings(options: Sequence[str], heads: Sequence[str]) -> dict[str, HeadSetting]:
    """Derive models with other heads from a PointRend model.

    ``baseline`` is the dense head that PointRend refines or replaces, in the published form:
    Detectron2's head of four convolutions for instances, and for semantic segmentation the coarse
    head alone, without the levels of the backbone that only the point head reads. ``standard``,
    ``residual`` and ``implicit`` are point heads. Data, schedule and backbone stay the same.

    Args:
        options: Options of `pointrend train` with the config of a PointRend model.
        heads: Names from ``HEADS``.

    Returns:
        The heads by name. They switch boundary metrics on, unless the options set them; the
        baseline is trained on proposals, unless the options set ``TRAIN_ON_PRED_BOXES``.

    Raises:
        FileNotFoundError, ValueError: If there is no such config, or the model has no point head,
            or no such head.
    """
    args = build_parser().parse_args(options)
    cfg = read_config(args)
    outputs, mask_head = model_outputs(cfg), cfg.MODEL.ROI_MASK_HEAD
    has_masks = "instances" in outputs and cfg.MODEL.MASK_ON
    refines_masks = has_masks and mask_head.NAME == MASK_HEAD and mask_head.POINT_HEAD_ON
    refines_maps = "sem_seg" in outputs and cfg.MODEL.SEM_SEG_HEAD.NAME == SEMANTIC_HEAD
    if not (refines_masks or refines_maps):
        raise ValueError(
            f"{args.config_file}: expected the config of a PointRend model, with MODEL."
            f"ROI_MASK_HEAD.NAME {MASK_HEAD} and POINT_HEAD_ON True, or with MODEL.SEM_SEG_HEAD."
            f"NAME {SEMANTIC_HEAD}"
        )
    if "implicit" in heads and (refines_maps or not refines_masks):
        raise ValueError("--heads implicit: expected a model for instances alone")
    settings = {}
    for head in heads:
        values: dict[str, object] = {BOUNDARY_METRICS: True}
        titles = []
        if refines_masks:
            values |= _mask_head_values(cfg, head)
            titles.append("4×conv, 28×28")
        if refines_maps:
            values |= _semantic_head_values(cfg, head, has_boxes=has_masks)
            titles.append("dense head, bilinear")
        for key in (BOUNDARY_METRICS, PREDICTED_BOXES):
            if key in args.opts[::2]:
                values.pop(key, None)
        settings[head] = HeadSetting(TITLES.get(head, "; ".join(titles)), values)
    return settings


def head_ablation(
    options: Sequence[str],
    output: Path,
    settings: Mapping[str, HeadSetting],
    seeds: Sequence[int],
    *,
    lengths: Sequence[int] = (),
    metrics: Sequence[str] = (),
) -> Results:
    """Train and evaluate a model with all heads and seeds, except for the finished runs.

    Args:
        options: Options of `pointrend train`.
        output: Folder for the trainings and their metrics.
        settings: Heads, as of :func:`head_settings`.
        seeds: Seeds.
        lengths, metrics: As of :func:`train_settings`.

    Returns:
        The metrics of the runs.

    Raises:
        FileNotFoundError, ValueError, SystemExit: As :func:`train_settings`.
    """
    shared = dict.fromkeys(settings, options)
    selecting = {head: as_options(setting.values) for head, setting in settings.items()}
    return train_settings(shared, selecting, output, seeds, lengths=lengths, metrics=metrics)


def _mask_head_values(cfg: CfgNode, head: str) -> dict[str, object]:
    """Return the values that give a model for instances a head."""
    if head in POINT_HEADS:
        return {"MODEL.POINT_HEAD.NAME": POINT_HEADS[head]}
    section = "MODEL.ROI_MASK_HEAD"
    if head == "implicit":
        return {
            PREDICTED_BOXES: False,
            f"{section}.NAME": "ImplicitPointRendMaskHead",
            "MODEL.POINT_HEAD.NAME": "ImplicitPointHead",
            "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 3,  # from 28 to 224
            "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 784,
        }
    values: dict[str, object] = {
        PREDICTED_BOXES: False,
        f"{section}.NAME": MASK_RCNN_HEADS[int(cfg.INPUT.POINT_SUP)],
        f"{section}.POINT_HEAD_ON": False,
        f"{section}.POOLER_TYPE": "ROIAlignV2",
        f"{section}.POOLER_RESOLUTION": 14,
        f"{section}.NUM_CONV": 4,
        # PointRend's head has no normalization that could be kept.
        f"{section}.NORM": cfg.MODEL.ROI_MASK_HEAD.NORM or cfg.MODEL.ROI_BOX_HEAD.NORM,
    }
    if cfg.MODEL.ROI_HEADS.NAME == "PointRendROIHeads":
        values["MODEL.ROI_HEADS.NAME"] = "StandardROIHeads"
    return values


def _semantic_head_values(cfg: CfgNode, head: str, *, has_boxes: bool) -> dict[str, object]:
    """Return the values that give a semantic or panoptic model a head."""
    if head in POINT_HEADS:
        return {f"{semantic_point_head_section(cfg)}.NAME": POINT_HEADS[head]}
    name = meta_architecture(cfg).stock_name or cfg.MODEL.META_ARCHITECTURE
    values = {"MODEL.META_ARCHITECTURE": name, "MODEL.SEM_SEG_HEAD.NAME": semantic_head_name(cfg)}
    return values if has_boxes else values | _levels_in_use(cfg)


def _levels_in_use(cfg: CfgNode) -> dict[str, object]:
    """Return the values that leave out the levels that the coarse semantic head does not read.

    Their parameters would have no gradient, which is an error in distributed training.
    """
    backbone, strides = cfg.MODEL.BACKBONE.NAME, feature_strides(cfg) or {}
    used = [name for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES if name in strides]
    if not used or backbone == VITDET:  # whose pyramid always has all levels
        return {}
    outputs = cfg.MODEL.RESNETS.OUT_FEATURES
    if backbone not in (*RESNET_FPN, *OWN):
        return {"MODEL.RESNETS.OUT_FEATURES": [name for name in outputs if name in used]}
    lowest = min(int(name.removeprefix("p")) for name in used)
    levels = [x for x in cfg.MODEL.FPN.IN_FEATURES if int(x.removeprefix("res")) >= lowest]
    values: dict[str, object] = {"MODEL.FPN.IN_FEATURES": levels}
    if backbone in RESNET_FPN:
        values["MODEL.RESNETS.OUT_FEATURES"] = [name for name in outputs if name in levels]
    return values
