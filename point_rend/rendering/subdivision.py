"""The rendering engine: adaptive subdivision, the one loop that all heads share.

Shapes: N regions, C channels, P points, H and W rows and columns of the grid.

Source: section 3.1 of the paper, "Point selection for inference", and figure 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from point_rend.rendering.sampling import most_uncertain_cells
from point_rend.rendering.uncertainty import Uncertainty


class PointPredictor(Protocol):
    """A prediction bound to its features, to be evaluated at any points."""

    def __call__(self, coords: Tensor, /) -> Tensor:
        """Map (N, P, 2) coordinates in [0, 1]² to (N, C, P) logits."""


@dataclass(frozen=True)
class SubdivisionPlan:
    """The grids of a rendering and the number of points on each.

    Args:
        start_side: side of the first grid, which is predicted densely, at least 1.
        steps: number of doublings, at least 0.
        points_per_step: N of the paper, points predicted after each doubling, at least 1.

    Raises:
        ValueError: for values out of these ranges.
    """

    start_side: int
    steps: int
    points_per_step: int

    def __post_init__(self) -> None:
        if self.start_side < 1:
            raise ValueError(
                f"the side of the first grid must be at least 1, got {self.start_side} "
                "(MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION)"
            )
        if self.steps < 0:
            raise ValueError(f"SUBDIVISION_STEPS: expected 0 or more, got {self.steps}")
        if self.points_per_step < 1:
            raise ValueError(
                f"SUBDIVISION_NUM_POINTS: expected 1 or more, got {self.points_per_step}"
            )

    @property
    def output_side(self) -> int:
        """Side of the rendered mask."""
        return self.start_side * 2**self.steps

    @property
    def num_points(self) -> int:
        """Number of points predicted per region, including the first grid."""
        sides = [self.start_side * 2**step for step in range(1, self.steps + 1)]
        return self.start_side**2 + sum(min(side**2, self.points_per_step) for side in sides)

    def without_covered_steps(self) -> "SubdivisionPlan":
        """Return the plan with the same output that starts after the steps that choose every cell.

        A step whose points cover its whole grid overwrites everything before it, so rendering can
        start there.
        """
        side, steps = self.start_side, self.steps
        while steps > 0 and 4 * side**2 <= self.points_per_step:
            side, steps = 2 * side, steps - 1
        return SubdivisionPlan(side, steps, self.points_per_step)


def subdivide(
    logits: Tensor,
    predict: PointPredictor,
    uncertainty: Uncertainty,
    *,
    steps: int,
    points_per_step: int,
    plain_steps: int = 0,
    extend: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Render logits at 2^(steps + plain_steps) times the resolution of their grid.

    Each step doubles the grid bilinearly and replaces the logits of its most uncertain cells by
    predictions at their centers; all other cells keep the interpolated value.

    Args:
        logits: (N, C, H, W) the first grid; N may be 0.
        predict: predicts logits at points of each region, in [0, 1]² of its grid.
        uncertainty: rates (N, C, H, W) logits as (N, 1, H, W).
        steps: number of doublings after which cells are predicted.
        points_per_step: number of cells predicted after each of them.
        plain_steps: number of further doublings, without predictions.
        extend: fills the cells beyond the border of a region that is smaller than its grid, before
            each doubling, which reads one cell beyond; None if every region fills its grid.

    Returns:
        (N, C, H·2^(steps + plain_steps), W·2^(steps + plain_steps)), float32 or wider: logits are
        interpolated in full precision, also under autocast.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    for step in range(steps + plain_steps):
        logits = logits if extend is None else extend(logits)
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        if step >= steps:
            continue
        indices, coords = most_uncertain_cells(uncertainty(logits), points_per_step)
        cells = indices[:, None].expand(-1, logits.shape[1], -1)
        points = predict(coords).to(logits.dtype)
        # In place: nothing else refers to the interpolated grid.
        logits = logits.flatten(2).scatter_(2, cells, points).unflatten(2, logits.shape[2:])
    return logits
