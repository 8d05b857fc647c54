"""Point heads: logits at points from features at points.

Shapes: N regions, P points, D channels of the fine-grained features, K channels of the coarse
prediction, C channels of the output (classes, or 1 if class-agnostic).
"""

import inspect
from collections.abc import Sequence
from typing import ClassVar

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from point_rend.config.defaults import with_defaults
from point_rend.ground_truth.losses import binary_point_accuracy, binary_point_loss
from point_rend.rendering.bound_head import (
    BindableHead,
    BoundImplicitHead,
    BoundPointHead,
    BoundStandardHead,
    SplitLayer,
)
from point_rend.rendering.dynamic_mlp import MLPLayout, apply_mlp, fourier_features
from point_rend.rendering.features import FineGrainedFeatures
from point_rend.rendering.sampling import PointSampler
from point_rend.rendering.uncertainty import select_class_channel
from point_rend.utils.removed_hooks import RemovedHooks

POINT_HEAD_REGISTRY = Registry("POINT_HEAD")
POINT_HEAD_REGISTRY.__doc__ = """
Point heads by name (``MODEL.POINT_HEAD.NAME``), called as ``head(cfg, input_shape)``.
``input_shape.channels`` is the number of channels of the fine-grained features;
``MODEL.POINT_HEAD.NUM_CLASSES`` has been resolved and is never −1.
"""

NUM_FREQUENCIES = 128  # of the implicit head's positional encoding


def _check_class_count(cfg: CfgNode) -> int:
    num_classes = cfg.MODEL.POINT_HEAD.NUM_CLASSES
    if num_classes < 1:
        raise ValueError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {num_classes}: a point head built on its own has no "
            "head to inherit the number from; set it, or use build_point_head"
        )
    return num_classes


@POINT_HEAD_REGISTRY.register()
class StandardPointHead(BindableHead):
    """A small MLP, shared by all points, over fine-grained features and the coarse prediction.

    Args:
        in_channels: D.
        coarse_channels: K.
        num_classes: C, 1 for class-agnostic masks.
        fc_dim: width of the hidden layers.
        num_fc: number of hidden layers.
        coarse_pred_each_layer: append the coarse prediction to the input of every layer instead of
            only the first.

    Raises:
        ValueError: if the number of layers is negative.

    Source: section 3.2 of the paper, "Point-wise representation and point head".
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        coarse_channels: int,
        num_classes: int,
        fc_dim: int = 256,
        num_fc: int = 3,
        coarse_pred_each_layer: bool = True,
    ) -> None:
        super().__init__()
        if num_fc < 0:
            raise ValueError(f"MODEL.POINT_HEAD.NUM_FC: expected 0 or more, got {num_fc}")
        self.num_fc = num_fc
        self.coarse_channels = coarse_channels
        self.coarse_pred_each_layer = coarse_pred_each_layer
        width = in_channels + coarse_channels
        # All layers are built before any is initialized: the order of the stock project's random
        # draws.
        for number in range(1, num_fc + 1):
            self.add_module(f"fc{number}", nn.Conv1d(width, fc_dim, kernel_size=1))
            width = fc_dim + (coarse_channels if coarse_pred_each_layer else 0)
        self.predictor = nn.Conv1d(width, num_classes, kernel_size=1)
        for layer in self.hidden_layers:
            weight_init.c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        assert self.predictor.bias is not None  # Conv1d has one by default
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Read the arguments from a config; ``input_shape.channels`` is D."""
        num_classes = _check_class_count(cfg)
        return {
            "in_channels": input_shape.channels,
            "coarse_channels": num_classes,
            "num_classes": 1 if cfg.MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK else num_classes,
            "fc_dim": cfg.MODEL.POINT_HEAD.FC_DIM,
            "num_fc": cfg.MODEL.POINT_HEAD.NUM_FC,
            "coarse_pred_each_layer": cfg.MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER,
        }

    @property
    def hidden_layers(self) -> list[nn.Conv1d]:
        """The layers before the predictor, in order."""
        return [self.get_submodule(f"fc{n}") for n in range(1, self.num_fc + 1)]  # type: ignore

    def forward(self, fine_grained_features: Tensor, coarse_features: Tensor) -> Tensor:
        """Map (N, D, P) and (N, K, P) to logits (N, C, P)."""
        x = torch.cat((fine_grained_features, coarse_features), dim=1)
        for layer in self.hidden_layers:
            x = F.relu(layer(x))
            if self.coarse_pred_each_layer:
                x = torch.cat((x, coarse_features), dim=1)
        return self.predictor(x)

    def split_layers(self) -> list[SplitLayer]:
        """Return the hidden layers and the predictor, by which rendering evaluates the head."""
        each, channels = self.coarse_pred_each_layer, self.coarse_channels
        return [
            SplitLayer.of(layer, channels if each or number == 0 else 0)
            for number, layer in enumerate([*self.hidden_layers, self.predictor])
        ]

    def bind(
        self, fine: FineGrainedFeatures, num_regions: int, points_per_region: int
    ) -> BoundPointHead:
        """Bind the head for rendering, see :func:`point_rend.bind_point_head`."""
        return BoundStandardHead(
            self.split_layers(),
            fine=fine,
            num_regions=num_regions,
            points_per_region=points_per_region,
        )


@POINT_HEAD_REGISTRY.register()
class ResidualPointHead(StandardPointHead):
    """A standard point head whose output is a correction, added to the coarse prediction.

    The last layer starts at zero: an untrained head returns the coarse prediction. All other
    weights, and the random numbers drawn, are those of :class:`StandardPointHead`, and so are the
    names and shapes of the parameters. The weights of one head are of no use to the other, though.

    Args:
        in_channels, fc_dim, num_fc, coarse_pred_each_layer: as for :class:`StandardPointHead`.
        coarse_channels: K; C, or 1 for a class-agnostic coarse prediction, to which the correction
            of every class is added.
        num_classes: C, 1 for class-agnostic masks.

    Raises:
        ValueError: if K is neither C nor 1, or the number of layers is negative.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        coarse_channels: int,
        num_classes: int,
        fc_dim: int = 256,
        num_fc: int = 3,
        coarse_pred_each_layer: bool = True,
    ) -> None:
        if coarse_channels not in (1, num_classes):
            raise ValueError(
                f"ResidualPointHead: a correction with {num_classes} channel(s) cannot be added to "
                f"a coarse prediction with {coarse_channels}: expected as many. Set "
                "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK to False, or, for one mask for all classes, "
                "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK to True, too"
            )
        super().__init__(
            in_channels=in_channels,
            coarse_channels=coarse_channels,
            num_classes=num_classes,
            fc_dim=fc_dim,
            num_fc=num_fc,
            coarse_pred_each_layer=coarse_pred_each_layer,
        )
        nn.init.zeros_(self.predictor.weight)

    def forward(self, fine_grained_features: Tensor, coarse_features: Tensor) -> Tensor:
        """Map (N, D, P) and (N, K, P) to logits (N, C, P)."""
        return coarse_features + super().forward(fine_grained_features, coarse_features)

    def split_layers(self) -> list[SplitLayer]:
        """Return the layers with the addition as a part of the predictor."""
        *hidden, predictor = super().split_layers()
        return [*hidden, predictor.adding_coarse(self.coarse_channels)]

    bind = StandardPointHead.bind  # it evaluates split_layers, and so fits the forward above


@POINT_HEAD_REGISTRY.register()
class ImplicitPointHead(RemovedHooks, BindableHead):
    """An MLP per instance, with predicted weights, over features and encoded positions.

    ``num_params`` is the length of the parameter vector of an instance.

    Args:
        in_channels: D.
        num_classes: C, 1 for class-agnostic masks.
        fc_dim: width of the hidden layers.
        num_fc: number of hidden layers.
        image_feature_enabled: read the fine-grained features.
        positional_encoding_enabled: read the position in the box, as Fourier features.

    Raises:
        ValueError: if both inputs are off, or there is no hidden layer.

    Source: Cheng, Parkhi, Kirillov, "Pointly-Supervised Instance Segmentation", section 5.
    """

    REMOVED: ClassVar = {"_dynamic_mlp": "forward", "_parse_params": "forward"}

    positional_encoding_gaussian_matrix: Tensor

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        fc_dim: int = 256,
        num_fc: int = 3,
        image_feature_enabled: bool = True,
        positional_encoding_enabled: bool = True,
    ) -> None:
        super().__init__()
        if not (image_feature_enabled or positional_encoding_enabled):
            raise ValueError(
                "MODEL.IMPLICIT_POINTREND: IMAGE_FEATURE_ENABLED and POS_ENC_ENABLED are both "
                "False, which leaves the point head without input; expected at least one True"
            )
        if num_fc < 1:
            raise ValueError(f"MODEL.POINT_HEAD.NUM_FC: expected at least 1, got {num_fc}")
        self.image_feature_enabled = image_feature_enabled
        self.positional_encoding_enabled = positional_encoding_enabled
        if positional_encoding_enabled:
            self.register_buffer(
                "positional_encoding_gaussian_matrix", torch.randn(2, NUM_FREQUENCIES)
            )
        self.layout = MLPLayout(
            in_channels=in_channels * image_feature_enabled
            + 2 * NUM_FREQUENCIES * positional_encoding_enabled,
            hidden_channels=fc_dim,
            out_channels=num_classes,
            num_hidden=num_fc,
        )
        self.num_params = self.layout.num_parameters

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Read the arguments from a config; ``input_shape.channels`` is D."""
        num_classes = _check_class_count(cfg)
        return {
            "in_channels": input_shape.channels,
            "num_classes": 1 if cfg.MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK else num_classes,
            "fc_dim": cfg.MODEL.POINT_HEAD.FC_DIM,
            "num_fc": cfg.MODEL.POINT_HEAD.NUM_FC,
            "image_feature_enabled": cfg.MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED,
            "positional_encoding_enabled": cfg.MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED,
        }

    def forward(
        self, fine_grained_features: Tensor, point_coords: Tensor, parameters: Tensor
    ) -> Tensor:
        """Map features (N, D, P), ``coords_box`` (N, P, 2) and parameters to logits (N, C, P)."""
        inputs = []
        if self.positional_encoding_enabled:
            inputs.append(fourier_features(point_coords, self.positional_encoding_gaussian_matrix))
        if self.image_feature_enabled:
            inputs.append(fine_grained_features.transpose(1, 2))
        logits = apply_mlp(torch.cat(inputs, dim=2), *self.layout.split(parameters))
        return logits.transpose(1, 2)

    def bind(
        self, fine: FineGrainedFeatures, num_regions: int, points_per_region: int
    ) -> BoundPointHead:
        """Bind the head for rendering, see :func:`point_rend.bind_point_head`."""
        has_positions = self.positional_encoding_enabled
        return BoundImplicitHead(
            self.layout,
            frequencies=self.positional_encoding_gaussian_matrix if has_positions else None,
            fine=fine if self.image_feature_enabled else None,
            num_regions=num_regions,
            points_per_region=points_per_region,
        )


def check_own_parameters(point_head: nn.Module, user: str) -> None:
    """Refuse a point head with predicted parameters for a head that predicts none.

    Args:
        point_head: the point head.
        user: name of the head that uses it.

    Raises:
        ValueError: if the point head has ``num_params``.
    """
    if hasattr(point_head, "num_params"):
        raise ValueError(
            f"MODEL.POINT_HEAD.NAME is {type(point_head).__name__}, whose parameters must be "
            "predicted by MODEL.ROI_MASK_HEAD.NAME ImplicitPointRendMaskHead: expected another "
            f"point head for {user}"
        )


def roi_mask_point_loss(
    mask_logits: Tensor,
    instances: Sequence[Instances],
    point_labels: Tensor,
    *,
    num_points: Tensor | None = None,
    accuracy_name: str = "point/accuracy",
) -> Tensor:
    """Return the point loss of the ground-truth classes, and log the accuracy.

    Args:
        mask_logits: (N, C, P) or class-agnostic (N, 1, P).
        instances: per image its regions with ``gt_classes``; N in total.
        point_labels: (N, P) in [0, 1], or −1 for ignored points.
        num_points: as of :func:`binary_point_loss`.
        accuracy_name: name of the accuracy in the log.

    Returns:
        A scalar: binary cross entropy averaged over the points that are not ignored.
    """
    if mask_logits.shape[1] > 1:
        classes = torch.cat(
            [x.gt_classes for x in instances if len(x)] or [mask_logits.new_zeros(0)]
        )
        mask_logits = select_class_channel(mask_logits, classes)
    logits = mask_logits[:, 0]
    if has_event_storage() and point_labels.numel() > 0:
        accuracy = binary_point_accuracy(logits, point_labels)
        get_event_storage().put_scalar(accuracy_name, accuracy.item())
    return binary_point_loss(logits, point_labels, num_points)


def build_point_sampler(cfg: CfgNode) -> PointSampler:
    """Build the training sampler that ``MODEL.POINT_HEAD`` describes."""
    point = with_defaults(cfg).MODEL.POINT_HEAD
    return PointSampler(
        num_points=point.TRAIN_NUM_POINTS,
        oversample_ratio=point.OVERSAMPLE_RATIO,
        importance_sample_ratio=point.IMPORTANCE_SAMPLE_RATIO,
        on_regular_grid=point.TRAIN_ON_REGULAR_GRID,
    )


def build_point_head(
    cfg: CfgNode,
    input_shape: ShapeSpec,
    *,
    num_classes: int | None = None,
    coarse_channels: int | None = None,
) -> nn.Module:
    """Build the point head that ``MODEL.POINT_HEAD.NAME`` names.

    Args:
        cfg: the config, which is not changed.
        input_shape: ``channels`` is the number of channels of the fine-grained features.
        num_classes: replaces ``MODEL.POINT_HEAD.NUM_CLASSES``.
        coarse_channels: K, if it is not the number of classes.

    Raises:
        ValueError: if no head has that name, or the head does not take that K.
    """
    if num_classes is not None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = num_classes
    name = cfg.MODEL.POINT_HEAD.NAME
    if name not in POINT_HEAD_REGISTRY:
        known = ", ".join(sorted(known for known, _ in POINT_HEAD_REGISTRY))
        raise ValueError(f"MODEL.POINT_HEAD.NAME is {name!r}: expected one of {known}")
    head_class = POINT_HEAD_REGISTRY.get(name)
    if coarse_channels is None:
        return head_class(cfg, input_shape)
    if "coarse_channels" not in inspect.signature(head_class).parameters:
        raise ValueError(
            f"MODEL.POINT_HEAD.NAME is {name}, which expects a coarse prediction per class, but "
            f"this one has {coarse_channels} channel(s): set MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK "
            "to False"
        )
    return head_class(cfg, input_shape, coarse_channels=coarse_channels)
