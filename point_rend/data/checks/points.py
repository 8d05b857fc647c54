"""Annotated points of objects: the fields "point_coords" and "point_labels" of an annotation.

They are those of the PointSup project: pixels x, y, counted from 0, and for each of them 1 in the
object or 0 outside of it. Like COCO's keypoints, a pixel stands for its center.
"""

from collections.abc import Mapping
from typing import Any

from point_rend.data.checks.rle import Fault, Size
from point_rend.utils.json_files import shown

FIELDS = ("point_coords", "point_labels")
MOST_POINTS = 100_000  # of an object
NO_POINTS = "no annotated points ('point_coords' and 'point_labels')"


def usable_points(
    annotation: Mapping[str, Any], size: Size | None
) -> tuple[dict[str, Any] | None, list[Fault]]:
    """Remove the points of an annotation that lie outside of its image.

    Args:
        annotation: One object.
        size: (height, width) of its image, None if unknown.

    Returns:
        Its two fields with the points that remain, None if they cannot be used; and all faults.
    """
    coords: Any = annotation.get(FIELDS[0])
    labels: Any = annotation.get(FIELDS[1])
    text = _fault(coords, labels)
    if text:
        return None, [Fault(text, fatal=False)]
    kept = list(range(len(labels)))
    if size is not None:
        right, bottom = size[1] - 0.5, size[0] - 0.5  # of the last pixels, seen from their centers
        kept = [k for k, (x, y) in enumerate(coords) if -0.5 <= x <= right and -0.5 <= y <= bottom]
    if size is None or len(kept) == len(labels):
        return {FIELDS[0]: coords, FIELDS[1]: labels}, []
    lost = next(k for k in range(len(labels)) if k not in kept)
    text = (
        f"{len(labels) - len(kept)} of {len(labels)} points outside its image of {size[1]} x "
        f"{size[0]} pixels, such as {shown(coords[lost])}"
    )
    fields = {FIELDS[0]: [coords[k] for k in kept], FIELDS[1]: [labels[k] for k in kept]}
    return fields if kept else None, [Fault(text, fatal=False)]


def is_far_outside(annotation: Mapping[str, Any], box: tuple[float, float, float, float]) -> bool:
    """Return whether a point lies a pixel or more outside of a box x, y, width, height."""
    x, y, width, height = box
    right, bottom = x + width + 1, y + height + 1
    return not all(x - 2 < px < right and y - 2 < py < bottom for px, py in annotation[FIELDS[0]])


def _fault(coords: Any, labels: Any) -> str:
    """Return the fault in the form of points, "" if there is none."""
    if not coords and not labels:
        return NO_POINTS
    if not isinstance(coords, list) or not isinstance(labels, list):
        return f"{FIELDS[0]} and {FIELDS[1]} must be lists, got {shown(coords)} and {shown(labels)}"
    if len(coords) != len(labels):
        return f"{len(coords)} {FIELDS[0]}, but {len(labels)} {FIELDS[1]}"
    if len(coords) > MOST_POINTS:
        return f"{len(coords)} points, expected at most {MOST_POINTS}"
    for point in coords:
        if not (
            isinstance(point, list) and len(point) == 2 and {*map(type, point)} <= {int, float}
        ):
            return f"{FIELDS[0]} must be pixels (x, y), got {shown(point)}"
        if not all(abs(value) <= 1e9 for value in point):  # NaN is none
            return f"{FIELDS[0]} must be finite, got {shown(point)}"
    wrong = [label for label in labels if type(label) not in (int, float) or label not in (0, 1)]
    return f"{FIELDS[1]} must be 0 or 1, got {shown(wrong[0])}" if wrong else ""
