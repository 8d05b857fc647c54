"""Suppression of overlapping boxes: an operator for graphs, and its translations.

Shapes: B images, G groups of boxes (levels of a pyramid, or classes), N boxes of each group.
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import batched_nms, nms
from torch import Tensor

from point_rend.rendering.constants import is_tracing


@torch.library.custom_op("point_rend::nms_of_groups", mutates_args=())
def nms_of_groups(
    boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int, group_first: bool
) -> Tensor:
    """Choose the best boxes, without those that overlap a better one of their group.

    The choice is that of Detectron2's ``batched_nms``, image by image.

    Args:
        boxes: (B, G, N, 4), corners (x0, y0, x1, y1).
        scores: (B, G, N).
        iou: boxes overlap if their IoU is larger.
        threshold: only boxes of a larger score are chosen.
        most: largest number of boxes that are chosen of an image, at most G · N.
        group_first: of equal scores, that of the first group comes first, as in an image's list of
            boxes that is ordered by group; otherwise that of the first box.

    Returns:
        (B, most) indices g · N + n, int64, by descending score; −1 where there are fewer boxes.
    """
    num_images, _, num_boxes = scores.shape
    chosen = scores.new_full((num_images, most), -1, dtype=torch.int64)
    for image in range(num_images):
        groups, indices = _candidates(scores[image], threshold, group_first).unbind(1)
        of_image = boxes[image, groups, indices], scores[image, groups, indices]
        best = batched_nms(*of_image, groups, iou)[:most]
        chosen[image, : len(best)] = (groups * num_boxes + indices)[best]
    return chosen


@nms_of_groups.register_fake
def _(
    boxes: Tensor,  # noqa: ARG001 (the signature of the operator)
    scores: Tensor,
    iou: float,  # noqa: ARG001
    threshold: float,  # noqa: ARG001
    most: int,
    group_first: bool,  # noqa: ARG001
) -> Tensor:
    return scores.new_empty((scores.shape[0], most), dtype=torch.int64)


def choose_boxes(
    boxes: Tensor, scores: Tensor, *, iou: float, threshold: float, most: int, group_first: bool
) -> Tensor:
    """Call :func:`nms_of_groups`, or in a trace the equivalent operators of torchvision."""
    # PyTorch counts an export as tracing, too, but translates the operator afterwards.
    in_trace = is_tracing() and not torch.compiler.is_compiling()
    choose = nms_of_torchvision if in_trace else nms_of_groups
    return choose(boxes, scores, iou, threshold, most, group_first)


def nms_of_torchvision(
    boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int, group_first: bool
) -> Tensor:
    """Compute :func:`nms_of_groups` of boxes without negative coordinates, without a loop.

    Each group of each image is moved to a place of its own. Double precision makes this exact
    enough: only an IoU that equals the threshold up to rounding can be decided otherwise.
    """
    num_groups, num_boxes = scores.shape[1:]
    if not group_first:
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
    flat_scores = scores.flatten()
    found = (flat_scores > threshold).nonzero()[:, 0]
    per_image = num_groups * num_boxes
    image, place = found // per_image, found % per_image
    group = place // num_boxes if group_first else place % num_groups
    offset = (image * num_groups + group).double() * (boxes.max().double() + 1)
    apart = boxes.reshape(-1, 4).index_select(0, found).double() + offset[:, None]
    # The declared shape of torchvision's result excludes fewer than two boxes: these two are kept,
    # as the last ones.
    two = torch.arange(-8, 0, dtype=apart.dtype, device=apart.device).unflatten(0, (2, 4))
    lowest = flat_scores.new_full((2,), torch.finfo(scores.dtype).min)
    candidates = torch.cat((flat_scores.index_select(0, found), lowest))
    kept = found.index_select(0, nms(torch.cat((apart, two)), candidates.double(), iou)[:-2])
    # Boxes that are not kept score less than all others.
    none = torch.full_like(flat_scores, float("-inf"))
    remaining = none.scatter(0, kept, flat_scores.index_select(0, kept))
    best, chosen = remaining.unflatten(0, (-1, per_image)).sort(stable=True, dim=1, descending=True)
    best, chosen = best[:, :most], chosen[:, :most]
    if not group_first:
        chosen = chosen % num_groups * num_boxes + chosen // num_groups
    return chosen.masked_fill(best == float("-inf"), -1)


def _candidates(scores: Tensor, threshold: float, group_first: bool) -> Tensor:
    """Return the group and the index of each box, (M, 2), whose score (G, N) is large enough."""
    if group_first:
        return (scores > threshold).nonzero()
    return (scores.t() > threshold).nonzero().flip(1)


def translations_to_onnx() -> dict[Callable, Callable]:
    """Return the translation of the operator, as ``torch.onnx.export`` takes it."""
    import onnxscript

    op: Any = onnxscript.opset20

    def integers(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def translate(
        boxes: Any, scores: Any, iou: float, threshold: float, most: int, group_first: bool
    ) -> Any:
        num_groups, num_boxes = scores.shape[1], scores.shape[2]
        per_image = integers(-1, num_groups * num_boxes)
        # An entry of the batch for each group, with one class: groups have boxes of their own.
        chosen = op.NonMaxSuppression(
            op.Reshape(boxes, integers(-1, num_boxes, 4)),
            op.Reshape(scores, integers(-1, 1, num_boxes)),
            integers(min(most, num_boxes)),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[threshold]),
        )  # (M, 3): image · G + group, 0, index
        row, _, index = op.Split(chosen, axis=1, num_outputs=3)
        row, index = op.Reshape(row, integers(-1)), op.Reshape(index, integers(-1))
        source = place = op.Add(op.Mul(row, integers(num_boxes)), index)
        if not group_first:
            image, group = op.Div(row, integers(num_groups)), op.Mod(row, integers(num_groups))
            within = op.Add(op.Mul(index, integers(num_groups)), group)
            place = op.Add(op.Mul(image, integers(num_groups * num_boxes)), within)
        flat_scores = op.Reshape(scores, integers(-1))
        none = op.Expand(op.Constant(value_float=float("-inf")), op.Shape(flat_scores))
        remaining = op.ScatterElements(none, place, op.Gather(flat_scores, source))
        best, place = op.TopK(op.Reshape(remaining, per_image), integers(most), axis=1)
        if not group_first:
            index, group = op.Div(place, integers(num_groups)), op.Mod(place, integers(num_groups))
            place = op.Add(op.Mul(group, integers(num_boxes)), index)
        is_box = op.Greater(best, op.Constant(value_float=float("-inf")))
        return op.Where(is_box, place, integers(-1))

    return {torch.ops.point_rend.nms_of_groups.default: translate}
