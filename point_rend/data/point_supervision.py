"""Annotated points on their way to a model: they follow the augmentation of their image.

Shapes: N objects of an image, P points, the largest number that one of them has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.transforms import TransformList
from detectron2.structures import Instances

from point_rend.data.checks.points import FIELDS, NO_POINTS
from point_rend.ground_truth.annotated_points import ABSENT_LABEL, COORDS, LABELS
from point_rend.ground_truth.losses import IGNORED_LABEL


def have_points(objects: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the objects of an image have annotated points.

    Raises:
        ValueError: If only some of them have.
    """
    has = {all(field in annotation for field in FIELDS) for annotation in objects}
    if len(has) > 1:
        raise ValueError(f"some of its {len(objects)} objects have {NO_POINTS}")
    return has == {True}


def add_points(
    instances: Instances,
    objects: Sequence[Mapping[str, Any]],
    transforms: TransformList,
    sample_points: int,
) -> None:
    """Add the annotated points of all objects of an image, in the form in which heads read them.

    Args:
        instances: The objects, of the image after its augmentation.
        objects: Their annotations.
        transforms: The augmentation.
        sample_points: Number of points drawn from those of each object, with repetition if it has
            fewer; 0 takes all.
    """
    height, width = instances.image_size
    drawn = []
    for annotation in objects:
        pixels = np.asarray(annotation[FIELDS[0]], dtype=np.float64).reshape(-1, 2)
        coords = transforms.apply_coords(pixels + 0.5)  # the center of the pixel
        labels = np.asarray(annotation[FIELDS[1]], dtype=np.float32)
        inside = ((coords >= 0) & (coords <= (width, height))).all(axis=1)
        labels = np.where(inside, labels, IGNORED_LABEL)
        if sample_points and len(labels):
            chosen = np.random.choice(
                len(labels), sample_points, replace=len(labels) < sample_points
            )
            coords, labels = coords[chosen], labels[chosen]
        drawn.append((coords, labels))
    most = max((len(labels) for _, labels in drawn), default=0)
    all_coords = torch.zeros(len(drawn), most, 2)
    all_labels = torch.full((len(drawn), most), float(ABSENT_LABEL))
    for number, (coords, labels) in enumerate(drawn):
        all_coords[number, : len(labels)] = torch.from_numpy(coords)
        all_labels[number, : len(labels)] = torch.from_numpy(labels)
    instances.set(COORDS, all_coords)
    instances.set(LABELS, all_labels)
