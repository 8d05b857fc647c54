"""Linear layers at points of maps, evaluated in the cheaper of two orders.

Bilinear sampling and a linear layer commute. Either the map is sampled and the layer is applied at
every point, or the layer is applied once to every position of the map and its output is sampled.

Shapes: M maps, each with its own points; D channels of the maps, O outputs of a layer, P points per
map, H and W rows and columns. Outputs are position-major, (M·P, O): one contiguous row per point,
the points of the first map first.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from point_rend.rendering.sampling import is_tracing, point_sample

# Number of points per map position from which processing all positions first is faster, measured on
# a CPU: applying a layer to each, or only copying each into a contiguous row, which reads faster.
POINTS_PER_PROJECTED_POSITION = 1.0
POINTS_PER_COPIED_POSITION = 1.75


class Affine(NamedTuple):
    """A linear layer, shared by all maps or with weights per map.

    Args:
        weight: (O, D), or (M, O, D) per map; None for the identity.
        bias: (O,), or (M, O) with weights per map; None for zero.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def is_per_map(self) -> bool:
        """Whether each map has its own weights."""
        return self.weight is not None and self.weight.dim() == 3

    def __call__(self, rows: Tensor) -> Tensor:
        """Map rows (M, R, D) to (M, R, O); a shared layer also maps (R, D) to (R, O)."""
        if self.weight is None:
            return rows
        rows = rows.to(self.weight.dtype)
        if not self.is_per_map:
            return F.linear(rows, self.weight, self.bias)
        # Weights first: a product with few output columns is slow.
        outputs = torch.bmm(self.weight, rows.transpose(1, 2)).transpose(1, 2)
        return outputs if self.bias is None else outputs + self.bias[:, None]


class RowOutputs(Protocol):
    """The outputs of the layers at fixed points, computed on request."""

    def __call__(self, rows: slice, /) -> Iterator[Tensor]:
        """Yield the outputs (rows, O) of one layer after the other.

        Args:
            rows: a slice of the M·P rows, without negative bounds and without a step.
        """


class LayersOnMaps(Protocol):
    """Layers bound to the maps that they read."""

    def __call__(self, coords: Tensor, /) -> RowOutputs:
        """Bind the points (M, P, 2), in [0, 1]² of each map."""


def linear_at_points(maps: Tensor, layers: Sequence[Affine], num_points: int) -> LayersOnMaps:
    """Bind layers to maps: ``layer(point_sample(maps, coords))`` for each layer.

    Sampling comes first or the layers come first, whichever is less work.

    Args:
        maps: (M, D, H, W).
        layers: layers that are evaluated at the same points.
        num_points: expected number of points over all maps and all calls.
    """
    projects = any(layer.weight is not None for layer in layers)
    points_per_position = POINTS_PER_PROJECTED_POSITION if projects else POINTS_PER_COPIED_POSITION
    enough = maps.shape[0] * maps.shape[2] * maps.shape[3] * points_per_position
    # A traced graph must serve any number of points; a map one cell wide lacks four corner cells.
    if is_tracing() or num_points < enough or min(maps.shape[2:]) < 2:
        return SampleThenProject(maps, layers)
    return ProjectThenSample(maps, layers)


class SampleThenProject:
    """Sample the maps at the points, then apply the layers to the samples."""

    def __init__(self, maps: Tensor, layers: Sequence[Affine]) -> None:
        self.maps = maps
        self.layers = layers

    def __call__(self, coords: Tensor) -> RowOutputs:
        """Sample the maps at points (M, P, 2)."""
        samples = point_sample(self.maps, coords).transpose(1, 2)  # (M, P, D)
        # A slice of rows does not know its maps, so per-map layers are applied to all points here.
        projected = [
            layer(samples).flatten(0, 1) if layer.is_per_map else None for layer in self.layers
        ]
        return partial(self._outputs, samples.flatten(0, 1), projected)

    def _outputs(
        self, samples: Tensor, projected: Sequence[Tensor | None], rows: slice
    ) -> Iterator[Tensor]:
        for layer, outputs in zip(self.layers, projected, strict=True):
            yield layer(samples[rows]) if outputs is None else outputs[rows]


class ProjectThenSample:
    """Apply the layers to every position of the maps, then sample their outputs at the points."""

    def __init__(self, maps: Tensor, layers: Sequence[Affine]) -> None:
        # Outside a map the features fade to zero but a bias does not: a ring of zeros around the
        # map, to which the layers are applied too, carries the bias.
        ring = int(any(layer.bias is not None for layer in layers))
        padded = F.pad(maps, [ring] * 4) if ring else maps
        if any(layer.weight is None for layer in layers):  # makes the copy below faster
            padded = padded.contiguous(memory_format=torch.channels_last)
        positions = padded.flatten(2).transpose(1, 2)  # (M, positions, D)
        # Interpolation needs float32 or better, also for half-precision maps.
        self.dtype = torch.promote_types(maps.dtype, torch.float32)
        self.tables = [
            layer(positions).flatten(0, 1).to(self.dtype).contiguous() for layer in layers
        ]  # (M · positions, O) each
        self.corner_cells = CornerCells(*maps.shape[-2:], ring=ring)

    def __call__(self, coords: Tensor) -> RowOutputs:
        """Find the cells around points (M, P, 2)."""
        indices, weights = (
            per_cell.flatten() for per_cell in self.corner_cells(coords.to(self.dtype))
        )
        bags = torch.arange(0, len(indices), 4, dtype=indices.dtype, device=indices.device)
        gather = _Gather(indices, weights, bags)
        # One column is so little work that the overhead of many small calls would dominate.
        gathered = [gather(table) if table.shape[1] == 1 else None for table in self.tables]
        return partial(self._outputs, gather, gathered)

    def _outputs(
        self, gather: "_Gather", gathered: Sequence[Tensor | None], rows: slice
    ) -> Iterator[Tensor]:
        gather_rows = gather.of_rows(rows)
        for table, outputs in zip(self.tables, gathered, strict=True):
            yield gather_rows(table) if outputs is None else outputs[rows]


class _Gather(NamedTuple):
    """The weighted sum of four cells of a table for each point."""

    indices: Tensor  # (4 · points,), of the rows of the table
    weights: Tensor  # (4 · points,)
    bags: Tensor  # (points,), the first index of each point

    def of_rows(self, rows: slice) -> "_Gather":
        """Restrict the sums to a slice of the points."""
        # slice.indices would break the graph of torch.compile.
        start = 0 if rows.start is None else rows.start
        stop = len(self.bags) if rows.stop is None else min(rows.stop, len(self.bags))
        cells = slice(4 * start, 4 * stop)
        return _Gather(self.indices[cells], self.weights[cells], self.bags[: stop - start])

    def __call__(self, table: Tensor) -> Tensor:
        """Map a table (cells, O) to sums (points, O)."""
        return torch.embedding_bag(
            table, self.indices, self.bags, mode=0, per_sample_weights=self.weights
        )[0]


class CornerCells:
    """The four cells around each point and their weights in bilinear interpolation.

    Args:
        height: rows of each map, at least 2 including the ring.
        width: columns of each map, at least 2 including the ring.
        ring: number of extra cells stored around each map on every side.
    """

    def __init__(self, height: int, width: int, *, ring: int) -> None:
        self.height, self.width, self.ring = height, width, ring

    def __call__(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (M, P, 2), in [0, 1]² of each map, to indices and weights, (M·P, 4) each.

        Indices (int32) are row-major within a map, and the maps follow one another. Outside the
        outermost cells the weights fall to 0 within one cell; with a ring, points beyond the ring
        read the ring.
        """
        row = self.width + 2 * self.ring
        cells_per_map = (self.height + 2 * self.ring) * row
        left, left_weight, right_weight = self._along_axis(coords[..., 0], self.width)
        top, top_weight, bottom_weight = self._along_axis(coords[..., 1], self.height)
        weights = (
            top_weight * left_weight,
            top_weight * right_weight,
            bottom_weight * left_weight,
            bottom_weight * right_weight,
        )
        maps = torch.arange(coords.shape[0], dtype=top.dtype, device=coords.device)
        first = maps[:, None] * cells_per_map + top * row + left
        indices = (first, first + 1, first + row, first + (row + 1))
        return torch.stack(indices, dim=2).flatten(0, 1), torch.stack(weights, dim=2).flatten(0, 1)

    def _along_axis(self, coords: Tensor, num_cells: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first of two adjacent cells, its weight, and the weight of the second."""
        # Points further out are moved to the center of the nearest cell just outside the map.
        lowest, highest = self.ring - 1, num_cells + self.ring
        position = (coords * num_cells + (self.ring - 0.5)).clamp_(lowest, highest)
        first = position.floor().clamp_(0, num_cells + 2 * self.ring - 2)
        # Each cell's hat function, which also covers points outside the map.
        distance = position.sub_(first)
        near = (1 - distance.abs()).clamp_(min=0)
        far = (1 - (distance - 1).abs_()).clamp_(min=0)
        # NaN coordinates keep NaN weights, but their index is clamped to a valid cell.
        return first.to(torch.int32).clamp_(min=0), near, far
