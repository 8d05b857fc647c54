"""Labels of points, read from the ground truth.

Shapes: N regions over all images, P points; in one image, N regions and the E edges of all
polygons.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Instances, PolygonMasks
from torch import Tensor

from point_rend.ground_truth.shared_masks import SharedMasks
from point_rend.rendering.sampling import point_sample

# Maximum number of pairs of an edge and a point that are processed together.
PAIRS_AT_ONCE = 2**17


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
    """
    point_coords = point_coords.float()
    labels = [point_coords.new_zeros((0, point_coords.shape[1]))]
    regions_per_image = [len(x) for x in instances]
    for regions, coords in zip(instances, point_coords.split(regions_per_image), strict=True):
        if len(regions) == 0:
            continue
        masks = SharedMasks.of(regions.gt_masks, regions.image_size).to(coords.device)
        image_labels = _read_bilinear(masks, coords)  # 0 for regions with polygons
        if masks.objects.has_polygons:
            image_labels += _inside_polygons(masks.objects.polygons, masks.index, coords)
        labels.append(image_labels)
    return torch.cat(labels)


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


def _read_bilinear(masks: SharedMasks, coords: Tensor) -> Tensor:
    """Interpolate masks between the four pixel centers around each point: (N, P).

    Positions go through [−1, 1] and are rounded as in ``point_sample`` of a float32 image, whose
    kernel fuses the last two steps.
    """
    height, width = masks.image_size
    size = coords.new_tensor([width, height])
    grid = 2.0 * (coords / size) - 1.0
    position = ((grid + 1.0).double() * (size / 2) - 0.5).float()  # 0 at the first pixel's center
    first = position.floor()
    after = position - first  # (N, P, 2), the weights of the second column and row
    before = 1.0 - after
    columns, rows = first.to(torch.int64).unbind(2)
    labels = torch.zeros_like(coords[:, :, 0])
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight_x = (after if right else before)[:, :, 0]
        weight_y = (after if below else before)[:, :, 1]
        pixels = masks.objects.read_pixels(masks.index, columns + right, rows + below)
        labels += weight_x * weight_y * pixels
    return labels


def _inside_polygons(polygons: PolygonMasks, index: Tensor, coords: Tensor) -> Tensor:
    """Return which points (N, P, 2) lie inside the polygons of their objects: (N, P) bool.

    A point is inside a part if a ray from it to the right crosses an odd number of edges. An edge
    includes its upper end and excludes its lower one, so each crossing counts once. The left and
    upper sides of a part belong to it.
    """
    device = coords.device
    parts = [part.reshape(-1, 2) for parts_of_one in polygons for part in parts_of_one]
    closed = [np.concatenate((part, np.roll(part, -1, axis=0)), axis=1) for part in parts]
    edges = torch.from_numpy(np.concatenate([np.zeros((0, 4)), *closed])).to(device)  # (E, 4)
    parts_of_object = torch.tensor([len(x) for x in polygons], dtype=torch.int64, device=device)
    edges_of_part = torch.tensor([len(x) for x in parts], dtype=torch.int64, device=device)

    # Q outlines: the parts of the first region's object, then those of the second's, and so on.
    outlines = torch.arange(int(parts_of_object[index].sum()), device=device)
    region, part = _locate(outlines, parts_of_object, index)  # (Q,) each
    points_x, points_y = coords.double().unbind(2)
    crossings = torch.zeros(len(part), coords.shape[1], dtype=torch.int32, device=device)
    # The edges of all outlines follow one another in the same way and are processed in pieces.
    edge_count = int(edges_of_part[part].sum())
    edges_at_once = max(1, PAIRS_AT_ONCE // max(1, coords.shape[1]))
    for first in range(0, edge_count, edges_at_once):
        piece = torch.arange(first, min(first + edges_at_once, edge_count), device=device)
        outline, edge = _locate(piece, edges_of_part, part)  # (n,) each
        x0, y0, x1, y1 = edges[edge, :, None].unbind(1)  # (n, 1) each
        x, y = points_x[region[outline]], points_y[region[outline]]  # (n, P)
        starts_above, ends_above = y0 <= y, y1 <= y
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)  # its sign: left or right of the edge
        crossed = (starts_above != ends_above) & torch.where(starts_above, side > 0, side < 0)
        crossings.index_add_(0, outline, crossed.to(torch.int32))
    inside = torch.zeros(index.shape[0], coords.shape[1], dtype=torch.int32, device=device)
    return inside.index_add_(0, region, crossings % 2) > 0


def _locate(positions: Tensor, counts: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Look up positions in the concatenation of the members of chosen groups.

    Args:
        positions: (n,) positions in the concatenation.
        counts: number of members of each group; members are numbered group by group.
        chosen: (m,) the groups that are concatenated, possibly with repetitions.

    Returns:
        For each position the index into ``chosen`` of its group, and the number of its member.
    """
    ends, member_ends = counts[chosen].cumsum(0), counts.cumsum(0)
    slot = torch.searchsorted(ends, positions, right=True)
    return slot, positions - ends[slot] + member_ends[chosen[slot]]
