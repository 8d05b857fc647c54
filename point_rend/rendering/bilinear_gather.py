"""Rows of tables, interpolated bilinearly at points: the weighted sum of four cells of each point.

Shapes: M maps of H · W cells, each with P points; O columns of a table, which has one row per cell
of all maps, ring included.

On CUDA one Triton kernel finds the cells and sums them up (``triton_gather``), in inference and
where Triton can compile. Everywhere else a few operations find the cells, once for all tables, and
``embedding_bag`` sums up the rows of each table. Both give the same sums up to rounding.
"""

import warnings
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor


def weighted_sums(table: Tensor, indices: Tensor, weights: Tensor, bags: Tensor) -> Tensor:
    """Sum up rows of a table.

    Args:
        table: (rows, O).
        indices: (Q,) integers, rows of the table, those of the first sum first.
        weights: (Q,) weights of these rows.
        bags: (sums,) position in ``indices`` at which each sum begins.

    Returns:
        (sums, O).
    """
    return torch.embedding_bag(table, indices, bags, mode=0, per_sample_weights=weights)[0]


class Gather(NamedTuple):
    """The weighted sum of four cells of a table for each point."""

    indices: Tensor  # (4 · points,), of the rows of the table
    weights: Tensor  # (4 · points,)
    bags: Tensor  # (points,), the first index of each point

    def of_rows(self, rows: slice) -> "Gather":
        """Restrict the sums to a slice of the points."""
        # slice.indices would break the graph of torch.compile.
        start = 0 if rows.start is None else rows.start
        stop = len(self.bags) if rows.stop is None else min(rows.stop, len(self.bags))
        cells = slice(4 * start, 4 * stop)
        return Gather(self.indices[cells], self.weights[cells], self.bags[: stop - start])

    def __call__(self, table: Tensor) -> Tensor:
        """Map a table (cells, O) to sums (points, O)."""
        return weighted_sums(table, self.indices, self.weights, self.bags)


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
        # Both axes together: (2, M·P), x first.
        position = coords.flatten(0, 1).t().clone(memory_format=torch.contiguous_format)
        for axis, num_cells in enumerate((self.width, self.height)):
            position[axis].mul_(num_cells)
        position.add_(self.ring - 0.5)
        for axis, num_cells in enumerate((self.width, self.height)):
            # Points further out are moved to the center of the nearest cell just outside the map.
            position[axis].clamp_(self.ring - 1, num_cells + self.ring)
        first = position.floor()
        for axis, num_cells in enumerate((self.width, self.height)):
            first[axis].clamp_(0, num_cells + 2 * self.ring - 2)
        # Each cell's hat function, which also covers points outside the map.
        distance = position.sub_(first)
        shares = torch.stack((distance, distance - 1))  # (first and second cell, axis, M·P)
        shares = (1 - shares.abs_()).clamp_(min=0)
        weights = shares[:, None, 1] * shares[None, :, 0]  # (top and bottom, left and right, M·P)
        # NaN coordinates keep NaN weights, but their index is clamped to a valid cell.
        left, top = first.to(torch.int32).clamp_(min=0)
        corner = torch.add(left, top, alpha=row)
        maps = torch.arange(coords.shape[0], dtype=corner.dtype, device=corner.device)[:, None]
        corner = corner.unflatten(0, coords.shape[:2]).add_(maps * cells_per_map).flatten()
        corners = (corner, corner + 1, corner + row, corner + (row + 1))
        return torch.stack(corners, dim=1), weights.flatten(0, 1).t().contiguous()

    def gather(self, coords: Tensor) -> Gather:
        """Find the cells around points (M, P, 2): a function from tables of cells to rows."""
        indices, weights = (per_cell.flatten() for per_cell in self(coords))
        bags = torch.arange(0, len(indices), 4, dtype=indices.dtype, device=indices.device)
        return Gather(indices, weights, bags)


_triton_compiles = find_spec("triton") is not None

torch.library.define(
    "point_rend::gather_bilinear",
    "(Tensor table, Tensor coords, SymInt height, SymInt width, int ring) -> Tensor",
)


def is_gathered_by_triton(table: Tensor) -> bool:
    """Return whether :func:`gather_bilinear` is the way to read a table."""
    needs_gradient = torch.is_grad_enabled() and table.requires_grad
    return _triton_compiles and table.is_cuda and table.element_size() <= 4 and not needs_gradient


def gather_bilinear(table: Tensor, coords: Tensor, height: int, width: int, ring: int) -> Tensor:
    """Interpolate the rows of a table at points, without a gradient.

    Args:
        table: (M · (H + 2·ring) · (W + 2·ring), O), of float32, float16 or bfloat16.
        coords: (M, P, 2) float32 in [0, 1]² of each map.
        height, width, ring: as for :class:`CornerCells`.

    Returns:
        (M·P, O), float32.
    """
    return torch.ops.point_rend.gather_bilinear.default(table, coords, height, width, ring)


def _gather_by_operations(
    table: Tensor, coords: Tensor, height: int, width: int, ring: int
) -> Tensor:
    return CornerCells(height, width, ring=ring).gather(coords)(table.to(coords.dtype))


def _gather_by_triton(table: Tensor, coords: Tensor, height: int, width: int, ring: int) -> Tensor:
    global _triton_compiles
    if _triton_compiles:
        try:
            from point_rend.rendering import triton_gather

            with torch.cuda.device_of(table):
                return triton_gather.gather_bilinear(table, coords, height, width, ring)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an old GPU, or no C compiler on this machine
            _triton_compiles = False
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(
                f"Triton cannot compile the kernel that reads the features ({reason}); rendering "
                "goes on with operations of PyTorch, which are slower",
                stacklevel=2,
            )
    return _gather_by_operations(table, coords, height, width, ring)


def _shape_of_rows(table: Tensor, coords: Tensor, *_: int) -> Tensor:
    return coords.new_empty(coords.shape[0] * coords.shape[1], table.shape[1])


torch.library.register_fake("point_rend::gather_bilinear", _shape_of_rows)
torch.library.impl("point_rend::gather_bilinear", "default", _gather_by_operations)
torch.library.impl("point_rend::gather_bilinear", "cuda", _gather_by_triton)
