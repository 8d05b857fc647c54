"""Masks of annotations and results: many are checked and measured at once, then compressed.

A mask in COCO's format is a list of polygons, each x0, y0, x1, y1, …, or an RLE. This is the only
door to pycocotools for masks from files: it rasterizes at five times the resolution and allocates
as much as an outline is long, with integers that overflow.

Shape letters: N masks, P polygons, V their corners.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util

from point_rend.data.checks.rle import (
    CheckedMask,
    Fault,
    Record,
    Size,
    check_rles,
    without_empty_runs,
)
from point_rend.utils.json_files import shown

CHUNK = 1 << 11  # masks that are checked at once
# Corners may lie outside the image, as those of an object that a crop cuts off.
FAR = 100  # distance of a corner, in longer sides of the image
LONGEST = 1000  # length of all outlines of a mask, in longer sides of the image
MAX_OUTLINE = 3_000_000  # pixels, whatever the size of the image
UNKNOWN_SIDE = 10_000  # longer side of an image of unknown size
MOST_PARTS = 200  # polygons of a mask that is searched for holes

Box = tuple[float, float, float, float]


class Mask(NamedTuple):
    """Result of the check of one mask.

    Attributes:
        usable: The mask without its impossible polygons; None if nothing is left.
        faults: Reasons why it or polygons of it cannot be used.
        box: x0, y0, x1, y1 of the usable part in pixels, None if nothing is left.
        area: Its area in pixels; polygons that overlap count twice.
        has_hole: Whether a polygon lies within another one: COCO fills it.
        has_empty_runs: As of `CheckedMask`.
    """

    usable: Any
    faults: tuple[Fault, ...]
    box: Box | None = None
    area: float = 0.0
    has_hole: bool = False
    has_empty_runs: bool = False


def measure_masks(segmentations: Sequence[Any], sizes: Sequence[Size | None]) -> Iterator[Mask]:
    """Check and measure masks.

    Args:
        segmentations: Polygons, RLEs, None or any other values, which are faults.
        sizes: (height, width) of their images, None if unknown.

    Yields:
        One result per mask. Faults that are not fatal are of empty masks.
    """
    for start in range(0, len(segmentations), CHUNK):
        part = slice(start, start + CHUNK)
        yield from _measure_chunk(segmentations[part], sizes[part])


def compress_masks(segmentations: Sequence[Any], sizes: Sequence[Size]) -> Iterator[Record | Fault]:
    """Convert masks to COCO's compressed encoding.

    Args:
        segmentations: The masks, as of :func:`measure_masks`.
        sizes: (height, width) of their images.

    Yields:
        The compressed mask, or the first fatal fault of one that cannot be converted.
    """
    measured = measure_masks(segmentations, sizes)
    for segmentation, size, mask in zip(segmentations, sizes, measured, strict=True):
        fatal = next((fault for fault in mask.faults if fault.fatal), None)
        yield fatal or _compress(segmentation, size, has_empty_runs=mask.has_empty_runs)


def compressed_rle(segmentation: Any, height: int, width: int) -> Record:
    """Convert one mask to COCO's compressed encoding.

    Args:
        segmentation: Polygons or an RLE.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        ValueError: If it is not a mask of the image.
    """
    (found,) = compress_masks([segmentation], [(height, width)])
    if isinstance(found, Fault):
        raise ValueError(f"a mask cannot be read: {found.text}")
    return found


def _compress(segmentation: Any, size: Size, *, has_empty_runs: bool) -> Record:
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    if has_empty_runs:
        segmentation = without_empty_runs(segmentation)
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, *size)
    return segmentation


def _measure_chunk(segmentations: Sequence[Any], sizes: Sequence[Size | None]) -> list[Mask]:
    measured: dict[int, Mask] = {}
    rles, polygons = [], []
    for number, segmentation in enumerate(segmentations):
        if isinstance(segmentation, dict) and segmentation:
            rles.append(number)
        elif isinstance(segmentation, list) and segmentation:
            polygons.append(number)
        elif segmentation is None or isinstance(segmentation, list | dict):
            measured[number] = Mask(None, (Fault("no segmentation"),))
        else:
            text = f"segmentation {shown(segmentation)}, expected polygons or an RLE"
            measured[number] = Mask(None, (Fault(text),))
    checked = check_rles([segmentations[x] for x in rles], [sizes[x] for x in rles])
    for number, result in zip(rles, checked, strict=True):
        measured[number] = _of_rle(segmentations[number], result)
    of_polygons = _measure_polygons(
        [segmentations[number] for number in polygons], [sizes[number] for number in polygons]
    )
    measured |= zip(polygons, of_polygons, strict=True)
    return [measured[number] for number in range(len(segmentations))]


def _of_rle(rle: Mapping[str, Any], checked: CheckedMask) -> Mask:
    if checked.fault:
        return Mask(None, (checked.fault,))
    return Mask(rle, (), checked.box, checked.area, has_empty_runs=checked.has_empty_runs)


class _Polygons(NamedTuple):
    """Corners (V, 2) of P polygons, with the faults of those that have no corners."""

    corners: np.ndarray
    lengths: np.ndarray
    faults: dict[int, str]


def _read_polygons(polygons: Sequence[Any]) -> _Polygons:
    """Convert polygons of numbers; others get no corners."""
    faults: dict[int, str] = {}
    try:
        if not set(map(type, polygons)) <= {list}:
            raise TypeError
        if not _are_numbers(chain.from_iterable(polygons)):
            raise TypeError
        lengths = np.array([len(polygon) for polygon in polygons], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(polygons), np.float64, int(lengths.sum()))
    except (TypeError, OverflowError):
        rows = []
        for number, polygon in enumerate(polygons):
            row, fault = _read_one(polygon)
            rows.append(row)
            if fault:
                faults[number] = fault
        lengths = np.array([row.size for row in rows], dtype=np.int64)
        flat = np.concatenate(rows)
    few = (lengths % 2 == 1) | (lengths < 6)
    for number in np.flatnonzero(few).tolist():
        text = f"has {lengths[number]} numbers, a polygon needs an even count of 6 or more"
        faults.setdefault(number, text)
    flat = flat[np.repeat(~few, lengths)]
    return _Polygons(flat.reshape(-1, 2), np.where(few, 0, lengths // 2), faults)


def _are_numbers(values: Iterable[Any]) -> bool:
    types = set(map(type, values))
    return types <= {int, float} or all(
        x in (int, float) or issubclass(x, np.integer | np.floating) for x in types
    )


def _read_one(polygon: Any) -> tuple[np.ndarray, str | None]:
    nothing = np.empty(0)
    if isinstance(polygon, np.ndarray):  # of a loader of another format
        polygon = polygon.tolist()
    if not isinstance(polygon, list):
        return nothing, f"is {shown(polygon)}, expected a list of numbers"
    if polygon and isinstance(polygon[0], list | tuple):
        return nothing, f"is a list of lists, {shown(polygon)}: expected x, y, x, y, … in one list"
    if not _are_numbers(polygon):
        wrong = next(x for x in polygon if not _are_numbers([x]))
        return nothing, f"has coordinates that are not numbers, such as {shown(wrong)}"
    try:
        return np.array(polygon, dtype=np.float64), None
    except OverflowError:
        return nothing, "has coordinates that are not finite: an integer is too large"


def _measure_polygons(masks: Sequence[list[Any]], sizes: Sequence[Size | None]) -> Iterator[Mask]:
    """Check and measure masks of one polygon or more."""
    if not masks:
        return
    counts = np.array([len(mask) for mask in masks])
    owners = np.repeat(np.arange(len(masks)), counts)
    parts = list(chain.from_iterable(masks))
    corners, lengths, faults = _read_polygons(parts)
    sides = np.array([max(size) if size else UNKNOWN_SIDE for size in sizes], dtype=np.float64)

    of_polygon = np.repeat(np.arange(len(parts)), lengths)
    with np.errstate(invalid="ignore"):
        near = (np.abs(corners) <= FAR * sides[owners[of_polygon], None]).all(axis=1)
    for number in np.unique(of_polygon[~near]).tolist():
        own = corners[of_polygon == number]
        if not np.isfinite(own).all():
            faults[number] = "has coordinates that are not finite"
        else:
            farthest = own.flat[np.abs(own).argmax()]
            faults[number] = (
                f"has the coordinate {farthest:g}, far beyond {_name(sizes, owners, number)}"
            )
    is_good = np.ones(len(parts), dtype=bool)
    is_good[list(faults)] = False
    corners, lengths = corners[is_good[of_polygon]], np.where(is_good, lengths, 0)

    boxes, areas, outlines = _measure_corners(corners, lengths)
    first = counts.cumsum() - counts
    starts = lengths.cumsum() - lengths
    good_of_mask = np.add.reduceat(is_good, first)
    outline_of_mask = np.add.reduceat(np.where(is_good, outlines, 0), first)
    area_of_mask = np.add.reduceat(np.where(is_good, areas, 0), first)
    low = np.minimum.reduceat(np.where(is_good[:, None], boxes[:, :2], np.inf), first)
    high = np.maximum.reduceat(np.where(is_good[:, None], boxes[:, 2:], -np.inf), first)
    allowed = np.minimum(LONGEST * sides, MAX_OUTLINE)

    measured = zip(
        masks,
        sizes,
        first.tolist(),
        good_of_mask.tolist(),
        (outline_of_mask > allowed).tolist(),
        area_of_mask.tolist(),
        np.hstack([low, high]).tolist(),
        strict=True,
    )
    for mask, size, begin, good, is_long, area, box in measured:
        found = [
            Fault(f"polygon {number + 1} of {len(mask)} {faults[begin + number]}")
            for number in (range(len(mask)) if good < len(mask) else ())
            if begin + number in faults
        ]
        if is_long:
            total = outlines[begin : begin + len(mask)][is_good[begin : begin + len(mask)]].sum()
            found.append(
                Fault(f"polygons with outlines of {total:.0f} pixels, more than any object has")
            )
        elif good and not area:
            found.append(Fault("polygons of area 0", fatal=False))
        elif good and size and not _touches(box, size):
            text = f"mask outside its image of {size[1]} x {size[0]} pixels"
            found.append(Fault(text, fatal=False))
        elif good:
            usable = mask
            if good < len(mask):
                usable = [x for number, x in enumerate(mask) if begin + number not in faults]
            has_hole = False
            if 1 < good <= MOST_PARTS:
                of_mask = np.flatnonzero(is_good[begin : begin + len(mask)]) + begin
                has_hole = _has_hole(boxes, corners, starts, lengths, of_mask)
            yield Mask(usable, tuple(found), tuple(box), area, has_hole)
            continue
        yield Mask(None, tuple(found))


def _name(sizes: Sequence[Size | None], owners: np.ndarray, number: int) -> str:
    size = sizes[owners[number]]
    return f"its image of {size[1]} x {size[0]} pixels" if size else "any image"


def _touches(box: Sequence[float], size: Size) -> bool:
    return box[0] < size[1] and box[1] < size[0] and box[2] > 0 and box[3] > 0


def _measure_corners(
    corners: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure P polygons, of which those without corners get zeros.

    Args:
        corners: (V, 2), finite.
        lengths: Number of corners of each polygon (P,).

    Returns:
        Boxes (P, 4) as x0, y0, x1, y1; areas (P,) by the shoelace formula, with the first corner as
        the origin; lengths of the outlines (P,), the longer of width and height of each edge.
    """
    boxes, areas, outlines = (
        np.zeros((len(lengths), 4)),
        np.zeros(len(lengths)),
        np.zeros(len(lengths)),
    )
    filled = np.flatnonzero(lengths)
    if not filled.size:
        return boxes, areas, outlines
    starts = (lengths.cumsum() - lengths)[filled]
    boxes[filled, :2] = np.minimum.reduceat(corners, starts)
    boxes[filled, 2:] = np.maximum.reduceat(corners, starts)
    following = np.arange(1, len(corners) + 1)
    following[starts + lengths[filled] - 1] = starts
    edges = corners[following] - corners
    outlines[filled] = np.add.reduceat(np.abs(edges).max(axis=1), starts)
    moved = corners - np.repeat(corners[starts], lengths[filled], axis=0)
    x, y = moved.T
    areas[filled] = np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts)) / 2
    return boxes, areas, outlines


def _has_hole(
    boxes: np.ndarray,
    corners: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    parts: np.ndarray,
) -> bool:
    """Return whether one of several polygons lies within another one."""
    own = boxes[parts]
    inside = (own[:, None, :2] > own[None, :, :2]) & (own[:, None, 2:] < own[None, :, 2:])
    for inner, outer in zip(*np.nonzero(inside.all(axis=2)), strict=True):
        points, ring = (
            corners[starts[part] : starts[part] + lengths[part]]
            for part in (parts[inner], parts[outer])
        )
        if _within(points[:: max(1, len(points) // 3)], ring).all():
            return True
    return False


def _within(points: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Return for each point (Q, 2) whether it is within a polygon (V, 2), by the even-odd rule."""
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    x, y = points.T[:, :, None]
    crosses = (y0 > y) != (y1 > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
    return (crosses & (x < at)).sum(axis=1) % 2 == 1
