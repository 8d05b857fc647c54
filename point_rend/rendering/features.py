"""Fine-grained features: the levels of a feature pyramid, read at points.

Shapes: M images, P points per image, C_l channels and H_l × W_l positions of level l, O outputs of
a linear layer. Rows are the points of all images, (M·P, channels), those of the first image first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from detectron2.layers import cat
from torch import Tensor

from point_rend.rendering.projected_sampling import (
    Affine,
    LayersOnMaps,
    RowOutputs,
    linear_at_points,
)
from point_rend.rendering.sampling import point_sample


def concatenate_levels(samples: Sequence[Tensor]) -> Tensor:
    """Concatenate the samples of several levels at the same points: (N, C_l, P) → (N, ΣC_l, P)."""
    return cat(list(samples), dim=1)  # does not copy a single tensor


@dataclass(frozen=True)
class FineGrainedFeatures:
    """Levels of features, to be read at points of the frames that they cover.

    Args:
        levels: per level (M, C_l, H_l, W_l).
        frames: per level the width and height of its frame in the unit of the points' coordinates,
            a tensor (2,), or 1 for coordinates in [0, 1]².
    """

    levels: Sequence[Tensor]
    frames: Sequence[Tensor | float]

    def sample(self, coords: Tensor) -> Tensor:
        """Read all levels at points (M, P, 2): (M, ΣC_l, P)."""
        pairs = zip(self.levels, self.frames, strict=True)
        return concatenate_levels([point_sample(level, coords / frame) for level, frame in pairs])

    def linear(self, weight: Tensor | None, num_points: int) -> "LinearOnLevels":
        """Bind a linear layer without bias: ``weight`` times the output of :meth:`sample`.

        Args:
            weight: (O, ΣC_l); None for the identity.
            num_points: expected number of points over all images and all calls.
        """
        channels = [level.shape[1] for level in self.levels]
        weights = [None] * len(channels) if weight is None else weight.split(channels, dim=1)
        bound_levels = [
            linear_at_points(level, [Affine(part)], num_points)
            for level, part in zip(self.levels, weights, strict=True)
        ]
        combine = _concatenate_outputs if weight is None else _add_outputs
        return LinearOnLevels(bound_levels, self.frames, combine)


class LinearOnLevels:
    """A linear layer, or the identity, bound to the levels that it reads.

    It holds the bound levels but not the features themselves: maps of which binding has made
    copies can be freed.
    """

    def __init__(
        self,
        levels: Sequence[LayersOnMaps],
        frames: Sequence[Tensor | float],
        combine: Callable[[Sequence[RowOutputs], slice], Tensor],
    ) -> None:
        self.levels = levels
        self.frames = frames
        self.combine = combine

    def __call__(self, coords: Tensor) -> Callable[[slice], Tensor]:
        """Bind points (M, P, 2): a function from a slice of their rows to outputs (rows, O)."""
        pairs = zip(self.levels, self.frames, strict=True)
        return partial(self.combine, [level(coords / frame) for level, frame in pairs])


def _add_outputs(levels: Sequence[RowOutputs], rows: slice) -> Tensor:
    first, *others = [output for outputs in levels for output in outputs(rows)]
    return sum(others, first)


def _concatenate_outputs(levels: Sequence[RowOutputs], rows: slice) -> Tensor:
    return torch.cat([output for outputs in levels for output in outputs(rows)], dim=1)
