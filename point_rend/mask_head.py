"""The registered mask heads: the standard one, and its implicit sibling.

Shapes: N boxes over all images, K classes, C channels, P points.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import Instances
from torch import Tensor, nn

from point_rend.coarse_mask_head import CoarseMaskHead
from point_rend.config.defaults import DEFAULTS, point_head_num_classes
from point_rend.ground_truth.point_labels import sample_point_labels
from point_rend.ground_truth.shared_masks import share_masks
from point_rend.point_features import (
    BoxFeatureReader,
    Features,
)
from point_rend.point_head import (
    build_point_head,
    build_point_sampler,
    check_own_parameters,
    roi_mask_point_loss,
)
from point_rend.rendering.coordinates import box_to_image_coords
from point_rend.rendering.mask_renderer import MaskRenderer
from point_rend.rendering.sampling import PointSampler, point_sample
from point_rend.rendering.subdivision import SubdivisionPlan
from point_rend.rendering.uncertainty import (
    Uncertainty,
    foreground_uncertainty,
    select_class_channel,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PointRefinement:
    """How a point head is used: what it reads, where it is trained, how masks are rendered."""

    reader: BoxFeatureReader
    sampler: PointSampler
    renderer: "MaskRenderer"


def _build_reader(cfg: CfgNode, section: str, input_shape: object) -> BoxFeatureReader:
    """Build the reader of ``MODEL.<section>.IN_FEATURES``."""
    if not isinstance(input_shape, Mapping):
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.NAME {cfg.MODEL.ROI_MASK_HEAD.NAME} reads the feature maps "
            "itself: expected MODEL.ROI_MASK_HEAD.POOLER_TYPE '' (empty), so that the ROI heads do "
            "not pool for it"
        )
    key = f"MODEL.{section}.IN_FEATURES"
    return BoxFeatureReader.from_shapes(cfg.MODEL[section].IN_FEATURES, input_shape, key)


def _build_coarse_head(
    cfg: CfgNode, reader: BoxFeatureReader, output_shape: tuple[int, ...]
) -> CoarseMaskHead:
    side = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
    return CoarseMaskHead(
        input_shape=ShapeSpec(channels=reader.channels, height=side, width=side),
        conv_dim=cfg.MODEL.ROI_MASK_HEAD.CONV_DIM,
        fc_dims=[cfg.MODEL.ROI_MASK_HEAD.FC_DIM] * cfg.MODEL.ROI_MASK_HEAD.NUM_FC,
        output_shape=output_shape,
    )


def _label_points(instances: Sequence[Instances], coords_box: Tensor) -> Tensor:
    boxes = torch.cat([x.proposal_boxes.tensor for x in instances])
    return sample_point_labels(instances, box_to_image_coords(coords_box, boxes))


def _build_renderer(cfg: CfgNode, start_side: int) -> MaskRenderer:
    point = cfg.MODEL.POINT_HEAD
    plan = SubdivisionPlan(
        start_side=start_side,
        steps=point.SUBDIVISION_STEPS,
        points_per_step=point.SUBDIVISION_NUM_POINTS,
    )

    def of_ours(key: str) -> Any:  # which a config of the stock project lacks
        return point.get(key, DEFAULTS[f"MODEL.POINT_HEAD.{key}"])

    return MaskRenderer(
        plan.without_covered_steps(),
        boxes_per_chunk=of_ours("SUBDIVISION_BOXES_PER_CHUNK"),
        cells_per_pixel=of_ours("SUBDIVISION_CELLS_PER_PIXEL"),
    )


class PointRendMaskHead(nn.Module):
    """A coarse mask per box, rendered at the points where it is unsure.

    Args:
        coarse_head: maps (N, D, side, side) to coarse logits (N, K, S, S).
        coarse_reader: the levels that the coarse head reads.
        coarse_pooler_side: side of the grid that the coarse head reads.
        point_head: maps features and coarse logits at points to logits; None for the coarse head
            alone, which then gives masks of its own small side.
        refinement: how the point head is used; given with it.
        uncertainty: rates the one channel (N, 1, ...) of each box's class, in training and in
            inference.

    Raises:
        ValueError: if only one of ``point_head`` and ``refinement`` is given.

    Source: section 4 of the paper.
    """

    @configurable
    def __init__(
        self,
        *,
        coarse_head: nn.Module,
        coarse_reader: BoxFeatureReader,
        coarse_pooler_side: int,
        point_head: nn.Module | None = None,
        refinement: PointRefinement | None = None,
        uncertainty: Uncertainty = foreground_uncertainty,
    ) -> None:
        super().__init__()
        if (point_head is None) != (refinement is None):
            raise ValueError(
                "PointRendMaskHead: point_head and refinement belong together: give both or none"
            )
        self.coarse_head = coarse_head
        self.coarse_reader = coarse_reader
        self.coarse_pooler_side = coarse_pooler_side
        self.point_head = point_head
        self.refinement = refinement
        self.uncertainty = uncertainty

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Read the arguments from a config; ``input_shape`` has the levels to choose from."""
        coarse_reader = _build_reader(cfg, "ROI_MASK_HEAD", input_shape)
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        coarse_channels = 1 if cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else num_classes
        coarse_side = cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
        coarse = {
            "coarse_head": _build_coarse_head(
                cfg, coarse_reader, (coarse_channels, coarse_side, coarse_side)
            ),
            "coarse_reader": coarse_reader,
            "coarse_pooler_side": cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION,
        }
        if not cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON:
            logger.warning(
                "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON is False: only the coarse %dx%d head is built, "
                "there is no rendering. Set it to True for PointRend.",
                coarse_side,
                coarse_side,
            )
            return coarse
        point_reader = _build_reader(cfg, "POINT_HEAD", input_shape)
        point_head = build_point_head(
            cfg,
            ShapeSpec(channels=point_reader.channels),
            num_classes=point_head_num_classes(cfg, num_classes, "MODEL.ROI_HEADS.NUM_CLASSES"),
            coarse_channels=None if coarse_channels == num_classes else coarse_channels,
        )
        check_own_parameters(point_head, cls.__name__)
        return coarse | {
            "point_head": point_head,
            "refinement": PointRefinement(
                reader=point_reader,
                sampler=build_point_sampler(cfg),
                renderer=_build_renderer(cfg, coarse_side),
            ),
        }

    def forward(
        self, features: Features, instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Return losses in training, and instances with ``pred_masks`` in inference.

        Args:
            features: per level (images, C_l, H_l, W_l).
            instances: per image, in training foreground proposals with ``proposal_boxes``,
                ``gt_classes`` and ``gt_masks``; in inference detections with ``pred_boxes`` and
                ``pred_classes``.

        Returns:
            ``loss_mask`` and ``loss_mask_point``; or the same instances, each with ``pred_masks``
            (N_i, 1, S, S), foreground probabilities in the box.
        """
        if self.training:
            return self._losses(features, instances)
        for detected, masks in zip(instances, self._masks(features, instances), strict=True):
            detected.pred_masks = masks
        return instances

    def _losses(self, features: Features, instances: list[Instances]) -> dict[str, Tensor]:
        boxes = [x.proposal_boxes for x in instances]
        pooled = self.coarse_reader.grid(features, boxes, self.coarse_pooler_side)
        coarse_logits = self.coarse_head(pooled)
        instances = share_masks(instances)
        losses = {"loss_mask": mask_rcnn_loss(coarse_logits, instances)}
        if self.point_head is None or self.refinement is None:
            return losses
        classes = torch.cat([x.gt_classes for x in instances])
        class_logits = select_class_channel(coarse_logits.detach(), classes)
        coords = self.refinement.sampler.sample(class_logits, self.uncertainty)
        fine = self.refinement.reader.points(features, boxes, coords)
        point_logits = self.point_head(fine, point_sample(coarse_logits, coords))
        labels = _label_points(instances, coords)
        losses["loss_mask_point"] = roi_mask_point_loss(point_logits, instances, labels)
        return losses

    def _masks(self, features: Features, instances: list[Instances]) -> Sequence[Tensor]:
        boxes = [x.pred_boxes for x in instances]
        pooled = self.coarse_reader.grid(features, boxes, self.coarse_pooler_side)
        coarse = self.coarse_head(pooled)
        del pooled  # rendering has no need of it
        refinement = self.refinement
        if self.point_head is None or refinement is None:
            classes = torch.cat([x.pred_classes for x in instances])
            masks = select_class_channel(coarse, classes).float().sigmoid()
            return masks.split([x.pred_boxes.tensor.size(0) for x in instances])
        renderer, images = refinement.renderer, refinement.reader.images(features)
        bound = renderer.bind(self.point_head, images, instances)
        return renderer.render(bound, instances, coarse, self.uncertainty)


class ImplicitPointRendMaskHead(nn.Module):
    """A mask per box as a function of position: an MLP whose weights the coarse head predicts.

    Args:
        parameter_head: maps (N, D, side, side) to MLP parameters (N, num_params).
        coarse_reader: the levels that the parameter head reads.
        coarse_pooler_side: side of the grid that the parameter head reads.
        point_head: maps features, positions and parameters to logits.
        point_reader: the levels that the point head reads.
        num_train_points: P, uniformly random in the box.
        renderer: how masks are rendered.
        l2_regularizer: weight of the mean square of the parameters.
        uncertainty: rates the one channel (N, 1, ...) of each box's class, in inference.

    Source: Cheng, Parkhi, Kirillov, "Pointly-Supervised Instance Segmentation", section 5.
    """

    @configurable
    def __init__(
        self,
        *,
        parameter_head: nn.Module,
        coarse_reader: BoxFeatureReader,
        coarse_pooler_side: int,
        point_head: nn.Module,
        point_reader: BoxFeatureReader,
        num_train_points: int,
        renderer: MaskRenderer,
        l2_regularizer: float,
        uncertainty: Uncertainty = foreground_uncertainty,
    ) -> None:
        super().__init__()
        if num_train_points < 1:
            raise ValueError(
                f"TRAIN_NUM_POINTS: expected at least 1 training point, got {num_train_points}"
            )
        self.parameter_head = parameter_head
        self.coarse_reader = coarse_reader
        self.coarse_pooler_side = coarse_pooler_side
        self.point_head = point_head
        self.point_reader = point_reader
        self.num_train_points = num_train_points
        self.renderer = renderer
        self.l2_regularizer = l2_regularizer
        self.uncertainty = uncertainty

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Read the arguments from a config; ``input_shape`` has the levels to choose from."""
        coarse_reader = _build_reader(cfg, "ROI_MASK_HEAD", input_shape)
        point_reader = _build_reader(cfg, "POINT_HEAD", input_shape)
        points_per_step = cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS
        start_side = math.isqrt(max(points_per_step, 0))
        if points_per_step < 1 or start_side**2 != points_per_step:
            raise ValueError(
                f"MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS is {points_per_step}: the implicit head "
                "starts from a square grid of that many points; expected a square number, e.g. "
                f"{max(start_side, 1) ** 2} or {(start_side + 1) ** 2}"
            )
        point_head = build_point_head(
            cfg,
            ShapeSpec(channels=point_reader.channels),
            num_classes=point_head_num_classes(
                cfg, cfg.MODEL.ROI_HEADS.NUM_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES"
            ),
        )
        num_params = getattr(point_head, "num_params", None)
        if num_params is None:
            raise ValueError(
                f"MODEL.POINT_HEAD.NAME is {cfg.MODEL.POINT_HEAD.NAME}, which takes no predicted "
                f"parameters: {cls.__name__} needs a head with num_params, e.g. ImplicitPointHead"
            )
        return {
            "parameter_head": _build_coarse_head(cfg, coarse_reader, (num_params,)),
            "coarse_reader": coarse_reader,
            "coarse_pooler_side": cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION,
            "point_head": point_head,
            "point_reader": point_reader,
            "num_train_points": cfg.MODEL.POINT_HEAD.TRAIN_NUM_POINTS,
            "renderer": _build_renderer(cfg, start_side),
            "l2_regularizer": cfg.MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER,
        }

    def forward(
        self, features: Features, instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Return losses in training, and instances with ``pred_masks`` in inference.

        Args, Returns: as :meth:`PointRendMaskHead.forward`; the losses are ``loss_l2`` and
        ``loss_mask_point``.
        """
        if self.training:
            return self._losses(features, instances)
        for detected, masks in zip(instances, self._masks(features, instances), strict=True):
            detected.pred_masks = masks
        return instances

    def _losses(self, features: Features, instances: list[Instances]) -> dict[str, Tensor]:
        boxes = [x.proposal_boxes for x in instances]
        parameters = self.parameter_head(
            self.coarse_reader.grid(features, boxes, self.coarse_pooler_side)
        )
        num_boxes = parameters.shape[0]
        coords = torch.rand(num_boxes, self.num_train_points, 2, device=parameters.device)
        fine = self.point_reader.points(features, boxes, coords)
        point_logits = self.point_head(fine, coords, parameters)
        labels = _label_points(instances, coords)
        mean_square = parameters.float().square().sum() / max(parameters.numel(), 1)
        return {
            "loss_l2": self.l2_regularizer * mean_square,
            "loss_mask_point": roi_mask_point_loss(point_logits, instances, labels),
        }

    def _masks(self, features: Features, instances: list[Instances]) -> Sequence[Tensor]:
        boxes = [x.pred_boxes for x in instances]
        pooled = self.coarse_reader.grid(features, boxes, self.coarse_pooler_side)
        parameters = self.parameter_head(pooled)
        del pooled  # rendering has no need of it
        images = self.point_reader.images(features)
        bound = self.renderer.bind(self.point_head, images, instances)
        return self.renderer.render(bound, instances, parameters, self.uncertainty)
