"""Planted objects, and a predictor that sees in each tile what lies there, exactly."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from point_rend.tiling.grid import TileGrid, Window
from point_rend.tiling.merging import InstanceMerger


class Planted(NamedTuple):
    """An object of an image; `mask` is (H, W) bool."""

    mask: np.ndarray
    category: int
    score: float = 0.9


def box_of(mask: np.ndarray) -> list[float]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def instances(objects: Sequence[Planted], size: tuple[int, int]) -> Instances:
    """The objects as a model returns them, best first."""
    objects = sorted((x for x in objects if x.mask.any()), key=lambda x: -x.score)
    masks = np.array([x.mask for x in objects], dtype=bool).reshape(-1, *size)
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor([box_of(x.mask) for x in objects]).float().reshape(-1, 4)),
        scores=torch.tensor([x.score for x in objects], dtype=torch.float32),
        pred_classes=torch.tensor([x.category for x in objects], dtype=torch.int64),
        pred_masks=torch.from_numpy(masks),
    )


def seen_in(tile: Window, objects: Sequence[Planted]) -> Instances:
    """The parts of objects in a tile."""
    parts = [x._replace(mask=x.mask[tile.slices]) for x in objects]
    return instances(parts, (tile.height, tile.width))


def merge(grid: TileGrid, objects: Sequence[Planted], threshold: float = 0.5) -> Instances:
    """What comes of tiles whose predictor is perfect."""
    merger = InstanceMerger(grid.image_size, threshold)
    for tile in grid.windows():
        merger.add(tile, seen_in(tile, objects))
    return merger.merged()


def disc(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def polygon(size: tuple[int, int], corners: Sequence[tuple[int, int]]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.array(corners, dtype=np.int32)], (1,))
    return mask.astype(bool)


def assert_found(found: Instances, objects: Sequence[Planted]) -> None:
    """Each object is found once, to the pixel, and nothing else is."""
    masks = found.pred_masks.tensor().numpy()
    ours = sorted(zip(found.pred_classes.tolist(), map(np.ndarray.tobytes, masks), strict=True))
    expected = sorted((x.category, np.ascontiguousarray(x.mask).tobytes()) for x in objects)
    assert len(ours) == len(expected)
    assert ours == expected
