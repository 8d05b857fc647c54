"""What the points should have predicted: labels read from the ground truth.

Shapes: N regions over all images, P points; in an image E edges of polygons.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Instances, PolygonMasks
from torch import Tensor

from point_rend.ground_truth.shared_masks import SharedMasks
from point_rend.rendering.sampling import point_sample

# Pairs of an edge and a point that are looked at together.
PAIRS_AT_ONCE = 2**17


@torch.no_grad()
def sample_point_labels(instances: Sequence[Instances], point_coords: Tensor) -> Tensor:
    """Read the ground-truth masks at points.

    Convention: labels of masks of pixels are interpolated between pixel centers, so they are soft
    at boundaries, and fade to 0 outside the image. Labels of polygons are hard: 1 inside, 0
    outside, at the point itself and not at its pixel; the parts of an object are united, and where
    a part overlaps itself the even-odd rule of COCO's rasteriser holds.

    Args:
        instances: per image N_i regions with ``gt_masks`` (:class:`SharedMasks`, or Detectron2's
            ``BitMasks`` or ``PolygonMasks``); an image without regions needs no such field.
        point_coords: (N, P, 2) ``coords_img``, the images' regions one after the other.

    Returns:
        (N, P) float32 in [0, 1].

    Raises:
        TypeError: if masks are given in another format.
    """
    point_coords = point_coords.float()
    labels = [point_coords.new_zeros((0, point_coords.shape[1]))]
    regions_per_image = [len(x) for x in instances]
    for regions, coords in zip(instances, point_coords.split(regions_per_image), strict=True):
        if len(regions) == 0:
            continue
        masks = SharedMasks.of(regions.gt_masks, regions.image_size).to(coords.device)
        of_pixels = _read_bilinear(masks, coords)
        if masks.objects.has_polygons:
            of_pixels += _inside_polygons(masks.objects.polygons, masks.index, coords)
        labels.append(of_pixels)
    return torch.cat(labels)


@torch.no_grad()
def sample_semantic_labels(labels: Tensor, coords_norm: Tensor) -> Tensor:
    """Read the label of the pixel in which each point lies.

    Args:
        labels: (N, H, W) integers, at most 2^24.
        coords_norm: (N, P, 2) in [0, 1]² of the label map.

    Returns:
        (N, P) int64.
    """
    values = point_sample(labels[:, None].to(coords_norm), coords_norm, mode="nearest")
    return values[:, 0].to(torch.int64)


def _read_bilinear(masks: SharedMasks, coords: Tensor) -> Tensor:
    """Interpolate masks of pixels between the four pixel centers around each point: (N, P).

    The position goes through [−1, 1] and is rounded after the same steps as in ``point_sample`` of
    a float32 image, whose kernel does the last two in one.
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
    """Tell which points (N, P, 2) lie inside the polygons of their objects: (N, P) bool.

    A point is inside a part if a ray from it to the right crosses an odd number of its edges. An
    edge has its upper end and not its lower one, so each crossing counts once; of a part's outline,
    the left and upper sides belong to it.
    """
    device = coords.device
    parts = [part.reshape(-1, 2) for parts_of_one in polygons for part in parts_of_one]
    closed = [np.concatenate((part, np.roll(part, -1, axis=0)), axis=1) for part in parts]
    edges = torch.from_numpy(np.concatenate([np.zeros((0, 4)), *closed])).to(device)  # (E, 4)
    parts_of_object = torch.tensor([len(x) for x in polygons], dtype=torch.int64, device=device)
    edges_of_part = torch.tensor([len(x) for x in parts], dtype=torch.int64, device=device)

    # The parts of the first region's object, those of the second's, and so on: Q outlines.
    outlines = torch.arange(int(parts_of_object[index].sum()), device=device)
    region, part = _locate(outlines, parts_of_object, index)  # (Q,) each
    points_x, points_y = coords.double().unbind(2)
    crossings = torch.zeros(len(part), coords.shape[1], dtype=torch.int32, device=device)
    # In the same way the edges of all outlines follow one another, and are cut into pieces.
    edge_count = int(edges_of_part[part].sum())
    at_once = max(1, PAIRS_AT_ONCE // max(1, coords.shape[1]))
    for first in range(0, edge_count, at_once):
        piece = torch.arange(first, min(first + at_once, edge_count), device=device)
        outline, edge = _locate(piece, edges_of_part, part)  # (n,) each
        x0, y0, x1, y1 = edges[edge, :, None].unbind(1)  # (n, 1) each
        x, y = points_x[region[outline]], points_y[region[outline]]  # (n, P)
        starts_above, ends_above = y0 <= y, y1 <= y
        turn = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        crossed = (starts_above != ends_above) & torch.where(starts_above, turn > 0, turn < 0)
        crossings.index_add_(0, outline, crossed.to(torch.int32))
    inside = torch.zeros(index.shape[0], coords.shape[1], dtype=torch.int32, device=device)
    return inside.index_add_(0, region, crossings % 2) > 0


def _locate(positions: Tensor, counts: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Find members in a list that has those of one chosen group after those of the other.

    Args:
        positions: (n,) in that list.
        counts: members of each group; all members are numbered, group after group.
        chosen: (m,) groups, any of them several times.

    Returns:
        Of each position the place of its group in ``chosen``, and the number of its member.
    """
    last_positions, last_numbers = counts[chosen].cumsum(0), counts.cumsum(0)  # each plus one
    place = torch.searchsorted(last_positions, positions, right=True)
    return place, positions - last_positions[place] + last_numbers[chosen[place]]
