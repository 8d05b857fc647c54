"""Coordinate frames and the regular grid, defined once for the whole package.

Convention. Coordinates are (x, y). A cell or pixel with index ``i`` covers ``[i, i + 1)`` and its
center lies at ``i + 0.5`` (``align_corners=False`` everywhere). Three frames are in use:

* ``coords_box``: [0, 1]² inside a region, (0, 0) its top left corner;
* ``coords_img``: pixels of the network's input image;
* ``coords_norm``: [0, 1]² in the whole image.

Shapes: N regions (boxes or images), P points, H and W rows and columns of a grid.
"""

import torch
from torch import Tensor

from point_rend.rendering.constants import is_tracing, kept

KEPT_CELLS = 2**16  # cells of the largest grid whose centers are kept on an accelerator, 512 KiB


def cell_centers(indices: Tensor, height: int, width: int) -> Tensor:
    """Return the centers of grid cells, given their row-major indices.

    Args:
        indices: any shape (...), integers in [0, height * width).
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        (..., 2) float32 coordinates in [0, 1]² of the grid.
    """
    # Looking a center up is one launch in place of ten.
    if indices.device.type == "cpu" or is_tracing() or height * width > KEPT_CELLS:
        return _centers(indices, height, width)
    return _grid_centers(height, width, indices.device)[indices]


def _centers(indices: Tensor, height: int, width: int) -> Tensor:
    rows = torch.div(indices, width, rounding_mode="floor")
    # PyTorch has no translation to ONNX of a remainder by a dynamic size.
    columns = indices - rows * width if is_tracing() else indices % width
    centers = ((columns.to(torch.float32) + 0.5) / width, (rows.to(torch.float32) + 0.5) / height)
    return torch.stack(centers, dim=-1)


@kept
def _grid_centers(height: int, width: int, device: torch.device) -> Tensor:
    """Return the centers of all cells of a grid, (height · width, 2)."""
    return _centers(torch.arange(height * width, device=device), height, width)


def regular_grid(num_regions: int, side: int, device: torch.device | str | None = None) -> Tensor:
    """Return the cell centers of a square grid, the same for every region.

    Args:
        num_regions: N; may be a traced size.
        side: number of cells along each side.
        device: device of the coordinates.

    Returns:
        (N, side², 2) ``coords_box`` in row-major order, a view expanded along N, to be read only.
    """
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type == "cpu" or side * side > KEPT_CELLS:
        centers = cell_centers(torch.arange(side * side, device=device), side, side)
    else:
        centers = _grid_centers(side, side, device)
    return centers[None].expand(num_regions, -1, -1)


def box_to_image_coords(coords_box: Tensor, boxes: Tensor) -> Tensor:
    """Convert coordinates from the frame of each box to pixels of the image.

    Args:
        coords_box: (N, P, 2) in [0, 1]² of the box.
        boxes: (N, 4) as (x0, y0, x1, y1) in pixels.

    Returns:
        (N, P, 2) ``coords_img``.
    """
    corner, opposite = boxes[:, None, :2], boxes[:, None, 2:]
    return coords_box * (opposite - corner) + corner


def image_to_box_coords(coords_img: Tensor, boxes: Tensor) -> Tensor:
    """Convert coordinates from pixels of the image to the frame of each box.

    Args:
        coords_img: (N, P, 2) in pixels.
        boxes: (N, 4) as (x0, y0, x1, y1) in pixels.

    Returns:
        (N, P, 2) ``coords_box``; not finite for a box without extent.
    """
    corner, opposite = boxes[:, None, :2], boxes[:, None, 2:]
    return (coords_img - corner) / (opposite - corner)
