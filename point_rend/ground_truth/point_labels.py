"""Labels of points, read from the ground truth.

Shapes: N regions over all images, P points; in one image, N regions and the E edges of all
polygons.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from point_rend.ground_truth.mask_objects import cat_pixels
from point_rend.ground_truth.shared_masks import SharedMasks
from point_rend.rendering.sampling import point_sample

# Maximum number of pairs of an edge and a point that are processed together.
PAIRS_AT_ONCE = 2**17  # on a CPU: as its caches hold
GPU_PAIRS_AT_ONCE = 2**22  # 32 MiB per float64 operand


@torch.no_grad()
def sample_point_labels(instances: Sequence[Instances], point_coords: Tensor) -> Tensor:
    """Read the ground-truth masks at points.

    Convention: labels from bitmasks are interpolated between pixel centers, so they are soft at
    boundaries and fade to 0 outside the image. Labels from polygons are hard, 1 inside and 0
    outside, and exact at the point itself. An object is the union of its parts; a part that
    overlaps itself follows the even-odd rule, as in COCO's rasterizer.

    Args:
        instances: per image N_i regions with ``gt_masks`` (:class:`SharedMasks`, or Detectron2's
            ``BitMasks`` or ``PolygonMasks``); an image without regions needs no such field.
        point_coords: (N, P, 2) ``coords_img``, in the order of the regions.

    Returns:
        (N, P) float32 in [0, 1].

    Raises:
        TypeError: if the masks have another format.
        ValueError: if the number of regions is not that of the points.
    """
    num_regions = sum(len(x) for x in instances)
    if len(point_coords) != num_regions:
        raise ValueError(
            f"sample_point_labels: expected points of {num_regions} regions, got those of "
            f"{len(point_coords)}"
        )
    coords = point_coords.float()
    masks = [
        SharedMasks.of(x.gt_masks, x.image_size).to(coords.device) for x in instances if len(x)
    ]
    labels = coords.new_zeros(coords.shape[:2])
    if any(x.objects.has_pixels for x in masks):
        labels += _read_bilinear(masks, coords)  # 0 for regions with polygons
    if any(x.objects.has_polygons for x in masks):
        labels += _inside_polygons(masks, coords)
    return labels


@torch.no_grad()
def sample_semantic_labels(labels: Tensor, coords_norm: Tensor) -> Tensor:
    """Read the label of the pixel that contains each point.

    Args:
        labels: (N, H, W) integers, at most 2^24.
        coords_norm: (N, P, 2) in [0, 1]² of the label map.

    Returns:
        (N, P) int64.
    """
    values = point_sample(labels[:, None].to(coords_norm), coords_norm, mode="nearest")
    return values[:, 0].to(torch.int64)


def _read_bilinear(masks: Sequence[SharedMasks], coords: Tensor) -> Tensor:
    """Interpolate masks between the four pixel centers around each point: (N, P).

    Positions go through [−1, 1] and are rounded as in ``point_sample`` of a float32 image, whose
    kernel fuses the last two steps. Polygons read as 0.
    """
    pixels, places = _places_of_regions(masks)
    lower, upper, strides, sizes = places[:8].view(4, 2, -1, 1)  # (2, N, 1) each, x before y
    size = sizes.to(coords)
    grid = 2.0 * (coords.movedim(2, 0).contiguous() / size) - 1.0  # (2, N, P)
    position = ((grid + 1.0).double() * (size / 2) - 0.5).float()  # 0 at the first pixel's center
    first = position.floor()
    after = position - first
    weights = torch.stack((1.0 - after, after))  # of the cells at both sides, (2, 2, N, P)
    cell = first.to(torch.int64)
    cells = torch.stack((cell, cell + 1))
    inside = (cells >= lower) & (cells < upper)
    offsets = (cells - lower) * strides
    # (right, below, N, P): the columns at both sides by the rows at both sides.
    positions = offsets[:, None, 0] + offsets[:, 1] + places[8, :, None]
    all_inside = inside[:, None, 0] & inside[:, 1]
    values = pixels[positions.where(all_inside, len(pixels) - 1)]
    shares = weights[:, None, 0] * weights[:, 1] * values
    return shares[0, 0] + shares[1, 0] + shares[0, 1] + shares[1, 1]


def _places_of_regions(masks: Sequence[SharedMasks]) -> tuple[Tensor, Tensor]:
    """Join the pixels of all images; return them and the ``places`` of the regions, (9, N)."""
    places = torch.cat([x.objects.places[:, x.index] for x in masks], dim=1)
    first_region = first_pixel = 0
    for x in masks:
        if first_pixel:
            places[8, first_region : first_region + len(x)] += first_pixel
        first_region += len(x)
        first_pixel += len(x.objects.pixels) - 1
    return cat_pixels([x.objects for x in masks]), places


def _inside_polygons(masks: Sequence[SharedMasks], coords: Tensor) -> Tensor:
    """Return which points (N, P, 2) lie inside the polygons of their objects: (N, P) bool.

    A point is inside a part if a ray from it to the right crosses an odd number of edges. An edge
    includes its upper end and excludes its lower one, so each crossing counts once. The left and
    upper sides of a part belong to it.

    All sizes are computed on the CPU; on a GPU the objects of the regions are the only wait.
    """
    device, num_points = coords.device, coords.shape[1]
    objects = [parts for x in masks for parts in x.objects.polygons.polygons]
    parts = [part.reshape(-1, 2) for parts_of_one in objects for part in parts_of_one]
    closed = [np.concatenate((part, np.roll(part, -1, axis=0)), axis=1) for part in parts]
    edges = torch.from_numpy(np.concatenate([np.zeros((0, 4)), *closed]))
    edges = edges.to(device, non_blocking=True)  # (E, 4)
    parts_of_object = np.array([len(x) for x in objects], dtype=np.int64)
    edges_of_part = np.array([len(x) for x in parts], dtype=np.int64)

    first_objects = np.cumsum([0, *(len(x.objects) for x in masks[:-1])])
    index = torch.cat([x.index for x in masks]).cpu().numpy()
    index = index + np.repeat(first_objects, [len(x) for x in masks])
    # Q outlines: the parts of the first region's object, then those of the second's, and so on.
    outlines = np.arange(parts_of_object[index].sum())
    region, part = _locate(outlines, parts_of_object, index)  # (Q,) each
    region_there = torch.from_numpy(region).to(device, non_blocking=True)
    points_x, points_y = coords.double().unbind(2)
    crossings = torch.zeros(len(part), num_points, dtype=torch.int32, device=device)
    # The edges of all outlines follow one another in the same way and are processed in pieces.
    edge_count = edges_of_part[part].sum()
    pairs_at_once = PAIRS_AT_ONCE if device.type == "cpu" else GPU_PAIRS_AT_ONCE
    edges_at_once = max(1, pairs_at_once // max(1, num_points))
    for first in range(0, edge_count, edges_at_once):
        piece = np.arange(first, min(first + edges_at_once, edge_count))
        of_outline, edge = _locate(piece, edges_of_part, part)
        table = torch.from_numpy(np.stack((of_outline, region[of_outline], edge)))
        outline, of_region, number = table.to(device, non_blocking=True)  # (n,) each
        x0, y0, x1, y1 = edges[number, :, None].unbind(1)  # (n, 1) each
        x, y = points_x[of_region], points_y[of_region]  # (n, P)
        starts_above, ends_above = y0 <= y, y1 <= y
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)  # its sign: left or right of the edge
        crossed = (starts_above != ends_above) & torch.where(starts_above, side > 0, side < 0)
        crossings.index_add_(0, outline, crossed.to(torch.int32))
    inside = torch.zeros(len(index), num_points, dtype=torch.int32, device=device)
    return inside.index_add_(0, region_there, crossings % 2) > 0


def _locate(
    positions: np.ndarray, counts: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Look up positions in the concatenation of the members of chosen groups.

    Args:
        positions: (n,) positions in the concatenation.
        counts: number of members of each group; members are numbered group by group.
        chosen: (m,) the groups that are concatenated, possibly with repetitions.

    Returns:
        For each position the index into ``chosen`` of its group, and the number of its member.
    """
    ends, member_ends = counts[chosen].cumsum(), counts.cumsum()
    slot = ends.searchsorted(positions, side="right")
    return slot, positions - ends[slot] + member_ends[chosen[slot]]
