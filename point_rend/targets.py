"""What the points should have predicted: labels read from the ground truth.

Shapes: N regions over all images, P points.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from .sampling import point_sample


@torch.no_grad()
def sample_point_labels(instances: Sequence[Instances], point_coords: Tensor) -> Tensor:
    """Read the ground-truth masks at points.

    Convention: labels are interpolated between pixel centres, so they are soft at boundaries, and
    fade to 0 outside the image.

    Args:
        instances: per image N_i regions with ``gt_masks`` (:class:`BitMasks`); an image without
            regions needs no such field.
        point_coords: (N, P, 2) ``coords_img``, the images' regions one after the other.

    Returns:
        (N, P) float32 in [0, 1].

    Raises:
        TypeError: if masks are given in another format than bitmasks.
    """
    labels = [point_coords.new_zeros((0, point_coords.shape[1]))]
    regions_per_image = [len(x) for x in instances]
    for regions, coords in zip(instances, point_coords.split(regions_per_image), strict=True):
        if len(regions) == 0:
            continue
        masks = regions.gt_masks
        if not isinstance(masks, BitMasks):
            raise TypeError(
                f"gt_masks: expected BitMasks, got {type(masks).__name__}; "
                "set INPUT.MASK_FORMAT to 'bitmask'"
            )
        height, width = masks.image_size
        coords_norm = coords / coords.new_tensor([width, height])
        mask_maps = masks.tensor[:, None].to(coords)  # (N_i, 1, H, W)
        labels.append(point_sample(mask_maps, coords_norm)[:, 0])
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
