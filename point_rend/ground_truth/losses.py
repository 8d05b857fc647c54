"""Losses and measures on points: tensors in, tensors out.

Shapes: N regions, C channels, P points. A label of −1 marks a point that does not count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -1


def binary_point_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross entropy, averaged over the points that count.

    Args:
        logits: (N, P).
        labels: (N, P) in [0, 1], soft values allowed, or −1 for points to leave out.

    Returns:
        A scalar; 0, with a graph to ``logits``, where no point counts.
    """
    counted = labels != IGNORED_LABEL
    summed = F.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), weight=counted.float(), reduction="sum"
    )
    return summed / counted.sum().clamp(min=1)


def semantic_point_loss(logits: Tensor, labels: Tensor, ignore_value: int) -> Tensor:
    """Return the cross entropy over classes, averaged over the points that count.

    Args:
        logits: (N, C, P).
        labels: (N, P) int64 in [0, C), or ``ignore_value`` for points to leave out.
        ignore_value: the label of points that do not count.

    Returns:
        A scalar; 0, with a graph to ``logits``, where no point counts.
    """
    summed = F.cross_entropy(logits.float(), labels, ignore_index=ignore_value, reduction="sum")
    return summed / (labels != ignore_value).sum().clamp(min=1)


@torch.no_grad()
def binary_point_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of counted points on the right side of the threshold.

    Args:
        logits: (N, P); foreground above 0.
        labels: (N, P); foreground above 0.5, −1 for points to leave out.

    Returns:
        A scalar in [0, 1]; 0 where no point counts.
    """
    counted = labels != IGNORED_LABEL
    right = ((logits > 0) == (labels > 0.5)) & counted
    return right.sum() / counted.sum().clamp(min=1)
