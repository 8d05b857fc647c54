"""Annotated points of objects as training points, in place of masks.

Instances have them as ``gt_point_coords`` (N, P, 2), ``coords_img``, and ``gt_point_labels``
(N, P): 1 in the object, 0 outside of it, −1 for a point that augmentation moved out of the image,
−2 where an object has fewer points than others of its image.

Shapes: N regions over all images, P points, the largest number that a region has.

Source: Cheng, Parkhi, Kirillov, "Pointly-Supervised Instance Segmentation", section 3.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from point_rend.ground_truth.losses import IGNORED_LABEL
from point_rend.rendering.coordinates import image_to_box_coords

COORDS, LABELS = "gt_point_coords", "gt_point_labels"
ABSENT_LABEL = -2


def has_annotated_points(instances: Sequence[Instances]) -> bool:
    """Return whether regions have annotated points; images without regions do not count.

    Raises:
        ValueError: if only those of some images have them.
    """
    has = {x.has(COORDS) and x.has(LABELS) for x in instances if len(x)}
    if len(has) > 1:
        raise ValueError(
            f"only some images of a batch have {COORDS} and {LABELS}: expected all of them, or "
            "masks for all"
        )
    return has == {True}


@torch.no_grad()
def annotated_points(instances: Sequence[Instances]) -> tuple[Tensor, Tensor]:
    """Return the annotated points of each region in the frame of its proposal.

    Args:
        instances: per image its regions with ``proposal_boxes`` and annotated points; an image
            without regions needs no points.

    Returns:
        Points (N, P, 2) as ``coords_box``, and their labels (N, P): 0, 1, or −1 to ignore, which
        are all points outside of their proposal.
    """
    boxes = torch.cat([x.proposal_boxes.tensor for x in instances])
    found = [(x.get(COORDS).to(boxes), x.get(LABELS).to(boxes)) for x in instances if len(x)]
    most = max((1, *(labels.shape[1] for _, labels in found)))  # convolutions need a point
    added = [most - labels.shape[1] for _, labels in found]
    padded = [F.pad(x, (0, 0, 0, n)) for (x, _), n in zip(found, added, strict=True)]
    coords = torch.cat([boxes.new_zeros(0, most, 2), *padded])
    padded = [F.pad(x, (0, n), value=ABSENT_LABEL) for (_, x), n in zip(found, added, strict=True)]
    labels = torch.cat([boxes.new_zeros(0, most), *padded])
    coords = image_to_box_coords(coords, boxes)
    counted = ((coords >= 0) & (coords <= 1)).all(dim=2) & (labels >= 0)
    # The positions of ignored points have no effect; those of an empty box are not finite.
    return coords.where(counted[..., None], 0.5), labels.where(counted, IGNORED_LABEL)


def number_of_annotated_points(instances: Sequence[Instances]) -> Tensor:
    """Return the number of points of all regions, with those outside of their proposal."""
    counts = [(x.get(LABELS) != ABSENT_LABEL).sum() for x in instances if len(x)]
    return torch.stack(counts).sum()
