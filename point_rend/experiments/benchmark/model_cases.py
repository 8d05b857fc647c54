"""Benchmark cases of whole models: from the image to pasted masks or the label map."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model, detector_postprocess
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import ImageList
from torch import Tensor, nn

from point_rend import stock_heads
from point_rend.experiments.benchmark.case import (
    Case,
    Comparison,
    label_agreement,
    mask_agreement,
)
from point_rend.experiments.benchmark.instance_cases import (
    POINTREND,
    boxes_and_classes,
    instance_configs,
    stock_bytes,
)
from point_rend.experiments.benchmark.random_inputs import (
    PYRAMID,
    Detections,
    random_image,
    randomize,
    share_weights,
)
from point_rend.experiments.benchmark.semantic_cases import semantic_configs
from point_rend.experiments.benchmark.settings import Settings
from point_rend.rendering.uncertainty import label_map

# Standard deviation of what a residual block of random weights adds: with 1 the features of a
# hundred layers would overflow half precision.
RESIDUAL_SCALE = 0.2


def model_cases(settings: Settings) -> list[Case]:
    """Return the cases of whole models, with the share of time of their heads.

    The box branch of the R50-FPN model does its ordinary work; then, on both sides, a given number
    of boxes replaces those that it found.
    """
    sizes = settings.sizes
    grid = boxes_and_classes(settings, (100,), (80,))
    return [
        *(_instance_model_case(n, k, sizes.instance_image) for n, k in grid),
        *(_semantic_model_case(k, sizes.semantic_image) for k in settings.classes or (19,)),
    ]


def model_pair(
    our_cfg: CfgNode, stock_cfg: CfgNode, head: str, image: Tensor, settings: Settings
) -> tuple[Any, Any]:
    """Build whole models with the same random weights, and features of standard deviation 1.

    Args:
        our_cfg, stock_cfg: Configs with an FPN as backbone.
        head: Name of the submodule that is randomized.
        image: Image (C, H, W) on which the features have that standard deviation.
        settings: Settings with the seed and the device.
    """
    for cfg in (our_cfg, stock_cfg):
        cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(settings.seed)
    ours = build_model(our_cfg).eval()
    for block in ours.backbone.modules():
        if isinstance(block, BottleneckBlock):
            block.conv3.weight.data *= RESIDUAL_SCALE
    with stock_heads():
        stock = build_model(stock_cfg).eval()
    with torch.no_grad():
        normalized = (image - ours.pixel_mean) / ours.pixel_std
        padded = ImageList.from_tensors([normalized], ours.backbone.size_divisibility)
        features = ours.backbone(padded.tensor)
        for level in PYRAMID:
            layer = ours.backbone.get_submodule(f"fpn_output{level.removeprefix('p')}")
            for parameter in layer.parameters():
                parameter /= features[level].std()
    randomize(ours.get_submodule(head), torch.Generator().manual_seed(settings.seed))
    ours.to(settings.device)
    share_weights(ours, stock)
    return ours, stock.to(settings.device)


def _instance_model_case(num_boxes: int, num_classes: int, image_size: tuple[int, int]) -> Case:
    def build(settings: Settings) -> Comparison:
        generator = torch.Generator().manual_seed(settings.seed)
        cfgs = instance_configs(POINTREND, num_classes, settings)
        image = random_image(image_size, generator, cfgs[0])
        ours, stock = model_pair(*cfgs, "roi_heads.mask_head", image, settings)
        detections = Detections.random(num_boxes, num_classes, image_size, generator)

        def replace_detections(_: nn.Module, inputs: tuple) -> tuple:
            return inputs[0], detections.instances(settings.device)

        def run(model: Any) -> Tensor:
            (result,) = model.inference([{"image": image}], do_postprocess=False)
            detector_postprocess(result, *image_size)
            return result.pred_masks

        heads = ours.roi_heads.mask_head, stock.roi_heads.mask_head
        for head in heads:
            head.register_forward_pre_hook(replace_detections)
        return Comparison(lambda: run(ours), lambda: run(stock), mask_agreement, heads)

    height, width = image_size
    return Case(
        name=f"R50-FPN model, {height}×{width}, {num_boxes} × {num_classes}",
        parameters={"boxes": num_boxes, "classes": num_classes},
        baseline="stock",
        build=build,
        baseline_bytes=stock_bytes(num_boxes, num_classes),
    )


def _semantic_model_case(num_classes: int, image_size: tuple[int, int]) -> Case:
    def build(settings: Settings) -> Comparison:
        generator = torch.Generator().manual_seed(settings.seed)
        our_cfg, stock_cfg = semantic_configs(num_classes, settings)
        image = random_image(image_size, generator, our_cfg)
        ours, stock = model_pair(our_cfg, stock_cfg, "sem_seg_head", image, settings)

        def our_run() -> tuple[Tensor, Tensor]:
            (result,) = ours([{"image": image}])
            return result["sem_seg"], label_map(result["sem_seg"])

        def stock_run() -> tuple[Tensor, Tensor]:
            (result,) = stock([{"image": image}])
            return result["sem_seg"], result["sem_seg"].argmax(dim=0)

        heads = ours.sem_seg_head, stock.sem_seg_head
        return Comparison(our_run, stock_run, label_agreement, heads)

    height, width = image_size
    return Case(
        name=f"R101 SemanticFPN model, {height}×{width}, {num_classes} classes",
        parameters={"classes": num_classes},
        baseline="stock",
        build=build,
    )
