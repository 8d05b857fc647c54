"""Costs of the heads of a config: FLOPs, activations, parameters and points (the paper's Table 2).

FLOPs are multiply-adds. Sizes are (height, width) in pixels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from point_rend import PointRendSemSegHead, SubdivisionPlan, load_config
from point_rend.config.checks import check_config
from point_rend.config.loading import COMMAND_LINE
from point_rend.config.trial import check_model
from point_rend.experiments.operation_counts import Count, count, count_parameters
from point_rend.experiments.part_costs import count_masks, part_costs
from point_rend.mask_head import ImplicitPointRendMaskHead, PointRendMaskHead
from point_rend.semantic_seg import coarse_logits

CONV_SIDES = (28, 224)  # of the masks of the 4×conv head in Table 2
# If not all boxes got all points, the cost would depend on their sizes.
OVERRIDES = (
    *("MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL", "0.0"),
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
)


@dataclass(frozen=True)
class Cost:
    """A line of the table.

    Attributes:
        head: Name of the head.
        output: Size of its output.
        multiply_adds: Per box or per image.
        activations: Per box or per image.
        activations_at_once: Activations of the coarse head and the largest step alone, which agree
            with the paper's number; None where steps share their work.
        parameters: Parameters of the head in training.
        points: Points at which a point head is evaluated, per box or per image.
    """

    head: str
    output: tuple[int, int]
    multiply_adds: int
    activations: int
    activations_at_once: int | None
    parameters: int
    points: int = 0


def analyze(
    config_file: str, opts: Sequence[str], image: tuple[int, int], num_boxes: int | None = None
) -> dict[str, Any]:
    """Count the heads of a config.

    Args:
        config_file: Config of the model.
        opts: Keys and values that override it.
        image: Size of an image before the resizing of the config.
        num_boxes: Boxes per image; by default as many as the config keeps.

    Returns:
        ``image``, its size as the model sees it; ``parameters`` of the model; ``boxes``;
        ``parts`` of the model, for one image; ``per_box`` and ``per_image``, lists of
        :class:`Cost`, empty without such a head;
        ``points_per_image`` of all heads together.

    Raises:
        ValueError: If the model has neither masks nor a semantic head, or if ``num_boxes`` or a
            side of the image is not positive.
    """
    if min(image) < 1:
        raise ValueError(f"--image: expected a height and a width of 1 or more, got {image}")
    cfg = load_config(config_file, [*opts, *OVERRIDES], opts_source=COMMAND_LINE)
    check_config(cfg, training=False)
    check_model(cfg, training=False)
    num_boxes = cfg.TEST.DETECTIONS_PER_IMAGE if num_boxes is None else num_boxes
    if num_boxes < 1:
        raise ValueError(f"--boxes: expected 1 or more, got {num_boxes}")
    # Some initializations draw until all values fit: they need a device that stores nothing, on
    # which in turn nothing can be counted that depends on boxes.
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).eval()
    with FakeTensorMode(), torch.no_grad():
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        mask_head = getattr(getattr(model, "roi_heads", None), "mask_head", None)
        semantic_head = getattr(model, "sem_seg_head", None)
        size = _size_in_model(cfg, image, model.backbone, getattr(semantic_head, "frame_stride", 1))
        shapes = model.backbone.output_shape()
        features = {
            name: torch.zeros(1, shape.channels, *(-(-side // shape.stride) for side in size))
            for name, shape in shapes.items()
        }
        found = found_objects(size, num_boxes)
        masks = count_masks(getattr(model, "roi_heads", None), features, found)
        parts = part_costs(model, features, found, masks)
        per_box, per_image = [], []
        if mask_head is not None:
            channels = shapes[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
            agnostic = cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
            num_classes = 1 if agnostic else cfg.MODEL.ROI_HEADS.NUM_CLASSES
            per_box += [conv_head_cost(channels, num_classes, side) for side in CONV_SIDES]
        if isinstance(mask_head, (PointRendMaskHead, ImplicitPointRendMaskHead)) and masks:
            per_box += mask_head_costs(mask_head, masks, num_boxes)
        if semantic_head is not None:
            per_image += semantic_head_costs(semantic_head, features, size)
    if not per_box and not per_image:
        raise ValueError(f"{config_file}: expected a mask head or a semantic head, found neither")
    points = num_boxes * max((cost.points for cost in per_box), default=0)
    points += per_image[-1].points if per_image else 0
    return {
        "image": size,
        "parameters": count_parameters(model),
        "boxes": num_boxes,
        "points_per_image": points,
        "parts": parts,
        "per_box": per_box,
        "per_image": per_image,
    }


def _size_in_model(
    cfg: CfgNode, image: tuple[int, int], backbone: Backbone, frame_stride: int
) -> tuple[int, int]:
    """Return the size of an image after the resizing of the config and the padding of the model."""
    square = backbone.padding_constraints.get("square_size", 0)
    if square:
        return square, square
    divisor = math.lcm(backbone.size_divisibility or 1, frame_stride)
    short_side = cfg.INPUT.MIN_SIZE_TEST
    resized = image
    if short_side:
        resized = ResizeShortestEdge.get_output_shape(*image, short_side, cfg.INPUT.MAX_SIZE_TEST)
    height, width = (-(-side // divisor) * divisor for side in resized)
    return height, width


def conv_head_cost(in_channels: int, num_classes: int, side: int) -> Cost:
    """Count Mask R-CNN's head of four convolutions for masks of a side."""
    shape = ShapeSpec(channels=in_channels, height=side // 2, width=side // 2)
    head = MaskRCNNConvUpsampleHead(shape, num_classes=num_classes, conv_dims=[256] * 5)
    grid = torch.zeros(1, in_channels, side // 2, side // 2)
    cost = count(head.layers, grid)
    return Cost("4×conv", (side, side), *cost, cost.activations, count_parameters(head))


def mask_head_costs(
    head: PointRendMaskHead | ImplicitPointRendMaskHead, per_image: Count, num_boxes: int
) -> list[Cost]:
    """Count a mask head per box: its coarse part, and the whole head in both forms.

    Args:
        head: The head, in evaluation mode.
        per_image: Cost of all masks of an image, as of :func:`count_masks`.
        num_boxes: Boxes in the image, which share what is computed once per image.
    """
    if isinstance(head, ImplicitPointRendMaskHead):
        name, coarse_head, point_head = "parameter head", head.parameter_head, head.point_head
        renderer, reader = head.renderer, head.point_reader
    else:
        name, coarse_head, point_head = "coarse head", head.coarse_head, head.point_head
    pooler_side = head.coarse_pooler_side
    grid = torch.zeros(1, head.coarse_reader.channels, pooler_side, pooler_side)
    cost, coarse = count(coarse_head, grid), coarse_head(grid)
    size = (coarse.shape[2], coarse.shape[3]) if coarse.dim() == 4 else (1, coarse.shape[1])
    costs = [Cost(name, size, *cost, cost.activations, count_parameters(coarse_head))]
    if isinstance(head, PointRendMaskHead):
        if head.refinement is None:
            return costs
        renderer, reader = head.refinement.renderer, head.refinement.reader
    assert point_head is not None  # given with the refinement

    def inputs_at(points: int) -> tuple[Tensor, ...]:
        fine = torch.zeros(1, reader.channels, points)
        if coarse.dim() == 4:
            return fine, torch.zeros(1, coarse.shape[1], points)
        return fine, torch.zeros(1, points, 2), coarse

    side = renderer.plan.output_side
    points = points_of_steps(renderer.plan)
    by_definition = _definition_cost(costs[0], point_head, (side, side), inputs_at, points)

    per_box = Count(*(round(number / num_boxes) for number in per_image))
    rendered = Cost(
        f"PointRend, as rendered for {num_boxes} boxes",
        (side, side),
        *per_box,
        None,
        by_definition.parameters,
        by_definition.points,
    )
    return [*costs, by_definition, rendered]


def found_objects(image_size: tuple[int, int], number: int) -> Instances:
    """Return boxes of an image with their classes, of which only the number matters."""
    found = Instances(image_size)
    found.pred_boxes = Boxes(torch.zeros(number, 4))
    found.pred_classes = torch.zeros(number, dtype=torch.int64)
    return found


def semantic_head_costs(
    head: nn.Module, features: Mapping[str, Tensor], image_size: tuple[int, int]
) -> list[Cost]:
    """Count a semantic head per image.

    Args:
        head: The head in evaluation mode: PointRend's, or one that could be its coarse head.
        features: Features of one image by level.
        image_size: Size of the image, a multiple of all strides.
    """
    coarse_head = head.coarse_sem_seg_head if isinstance(head, PointRendSemSegHead) else head

    cost, logits = count(coarse_logits, coarse_head, features), coarse_logits(coarse_head, features)
    size = (logits.shape[2], logits.shape[3])
    coarse = Cost("coarse head", size, *cost, cost.activations, count_parameters(coarse_head))
    if not isinstance(head, PointRendSemSegHead):
        return [coarse]

    channels = sum(features[name].shape[1] for name in head.in_features)

    def inputs_at(points: int) -> tuple[Tensor, ...]:
        fine = torch.zeros(1, channels, points)
        return fine, torch.zeros(1, logits.shape[1], points)

    def cost_at(points: Sequence[int]) -> Cost:
        return _definition_cost(coarse, head.point_head, image_size, inputs_at, points)

    cells = [size[0] * size[1] * 4**step for step in range(1, head.steps + 1)]
    by_definition = cost_at([min(number, head.points_per_step) for number in cells])
    everywhere = cost_at([math.prod(image_size)])
    rendered = Cost(
        "PointRend, as rendered",
        image_size,
        *count(head, features),
        None,
        by_definition.parameters,
        by_definition.points,
    )
    everywhere = replace(everywhere, head="point head at every pixel")
    return [coarse, everywhere, by_definition, rendered]


def _definition_cost(
    coarse: Cost,
    point_head: nn.Module,
    output: tuple[int, int],
    inputs_at: Callable[[int], tuple[Tensor, ...]],
    points: Sequence[int],
) -> Cost:
    """Add to a coarse head the whole point head at the points of all steps."""
    of_coarse = Count(coarse.multiply_adds, coarse.activations)
    total = of_coarse + count(point_head, *inputs_at(sum(points)))
    at_once = of_coarse + count(point_head, *inputs_at(max(points)))
    parameters = coarse.parameters + count_parameters(point_head)
    name = "PointRend, all layers at every point"
    return Cost(name, output, *total, at_once.activations, parameters, sum(points))


def points_of_steps(plan: SubdivisionPlan) -> list[int]:
    """Return the points of a box in the first grid and in each step."""
    sides = [plan.start_side * 2**step for step in range(1, plan.steps + 1)]
    return [plan.start_side**2, *(min(side**2, plan.points_per_step) for side in sides)]
