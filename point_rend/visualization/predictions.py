"""Pictures of predictions: the segments of any kind of model, painted over the image."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data.catalog import Metadata

from point_rend.rendering.box_masks import Crop, crops
from point_rend.rendering.uncertainty import label_map
from point_rend.visualization.drawing import (
    color_of,
    draw_keypoints,
    overlay_masks,
    write_names,
)
from point_rend.visualization.fonts import legible

Output = Mapping[str, Any]  # of a model for one image


class Segment(NamedTuple):
    """One segment of an image, of any kind of model."""

    mask: Crop
    category: int
    is_thing: bool = False
    score: float | None = None


def labels_of(output: Output) -> np.ndarray:
    """Return the label map (H, W) of a semantic or panoptic result, uint8 up to 256 classes."""
    if "labels" in output:  # of an image in tiles
        labels = output["labels"].cpu().numpy()
        return labels if labels.dtype == np.uint8 else labels.astype(np.uint16)
    labels = label_map(output["sem_seg"]).cpu().numpy()
    return labels.astype(np.uint8 if len(output["sem_seg"]) <= 256 else np.uint16)


def segments_of(output: Output) -> list[Segment]:
    """List the segments of a panoptic result, or else labels, or else instances, best first."""
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        ids = ids.cpu().numpy()
        return [
            Segment(Crop.of(ids == x["id"]), x["category_id"], x["isthing"], x.get("score"))
            for x in segments
        ]
    if "sem_seg" in output or "labels" in output:
        return segments_of_labels(labels_of(output))
    found = output["instances"].to("cpu")
    rows = zip(
        crops(found.pred_masks), found.pred_classes.tolist(), found.scores.tolist(), strict=True
    )
    return [Segment(mask, category, True, score) for mask, category, score in rows]


def segments_of_labels(labels: np.ndarray) -> list[Segment]:
    """List the segments of a label map (H, W), one for each class in it."""
    return [Segment(Crop.of(labels == k), int(k)) for k in np.unique(labels)]


def draw(image: np.ndarray, output: Output, metadata: Metadata, *, by_class: bool) -> np.ndarray:
    """Paint the segments of an image over it, and the keypoints of its instances.

    Args:
        image: (H, W, 3) uint8.
        output: The model's result for it.
        metadata: The classes; those without a color get one, those without a name their number.
        by_class: Whether instances have the colors of their classes, not all different ones.

    Returns:
        (H, W, 3) uint8.
    """
    segments = segments_of(output)
    numbers = None if by_class else range(len(segments))
    picture = draw_segments(image, segments, metadata, numbers)
    found = output.get("instances")
    if found is None or not found.has("pred_keypoints"):
        return picture
    names = metadata.get("keypoint_names") or ()
    lines = [
        (names.index(start), names.index(end), tuple(color[::-1]))
        for start, end, color in metadata.get("keypoint_connection_rules") or ()
    ]
    return draw_keypoints(picture, found.pred_keypoints.cpu().numpy(), lines)


def draw_segments(
    image: np.ndarray,
    segments: Sequence[Segment],
    metadata: Metadata,
    numbers: Sequence[int] | None = None,
) -> np.ndarray:
    """Paint segments over an image, with their names.

    Args:
        image: (H, W, 3) uint8.
        segments: The segments.
        metadata: The classes.
        numbers: For each segment the number of its color, if it is an instance; by default it has
            the color of its class.

    Returns:
        (H, W, 3) uint8.
    """
    masks = [segment.mask for segment in segments]
    colors, names = [], []
    for i, segment in enumerate(segments):
        kind = "thing" if segment.is_thing else "stuff"
        category = segment.category
        given = (metadata.get(f"{kind}_colors") or ())[category : category + 1]
        color = tuple(given[0][::-1]) if given else color_of(category)
        if segment.is_thing and numbers is not None:
            color = color_of(numbers[i])
        colors.append(color)
        given = (metadata.get(f"{kind}_classes") or ())[category : category + 1]
        name = legible(given[0] if given else f"class {category}", f"class {category}")
        names.append(name if segment.score is None else f"{name} {segment.score:.0%}")
    outline = max(1, min(image.shape[:2]) // 400)
    return write_names(overlay_masks(image, masks, colors, outline=outline), masks, names)
