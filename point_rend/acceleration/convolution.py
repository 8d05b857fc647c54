"""Convolutions with batch norm folded into their weights, and with fewer multiplications."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from torch import Tensor, nn

from point_rend.acceleration import winograd
from point_rend.acceleration.inference import derived, has_hooks, is_accelerated

BATCH_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm)


# Measured on a CPU: with fewer channels, or fewer positions per channel than these, the tiles and
# the larger weights cost what the multiplications save.
MIN_CHANNELS = 128
MIN_POSITIONS_PER_CHANNEL = 4


@dataclass
class Kernel:
    """Weights of a convolution."""

    weight: Tensor  # (outputs, inputs of a group, rows, columns), in channels-last format
    bias: Tensor | None  # (outputs,)

    @functools.cached_property
    def at_points(self) -> Tensor:
        """The weights as :func:`winograd.convolve` takes them."""
        with torch.inference_mode(False), torch.no_grad():
            return winograd.winograd_kernel(self.weight)


class FastConv2d(Conv2d):
    """Detectron2's convolution: batch norm folded in, computed in channels-last format.

    Large 3×3 convolutions go through :func:`winograd.convolve`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H', W'), with norm and activation."""
        if not is_accelerated(self, x) or x.dim() != 4:
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        kernel = folded_kernel(self)
        if is_for_winograd(self, x):
            y = winograd.convolve(x, kernel.at_points, kernel.bias)
        else:
            options = self.stride, self.padding, self.dilation, self.groups
            y = F.conv2d(x, kernel.weight, kernel.bias, *options)
        if self.norm is not None and not is_foldable(self.norm):
            y = self.norm(y)
        return y if self.activation is None else self.activation(y)


def is_for_winograd(conv: Conv2d, x: Tensor) -> bool:
    """Return whether tiles make a convolution faster."""
    options = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    channels = conv.in_channels, conv.out_channels
    return (
        options == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
        and min(channels) >= MIN_CHANNELS
        and x.shape[2] * x.shape[3] >= MIN_POSITIONS_PER_CHANNEL * max(channels)
    )


def is_foldable(norm: Any) -> bool:
    """Return whether a layer is a batch norm with fixed statistics, and without hooks."""
    if type(norm) not in BATCH_NORMS or norm.running_mean is None or norm.running_var is None:
        return False
    if has_hooks(norm):
        return False
    return not norm.training or type(norm) is FrozenBatchNorm2d


def folded_kernel(conv: Conv2d) -> Kernel:
    """Return the weights of a convolution with the batch norm behind it, if it has one."""
    norm = conv.norm if is_foldable(conv.norm) else None
    sources = [conv.weight, conv.bias]
    if norm is not None:
        sources += [norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps]
    return derived(conv, sources, lambda: _fold(conv, norm))


def _fold(conv: Conv2d, norm: Any) -> Kernel:
    weight, bias = conv.weight, conv.bias
    if norm is not None:
        # In double precision, so that only the result is rounded.
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -scale * norm.running_mean
        if norm.bias is not None:
            shift = shift + norm.bias
        if bias is not None:
            shift = shift + scale * bias
        weight = (weight * scale[:, None, None, None]).to(weight.dtype)
        bias = shift.to(weight.dtype)
    # A copy, because the weights of the model stay as they are.
    weight = weight.detach().clone(memory_format=torch.channels_last)
    return Kernel(weight, None if bias is None else bias.detach().clone())
