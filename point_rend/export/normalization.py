"""Batch norms whose number of inputs depends on the data, as of regions of interest.

PyTorch's operator asks whether its input is empty, which an export cannot know.
"""

from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn


def batch_norm(norm: Any, x: Tensor) -> Tensor:
    """Normalize features (N, C, H, W) by stored statistics, as a scale and a shift per channel."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


class ExportableBatchNorm2d(nn.BatchNorm2d):
    """A batch norm in inference mode, which exports can trace; otherwise it is the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize features (N, C, H, W)."""
        return batch_norm(self, x) if torch.compiler.is_compiling() else super().forward(x)


class ExportableFrozenBatchNorm2d(FrozenBatchNorm2d):
    """A frozen batch norm, which exports can trace; otherwise it is the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize features (N, C, H, W)."""
        return batch_norm(self, x) if torch.compiler.is_compiling() else super().forward(x)


EXPORTABLE: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: ExportableBatchNorm2d,
    FrozenBatchNorm2d: ExportableFrozenBatchNorm2d,
}


def make_norms_exportable(module: nn.Module) -> None:
    """Give the batch norms in a module a class that exports can trace, with the same results."""
    for part in module.modules():
        if type(part) in EXPORTABLE:
            part.__class__ = EXPORTABLE[type(part)]
