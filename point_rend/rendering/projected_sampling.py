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

from point_rend.rendering.bilinear_gather import (
    CornerCells,
    Gather,
    gather_bilinear,
    is_gathered_by_triton,
)
from point_rend.rendering.constants import is_tracing
from point_rend.rendering.sampling import point_sample

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
        tables = [layer(positions).flatten(0, 1).contiguous() for layer in layers]
        # (M · positions, O) each
        self.is_fused = all(is_gathered_by_triton(table) for table in tables)
        self.tables = tables if self.is_fused else [table.to(self.dtype) for table in tables]
        self.corner_cells = CornerCells(*maps.shape[-2:], ring=ring)

    def __call__(self, coords: Tensor) -> RowOutputs:
        """Find the cells around points (M, P, 2)."""
        coords = coords.to(self.dtype)
        if self.is_fused:
            return partial(self._fused_outputs, coords)
        gather = self.corner_cells.gather(coords)
        # One column is so little work that the overhead of many small calls would dominate.
        gathered = [gather(table) if table.shape[1] == 1 else None for table in self.tables]
        return partial(self._outputs, gather, gathered)

    def _outputs(
        self, gather: Gather, gathered: Sequence[Tensor | None], rows: slice
    ) -> Iterator[Tensor]:
        gather_rows = gather.of_rows(rows)
        for table, outputs in zip(self.tables, gathered, strict=True):
            yield gather_rows(table) if outputs is None else outputs[rows]

    def _fused_outputs(self, coords: Tensor, rows: slice) -> Iterator[Tensor]:
        cells = self.corner_cells
        for table in self.tables:
            yield gather_bilinear(table, coords, cells.height, cells.width, cells.ring)[rows]
