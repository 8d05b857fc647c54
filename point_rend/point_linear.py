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

from .sampling import point_sample

# The outputs of some layers at some of the points, which a slice of the M·P rows names: one tensor
# (rows, O) after the other.
RowTerms = Callable[[slice], Iterator[Tensor]]


# How many points make up for what a position costs, measured on a CPU: to be copied into a row of
# its own, which is read faster; to be multiplied by a layer in the place of the points.
POINTS_PER_COPIED_POSITION = 0.25
POINTS_PER_PROJECTED_POSITION = 1.5
# Positions that are projected at a time where they are overwritten: of 256 float32 channels 2 MiB.
POSITIONS_PER_TILE = 2048


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
    maps: Tensor, layers: Sequence[Affine], num_points: int, *, overwrites: bool = False
) -> Callable[[Tensor], RowTerms]:
    """Bind layers to maps: ``layer(point_sample(maps, coords))`` for each of them.

    The layers are applied to the maps or at the points, whichever is less work.

    Args:
        maps: (M, D, H, W).
        layers: which read the same points.
        num_points: how many points of all maps together the result will be asked for, in all.
        overwrites: whether the maps may be used up: outputs take their place where they fit.

    Returns:
        A function from coordinates (M, P, 2) in [0, 1]² of each map to the outputs there, which are
        computed when they are asked for.
    """
    given, maps = maps, position_major(maps, num_points)
    projects = any(layer.weight is not None for layer in layers)
    if not _has_rows(maps):
        return partial(_project_samples, lambda coords: point_sample(maps, coords), layers)
    if projects and num_points >= _num_positions(maps) * POINTS_PER_PROJECTED_POSITION:
        return _sample_projections(maps, layers, overwrites=overwrites or maps is not given)
    identity = _sample_projections(maps, [Affine()])

    def sample(coords: Tensor) -> Tensor:
        (rows,) = identity(coords)(slice(None))
        return rows.unflatten(0, coords.shape[:2]).transpose(1, 2)

    return partial(_project_samples, sample, layers)


def position_major(maps: Tensor, num_points: int) -> Tensor:
    """Lay the channels of each position side by side where that many points pay for the copy.

    In a trace, which serves any number of points, they never do.

    Args:
        maps: (M, D, H, W).
        num_points: how many points of all maps will be read.

    Returns:
        Equal maps, in PyTorch's memory format ``channels_last`` or as they were.
    """
    if is_tracing() or num_points < _num_positions(maps) * POINTS_PER_COPIED_POSITION:
        return maps
    return maps.contiguous(memory_format=torch.channels_last)


def _num_positions(maps: Tensor) -> int:
    return maps.shape[0] * maps.shape[2] * maps.shape[3]


def _has_rows(maps: Tensor) -> bool:
    """Whether the channels of a position are contiguous, and positions have four neighbours."""
    is_laid_out = maps.is_contiguous(memory_format=torch.channels_last)
    return is_laid_out and min(maps.shape[2:]) > 1 and not is_tracing()


def is_tracing() -> bool:
    """Tell whether a trace is being made, whose code serves any number of regions and points."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined]


def _project_samples(
    sample: Callable[[Tensor], Tensor], layers: Sequence[Affine], coords: Tensor
) -> RowTerms:
    samples = sample(coords).transpose(1, 2)  # (M, P, D)
    rows = samples.flatten(0, 1)
    # Where each map has a layer of its own, rows do not know theirs any more.
    of_maps = [layer(samples).flatten(0, 1) if layer.is_of_maps else None for layer in layers]

    def terms(chosen: slice) -> Iterator[Tensor]:
        for layer, outputs in zip(layers, of_maps, strict=True):
            yield layer(rows[chosen]) if outputs is None else outputs[chosen]

    return terms


def _sample_projections(
    maps: Tensor, layers: Sequence[Affine], *, overwrites: bool = False
) -> Callable[[Tensor], RowTerms]:
    # Maps fade into zeros outside, biases do not: they also stand in a ring around the map.
    ring = int(any(layer.bias is not None for layer in layers))
    padded = F.pad(maps, [ring] * 4) if ring else maps
    rows = padded.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1, 2)
    dtype = torch.promote_types(maps.dtype, torch.float32)  # in which interpolation is exact enough
    if overwrites and len(layers) == 1 and _fits_in_place(layers[0], rows):
        for part in rows.flatten(0, 1).split(POSITIONS_PER_TILE):
            part.copy_(layers[0](part))
        layers = [Affine()]
    tables = [layer(rows).flatten(0, 1).to(dtype) for layer in layers]
    corners = CornerCells(*maps.shape[-2:], ring=ring, like=tables[0])

    def at(coords: Tensor) -> RowTerms:
        all_indices, all_weights = corners(coords.to(dtype))
        all_bags = torch.arange(all_indices.shape[0], device=coords.device) * 4
        # Bags of single numbers are slow, and so are many small steps: of these all rows at once.
        narrow = [
            (table[:, 0][all_indices] * all_weights).sum(dim=1, keepdim=True)
            if table.shape[1] == 1
            else None
            for table in tables
        ]

        def terms(chosen: slice) -> Iterator[Tensor]:
            indices, weights = all_indices[chosen].flatten(), all_weights[chosen].flatten()
            bags = all_bags[: all_bags[chosen].shape[0]]  # where the cells of each point begin
            for table, outputs in zip(tables, narrow, strict=True):
                if outputs is not None:
                    yield outputs[chosen]
                else:
                    yield torch.embedding_bag(
                        table, indices, bags, mode=0, per_sample_weights=weights
                    )[0]

        return terms

    return at


def _fits_in_place(layer: Affine, rows: Tensor) -> bool:
    """Tell whether a layer, the same for all maps, has as many outputs as inputs, of one type.

    Where gradients may be asked for later, the inputs have to stay.
    """
    if layer.weight is None or layer.is_of_maps or torch.is_grad_enabled():
        return False
    return layer.weight.dtype == rows.dtype and layer.weight.shape[0] == rows.shape[-1]


class CornerCells:
    """The four cells around each point and their shares in bilinear interpolation.

    Args:
        height: rows of each map, at least 2 with the ring.
        width: columns of each map, at least 2 with the ring.
        ring: cells that are stored around each map on every side.
        like: a tensor of the type and on the device of the coordinates.
    """

    def __init__(self, height: int, width: int, *, ring: int, like: Tensor) -> None:
        self.row = width + 2 * ring
        self.cells_per_map = (height + 2 * ring) * self.row
        # Filled on the device: a tensor from the host would make it wait.
        self.size = torch.stack((like.new_full((), width), like.new_full((), height)))
        self.shift = ring - 0.5
        # Any point further out is as one at the centre of a cell just outside the map.
        self.lowest, self.highest = torch.full_like(self.size, ring - 1), self.size + ring
        self.first, self.last = torch.zeros_like(self.size), self.size + (2 * ring - 2)
        pair = torch.arange(2, device=like.device)
        self.corners = (pair[:, None] * self.row + pair).flatten()  # row-major

    def __call__(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (M, P, 2) in [0, 1]² of each map to indices and weights, (M·P, 4) each.

        Indices, int64, are row-major over all maps one after the other. Beyond the outermost cells
        the weights fall to 0 within the width of a cell; beyond a ring they stay on it.
        """
        position = (coords * self.size + self.shift).clamp_(self.lowest, self.highest)
        first = position.floor().clamp_(self.first, self.last)
        # The hat function of each cell; it needs no case for points outside.
        distance = position.sub_(first)
        near = (1 - distance.abs()).clamp_(min=0)  # of the first cell, per axis
        far = (1 - (distance - 1).abs_()).clamp_(min=0)  # of the one after it
        (left, above), (right, below) = near.unbind(-1), far.unbind(-1)
        shares = torch.stack((above * left, above * right, below * left, below * right), dim=-1)
        cells = first.to(torch.int64)
        maps = torch.arange(coords.shape[0], device=coords.device)[:, None] * self.cells_per_map
        index = cells[..., 1] * self.row + cells[..., 0] + maps
        return (index[..., None] + self.corners).flatten(0, 1), shares.flatten(0, 1)
