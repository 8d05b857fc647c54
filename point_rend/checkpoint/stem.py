"""Weights of a first convolution for images with another number of channels.

A backbone that was trained on colors is the usual start for models of gray, infrared or further
channels. Its first convolution is the only layer that sees their number.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from point_rend.checkpoint.shapes import FIRST_CONVOLUTION, OF_TIMM

COLORS = 3


def fit_stem(state: dict[str, Any], in_model: Mapping[str, Tensor]) -> list[tuple[str, int, int]]:
    """Fit the first convolution in a checkpoint to the number of channels of a model.

    Args:
        state: Parameters of the file, by the model's names; changed in place.
        in_model: Parameters of the model.

    Returns:
        For each parameter that was changed, its name, its channels in the file and in the model.
    """
    changed = []
    for key, expected in in_model.items():
        weight = state.get(key)
        if weight is None or weight.ndim != 4:
            continue
        given, wanted = weight.shape[1], expected.shape[1]
        if not (FIRST_CONVOLUTION.search(key) or (OF_TIMM.search(key) and given == COLORS)):
            continue
        if given != wanted and given > 0 and weight[:, :1].shape == expected[:, :1].shape:
            state[key] = spread_channels(torch.as_tensor(weight), wanted)
            changed.append((key, given, wanted))
    return changed


def spread_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the weights of a convolution for another number of input channels.

    For one channel they are summed: a gray image gives what it gave as three equal colors. For
    several they are repeated in turn, and scaled so that an image whose channels are all equal
    gives about the same (exactly, if the new number is a multiple of the old one).

    Args:
        weight: (D, C, k, k).
        channels: The number, C'.

    Returns:
        (D, C', k, k).
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    given = weight.shape[1]
    index = torch.arange(channels) % given
    return weight[:, index] * (given / channels)
