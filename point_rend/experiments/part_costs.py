"""Costs of the parts of a whole model for one image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn

from point_rend.experiments.operation_counts import Count, count, count_parameters


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        part: Its name.
        multiply_adds, activations: Per image.
        parameters: Its parameters.
    """

    part: str
    multiply_adds: int
    activations: int
    parameters: int


def part_costs(
    model: Any, features: Mapping[str, Tensor], found: Instances, masks: Count | None
) -> list[Part]:
    """Count the backbone with its pyramid, the proposals, the boxes, the masks, the semantic head.

    Args:
        model: The model, in evaluation mode.
        features: Features of one image by level.
        found: Boxes and classes of the image, whose masks are rendered.
        masks: Cost of their masks, as of :func:`count_masks`; None without a mask head.

    Returns:
        The parts that the model has. Pooling, suppression and pasting are free.
    """
    image = torch.zeros(1, len(model.pixel_mean), *found.image_size)
    parts = [_part("backbone, pyramid", count(model.backbone, image), model.backbone)]
    rpn, heads = getattr(model, "proposal_generator", None), getattr(model, "roi_heads", None)
    if isinstance(rpn, RPN):
        levels = [features[name] for name in rpn.in_features]
        parts.append(_part("proposals", count(rpn.rpn_head, levels), rpn))
    if isinstance(heads, StandardROIHeads):
        number = rpn.post_nms_topk[False] if isinstance(rpn, RPN) else len(found)
        pooled = _pooled(heads.box_pooler, heads.box_in_features, features, number)
        is_cascade = isinstance(heads.box_head, nn.ModuleList)
        stages = nn.ModuleList([heads.box_head, heads.box_predictor])
        cost = Count(0, 0)
        for head, predictor in zip(*stages, strict=True) if is_cascade else [stages]:
            cost += count(head, pooled) + count(predictor, head(pooled))
        parts.append(_part(f"boxes of {number} proposals", cost, stages))
        if masks is not None:
            parts.append(_part(f"masks of {len(found)} boxes", masks, heads.mask_head))
        if heads.keypoint_on:
            head = heads.keypoint_head
            pooled = _pooled(
                heads.keypoint_pooler, heads.keypoint_in_features, features, len(found)
            )
            parts.append(
                _part(f"keypoints of {len(found)} boxes", count(head.layers, pooled), head)
            )
    semantic_head = getattr(model, "sem_seg_head", None)
    if semantic_head is not None:
        parts.append(_part("semantic logits", count(semantic_head, features), semantic_head))
    return parts


def count_masks(heads: Any, features: Mapping[str, Tensor], found: Instances) -> Count | None:
    """Count the masks of an image, after the pooling of a head that does not pool itself.

    Args:
        heads: ROI heads with or without masks.
        features: Features of one image by level.
        found: Boxes and classes of the image.

    Returns:
        The cost; None without a mask head.
    """
    if not getattr(heads, "mask_on", False):
        return None
    if heads.mask_pooler is None:
        return count(heads.mask_head, features, [found])
    pooled = _pooled(heads.mask_pooler, heads.mask_in_features, features, len(found))
    return count(heads.mask_head.layers, pooled)


def _pooled(
    pooler: Any, levels: Sequence[str], features: Mapping[str, Tensor], number: int
) -> Tensor:
    return torch.zeros(number, features[levels[0]].shape[1], *pooler.output_size)


def _part(name: str, cost: Count, module: nn.Module) -> Part:
    return Part(name, *cost, count_parameters(module))
