"""The registered mask heads: PointRend and Implicit PointRend.

Shapes: N boxes over all images, N_i in image i, K classes, D channels of the features that a coarse
head reads, P points, S side of a mask.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from point_rend.coarse_mask_head import CoarseMaskHead
from point_rend.config.defaults import point_head_num_classes, with_defaults
from point_rend.ground_truth.annotated_points import (
    annotated_points,
    has_annotated_points,
    number_of_annotated_points,
)
from point_rend.ground_truth.losses import binary_mask_loss
from point_rend.ground_truth.point_labels import sample_point_labels
from point_rend.ground_truth.shared_masks import crop_masks, share_masks
from point_rend.point_features import BoxFeatureReader, Features
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
from point_rend.utils.removed_hooks import RemovedHooks

logger = logging.getLogger(__name__)

# Names that other projects import from the stock project's module.
ConvFCHead = CoarseMaskHead
calculate_uncertainty = foreground_uncertainty


@dataclass(frozen=True)
class PointRefinement:
    """The use of a point head: the features it reads, its training points, the rendering of masks.

    Args:
        reader: the levels that the point head reads.
        sampler: draws the training points.
        renderer: renders the masks.
    """

    reader: BoxFeatureReader
    sampler: PointSampler
    renderer: MaskRenderer


class _BoxMaskHead(RemovedHooks, nn.Module):
    """The common part of both heads: a coarse prediction from a grid of features of each box.

    Args:
        coarse_reader: the levels that the coarse prediction reads.
        coarse_pooler_side: side of the grid.
        uncertainty: rates the logits (N, 1, ...) of the class of each box.
    """

    REMOVED: ClassVar = {
        "_init_roi_head": "from_config",
        "_init_point_head": "from_config",
        "_sample_train_points": "sample_training_points(self, instances, coarse_logits)",
        "_uniform_sample_train_points": "sample_training_points(self, instances, coarse_logits)",
        "_point_pooler": "forward",
        "_get_point_logits": "forward of a point head (MODEL.POINT_HEAD.NAME)",
        "_subdivision_inference": "forward",
    }

    loss_weight = 1.0  # PanopticFPN sets it to MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT

    def __init__(
        self, coarse_reader: BoxFeatureReader, coarse_pooler_side: int, uncertainty: Uncertainty
    ) -> None:
        super().__init__()
        self.coarse_reader = coarse_reader
        self.coarse_pooler_side = coarse_pooler_side
        self.uncertainty = uncertainty

    # Names that users of the stock project read.

    @property
    def roi_pooler_in_features(self) -> tuple[str, ...]:
        """The levels that the coarse prediction reads."""
        return self.coarse_reader.names

    @property
    def roi_pooler_size(self) -> int:
        """The side of the grid that the coarse prediction reads."""
        return self.coarse_pooler_side

    @property
    def mask_point_in_features(self) -> tuple[str, ...]:
        """The levels that the point head reads."""
        if self.point_head is None:
            raise AttributeError("mask_point_in_features")
        return self._readers()[1].names

    @property
    def _feature_scales(self) -> dict[str, float]:
        """Size of the feature map over that of the image, by level; of the levels that are read."""
        readers = self._readers()
        return {k: v for x in readers for k, v in zip(x.names, x.scales, strict=True)}

    def _readers(self) -> list[BoxFeatureReader]:
        """Return the readers of the coarse prediction and of the point head, if there is one."""
        raise NotImplementedError

    def forward(
        self, features: Features, instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Return losses in training, and instances with ``pred_masks`` in inference.

        Args:
            features: per level (images, C_l, H_l, W_l).
            instances: in training the foreground proposals of each image with ``proposal_boxes``,
                ``gt_classes`` and ``gt_masks``, or annotated points in place of the masks, see
                :mod:`point_rend.ground_truth.annotated_points`; in inference its detections with
                ``pred_boxes`` and ``pred_classes``.

        Returns:
            Losses by name; or the same instances with ``pred_masks`` (N_i, 1, S, S), foreground
            probabilities in the box.
        """
        if self.training:
            losses = self._losses(features, instances)
            return {name: self.loss_weight * loss for name, loss in losses.items()}
        for detected, masks in zip(instances, self._masks(features, instances), strict=True):
            detected.pred_masks = masks
        return instances

    def sample_training_points(
        self, instances: Sequence[Instances], coarse_logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Draw the training points of each box and label them; override it for points of your own.

        Args:
            instances: per image its foreground proposals, as in :meth:`forward`; N in total.
            coarse_logits: (N, K, s, s) or (N, 1, s, s), without gradient; None in the implicit
                head, which has no coarse prediction.

        Returns:
            Points (N, P, 2) as ``coords_box``, and their labels (N, P) in [0, 1], −1 to ignore.
        """
        raise NotImplementedError

    def _roi_pooler(self, features: Features, boxes: Sequence[Boxes]) -> Tensor:
        """Read the grid of features of each box, (N, D, side, side)."""
        return self.coarse_reader.grid(features, boxes, self.coarse_pooler_side)

    def _losses(self, features: Features, instances: list[Instances]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _masks(self, features: Features, instances: list[Instances]) -> Sequence[Tensor]:
        raise NotImplementedError


class PointRendMaskHead(_BoxMaskHead):
    """Predict a coarse mask per box and render it at the points where it is uncertain.

    The losses are ``loss_mask`` and ``loss_mask_point``.

    Args:
        coarse_head: maps (N, D, side, side) to coarse logits (N, K, s, s), or (N, 1, s, s) if it is
            class-agnostic.
        coarse_reader: the levels that the coarse head reads.
        coarse_pooler_side: side of the grid that the coarse head reads.
        point_head: maps features and coarse logits at points to logits; None to use the coarse
            head alone, whose masks keep their small side s.
        refinement: the use of the point head; None without one.
        uncertainty: rates the logits (N, 1, ...) of the class of each box, in training and in
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
        super().__init__(coarse_reader, coarse_pooler_side, uncertainty)
        if (point_head is None) != (refinement is None):
            raise ValueError(
                "PointRendMaskHead: point_head and refinement belong together: give both or none"
            )
        self.point_head = point_head  # the first, as in checkpoints of the stock project
        self.coarse_head = coarse_head
        self.refinement = refinement

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Read the arguments from a config; ``input_shape`` has the levels to choose from."""
        cfg = with_defaults(cfg)
        coarse_reader = _build_reader(cfg, "ROI_MASK_HEAD", input_shape)
        pooler_side = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        coarse_shape = coarse_reader.grid_shape(pooler_side)
        coarse = {"coarse_reader": coarse_reader, "coarse_pooler_side": pooler_side}
        coarse_side = cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
        if not cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON:
            logger.warning(
                "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON is False: only the coarse %dx%d head is built "
                "and nothing is rendered. Set it to True for PointRend.",
                coarse_side,
                coarse_side,
            )
            return coarse | {"coarse_head": CoarseMaskHead(cfg, coarse_shape)}
        point_reader = _build_reader(cfg, "POINT_HEAD", input_shape)
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        one_mask = cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK and num_classes > 1
        point_head = build_point_head(
            cfg,
            ShapeSpec(channels=point_reader.channels),
            num_classes=point_head_num_classes(cfg, num_classes, "MODEL.ROI_HEADS.NUM_CLASSES"),
            coarse_channels=1 if one_mask else None,
        )
        check_own_parameters(point_head, cls.__name__)
        return coarse | {
            "point_head": point_head,
            "coarse_head": CoarseMaskHead(cfg, coarse_shape),
            "refinement": PointRefinement(
                reader=point_reader,
                sampler=build_point_sampler(cfg),
                renderer=_build_renderer(cfg, coarse_side),
            ),
        }

    def _readers(self) -> list[BoxFeatureReader]:
        return [self.coarse_reader] + ([self.refinement.reader] if self.refinement else [])

    def sample_training_points(
        self, instances: Sequence[Instances], coarse_logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Draw points near the boundary of the coarse mask, and label them by the true masks.

        Annotated points are taken as they are.
        """
        if has_annotated_points(instances):
            return annotated_points(instances)
        assert coarse_logits is not None
        assert self.refinement is not None
        classes = torch.cat([x.gt_classes for x in instances])
        class_logits = select_class_channel(coarse_logits, classes)
        coords = self.refinement.sampler.sample(class_logits, self.uncertainty)
        return coords, _label_points(instances, coords)

    def _losses(self, features: Features, instances: list[Instances]) -> dict[str, Tensor]:
        boxes = [x.proposal_boxes for x in instances]
        coarse_logits = self.coarse_head(self._roi_pooler(features, boxes))
        instances = share_masks(instances)
        annotated = has_annotated_points(instances)
        coarse_loss = coarse_annotated_loss if annotated else coarse_mask_loss
        losses = {"loss_mask": coarse_loss(coarse_logits, instances)}
        if self.point_head is None or self.refinement is None:
            return losses
        coords, labels = self.sample_training_points(instances, coarse_logits.detach())
        fine = self.refinement.reader.points(features, boxes, coords)
        point_logits = self.point_head(fine, point_sample(coarse_logits, coords))
        point_loss = annotated_point_loss if annotated else roi_mask_point_loss
        losses["loss_mask_point"] = point_loss(point_logits, instances, labels)
        return losses

    def _masks(self, features: Features, instances: list[Instances]) -> Sequence[Tensor]:
        coarse = self.coarse_head(self._roi_pooler(features, [x.pred_boxes for x in instances]))
        refinement = self.refinement
        if self.point_head is None or refinement is None:
            classes = torch.cat([x.pred_classes for x in instances])
            masks = select_class_channel(coarse, classes).float().sigmoid()
            return masks.split([x.pred_boxes.tensor.size(0) for x in instances])
        renderer, images = refinement.renderer, refinement.reader.images(features)
        bound = renderer.bind(self.point_head, images, instances)
        return renderer.render(bound, instances, coarse, self.uncertainty)


class ImplicitPointRendMaskHead(_BoxMaskHead):
    """Represent the mask of each box as a function of position, an MLP with predicted weights.

    The losses are ``loss_l2`` and ``loss_mask_point``.

    Args:
        parameter_head: maps (N, D, side, side) to MLP parameters (N, num_params).
        coarse_reader: the levels that the parameter head reads.
        coarse_pooler_side: side of the grid that the parameter head reads.
        point_head: maps features, positions and parameters to logits.
        point_reader: the levels that the point head reads.
        num_train_points: P, drawn uniformly in the box.
        renderer: renders the masks.
        l2_regularizer: weight of the mean square of the parameters.
        uncertainty: rates the logits (N, 1, ...) of the class of each box, in inference.

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
        super().__init__(coarse_reader, coarse_pooler_side, uncertainty)
        if num_train_points < 1:
            raise ValueError(
                f"TRAIN_NUM_POINTS: expected at least 1 training point, got {num_train_points}"
            )
        self.point_head = point_head  # the first, as in checkpoints of the stock project
        self.parameter_head = parameter_head
        self.point_reader = point_reader
        self.num_train_points = num_train_points
        self.renderer = renderer
        self.l2_regularizer = l2_regularizer

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Read the arguments from a config; ``input_shape`` has the levels to choose from."""
        cfg = with_defaults(cfg)
        coarse_reader = _build_reader(cfg, "ROI_MASK_HEAD", input_shape)
        pooler_side = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
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
            "parameter_head": CoarseMaskHead(
                cfg, coarse_reader.grid_shape(pooler_side), output_shape=(num_params,)
            ),
            "coarse_reader": coarse_reader,
            "coarse_pooler_side": pooler_side,
            "point_head": point_head,
            "point_reader": point_reader,
            "num_train_points": cfg.MODEL.POINT_HEAD.TRAIN_NUM_POINTS,
            "renderer": _build_renderer(cfg, start_side),
            "l2_regularizer": cfg.MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER,
        }

    def _readers(self) -> list[BoxFeatureReader]:
        return [self.coarse_reader, self.point_reader]

    def sample_training_points(
        self,
        instances: Sequence[Instances],
        coarse_logits: Tensor | None,  # noqa: ARG002 (the interface of both heads)
    ) -> tuple[Tensor, Tensor]:
        """Draw points uniformly in each box, and label them by the true masks.

        Annotated points are taken as they are.
        """
        if has_annotated_points(instances):
            return annotated_points(instances)
        boxes = torch.cat([x.proposal_boxes.tensor for x in instances])
        coords = torch.rand(len(boxes), self.num_train_points, 2, device=boxes.device)
        return coords, _label_points(instances, coords)

    def _losses(self, features: Features, instances: list[Instances]) -> dict[str, Tensor]:
        boxes = [x.proposal_boxes for x in instances]
        parameters = self.parameter_head(self._roi_pooler(features, boxes))
        coords, labels = self.sample_training_points(instances, None)
        fine = self.point_reader.points(features, boxes, coords)
        point_logits = self.point_head(fine, coords, parameters)
        annotated = has_annotated_points(instances)
        point_loss = annotated_point_loss if annotated else roi_mask_point_loss
        mean_square = parameters.float().square().sum() / max(parameters.numel(), 1)
        return {
            "loss_l2": self.l2_regularizer * mean_square,
            "loss_mask_point": point_loss(point_logits, instances, labels),
        }

    def _masks(self, features: Features, instances: list[Instances]) -> Sequence[Tensor]:
        parameters = self.parameter_head(
            self._roi_pooler(features, [x.pred_boxes for x in instances])
        )
        images = self.point_reader.images(features)
        bound = self.renderer.bind(self.point_head, images, instances)
        return self.renderer.render(bound, instances, parameters, self.uncertainty)


class ImplicitPointRendPointSupHead(ImplicitPointRendMaskHead):
    """The implicit head under the name that configs of the PointSup project have.

    Every mask head of this package is trained from annotated points if instances have them.
    """


class MaskRCNNConvUpsamplePointSupHead(MaskRCNNConvUpsampleHead):
    """Detectron2's convolutional mask head, trained from annotated points if instances have them.

    The loss is ``loss_mask``: the predicted mask is interpolated at the points.
    """

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """Return the loss in training, and instances with ``pred_masks`` in inference.

        Args:
            x: (N, D, side, side) features of the boxes.
            instances: as of the other heads.
        """
        if not (self.training and has_annotated_points(instances)):
            return super().forward(x, instances)
        return {"loss_mask": coarse_annotated_loss(self.layers(x), instances) * self.loss_weight}


def annotated_point_loss(
    mask_logits: Tensor,
    instances: Sequence[Instances],
    point_labels: Tensor,
    *,
    accuracy_name: str = "point/accuracy",
) -> Tensor:
    """Return the loss at annotated points, and log the accuracy.

    Args:
        mask_logits: (N, K, P) or class-agnostic (N, 1, P).
        instances: per image its regions with ``gt_classes`` and annotated points; N in total.
        point_labels: (N, P): 0, 1, or −1 for ignored points.
        accuracy_name: name of the accuracy in the log.

    Returns:
        A scalar: binary cross entropy averaged over all annotated points, of which the ignored ones
        contribute 0, as in the PointSup project.
    """
    return roi_mask_point_loss(
        mask_logits,
        instances,
        point_labels,
        num_points=number_of_annotated_points(instances),
        accuracy_name=accuracy_name,
    )


def coarse_annotated_loss(mask_logits: Tensor, instances: Sequence[Instances]) -> Tensor:
    """Return the loss of coarse masks, interpolated at annotated points, and log their accuracy.

    Args:
        mask_logits: (N, K, s, s) or class-agnostic (N, 1, s, s).
        instances: as of :func:`annotated_point_loss`, with ``proposal_boxes``.
    """
    coords, labels = annotated_points(instances)
    at_points = point_sample(mask_logits, coords)
    return annotated_point_loss(at_points, instances, labels, accuracy_name="mask_rcnn/accuracy")


def coarse_mask_loss(mask_logits: Tensor, instances: Sequence[Instances]) -> Tensor:
    """Return the loss of coarse masks and log their accuracy, with a single wait for a GPU.

    The values and the names ``mask_rcnn/accuracy``, ``mask_rcnn/false_positive`` and
    ``mask_rcnn/false_negative`` are those of Detectron2's ``mask_rcnn_loss``.

    Args:
        mask_logits: (N, K, s, s) or class-agnostic (N, 1, s, s).
        instances: per image its regions with ``proposal_boxes``, ``gt_classes`` and ``gt_masks`` as
            :class:`SharedMasks`; N in total.

    Returns:
        A scalar: binary cross entropy averaged over all cells.
    """
    instances = [x for x in instances if len(x)]
    if not instances:
        return mask_logits.sum() * 0
    classes = torch.cat([x.gt_classes for x in instances])
    logits = select_class_channel(mask_logits, classes)[:, 0].flatten(1)  # (N, s²)
    boxes = [x.proposal_boxes.tensor for x in instances]
    labels = crop_masks([x.gt_masks for x in instances], boxes, mask_logits.shape[2]).flatten(1)
    if has_event_storage():
        wrong = (logits > 0) != labels
        sums = torch.stack((labels.sum(), wrong.sum(), (wrong & labels).sum()))
        foreground, errors, missed = sums.tolist()
        storage = get_event_storage()
        storage.put_scalar("mask_rcnn/accuracy", 1 - errors / labels.numel())
        background = max(labels.numel() - foreground, 1)
        storage.put_scalar("mask_rcnn/false_positive", (errors - missed) / background)
        storage.put_scalar("mask_rcnn/false_negative", missed / max(foreground, 1))
    return binary_mask_loss(logits, labels)


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
    return MaskRenderer(
        plan.without_covered_steps(),
        boxes_per_chunk=point.SUBDIVISION_BOXES_PER_CHUNK,
        cells_per_pixel=point.SUBDIVISION_CELLS_PER_PIXEL,
    )
