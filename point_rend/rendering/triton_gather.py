"""A Triton kernel that interpolates the rows of tables bilinearly, see ``bilinear_gather``.

Imported only where it is used: it needs Triton. With ``TRITON_INTERPRET=1`` in the environment it
runs on a CPU, which is how it is tested.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES_PER_PROGRAM = 2048
MAX_COLUMNS = 256  # of one program


@triton.jit
def _cells_along_axis(coords, num_cells, ring):
    """Return the first of two adjacent cells, and the distance from its center."""
    position = coords * num_cells + (ring - 0.5)
    # Points further out are moved to the center of the nearest cell just outside the map.
    position = tl.maximum(position, ring - 1.0, propagate_nan=tl.PropagateNan.ALL)
    position = tl.minimum(position, num_cells + ring * 1.0, propagate_nan=tl.PropagateNan.ALL)
    # NaN coordinates keep a NaN distance, but their cell is a valid one.
    first = tl.where(position == position, tl.floor(position), 0.0)
    first = tl.minimum(tl.maximum(first, 0.0), num_cells + 2.0 * ring - 2.0)
    return first.to(tl.int32), position - first


@triton.jit
def _share(distance):
    """Return a cell's hat function of the distance from its center."""
    return tl.maximum(1.0 - tl.abs(distance), 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _gather_kernel(
    table,
    coords,
    outputs,
    num_rows,
    points_per_map,
    num_columns,
    height,
    width,
    RING: tl.constexpr,  # noqa: N803 (Triton's convention)
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Interpolate a block of rows (points) and columns."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row = rows < num_rows
    left, dx = _cells_along_axis(tl.load(coords + 2 * rows, is_row, 0.0), width, RING)
    top, dy = _cells_along_axis(tl.load(coords + 2 * rows + 1, is_row, 0.0), height, RING)
    row_length = width + 2 * RING
    cells_per_map = (height + 2 * RING) * row_length
    first = (rows // points_per_map).to(tl.int64) * cells_per_map + top * row_length + left
    is_value = is_row[:, None] & (columns < num_columns)[None, :]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for corner in tl.static_range(4):
        right, below = corner % 2, corner // 2
        weights = _share(dy - below) * _share(dx - right)
        cells = first + below * row_length + right
        values = tl.load(table + cells[:, None] * num_columns + columns[None, :], is_value, 0.0)
        sums += weights[:, None] * values.to(tl.float32)
    tl.store(outputs + rows.to(tl.int64)[:, None] * num_columns + columns[None, :], sums, is_value)


def gather_bilinear(table: Tensor, coords: Tensor, height: int, width: int, ring: int) -> Tensor:
    """Interpolate the rows of a table, see ``bilinear_gather.gather_bilinear``."""
    num_maps, points_per_map = coords.shape[:2]
    num_rows, num_columns = num_maps * points_per_map, table.shape[1]
    outputs = torch.empty(num_rows, num_columns, dtype=torch.float32, device=table.device)
    if not outputs.numel():
        return outputs
    columns = min(triton.next_power_of_2(num_columns), MAX_COLUMNS)
    rows = min(VALUES_PER_PROGRAM // columns, 256)
    grid = (triton.cdiv(num_rows, rows), triton.cdiv(num_columns, columns))
    _gather_kernel[grid](
        table.contiguous(),
        coords.to(torch.float32).contiguous(),
        outputs,
        num_rows,
        points_per_map,
        num_columns,
        height,
        width,
        RING=ring,
        ROWS=rows,
        COLUMNS=columns,
    )
    return outputs
