"""The registered head for semantic segmentation.

Shapes: N images, K classes, P points, D channels of the fine-grained features, H and W rows and
columns of the coarse logits.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ASPP, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from point_rend.config.defaults import (
    FITTING,
    point_head_num_classes,
    with_defaults,
    with_semantic_point_head,
)
from point_rend.ground_truth.losses import semantic_point_loss
from point_rend.ground_truth.point_labels import sample_semantic_labels
from point_rend.point_features import Features
from point_rend.point_head import build_point_head, build_point_sampler, check_own_parameters
from point_rend.rendering.bound_head import bind_point_head
from point_rend.rendering.features import FineGrainedFeatures, concatenate_levels
from point_rend.rendering.sampling import PointSampler, point_sample
from point_rend.rendering.subdivision import subdivide
from point_rend.rendering.uncertainty import Uncertainty, top2_margin_uncertainty
from point_rend.utils.removed_hooks import RemovedHooks

ImageSizes = Sequence[tuple[int, int]]


@runtime_checkable
class CoarseSemSegHead(Protocol):
    """The members that the coarse head, an ``nn.Module``, must have.

    ``common_stride`` is the size of the image over that of the logits.
    """

    common_stride: int

    def layers(self, features: Features) -> Tensor:
        """Map features to coarse logits (N, K, H, W)."""

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Map coarse logits and labels (N, H·stride, W·stride) to losses by name."""


def coarse_logits(head: nn.Module, features: Features) -> Tensor:
    """Return the logits (N, K, H, W) of a coarse head before any upsampling.

    Args:
        head: a :class:`CoarseSemSegHead`, or Detectron2's ``DeepLabV3Head``, which has two modules
            in place of ``layers``.
        features: per level (N, C_l, H_l, W_l).
    """
    layers = getattr(head, "layers", None)
    if layers is not None:
        return layers(features)
    return head.predictor(head.aspp(features[head.in_features[0]]))  # type: ignore


def calculate_uncertainty(sem_seg_logits: Tensor) -> Tensor:
    """Return :func:`top2_margin_uncertainty` under the name of the stock project."""
    return top2_margin_uncertainty(sem_seg_logits)


def check_coarse_head(head: nn.Module, name: str) -> None:
    """Refuse a head that cannot serve as the coarse head.

    Raises:
        ValueError: if members of :class:`CoarseSemSegHead` are missing.
    """
    predicts = hasattr(head, "layers") or all(
        hasattr(head, part) for part in ("aspp", "predictor", "in_features")
    )
    missing = [part for part in ("common_stride", "losses") if not hasattr(head, part)]
    missing += [] if predicts else ["layers"]
    if missing:
        raise ValueError(
            f"MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME is {name}, which has no "
            f"{' and no '.join(missing)}: expected a head with the members of point_rend."
            "semantic_seg.CoarseSemSegHead, e.g. SemSegFPNHead, DeepLabV3Head, DeepLabV3PlusHead"
        )


def pooling_window(head: nn.Module) -> tuple[int, int] | None:
    """Return the window (rows, columns) of DeepLab's average pooling; None if it is global."""
    windows = [part.pool_kernel_size for part in head.modules() if isinstance(part, ASPP)]
    return tuple(windows[0]) if windows and windows[0] is not None else None


class PointRendSemSegHead(RemovedHooks, nn.Module):
    """Predict dense coarse logits and render them where the two best classes are close.

    Args:
        coarse_sem_seg_head: a :class:`CoarseSemSegHead` or ``DeepLabV3Head``.
        point_head: maps (N, D, P) and (N, K, P) to logits (N, K, P).
        in_features: strides of the levels of the fine-grained features, by name.
        sampler: draws the training points.
        steps: doublings in inference; 2^steps must be the coarse stride, so that the output has
            the size of the input. None for the number that fits.
        points_per_step: number of points predicted after each doubling.
        ignore_value: label of ignored pixels.
        uncertainty: rates the logits (N, K, ...), in training and in inference.

    Raises:
        ValueError: if ``steps`` does not lead to the size of the input.

    Source: section 4.2 of the paper.
    """

    REMOVED: ClassVar = {"_init_point_head": "from_config"}

    @configurable
    def __init__(
        self,
        *,
        coarse_sem_seg_head: nn.Module,
        point_head: nn.Module,
        in_features: Mapping[str, int],
        sampler: PointSampler,
        steps: int | None,
        points_per_step: int,
        ignore_value: int,
        uncertainty: Uncertainty = top2_margin_uncertainty,
    ) -> None:
        super().__init__()
        stride = int(coarse_sem_seg_head.common_stride)  # type: ignore[arg-type]
        fitting = stride.bit_length() - 1
        if 2**fitting != stride:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {stride}: no number of doublings leads to "
                "the size of the image; expected a power of two"
            )
        if steps is not None and steps != fitting:
            raise ValueError(
                f"SUBDIVISION_STEPS is {steps}, but the coarse logits have stride {stride} "
                f"(MODEL.SEM_SEG_HEAD.COMMON_STRIDE): expected {fitting} steps, or "
                "-1 for the number that fits, to reach the size of the image"
            )
        if points_per_step < 1:
            raise ValueError(f"SUBDIVISION_NUM_POINTS: expected 1 or more, got {points_per_step}")
        self.coarse_sem_seg_head = coarse_sem_seg_head
        self.window = pooling_window(coarse_sem_seg_head)
        self.point_head = point_head
        self.in_features = tuple(in_features)
        self.frame_stride = math.lcm(stride, *in_features.values())
        self.sampler = sampler
        self.steps = fitting
        self.points_per_step = points_per_step
        self.ignore_value = ignore_value
        self.uncertainty = uncertainty

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Read the arguments from a config; ``input_shape`` has the levels to choose from.

        The point head is configured by ``MODEL.SEM_SEG_HEAD.POINT_HEAD`` if that node has a
        ``NAME``, else by ``MODEL.POINT_HEAD``, which a panoptic model needs for its instances.
        """
        cfg = with_semantic_point_head(with_defaults(cfg))
        point = cfg.MODEL.POINT_HEAD
        missing = [name for name in point.IN_FEATURES if name not in input_shape]
        if missing or not point.IN_FEATURES:
            raise ValueError(
                f"MODEL.POINT_HEAD.IN_FEATURES is {tuple(point.IN_FEATURES)}: expected at least "
                f"one of the backbone's features, {sorted(input_shape)}"
            )
        name = point.COARSE_SEM_SEG_HEAD_NAME
        coarse_head = SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)
        check_coarse_head(coarse_head, name)
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if point.CLS_AGNOSTIC_MASK:
            raise ValueError(
                "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK is True: expected False for semantic "
                "segmentation, which needs a logit for every class"
            )
        point_head = build_point_head(
            cfg,
            ShapeSpec(channels=sum(input_shape[name].channels for name in point.IN_FEATURES)),
            num_classes=point_head_num_classes(cfg, num_classes, "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
        )
        check_own_parameters(point_head, cls.__name__)
        return {
            "coarse_sem_seg_head": coarse_head,
            "point_head": point_head,
            "in_features": {name: input_shape[name].stride for name in point.IN_FEATURES},
            "sampler": build_point_sampler(cfg),
            "steps": None if point.SUBDIVISION_STEPS == FITTING else point.SUBDIVISION_STEPS,
            "points_per_step": point.SUBDIVISION_NUM_POINTS,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def forward(
        self,
        features: Features,
        targets: Tensor | None = None,
        image_sizes: ImageSizes | None = None,
    ) -> tuple[Tensor | list[Tensor] | None, dict[str, Tensor]]:
        """Return losses in training, and logits in inference.

        Args:
            features: per level (N, C_l, H_l, W_l) of images padded to one size.
            targets: (N, height, width) labels of the padded images; in training only.
            image_sizes: per image its height and width before padding. If they are given, padding
                neither receives points nor blends into an image.

        Returns:
            None and ``loss_sem_seg``, ``loss_sem_seg_point``; or logits and no losses: (N, K,
            height, width) of the padded images, or with ``image_sizes`` a list of (K, height_i,
            width_i).

        Raises:
            ValueError: if a DeepLab head cannot average over images of this size.
        """
        self._check_window(features)
        coarse = coarse_logits(self.coarse_sem_seg_head, features)
        if self.training:
            assert targets is not None
            return None, self._losses(features, coarse, targets, image_sizes)
        coarse = coarse.contiguous()  # subdivision reads the map of one class after the other
        levels = [features[name] for name in self.in_features]
        if image_sizes is None:
            return self._render(levels, coarse), {}
        return [
            self._render_frame(levels, coarse, image, size)
            for image, size in enumerate(image_sizes)
        ], {}

    def sample_training_points(
        self, targets: Tensor, coarse_logits: Tensor, extent: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Draw training points and label them; override it for points of your own.

        Args:
            targets: (N, height, width) labels of the padded images.
            coarse_logits: (N, K, H, W), without gradient.
            extent: (N, 1, 2), the fraction of each padded image, along x and y from its corner,
                that is not padding; all of it if None.

        Returns:
            Points (N, P, 2) as ``coords_norm`` of the padded images, and their labels (N, P).
        """
        coords = self.sampler.sample(coarse_logits, self.uncertainty, extent=extent)
        return coords, sample_semantic_labels(targets, coords)

    def _check_window(self, features: Features) -> None:
        if self.window is None:
            return
        head = self.coarse_sem_seg_head
        cells = tuple(features[head.in_features[-1]].shape[-2:])  # type: ignore[index]
        if any(side % part for side, part in zip(cells, self.window, strict=True)):
            raise ValueError(
                f"{type(head).__name__} averages over windows of {self.window} cells, as many as "
                f"INPUT.CROP.SIZE has, but these images have {cells}: expected multiples of the "
                "window. In training, no image may be smaller than the crop (INPUT.MIN_SIZE_TRAIN, "
                "INPUT.CROP.SIZE); in inference, choose INPUT.MIN_SIZE_TEST so that both sides are "
                "multiples of it; or average over whole images with INPUT.CROP.ENABLED False"
            )

    def _losses(
        self, features: Features, coarse: Tensor, targets: Tensor, image_sizes: ImageSizes | None
    ) -> dict[str, Tensor]:
        # If all pixels are ignored, the mean of the coarse head would be 0 / 0.
        counted = (targets != self.ignore_value).any()
        countable = torch.where(counted, targets, torch.zeros_like(targets))
        coarse_losses = self.coarse_sem_seg_head.losses(  # type: ignore[operator]
            coarse.float(),
            countable,  # Detectron2's DeepLab heads resize them before the loss
        )
        losses = {name: loss * counted for name, loss in coarse_losses.items()}
        extent = None
        if image_sizes is not None:
            height, width = targets.shape[-2:]
            parts = [[[w / width, h / height]] for h, w in image_sizes]
            extent = torch.tensor(parts).to(coarse.device, non_blocking=True)
        coords, labels = self.sample_training_points(targets, coarse.detach(), extent)
        fine = concatenate_levels(
            [point_sample(features[name], coords) for name in self.in_features]
        )
        point_logits = self.point_head(fine, point_sample(coarse, coords))
        losses["loss_sem_seg_point"] = semantic_point_loss(point_logits, labels, self.ignore_value)
        return losses

    def _render(self, levels: Sequence[Tensor], coarse: Tensor) -> Tensor:
        fine = FineGrainedFeatures(levels, [1.0] * len(levels))
        num_points = self.steps * self.points_per_step
        bound = bind_point_head(self.point_head, fine, coarse.shape[0], num_points)
        return subdivide(
            coarse,
            bound.at(coarse),
            self.uncertainty,
            steps=self.steps,
            points_per_step=self.points_per_step,
        )

    def _render_frame(
        self, levels: Sequence[Tensor], coarse: Tensor, image: int, size: tuple[int, int]
    ) -> Tensor:
        """Render one image in its own frame: its size, rounded up to whole cells."""
        frame = [-(-side // self.frame_stride) * self.frame_stride for side in size]
        stride = 2**self.steps
        padded = [side * stride for side in coarse.shape[-2:]]

        def crop(level: Tensor) -> Tensor:
            rows, columns = (
                cells * side // full
                for cells, side, full in zip(level.shape[-2:], frame, padded, strict=True)
            )
            return level[image : image + 1, :, :rows, :columns]

        logits = self._render([crop(level) for level in levels], crop(coarse))
        return logits[0, :, : size[0], : size[1]]
