"""Images of any size with drawn objects at chosen places, and a predictor that knows them.

In a numbered image, the colors of a pixel are the number of its object and its class. From them
`NumberPredictor` finds exactly the objects in any part of the image, without a model. A textured
image has the colors and textures of the built-in data.

Shapes: H and W height and width of an image, h and w those of a part.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from PIL import Image

from point_rend.data.shapes.outlines import CLASSES, SHAPES, Shape, circle
from point_rend.data.shapes.scene import background_color, object_color, texture
from point_rend.rendering.box_masks import Crop
from point_rend.rendering.mask_runs import MaskRuns, RunMasks
from point_rend.tiling.grid import TileGrid, tiles_of
from point_rend.utils.files import atomic_file

BLOCK = 256  # pixels of a side of a block of the background's texture
CELL = 16  # pixels; objects keep to different cells of this side, but for halves of one shape
SCORES = (0.5, 1.0)


class Placed(NamedTuple):
    """An object of an image; the crop is the smallest one."""

    category: int
    mask: Crop
    score: float = 1.0


class Site(NamedTuple):
    """A place for a shape, or for its two halves, which touch.

    Attributes:
        x, y: Center in pixels.
        radius: Half the size of the shape in pixels.
        is_split: Whether the halves are objects of their own.
        ring: Width of a ring of this radius in place of any shape, as a share of the radius.
    """

    x: float
    y: float
    radius: float
    is_split: bool = False
    ring: float = 0.0


def border_sites(
    rng: np.random.Generator, grid: TileGrid, radii: tuple[float, float]
) -> list[Site]:
    """Choose places at the borders and corners of tiles, and within tiles.

    Args:
        rng: Source of randomness.
        grid: The tiles.
        radii: Smallest and largest radius in pixels.

    Returns:
        First rings that are three tiles wide, where the image has room for them; then for each
        tile a place at its left upper corner, one at its left and one at its upper border, and one
        within. Every fourth shape is split.
    """
    height, width = grid.image_size
    tile = grid.tile_size[0]
    radius = 1.55 * tile
    rings = [
        Site(x, y, radius, ring=0.05)
        for y in np.arange(radius, height - radius + 1, 2.2 * radius)
        for x in np.arange(radius, width - radius + 1, 2.2 * radius)
    ]
    down, right = grid.tile_size[0] / 2, grid.tile_size[1] / 2
    places = [
        (left + x * right, top + y * down)
        for top in grid.tops
        for left in grid.lefts
        for x, y in ((0.1, 0.1), (0.1, 1.0), (1.0, 0.1), (1.0, 1.0))
    ]
    jitter = rng.uniform(-0.1 * tile, 0.1 * tile, (len(places), 2))
    return rings + [
        Site(x + dx, y + dy, float(rng.uniform(*radii)), is_split=number % 4 == 3)
        for number, ((x, y), (dx, dy)) in enumerate(zip(places, jitter.tolist(), strict=True))
    ]


def place_objects(
    rng: np.random.Generator, size: tuple[int, int], sites: Iterable[Site]
) -> list[Placed]:
    """Place random shapes; one that would meet an earlier one is left out.

    Args:
        rng: Source of randomness.
        size: H and W.
        sites: The places.
    """
    taken = np.zeros([-(-side // CELL) for side in size], dtype=bool)
    placed: list[Placed] = []
    for site in sites:
        category = int(rng.integers(len(CLASSES)))
        shape: Shape = SHAPES[CLASSES[category]](rng)
        if site.ring:
            category = CLASSES.index("ring")
            shape = [[circle(1.0, points=360), circle(1.0 - site.ring, points=360)]]
        mask = _stencil(shape, site, float(rng.uniform(-0.6, 0.6)), size)
        rows, columns = np.nonzero(mask.mask)
        cells = (rows + mask.top) // CELL, (columns + mask.left) // CELL
        if not rows.size or taken[cells].any():
            continue
        taken[cells] = True
        middle = mask.mask.shape[1] // 2
        halves = [mask.mask[:, :middle], mask.mask[:, middle:]]
        if site.is_split and min(half.sum() for half in halves) >= CELL**2:
            parts = [
                Crop(half, mask.top, mask.left + start)
                for half, start in zip(halves, (0, middle), strict=True)
            ]
        else:
            parts = [mask]
        placed += [Placed(category, _tight(x), float(rng.uniform(*SCORES))) for x in parts]
    return placed


def paint_numbers(size: tuple[int, int], placed: Sequence[Placed]) -> np.ndarray:
    """Paint a numbered image, (H, W, 3) uint8 in BGR order."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    for number, x in enumerate(placed, start=1):
        image[x.mask.window][x.mask.mask] = (number & 255, number >> 8, x.category)
    return image


def paint_textures(
    rng: np.random.Generator, size: tuple[int, int], placed: Sequence[Placed]
) -> np.ndarray:
    """Paint a textured image, (H, W, 3) uint8 in BGR order."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    background = background_color(rng)
    for window in tiles_of(size, BLOCK, 0.0).windows():
        image[window.slices] = _bytes(texture(rng, (window.height, window.width), background))
    for x in placed:
        painted = _bytes(texture(rng, x.mask.mask.shape, object_color(rng, [background])))
        image[x.mask.window][x.mask.mask] = painted[x.mask.mask]
    return image


def write_tiff(path: Path, image: np.ndarray) -> None:
    """Write a picture as a TIFF, which rasterio reads strip by strip."""
    with atomic_file(path) as file:
        pixels = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        pixels.save(file, "TIFF", compression="tiff_adobe_deflate")


class NumberPredictor:
    """Finds the objects of a numbered image, or of a part of one.

    Args:
        cfg: Config of a model of instances.
        scores: Score of each object, by its number from 1.
    """

    def __init__(self, cfg: CfgNode, scores: Sequence[float]) -> None:
        self.cfg = cfg
        self.scores = scores

    def unpasted(self) -> "NumberPredictor":
        """Return this predictor, whose masks are never tensors."""
        return self

    def __call__(self, images: list[Any], *, batch_size: int = 1) -> list[dict[str, Any]]:
        """Find the objects of images (h, w, 3) uint8."""
        del batch_size  # each image stands alone
        return [{"instances": self._find(image)} for image in images]

    def _find(self, image: np.ndarray) -> Instances:
        numbers = image[..., 0] + (image[..., 1].astype(np.int32) << 8)
        corners: list[list[float]] = []
        found: list[tuple[float, int, MaskRuns]] = []
        for number in np.unique(numbers[numbers > 0]).tolist():
            mask = MaskRuns.of(Crop.of(numbers == number))
            top, left, bottom, right = mask.box
            corners.append([left, top, right, bottom])
            category = int(image[mask.tops[0], mask.columns[0], 2])
            found.append((self.scores[number - 1], category, mask))
        return Instances(
            image.shape[:2],
            pred_boxes=Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)),
            scores=torch.tensor([x[0] for x in found], dtype=torch.float32),
            pred_classes=torch.tensor([x[1] for x in found], dtype=torch.int64),
            pred_masks=RunMasks([x[2] for x in found], image.shape[:2]),
        )


def _stencil(shape: Shape, site: Site, turn: float, size: tuple[int, int]) -> Crop:
    """Fill a shape; pixels outside the image are left out."""
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    parts = [
        [outline @ rotation.T * site.radius + (site.x, site.y) for outline in part]
        for part in shape
    ]
    points = np.concatenate([outline for part in parts for outline in part])
    left, top = np.maximum(np.floor(points.min(axis=0)), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(points.max(axis=0)) + 1, size[::-1]).astype(int).tolist()
    mask = np.zeros((max(0, bottom - top), max(0, right - left)), dtype=np.uint8)
    if mask.size:
        for part in parts:
            outlines = [np.round(outline - (left, top)).astype(np.int32) for outline in part]
            cv2.fillPoly(mask, outlines, (1,))
    return Crop(mask.astype(bool), top, left)


def _tight(crop: Crop) -> Crop:
    tight = Crop.of(crop.mask)
    return Crop(tight.mask.copy(), tight.top + crop.top, tight.left + crop.left)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
