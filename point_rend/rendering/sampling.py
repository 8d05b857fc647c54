"""Sampling of maps at points, and the choice of points: random in training, on a grid in inference.

Shapes: N regions, C channels, P points, H and W rows and columns of a map. Coordinates are (x, y)
in [0, 1]² of the map.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from point_rend.rendering.constants import is_tracing
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
    """Sample maps at arbitrary points by bilinear interpolation between cell centers.

    Convention: beyond the outermost cell centers the map fades to zero (``padding_mode``). The
    result is at least float32, also under mixed precision: half-precision coordinates are too
    coarse for large maps.

    Args:
        input: (N, C, H, W).
        point_coords: (N, P, 2) or (N, Hg, Wg, 2) in [0, 1]².
        mode: ``bilinear`` or ``nearest``.
        padding_mode: ``zeros`` or ``border``.
        align_corners: must be False; accepted for callers that pass it.

    Returns:
        (N, C, P) or (N, C, Hg, Wg).

    Raises:
        ValueError: if the coordinates have another shape, or ``align_corners`` is True.
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
    # A CPU runs the maps in parallel, so the channels of a single map are passed as maps.
    splits = not is_tracing() and len(maps) == 1 and maps.is_contiguous() and maps.is_cpu
    if splits:
        maps, grid = maps.transpose(0, 1), grid.expand(maps.shape[1], -1, -1, -1)
    sampled = F.grid_sample(maps, grid, mode=mode, padding_mode=padding_mode, align_corners=False)
    if splits:
        sampled = sampled.transpose(0, 1)
    return sampled.squeeze(3) if point_coords.dim() == 3 else sampled


def sample_lattice(map: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample a map where columns and rows cross, by bilinear interpolation between cell centers.

    Convention: as of :func:`point_sample`. Coordinates are rounded to the type of the map first, as
    Detectron2 does when it pastes masks.

    Args:
        map: (H, W), of a floating-point type.
        x: (Px,) in [0, 1] of the map; 0 is sampled beyond.
        y: (Py,) in [0, 1] of the map.

    Returns:
        (Px, Py): a column of samples in each row.
    """
    dtype = torch.promote_types(map.dtype, torch.float32)
    # One plane per coordinate: these are faster to fill and to read than pairs.
    planes = torch.empty(2, len(x), len(y), dtype=dtype, device=map.device)
    planes[0] = (2.0 * x - 1.0).to(map.dtype)[:, None]
    planes[1] = (2.0 * y - 1.0).to(map.dtype)
    grid = planes.permute(1, 2, 0)[None]
    return F.grid_sample(map.to(dtype)[None, None], grid, align_corners=False)[0, 0]


@dataclass(frozen=True)
class PointSampler:
    """The training sampler: random points, biased toward uncertain locations.

    It draws ``oversample_ratio`` · P candidates uniformly, keeps the most uncertain
    ``importance_sample_ratio`` · P of them and draws the remaining points uniformly. With (1, 0)
    sampling is uniform, with (3, 0.75) mildly biased and with (10, 1) heavily biased;
    ``on_regular_grid`` takes a fixed grid of √P × √P points instead, without randomness.

    Args:
        num_points: P, at least 1; a square number for the regular grid.
        oversample_ratio: k of the paper, at least 1.
        importance_sample_ratio: β of the paper, in [0, 1].
        on_regular_grid: use the regular grid, whatever k and β are.

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

        The uncertainty is that of the interpolated logits: the boundary lies between a cell of −1
        and a cell of +1, although both cells are certain.

        Args:
            logits: (N, C, H, W) coarse prediction.
            uncertainty: rates (N, C, P) logits as (N, 1, P).
            generator: source of randomness, the global one if None.
            extent: (N, 1, 2), the fraction of each map, along x and y from its corner, in which
                points are drawn; all of it if None.

        Returns:
            (N, P, 2) coordinates in [0, 1]², the uncertain points first, without gradient.
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
    """Choose the cells with the largest uncertainty, separately for each region.

    Args:
        uncertainty_map: (N, 1, H, W).
        num_points: number of cells; all of them if the grid is smaller. In a traced or exported
            graph, which has one number for grids of all sizes, the last cell of a smaller grid is
            repeated.

    Returns:
        Row-major indices (N, P), ascending, and the centers of the cells (N, P, 2) in [0, 1]².
    """
    height, width = uncertainty_map.shape[-2:]
    values = uncertainty_map.flatten(1)
    if is_tracing() and not isinstance(values.shape[1], int):
        indices = _top_indices_of_any_size(values, num_points)
    else:
        indices = _top_indices(values, min(num_points, height * width))
    return indices, cell_centers(indices, height, width)


def _top_indices_of_any_size(values: Tensor, count: int) -> Tensor:
    """Return :func:`_top_indices`, or all indices and the last one again if there are fewer."""
    padded = F.pad(values, (0, count), value=-torch.inf)
    indices = padded.topk(count, dim=1, sorted=False).indices
    return indices.clamp(max=values.shape[1] - 1).sort(dim=1).values


def _top_indices(values: Tensor, count: int) -> Tensor:
    """Return ``values.topk(count).indices`` in ascending order, faster on a CPU if few are wanted.

    The ``count`` largest values lie in the ``count`` blocks with the largest maxima.
    """
    size = values.shape[1]
    block = _block_size(size, count) if values.device.type == "cpu" else 1
    if block == 1:
        return values.topk(count, dim=1, sorted=False).indices.sort(dim=1).values
    # The values of a block lie far apart, so the maxima of adjacent blocks are computed together.
    num_blocks = size // block
    blocks = values.unflatten(1, (block, num_blocks))  # (N, block, blocks)
    chosen = blocks.amax(dim=1).topk(count, dim=1, sorted=False).indices
    candidates = blocks.gather(2, chosen[:, None].expand(-1, block, -1)).flatten(1)
    best = candidates.topk(count, dim=1, sorted=False).indices
    return (best // count * num_blocks + chosen.gather(1, best % count)).sort(dim=1).values


def _block_size(size: int, count: int) -> int:
    """Return the number of values per block, a divisor of ``size``.

    With sqrt(size / count) values per block, there are as many blocks as candidates.
    """
    if count == 0:
        return 1
    block = 1
    while (block + 1) ** 2 * count <= size:  # math.isqrt would break the graph of torch.compile
        block += 1
    while size % block:
        block -= 1
    return block
