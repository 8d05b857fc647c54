"""Instances of an image from the instances in its tiles.

Neighboring tiles see the band that they share twice. This is the evidence for four rules:

1. Two detections of one class in two tiles are parts of one object if their masks agree in the
   band: if the pixels that both have there are more than half of those that either has. Of masks
   that do not overlap each other, at most one agrees so with a given one. Pairs are joined from the
   best agreement on. Within a tile, detections stay different objects, so two groups that both have
   a detection in the same tile are not joined.
2. An object of several parts is the part of a tile that sees it whole, bit for bit, the best one if
   there are more. If no tile does, it is the union of the parts, with the highest of their scores.
3. An object that is still cut, since it ends at the edge of a tile within the image, is dropped if
   another tile sees all of its pixels, away from its own edges, and found no part of it there: the
   model has seen a fragment, which often looks like another class.
4. Of objects of one class that come from different tiles, the worse is dropped if the IoU of the
   masks exceeds the threshold of the model's own suppression, and also if it is cut and lies mostly
   in the other. Objects that are not cut are better than others, then those of higher scores.
   Detections without a pixel are dropped.

Masks are vertical runs of pixels (:class:`MaskRuns`); no step looks at the pixels of a whole image
or tile.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from point_rend.rendering.box_masks import crops
from point_rend.rendering.mask_runs import Box, MaskRuns, RunMasks, common_area, union_of
from point_rend.tiling.grid import Window

AGREEMENT = 0.5  # IoU in a band beyond which two detections are parts of one object
MIN_COMMON = 16  # pixels of masks that go on beyond a band; fewer agree by chance
COVERED = 0.5  # share of a cut object beyond which it lies mostly in another one
EDGE = 128  # a mask ends at the edge of its tile if it comes closer than one in so many pixels

FIELDS = {"pred_boxes", "scores", "pred_classes", "pred_masks"}


class Part(NamedTuple):
    """A detection in a tile, in the coordinates of the image.

    Attributes:
        tile: Window of the tile.
        category: Index of the class.
        score: Of the detection.
        box: x0, y0, x1, y1 in pixels.
        mask: The mask.
        extent: Smallest window that contains the mask.
    """

    tile: Window
    category: int
    score: float
    box: Tensor
    mask: MaskRuns
    extent: Box


class Merged(NamedTuple):
    """An object of one or more parts.

    Attributes:
        tiles: Numbers of the tiles that see it.
        is_cut: Whether the mask ends at the edge of a tile within the image that sees a part.
        category, score, box, mask, extent: As of :class:`Part`.
    """

    tiles: frozenset[int]
    is_cut: bool
    category: int
    score: float
    box: Tensor
    mask: MaskRuns
    extent: Box


class InstanceMerger:
    """Collects the instances of the tiles of an image, tile by tile.

    Args:
        image_size: Height and width of the image in pixels.
        nms_threshold: IoU of masks beyond which one of two objects of a class is dropped.
    """

    def __init__(self, image_size: tuple[int, int], nms_threshold: float) -> None:
        self.image_size = image_size
        self.nms_threshold = nms_threshold
        self._parts: list[Part] = []
        self._areas: list[int] = []  # of the masks, by part
        self._numbers: list[int] = []  # of the tiles, by part
        self._windows: list[Window] = []  # of all tiles
        self._tiles: list[tuple[Window, range]] = []  # the latest, with the indices of their parts
        self._links: list[tuple[float, int, int]] = []  # agreement of two parts
        self._device = torch.device("cpu")

    def add(self, tile: Window, found: Instances) -> None:
        """Add the instances of a tile.

        Args:
            tile: Its window in the image, not above those of earlier calls.
            found: Instances in the frame of the tile, with exactly `pred_boxes`, `scores`,
                `pred_classes` and `pred_masks`.

        Raises:
            ValueError: If a field is missing, or there is another one.
        """
        check_fields(found)
        self._device = found.scores.device
        first = len(self._parts)
        self._parts += _parts_of(tile, found.to("cpu"))
        self._areas += [part.mask.area for part in self._parts[first:]]
        indices = range(first, len(self._parts))
        self._numbers += [len(self._windows)] * len(indices)
        self._windows.append(tile)
        self._tiles = [row for row in self._tiles if row[0].bottom > tile.top]
        for earlier, others in self._tiles:
            band = tile.intersection(earlier)
            if band is not None:
                self._links += self._agreements(band, others, indices)
        self._tiles.append((tile, indices))

    def merged(self) -> Instances:
        """Return the instances of the image, best first; the masks are :class:`RunMasks`."""
        objects = [self._object(group) for group in self._groups()]
        fields = np.array([self._field(tile) for tile in self._windows]).reshape(-1, 4)
        objects = [x for x in objects if not self._is_fragment(x, fields)]
        kept = suppress(objects, self.nms_threshold)
        kept.sort(key=lambda x: -x.score)
        boxes = torch.stack([x.box for x in kept]) if kept else torch.zeros(0, 4)
        found = Instances(
            self.image_size,
            pred_boxes=Boxes(boxes),
            scores=torch.tensor([x.score for x in kept], dtype=torch.float32),
            pred_classes=torch.tensor([x.category for x in kept], dtype=torch.int64),
            pred_masks=RunMasks([x.mask for x in kept], self.image_size),
        )
        return found.to(self._device)

    def _agreements(
        self, band: Window, some: Sequence[int], others: Sequence[int]
    ) -> Iterable[tuple[float, int, int]]:
        """Yield the pairs of parts of two tiles whose masks agree in a band."""
        seen: list[list[tuple[int, int, MaskRuns, int]]] = []
        for indices in (some, others):
            cut = [(i, self._parts[i].mask.clipped(*band)) for i in indices if self._meets(i, band)]
            seen.append([(i, self._parts[i].category, x, x.area) for i, x in cut if x.columns.size])
        extents = [np.array([x.box for _, _, x, _ in rows]).reshape(-1, 4) for rows in seen]
        for (i, category, mask, area), extent in zip(seen[0], extents[0], strict=True):
            for k in np.flatnonzero(_box_overlaps(extent, extents[1])):
                j, other_category, other_mask, other_area = seen[1][k]
                goes_on = area < self._areas[i] and other_area < self._areas[j]
                least = max(MIN_COMMON * goes_on, AGREEMENT * max(area, other_area))
                if category != other_category or min(area, other_area) < least:
                    continue
                common = common_area(mask, other_mask)
                agreement = common / (area + other_area - common)
                if common >= least and agreement > AGREEMENT:
                    yield agreement, i, j

    def _meets(self, part: int, band: Window) -> bool:
        top, left, bottom, right = self._parts[part].extent
        inside = top < band.bottom and bottom > band.top
        return inside and left < band.right and right > band.left

    def _groups(self) -> list[list[int]]:
        """Join parts of one object, best agreements first."""
        group_of = list(range(len(self._parts)))
        groups = [[i] for i in group_of]
        for _, i, j in sorted(self._links, key=lambda link: (-link[0], *link[1:])):
            one, other = groups[group_of[i]], groups[group_of[j]]
            if one is other or {self._numbers[k] for k in one} & {self._numbers[k] for k in other}:
                continue
            for k in other:
                group_of[k] = group_of[i]
            one += other
        return [
            sorted(group) for number, group in enumerate(groups) if group_of[group[0]] == number
        ]

    def _object(self, group: list[int]) -> Merged:
        parts = [self._parts[i] for i in group]
        tiles = frozenset(self._numbers[i] for i in group)
        whole = [x for x in parts if self._is_seen_whole(x, parts)]
        if len(parts) == 1 or whole:
            best = max(whole or parts, key=lambda x: x.score)
            return Merged(tiles, self._is_cut(best, best.extent), *best[1:])
        mask = union_of([x.mask for x in parts])
        extent = mask.box
        boxes = torch.stack([x.box for x in parts])
        box = torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)])
        is_cut = any(self._is_cut(x, extent) for x in parts)
        score = max(x.score for x in parts)
        return Merged(tiles, is_cut, parts[0].category, score, box, mask, extent)

    def _is_seen_whole(self, part: Part, parts: Sequence[Part]) -> bool:
        """Return whether a tile contains all parts of an object and cuts none of its own."""
        tile = part.tile
        return not self._is_cut(part, part.extent) and all(
            x.extent.top >= tile.top
            and x.extent.left >= tile.left
            and x.extent.bottom <= tile.bottom
            and x.extent.right <= tile.right
            for x in parts
        )

    def _is_fragment(self, found: Merged, fields: np.ndarray) -> bool:
        """Return whether an object is cut where another tile would have seen it whole.

        Args:
            found: The object.
            fields: (T, 4), the windows in which tiles cut nothing, as :class:`Box`.
        """
        if not found.is_cut:
            return False
        extent = np.array(found.extent)
        sees = (fields[:, :2] <= extent[:2]) & (fields[:, 2:] >= extent[2:])
        return not found.tiles.issuperset(np.flatnonzero(sees.all(axis=1)))

    def _is_cut(self, part: Part, whole: Box) -> bool:
        """Return whether an object ends where a tile within the image does that sees a part."""
        tile, extent, field = part.tile, part.extent, self._field(part.tile)
        return (
            (extent.top < field.top and whole.top >= tile.top)
            or (extent.left < field.left and whole.left >= tile.left)
            or (extent.bottom > field.bottom and whole.bottom <= tile.bottom)
            or (extent.right > field.right and whole.right <= tile.right)
        )

    def _field(self, tile: Window) -> Box:
        """Return the part of a tile in which it cuts nothing: all but its edges in the image."""
        rows, columns = 1 + tile.height // EDGE, 1 + tile.width // EDGE
        height, width = self.image_size
        return Box(
            tile.top + rows if tile.top > 0 else 0,
            tile.left + columns if tile.left > 0 else 0,
            tile.bottom - rows if tile.bottom < height else height,
            tile.right - columns if tile.right < width else width,
        )


def suppress(objects: Sequence[Merged], nms_threshold: float) -> list[Merged]:
    """Drop objects that others of their class show better, as rule 4 at the top describes.

    Args:
        objects: The objects of an image.
        nms_threshold: IoU of masks.

    Returns:
        The objects that are left, in their order.
    """
    order = sorted(range(len(objects)), key=lambda i: (objects[i].is_cut, -objects[i].score))
    by_class: dict[int, list[int]] = {}
    for i in order:
        by_class.setdefault(objects[i].category, []).append(i)
    kept: list[int] = []
    for indices in by_class.values():
        extents = np.array([objects[i].extent for i in indices])
        areas = np.array([objects[i].mask.area for i in indices])
        is_kept = np.zeros(len(indices), dtype=bool)
        for k, i in enumerate(indices):
            # Masks are compared only where their boxes share enough.
            common = _box_overlaps(extents[k], extents[:k])
            near = np.flatnonzero(is_kept[:k] & (common > min(COVERED, nms_threshold) * areas[k]))
            is_kept[k] = areas[k] > 0 and not any(
                _hides(objects[indices[n]], areas[n], objects[i], areas[k], nms_threshold)
                for n in near
            )
        kept += [i for i, keeps in zip(indices, is_kept, strict=True) if keeps]
    return [objects[i] for i in sorted(kept)]


def _hides(better: Merged, area: int, other: Merged, other_area: int, nms_threshold: float) -> bool:
    """Return whether an object is a duplicate or a part of a better one."""
    if better.tiles & other.tiles and not other.is_cut:
        return False  # a tile shows them as different objects
    common = common_area(better.mask, other.mask)
    if common > nms_threshold * (area + other_area - common):
        return True
    return other.is_cut and common > COVERED * other_area


def check_fields(found: Instances) -> None:
    """Refuse instances whose fields cannot be merged.

    Raises:
        ValueError: If a field is missing, or there is another one.
    """
    fields: dict[str, Any] = found.get_fields()
    if "pred_masks" not in fields:
        raise ValueError("tiles need masks to merge instances, and the model predicts none")
    more = sorted(set(fields) - FIELDS)
    if more:
        raise ValueError(f"tiles cannot merge {', '.join(more)} of instances")


def _parts_of(tile: Window, found: Instances) -> Iterable[Part]:
    offset = torch.tensor([tile.left, tile.top, tile.left, tile.top])
    rows = zip(
        crops(found.pred_masks),
        found.pred_boxes.tensor + offset,
        found.scores.tolist(),
        found.pred_classes.tolist(),
        strict=True,
    )
    for crop, box, score, category in rows:
        mask = MaskRuns.of(crop._replace(top=crop.top + tile.top, left=crop.left + tile.left))
        yield Part(tile, category, score, box, mask, mask.box)


def _box_overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the number of pixels (N,) that a box (4,) shares with each of N others (N, 4)."""
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    return np.clip(sides, 0, None).prod(axis=1)
