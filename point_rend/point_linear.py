"""Linear layers at points of maps, in the cheaper of two orders.

Bilinear sampling and a linear layer commute: a layer may be applied to every position of a map
once, and its output be sampled, or the map be sampled and the layer be applied at the points.

Shapes: M maps with a set of points each, D channels of the maps, O outputs of a layer, P points,
H and W rows and columns. Outputs are position-major, (M·P, O), so that what belongs to a point is
contiguous.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .sampling import is_tracing, point_sample

# The outputs of some layers at some of the points, which a slice of the M·P rows names: one tensor
# (rows, O) after the other.
RowTerms = Callable[[slice], Iterator[Tensor]]


# How many points make up for what a position costs, measured on a CPU: to be multiplied by a layer
# in the place of the points; to be copied into a row of its own, which is read faster.
POINTS_PER_PROJECTED_POSITION = 1.0
POINTS_PER_COPIED_POSITION = 1.75


class Affine(NamedTuple):
    """A linear layer, the same for all maps or one for each.

    Args:
        weight: (O, D), or (M, O, D); None for the identity.
        bias: (O,), or (M, O) with weights of each map; None for zero.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def is_of_maps(self) -> bool:
        """Whether each map has a weight of its own."""
        return self.weight is not None and self.weight.dim() == 3

    def __call__(self, rows: Tensor) -> Tensor:
        """Map (M, R, D), or (R, D) with one weight for all maps, to the same with O."""
        if self.weight is None:
            return rows
        rows = rows.to(self.weight.dtype)
        if not self.is_of_maps:
            return F.linear(rows, self.weight, self.bias)
        # In this order, since few outputs as columns are slow.
        outputs = torch.bmm(self.weight, rows.transpose(1, 2)).transpose(1, 2)
        return outputs if self.bias is None else outputs + self.bias[:, None]


def linear_at_points(
    maps: Tensor, layers: Sequence[Affine], num_points: int
) -> Callable[[Tensor], RowTerms]:
    """Bind layers to maps: ``layer(point_sample(maps, coords))`` for each of them.

    The layers are applied to the maps or at the points, whichever is less work.

    Args:
        maps: (M, D, H, W).
        layers: which read the same points.
        num_points: how many points of all maps together the result will be asked for, in all.

    Returns:
        A function from coordinates (M, P, 2) in [0, 1]² of each map to the outputs there, which are
        computed when they are asked for.
    """
    projects = any(layer.weight is not None for layer in layers)
    points_per_position = POINTS_PER_PROJECTED_POSITION if projects else POINTS_PER_COPIED_POSITION
    enough = maps.shape[0] * maps.shape[2] * maps.shape[3] * points_per_position
    # A trace serves any number of points, and a narrow map has no four cells around a point.
    if is_tracing() or num_points < enough or min(maps.shape[2:]) < 2:
        return partial(_project_samples, maps, layers)
    return _sample_projections(maps, layers)


def _project_samples(maps: Tensor, layers: Sequence[Affine], coords: Tensor) -> RowTerms:
    samples = point_sample(maps, coords).transpose(1, 2)  # (M, P, D)
    rows = samples.flatten(0, 1)
    # Where each map has a layer of its own, rows do not know theirs any more.
    of_maps = [layer(samples).flatten(0, 1) if layer.is_of_maps else None for layer in layers]

    def terms(chosen: slice) -> Iterator[Tensor]:
        for layer, outputs in zip(layers, of_maps, strict=True):
            yield layer(rows[chosen]) if outputs is None else outputs[chosen]

    return terms


def _sample_projections(maps: Tensor, layers: Sequence[Affine]) -> Callable[[Tensor], RowTerms]:
    # Maps fade into zeros outside, biases do not: they also stand in a ring around the map.
    ring = int(any(layer.bias is not None for layer in layers))
    padded = F.pad(maps, [ring] * 4) if ring else maps
    if any(layer.weight is None for layer in layers):  # a copy is faster in this way
        padded = padded.contiguous(memory_format=torch.channels_last)
    rows = padded.flatten(2).transpose(1, 2)  # (M, positions, D)
    dtype = torch.promote_types(maps.dtype, torch.float32)  # in which interpolation is exact enough
    tables = [layer(rows).flatten(0, 1).to(dtype).contiguous() for layer in layers]
    corners = CornerCells(*maps.shape[-2:], ring=ring)

    def at(coords: Tensor) -> RowTerms:
        indices, weights = (of_cells.flatten() for of_cells in corners(coords.to(dtype)))
        # Where the cells of each point begin.
        bags = torch.arange(0, len(indices), 4, dtype=indices.dtype, device=indices.device)

        def read(rows: slice) -> Callable[[Tensor], Tensor]:
            first, last, _ = rows.indices(len(bags))
            cells = slice(4 * first, 4 * last)
            chosen, offsets, shares = indices[cells], bags[: last - first], weights[cells]
            return lambda table: torch.embedding_bag(
                table, chosen, offsets, mode=0, per_sample_weights=shares
            )[0]

        # Many small steps are slow where the work is little: all rows at once.
        narrow = [read(slice(None))(table) if table.shape[1] == 1 else None for table in tables]

        def terms(chosen: slice) -> Iterator[Tensor]:
            sums = read(chosen)
            for table, outputs in zip(tables, narrow, strict=True):
                yield sums(table) if outputs is None else outputs[chosen]

        return terms

    return at


class CornerCells:
    """The four cells around each point and their shares in bilinear interpolation.

    Args:
        height: rows of each map, at least 2 with the ring.
        width: columns of each map, at least 2 with the ring.
        ring: cells that are stored around each map on every side.
    """

    def __init__(self, height: int, width: int, *, ring: int) -> None:
        self.height, self.width, self.ring = height, width, ring

    def __call__(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (M, P, 2) in [0, 1]² of each map to indices and weights, (M·P, 4) each.

        Indices, int32, are row-major over all maps one after the other. Beyond the outermost cells
        the weights fall to 0 within the width of a cell; beyond a ring they stay on it.
        """
        row = self.width + 2 * self.ring
        cells_per_map = (self.height + 2 * self.ring) * row
        left, of_left, of_right = self._along_axis(coords[..., 0], self.width)
        top, of_top, of_bottom = self._along_axis(coords[..., 1], self.height)
        shares = (of_top * of_left, of_top * of_right, of_bottom * of_left, of_bottom * of_right)
        maps = torch.arange(coords.shape[0], dtype=top.dtype, device=coords.device)
        first = maps[:, None] * cells_per_map + top * row + left
        indices = (first, first + 1, first + row, first + (row + 1))
        return torch.stack(indices, dim=2).flatten(0, 1), torch.stack(shares, dim=2).flatten(0, 1)

    def _along_axis(self, coords: Tensor, num_cells: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first of two cells that are next to each other, and the shares of both."""
        # Any point further out is as one at the centre of a cell just outside the map.
        lowest, highest = self.ring - 1, num_cells + self.ring
        position = (coords * num_cells + (self.ring - 0.5)).clamp_(lowest, highest)
        first = position.floor().clamp_(0, num_cells + 2 * self.ring - 2)
        # The hat function of each cell; it needs no case for points outside.
        distance = position.sub_(first)
        near = (1 - distance.abs()).clamp_(min=0)
        far = (1 - (distance - 1).abs_()).clamp_(min=0)
        # A point that is not a number has such shares, and some cell of the map.
        return first.to(torch.int32).clamp_(min=0), near, far
