"""The cases of tools/benchmark.py: weights, inputs, and what runs on both sides."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    build_mask_head,
)
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn

from point_rend import get_config_file, load_config, stock_heads
from point_rend.experiments.benchmark.case import Case, Contest, Settings, mask_agreement
from point_rend.experiments.benchmark.random_inputs import (
    PYRAMID,
    PYRAMID_CHANNELS,
    detected_image,
    randomize,
    share_weights,
)

POINTREND = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
IMPLICIT = "InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml"
CONVOLUTIONAL = "InstanceSegmentation/mask_rcnn_R_50_FPN_1x_coco.yaml"
MASK_SIDE = 224


# Peak memory of the stock mask head over that of its float32 masks of all classes at full side.
STOCK_COPIES = 1.5


def instance_config(file: str, num_classes: int, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config of an instance model, with a number of classes that both sides understand."""
    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes)]
    if file != CONVOLUTIONAL:
        classes += ["MODEL.POINT_HEAD.NUM_CLASSES", str(num_classes)]
    return load_config(get_config_file(file), [*classes, *opts])


def mask_head_pair(file: str, num_classes: int, settings: Settings) -> tuple[nn.Module, nn.Module]:
    """Build our mask head and the stock project's with the same random weights."""
    shapes = {
        name: ShapeSpec(channels=PYRAMID_CHANNELS, stride=stride)
        for name, stride in PYRAMID.items()
    }
    ours = build_mask_head(instance_config(file, num_classes, settings.opts), shapes)
    with stock_heads():
        stock = build_mask_head(instance_config(file, num_classes), shapes)
    randomize(ours, torch.Generator().manual_seed(settings.seed))
    ours.to(settings.device).eval()
    share_weights(ours, stock)
    return ours, stock.to(settings.device).eval()


# Cases
def _stock_bytes(num_boxes: int, num_classes: int) -> int:
    """Estimate the peak memory of the stock mask head, which holds masks for every class."""
    return int(STOCK_COPIES * 4 * num_boxes * num_classes * MASK_SIDE**2)


def _mask_case(kind: str, file: str, num_boxes: int, num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        ours, stock = mask_head_pair(file, num_classes, settings)
        image = detected_image(num_boxes, num_classes, settings)
        return Contest(lambda: image.masks(ours), lambda: image.masks(stock), mask_agreement)

    return Case(
        name=f"{kind}, {num_boxes} × {num_classes}",
        parameters={"boxes": num_boxes, "classes": num_classes},
        rival="stock",
        build=build,
        rival_bytes=_stock_bytes(num_boxes, num_classes),
    )


def _grid(settings: Settings, boxes: Sequence[int], classes: Sequence[int]) -> list[Any]:
    """Combine numbers of boxes with numbers of classes, those of the command before others."""
    return [(n, k) for n in settings.boxes or boxes for k in settings.classes or classes]


def masks_cases(settings: Settings) -> list[Case]:
    """PointRend's mask head, over boxes × classes."""
    grid = _grid(settings, (1, 20, 100, 300), (1, 8, 80, 1203))
    return [_mask_case("mask head", POINTREND, n, k) for n, k in grid]


def implicit_cases(settings: Settings) -> list[Case]:
    """The implicit mask head, over boxes × classes."""
    grid = _grid(settings, (100,), (80,))
    return [_mask_case("implicit head", IMPLICIT, n, k) for n, k in grid]


def _convolutional_head(num_classes: int, settings: Settings) -> tuple[ROIPooler, nn.Module, list]:
    """Build Detectron2's convolutional mask head as its ROI heads do, with what pools for it."""
    cfg = instance_config(CONVOLUTIONAL, num_classes)
    head, names = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
    pooler = ROIPooler(
        output_size=head.POOLER_RESOLUTION,
        scales=[1 / PYRAMID[name] for name in names],
        sampling_ratio=head.POOLER_SAMPLING_RATIO,
        pooler_type=head.POOLER_TYPE,
    )
    side = head.POOLER_RESOLUTION
    module = build_mask_head(cfg, ShapeSpec(channels=PYRAMID_CHANNELS, width=side, height=side))
    randomize(module, torch.Generator().manual_seed(settings.seed))
    return pooler, module.to(settings.device).eval(), names


def _conv_case(num_boxes: int, num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        ours, _ = mask_head_pair(POINTREND, num_classes, settings)
        pooler, head, names = _convolutional_head(num_classes, settings)
        image = detected_image(num_boxes, num_classes, settings)

        def rival() -> Tensor:
            instances = image.instances()
            levels = [image.features[name] for name in names]
            pooled = pooler(levels, [x.pred_boxes for x in instances])
            return head(pooled, instances)[0].pred_masks

        return Contest(lambda: image.masks(ours), rival)

    return Case(
        name=f"mask head, {num_boxes} × {num_classes}",
        parameters={"boxes": num_boxes, "classes": num_classes},
        rival="4×conv 28×28",
        build=build,
    )


def conv_cases(settings: Settings) -> list[Case]:
    """PointRend at 224×224 against Detectron2's convolutional head at 28×28, pooling included."""
    return [_conv_case(n, k) for n, k in _grid(settings, (100,), (80,))]
