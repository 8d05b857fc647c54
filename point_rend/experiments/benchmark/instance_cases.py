"""Benchmark cases of the mask heads: ours against the stock heads and the convolutional head.

Shapes: N boxes, K classes, S side of a mask.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn

from point_rend import get_config_file, load_config, stock_heads
from point_rend.config.loading import COMMAND_LINE
from point_rend.experiments.benchmark.case import Case, Comparison, mask_agreement
from point_rend.experiments.benchmark.random_inputs import (
    PYRAMID,
    DetectedImage,
    pyramid_shapes,
    randomize,
    share_weights,
)
from point_rend.experiments.benchmark.settings import Settings

POINTREND = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
IMPLICIT = "InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml"
CONVOLUTIONAL = "InstanceSegmentation/mask_rcnn_R_50_FPN_1x_coco.yaml"
MASK_SIDE = 224
# Peak memory of the stock mask head, relative to its float32 masks (N, K, S, S) of all classes.
STOCK_COPIES = 1.5


def masks_cases(settings: Settings) -> list[Case]:
    """Return the cases of PointRend's mask head, over boxes × classes."""
    grid = boxes_and_classes(settings, (1, 20, 100, 300), (1, 8, 80, 1203))
    return [_mask_case("mask head", POINTREND, n, k) for n, k in grid]


def implicit_cases(settings: Settings) -> list[Case]:
    """Return the cases of the implicit mask head, over boxes × classes."""
    grid = boxes_and_classes(settings, (100,), (80,))
    return [_mask_case("implicit head", IMPLICIT, n, k) for n, k in grid]


def conv_cases(settings: Settings) -> list[Case]:
    """Return the cases of PointRend at 224×224 against the convolutional head at 28×28."""
    return [_conv_case(n, k) for n, k in boxes_and_classes(settings, (100,), (80,))]


def boxes_and_classes(
    settings: Settings, boxes: Sequence[int], classes: Sequence[int]
) -> list[tuple[int, int]]:
    """Combine numbers of boxes and classes; those of the settings replace the given ones."""
    return [(n, k) for n in settings.boxes or boxes for k in settings.classes or classes]


def stock_bytes(num_boxes: int, num_classes: int) -> int:
    """Estimate the peak memory of the stock mask head, which keeps masks of every class."""
    return int(STOCK_COPIES * 4 * num_boxes * num_classes * MASK_SIDE**2)


def instance_config(file: str, num_classes: int, opts: Sequence[str] = ()) -> CfgNode:
    """Read the config of an instance model."""
    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes)]
    return load_config(get_config_file(file), [*classes, *opts], opts_source=COMMAND_LINE)


def instance_configs(
    file: str, num_classes: int, settings: Settings, opts: Sequence[str] = ()
) -> tuple[CfgNode, CfgNode]:
    """Read our config of an instance model and the stock project's, with more options for both."""
    shared = [*settings.shared_opts, *opts]
    return (
        instance_config(file, num_classes, [*shared, *settings.opts]),
        instance_config(file, num_classes, shared),
    )


def mask_head_pair(file: str, num_classes: int, settings: Settings) -> tuple[nn.Module, nn.Module]:
    """Build our mask head and the stock project's with the same random weights."""
    our_cfg, stock_cfg = instance_configs(file, num_classes, settings)
    shapes = pyramid_shapes(settings)
    ours = build_mask_head(our_cfg, shapes)
    with stock_heads():
        stock = build_mask_head(stock_cfg, shapes)
    randomize(ours, torch.Generator().manual_seed(settings.seed))
    ours.to(settings.device).eval()
    share_weights(ours, stock)
    return ours, stock.to(settings.device).eval()


def _mask_case(kind: str, file: str, num_boxes: int, num_classes: int) -> Case:
    def build(settings: Settings) -> Comparison:
        ours, stock = mask_head_pair(file, num_classes, settings)
        image = DetectedImage.random(num_boxes, num_classes, settings)
        return Comparison(lambda: image.masks(ours), lambda: image.masks(stock), mask_agreement)

    return Case(
        name=f"{kind}, {num_boxes} × {num_classes}",
        parameters={"boxes": num_boxes, "classes": num_classes},
        baseline="stock",
        build=build,
        baseline_bytes=stock_bytes(num_boxes, num_classes),
    )


def _conv_case(num_boxes: int, num_classes: int) -> Case:
    def build(settings: Settings) -> Comparison:
        ours, _ = mask_head_pair(POINTREND, num_classes, settings)
        pooler, head, levels = _convolutional_head(num_classes, settings)
        image = DetectedImage.random(num_boxes, num_classes, settings)

        def baseline() -> Tensor:
            instances = image.instances()
            features = [image.features[name] for name in levels]
            pooled = pooler(features, [x.pred_boxes for x in instances])
            return head(pooled, instances)[0].pred_masks

        return Comparison(lambda: image.masks(ours), baseline)

    return Case(
        name=f"mask head, {num_boxes} × {num_classes}",
        parameters={"boxes": num_boxes, "classes": num_classes},
        baseline="4×conv 28×28",
        build=build,
    )


def _convolutional_head(
    num_classes: int, settings: Settings
) -> tuple[ROIPooler, nn.Module, list[str]]:
    """Build Detectron2's convolutional mask head and its pooler, as its ROI heads do.

    Returns:
        The pooler, the head and the names of the feature levels.
    """
    cfg = instance_config(CONVOLUTIONAL, num_classes, settings.shared_opts)
    head, levels = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
    side = head.POOLER_RESOLUTION
    pooler = ROIPooler(
        output_size=side,
        scales=[1 / PYRAMID[name] for name in levels],
        sampling_ratio=head.POOLER_SAMPLING_RATIO,
        pooler_type=head.POOLER_TYPE,
    )
    channels = settings.sizes.pyramid_channels
    module = build_mask_head(cfg, ShapeSpec(channels=channels, width=side, height=side))
    randomize(module, torch.Generator().manual_seed(settings.seed))
    return pooler, module.to(settings.device).eval(), levels
