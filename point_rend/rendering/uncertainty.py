"""Class selection and uncertainty: from logits to one value per location.

Shapes: N regions, C channels (classes, or one), ``...`` any number of point or grid dimensions.
Larger uncertainties are less certain; only their order matters.
"""

from typing import Protocol

import torch
from torch import Tensor


class Uncertainty(Protocol):
    """A function that rates the locations of a map or the points of a set."""

    def __call__(self, logits: Tensor, /) -> Tensor:
        """Map (N, C, ...) logits to (N, 1, ...) uncertainties."""


def select_class_channel(values: Tensor, classes: Tensor) -> Tensor:
    """Select the channel of each region's class.

    Args:
        values: (N, C, ...), or (N, 1, ...) where the prediction is class-agnostic.
        classes: (N,) integers in [0, C).

    Returns:
        (N, 1, ...): the channel of the class, or the only channel.
    """
    if values.shape[1] == 1:
        return values
    index = classes.to(values.device, torch.int64).reshape(-1, *[1] * (values.dim() - 1))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def foreground_uncertainty(logits: Tensor, classes: Tensor | None = None) -> Tensor:
    """Rate binary predictions by the distance of their logit from zero.

    Args:
        logits: (N, C, ...) or class-agnostic (N, 1, ...).
        classes: (N,) the class of each region; not needed if C is 1.

    Returns:
        (N, 1, ...): ``-|logit|``, at most 0.

    Source: section 3.1 of the paper, which ranks points by the distance of p from 0.5.
    """
    if classes is not None:
        logits = select_class_channel(logits, classes)
    return logits.abs().neg_()


def top2_margin_uncertainty(logits: Tensor) -> Tensor:
    """Rate predictions of several classes by the margin between the two best classes.

    Args:
        logits: (N, C, ...). A single channel is a binary prediction, see
            :func:`foreground_uncertainty`.

    Returns:
        (N, 1, ...): the second largest logit minus the largest, at most 0.

    Source: section 4.2 of the paper.
    """
    if logits.shape[1] == 1:
        return foreground_uncertainty(logits)
    if logits.device.type == "cpu":
        best, second = _two_best_by_channel(logits)
    else:  # four launches, however many channels there are
        best, index = logits.max(dim=1, keepdim=True)
        second = logits.scatter(1, index, -torch.inf).amax(dim=1, keepdim=True)
    return second - best


def _two_best_by_channel(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two largest of the channels (N, C, ...), (N, 1, ...) each, without a copy.

    A CPU reads the channels once, where a top-k along them would jump between channels at every
    location.
    """
    first, other, *rest = logits.split(1, dim=1)
    best, second = torch.maximum(first, other), torch.minimum(first, other)
    for channel in rest:
        second = torch.maximum(second, torch.minimum(best, channel))
        best = torch.maximum(best, channel)
    return best, second


def label_map(logits: Tensor) -> Tensor:
    """Return the most likely class of each location: (K, ...) logits to (...) int64.

    On a CPU this is several times as fast as ``argmax`` over the first dimension.
    """
    return logits.max(dim=0).indices
