"""The mathematics of a per-instance MLP with predicted weights.

Shapes: N instances, D input channels, C output channels, P points, F frequencies. A parameter
vector holds the weights of all layers, first to last, each (outputs, inputs) row-major, then all
biases.

Source: Cheng, Parkhi, Kirillov, "Pointly-Supervised Instance Segmentation", section 5.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class MLPLayout:
    """The layout of a parameter vector: the shapes and the order of its layers.

    Args:
        in_channels: D, at least 1.
        hidden_channels: width of each hidden layer, at least 1.
        out_channels: C, at least 1.
        num_hidden: number of hidden layers, at least 1.

    Raises:
        ValueError: if a width or the number of layers is not positive.
    """

    in_channels: int
    hidden_channels: int
    out_channels: int
    num_hidden: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"MLPLayout.{name} must be at least 1, got {value}")

    @property
    def layer_shapes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of every layer, including the output layer."""
        hidden = [self.hidden_channels] * self.num_hidden
        widths = [self.in_channels, *hidden, self.out_channels]
        return [(outputs, inputs) for inputs, outputs in pairwise(widths)]

    @property
    def num_parameters(self) -> int:
        """Length of the parameter vector."""
        return sum(outputs * inputs + outputs for outputs, inputs in self.layer_shapes)

    def split(self, parameters: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Split parameter vectors into layers.

        Args:
            parameters: (N, ``num_parameters``).

        Returns:
            Weights, each (N, outputs, inputs), and biases, each (N, outputs).

        Raises:
            ValueError: if the vectors have another length.
        """
        if parameters.dim() != 2 or parameters.shape[1] != self.num_parameters:
            raise ValueError(
                f"expected parameters of shape (N, {self.num_parameters}) for the layers "
                f"{self.layer_shapes}, got {tuple(parameters.shape)}"
            )
        shapes = self.layer_shapes
        sizes = [outputs * inputs for outputs, inputs in shapes]
        chunks = parameters.split(sizes + [outputs for outputs, _ in shapes], dim=1)
        weights = [chunk.unflatten(1, s) for chunk, s in zip(chunks, shapes, strict=False)]
        return weights, list(chunks[len(shapes) :])


def apply_mlp(inputs: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Apply the MLP of each instance, with ReLU between the layers, to its points.

    Args:
        inputs: (N, P, D).
        weights: per layer (N, outputs, inputs).
        biases: per layer (N, outputs).

    Returns:
        (N, P, C) outputs of the last layer.
    """
    x = inputs
    last = len(weights) - 1
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        if layer < last:
            x = F.relu(x)
    return x


def fourier_features(coords: Tensor, frequencies: Tensor) -> Tensor:
    """Encode positions by sines and cosines of random projections.

    Args:
        coords: (N, P, 2) in [0, 1]².
        frequencies: (2, F).

    Returns:
        (N, P, 2F): F sines, then F cosines, of 2π (2 coords − 1) · frequencies, in the wider of
        the two types.

    Source: Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions".
    """
    dtype = torch.promote_types(coords.dtype, frequencies.dtype)
    positions, frequencies = 2 * coords.to(dtype) - 1, frequencies.to(dtype)
    # The phases are too large for half precision, and for TF32, in which a GPU may multiply
    # matrices; there the sum of the two products is written out.
    with torch.autocast(coords.device.type, enabled=False):
        if coords.device.type == "cpu":
            projections = positions @ frequencies
        else:
            x, y = positions.split(1, dim=2)
            projections = torch.addcmul(x * frequencies[0], y, frequencies[1])
    phases = 2 * math.pi * projections
    return torch.cat((phases.sin(), phases.cos()), dim=2)
