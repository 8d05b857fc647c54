"""Reading maps at points, and choosing the points: in training at random, in inference on a grid.

Shapes: N regions, C channels, P points, H and W rows and columns of a map. Coordinates are those of
the frame that the map covers, in [0, 1]², (x, y).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from point_rend.rendering.coordinates import cell_centers, regular_grid
from point_rend.rendering.uncertainty import Uncertainty


def point_sample(
    input: Tensor,
    point_coords: Tensor,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Read maps at arbitrary points by bilinear interpolation between cell centers.

    Convention: outside the outermost cell centers the map fades into zeros (``padding_mode``). The
    result is at least float32, also under mixed precision: half-precision coordinates are too
    coarse for large maps.

    Args:
        input: (N, C, H, W).
        point_coords: (N, P, 2) or (N, Hg, Wg, 2) in [0, 1]².
        mode: ``bilinear`` or ``nearest``.
        padding_mode: ``zeros`` or ``border``.
        align_corners: must be False; the argument stands for callers that write it out.

    Returns:
        (N, C, P) or (N, C, Hg, Wg).

    Raises:
        ValueError: if the shapes do not belong together, or ``align_corners`` is True.
    """
    if align_corners:
        raise ValueError("point_sample: align_corners=True contradicts the half-pixel convention")
    if point_coords.dim() not in (3, 4) or point_coords.shape[-1] != 2:
        raise ValueError(
            "point_sample: expected coordinates of shape (N, P, 2) or (N, Hg, Wg, 2), got "
            f"{tuple(point_coords.shape)}"
        )
    dtype = torch.promote_types(input.dtype, torch.float32)
    grid = 2.0 * point_coords.to(dtype) - 1.0
    if point_coords.dim() == 3:
        grid = grid.unsqueeze(2)  # (N, P, 1, 2)
    maps = input.to(dtype)
    # On a CPU the maps are shared out to the cores, so let the channels of a single one be maps.
    splits = len(maps) == 1 and maps.is_contiguous() and maps.is_cpu and not is_tracing()
    if splits:
        maps, grid = maps.transpose(0, 1), grid.expand(maps.shape[1], -1, -1, -1)
    sampled = F.grid_sample(maps, grid, mode=mode, padding_mode=padding_mode, align_corners=False)
    if splits:
        sampled = sampled.transpose(0, 1)
    return sampled.squeeze(3) if point_coords.dim() == 3 else sampled


def is_tracing() -> bool:
    """Tell whether a trace is being made, whose code serves any number of regions and points."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PointSampler:
    """The training sampler: points at random, biased toward where the prediction is unsure.

    ``oversample_ratio`` · P candidates are drawn uniformly; the most uncertain
    ``importance_sample_ratio`` · P of them are kept; the rest is drawn uniformly anew. Uniform
    sampling is (1, 0), the paper's mildly biased setting (3, 0.75), its heavily biased (10, 0.75);
    ``on_regular_grid`` is the paper's fixed grid of √P × √P points, without randomness.

    Args:
        num_points: P, at least 1; a square number for the regular grid.
        oversample_ratio: k of the paper, at least 1.
        importance_sample_ratio: β of the paper, in [0, 1].
        on_regular_grid: take the regular grid instead; k and β then do not matter.

    Raises:
        ValueError: for values out of these ranges.

    Source: section 3.1, "Point selection for training"; table 4.
    """

    num_points: int = 14 * 14
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    on_regular_grid: bool = False

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise ValueError(
                f"TRAIN_NUM_POINTS: expected at least 1 training point, got {self.num_points}"
            )
        if self.oversample_ratio < 1:
            raise ValueError(
                f"OVERSAMPLE_RATIO (k): expected at least 1, got {self.oversample_ratio}"
            )
        if not 0 <= self.importance_sample_ratio <= 1:
            raise ValueError(
                "IMPORTANCE_SAMPLE_RATIO (beta): expected a value in [0, 1], got "
                f"{self.importance_sample_ratio}"
            )
        if self.on_regular_grid and math.isqrt(self.num_points) ** 2 != self.num_points:
            raise ValueError(
                "TRAIN_NUM_POINTS: expected a square number for TRAIN_ON_REGULAR_GRID, got "
                f"{self.num_points}"
            )

    @torch.no_grad()
    def sample(
        self,
        logits: Tensor,
        uncertainty: Uncertainty,
        generator: torch.Generator | None = None,
        extent: Tensor | None = None,
    ) -> Tensor:
        """Draw points for every region.

        The uncertainty is taken at the interpolated logits: between a cell of −1 and one of +1 lies
        the boundary, though both cells by themselves look certain.

        Args:
            logits: (N, C, H, W) coarse prediction.
            uncertainty: rates (N, C, P) logits as (N, 1, P).
            generator: source of randomness, the global one if None.
            extent: (N, 1, 2), the part of each map in x and y, from its corner, in which points
                are drawn; all of it if None.

        Returns:
            (N, P, 2) coordinates in [0, 1]², the uncertain points first; no gradient.
        """
        num_regions = logits.shape[0]
        if self.on_regular_grid:
            grid = regular_grid(num_regions, math.isqrt(self.num_points), logits.device)
            return grid if extent is None else grid * extent
        num_candidates = int(self.num_points * self.oversample_ratio)
        num_important = int(self.importance_sample_ratio * self.num_points)

        def uniform(count: int) -> Tensor:
            shape = (num_regions, count, 2)
            coords = torch.rand(shape, device=logits.device, generator=generator)
            return coords if extent is None else coords * extent

        candidates = uniform(num_candidates)
        scores = uncertainty(point_sample(logits, candidates))[:, 0]  # (N, candidates)
        chosen = scores.topk(num_important, dim=1).indices
        important = candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2))
        num_uniform = self.num_points - num_important
        if num_uniform == 0:
            return important
        return torch.cat((important, uniform(num_uniform)), dim=1)


def most_uncertain_cells(uncertainty_map: Tensor, num_points: int) -> tuple[Tensor, Tensor]:
    """Choose the cells of a grid with the largest uncertainty, for each region by itself.

    Args:
        uncertainty_map: (N, 1, H, W).
        num_points: how many cells; all of them if the grid is smaller.

    Returns:
        Row-major indices (N, P), ascending, and the cells' centers (N, P, 2) in [0, 1]².
    """
    height, width = uncertainty_map.shape[-2:]
    values = uncertainty_map.flatten(1)
    count = min(num_points, height * width)
    indices = _top_indices(values, count)
    return indices, cell_centers(indices, height, width)


def _top_indices(values: Tensor, count: int) -> Tensor:
    """Return ``values.topk(count).indices`` in ascending order, in less time where few are wanted.

    The largest values lie in the blocks with the largest maxima, one block each at most.
    """
    size = values.shape[1]
    # Blocks and candidates cost the same at the square root of size / count.
    block = math.isqrt(size // count) if count else 1
    while size % block:
        block -= 1
    if block == 1:
        return values.topk(count, dim=1, sorted=False).indices.sort(dim=1).values
    # The cells of a block lie far apart, so that its maximum is taken of many blocks at once.
    num_blocks = size // block
    blocks = values.unflatten(1, (block, num_blocks))  # (N, block, blocks)
    chosen = blocks.amax(dim=1).topk(count, dim=1, sorted=False).indices
    candidates = blocks.gather(2, chosen[:, None].expand(-1, block, -1)).flatten(1)
    best = candidates.topk(count, dim=1, sorted=False).indices
    return (best // count * num_blocks + chosen.gather(1, best % count)).sort(dim=1).values
