"""Losses of masks and points, and accuracy at points: tensors in, tensors out.

Shapes: N regions, C channels, P points. A label of −1 marks a point that is ignored.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -1


def binary_mask_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross entropy, averaged over the cells of masks; at least one is needed.

    Args:
        logits: (N, ...).
        labels: (N, ...) in [0, 1].
    """
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def binary_point_loss(logits: Tensor, labels: Tensor, num_points: Tensor | None = None) -> Tensor:
    """Return the binary cross entropy, averaged over the points that are not ignored.

    Args:
        logits: (N, P).
        labels: (N, P) in [0, 1], soft values allowed, or −1 for ignored points.
        num_points: number to divide the sum by in place of the number of these points, a scalar.

    Returns:
        A scalar; 0, with a graph to ``logits``, if all points are ignored.
    """
    counted = labels != IGNORED_LABEL
    summed = F.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), weight=counted.float(), reduction="sum"
    )
    return summed / (counted.sum() if num_points is None else num_points).clamp(min=1)


def semantic_point_loss(logits: Tensor, labels: Tensor, ignore_value: int) -> Tensor:
    """Return the cross entropy over classes, averaged over the points that are not ignored.

    Args:
        logits: (N, C, P).
        labels: (N, P) int64 in [0, C), or ``ignore_value`` for ignored points.
        ignore_value: the label of ignored points.

    Returns:
        A scalar; 0, with a graph to ``logits``, if all points are ignored.
    """
    summed = F.cross_entropy(logits.float(), labels, ignore_index=ignore_value, reduction="sum")
    return summed / (labels != ignore_value).sum().clamp(min=1)


@torch.no_grad()
def binary_point_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of points, without ignored ones, that are classified correctly.

    Args:
        logits: (N, P); foreground above 0.
        labels: (N, P); foreground above 0.5, −1 for ignored points.

    Returns:
        A scalar in [0, 1]; 0 if all points are ignored.
    """
    counted = labels != IGNORED_LABEL
    correct = ((logits > 0) == (labels > 0.5)) & counted
    return correct.sum() / counted.sum().clamp(min=1)
