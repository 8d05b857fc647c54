"""Fine-grained features: levels of a feature pyramid, sampled at points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import cat
from torch import Tensor

from point_rend.rendering.projected_sampling import Affine, linear_at_points
from point_rend.rendering.sampling import point_sample


def concatenate_levels(samples: Sequence[Tensor]) -> Tensor:
    """Join what several levels say of the same points: (N, C_l, P) each → (N, ΣC_l, P)."""
    return cat(list(samples), dim=1)  # without a copy of a single one


@dataclass(frozen=True)
class FineGrainedFeatures:
    """Levels of features, to be read at points of the frames that they cover.

    Args:
        levels: per level (M, C_l, H_l, W_l), for M images.
        frames: per level the width and height of the frame in the unit of the points' coordinates,
            a tensor (2,), or 1 for coordinates in [0, 1]².
    """

    levels: Sequence[Tensor]
    frames: Sequence[Tensor | float]

    def sample(self, coords: Tensor) -> Tensor:
        """Read all levels at points (M, P, 2): (M, ΣC_l, P)."""
        pairs = zip(self.levels, self.frames, strict=True)
        return concatenate_levels([point_sample(level, coords / frame) for level, frame in pairs])

    def linear(
        self, weight: Tensor | None, num_points: int
    ) -> Callable[[Tensor], Callable[[slice], Tensor]]:
        """Bind a linear layer without bias: ``weight`` times what :meth:`sample` reads.

        Args:
            weight: (O, ΣC_l); None for the identity.
            num_points: how many points of all images the result will be asked for, in all.

        Returns:
            A function from points (M, P, 2) to one from a slice of their M·P rows to (rows, O).
        """
        channels = [level.shape[1] for level in self.levels]
        weights = [None] * len(channels) if weight is None else weight.split(channels, dim=1)
        bound_levels = [
            linear_at_points(level, [Affine(part)], num_points)
            for level, part in zip(self.levels, weights, strict=True)
        ]
        frames = self.frames  # and not self: what is bound must not keep maps that were copied

        def at(coords: Tensor) -> Callable[[slice], Tensor]:
            pairs = zip(bound_levels, frames, strict=True)
            terms_of_levels = [bound(coords / frame) for bound, frame in pairs]

            def rows(chosen: slice) -> Tensor:
                parts = [output for terms in terms_of_levels for output in terms(chosen)]
                return torch.cat(parts, dim=1) if weight is None else sum(parts[1:], parts[0])

            return rows

        return at
