"""Scenes of the built-in data set: objects whose outlines a coarse mask cannot represent.

Stars, gears, leaves, letters, rings, snowflakes, keys and bolts, textured, rotated and partly
occluded, over textured backgrounds. An image depends only on the seed, its size, its split and its
number, so a larger set begins with the images of a smaller one. The files are ordinary COCO: JPEG
images and one JSON file per split, with polygons for objects without holes and RLE for objects with
holes. The command line also writes the layout of Cityscapes.

    python -m point_rend.data.shapes --output datasets/shapes --train 300 --val 60 --size 256
    python -m point_rend.data.shapes --layout cityscapes --output datasets/cityscapes --size 256 512

Shape letters: M points of an outline, I instances, H and W the image sides in pixels.
Outlines are drawn in the unit frame: x to the right, y down, the object inside [-1, 1]².
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from point_rend.data.shapes.outlines import CLASSES, SHAPES, Shape

SUPERSAMPLING = 4  # subpixels per pixel side while drawing
MIN_VISIBLE_SHARE = 0.85
MIN_VISIBLE_AREA = 24 * SUPERSAMPLING**2  # subpixels
PLACING_ATTEMPTS = 12  # per object


@dataclass(frozen=True)
class Scene:
    """One drawn image and its visible objects.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        classes: Index into `CLASSES` of each of the I instances, from back to front.
        owners: (H, W) * SUPERSAMPLING int, the instance visible at each subpixel, -1 for none.
    """

    image: np.ndarray
    classes: list[int]
    owners: np.ndarray

    @property
    def masks(self) -> np.ndarray:
        """Disjoint masks (I, H, W) bool: the pixels that an instance fills by more than half."""
        masks = np.zeros((len(self.classes), *self.image.shape[:2]), dtype=bool)
        for i, mask in enumerate(masks):
            mask[:] = coverage(self.owners == i) > 0.5
        return masks


def coverage(subpixels: np.ndarray) -> np.ndarray:
    """Return the filled share of every pixel, (H, W) float32 in 0..1.

    Args:
        subpixels: (H, W) * SUPERSAMPLING bool.
    """
    size = (subpixels.shape[1] // SUPERSAMPLING, subpixels.shape[0] // SUPERSAMPLING)
    return cv2.resize(subpixels.astype(np.float32), size, interpolation=cv2.INTER_AREA)


# ------------------------------------------------------------------------------
# Textures
def _color(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """Return a random color of any hue, (3,) float32 BGR; the limits are in 0..255."""
    hsv = [rng.uniform(0, 180), rng.uniform(*saturation), rng.uniform(*value)]
    bgr = cv2.cvtColor(np.array([[hsv]], dtype=np.uint8), cv2.COLOR_HSV2BGR)
    return bgr[0, 0].astype(np.float32)


def background_color(rng: np.random.Generator) -> np.ndarray:
    """Return a pale color, (3,) float32 BGR."""
    return _color(rng, (10, 70), (60, 215))


def object_color(rng: np.random.Generator, others: Sequence[np.ndarray]) -> np.ndarray:
    """Return a vivid color that differs clearly from a few others."""
    while True:
        color = _color(rng, (150, 255), (120, 255))
        if all(np.abs(color - other).sum() > 150 for other in others):
            return color


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return smooth noise of several wavelengths, (H, W) in 0..1."""
    height, width = size
    field = np.zeros(size, dtype=np.float32)
    for cells, weight in ((3, 0.5), (8, 0.3), (24, 0.2)):
        grid = rng.random((cells, cells), dtype=np.float32)
        field += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1)


def texture(rng: np.random.Generator, size: tuple[int, int], color: np.ndarray) -> np.ndarray:
    """Return gradient, stripes, clouds or speckles around a color, (H, W, 3) float32."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    kind = rng.choice(["gradient", "stripes", "clouds", "speckles"])
    if kind == "gradient":
        field = (along - along.min()) / max(float(np.ptp(along)), 1.0)
    elif kind == "stripes":
        field = 0.5 + 0.5 * np.sin(along * np.float32(2 * np.pi / rng.uniform(7, 26)))
    elif kind == "clouds":
        field = _clouds(rng, size)
    else:
        field = cv2.GaussianBlur(rng.random(size, dtype=np.float32), (0, 0), rng.uniform(0.8, 2.0))
        field = np.clip(0.5 + (field - field.mean()) / (4 * field.std() + 1e-6), 0, 1)
    other = np.clip(color + rng.uniform(-70, 70) + rng.uniform(-15, 15, 3), 0, 255).astype(
        np.float32
    )
    patch = color + field[..., None] * (other - color)
    return patch + rng.normal(0, 4, (height, width, 1)).astype(np.float32)


# ------------------------------------------------------------------------------
# Scenes
class Stamp(NamedTuple):
    """A shape rasterized on the subpixels of its bounding block of whole pixels."""

    block: tuple[slice, slice]  # of image pixels
    subpixels: np.ndarray  # (block height, block width) * SUPERSAMPLING, bool

    @property
    def fine_block(self) -> tuple[slice, slice]:
        """The same block in subpixels of the image."""
        s = SUPERSAMPLING
        rows, columns = self.block
        return slice(rows.start * s, rows.stop * s), slice(columns.start * s, columns.stop * s)


def rasterize(shape: Shape, matrix: np.ndarray, size: tuple[int, int]) -> Stamp | None:
    """Fill a shape in an image.

    Args:
        shape: Parts in the unit frame.
        matrix: (2, 3) affine map from the unit frame to pixels; the first pixel is [0, 1]².
        size: Image height and width in pixels.

    Returns:
        The part of the shape inside the image; None if it lies outside.
    """
    placed = [[outline @ matrix[:, :2].T + matrix[:, 2] for outline in part] for part in shape]
    points = np.concatenate([outline for part in placed for outline in part])
    left, top = np.maximum(np.floor(points.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(points.max(axis=0)), size[::-1]).astype(int)
    if left >= right or top >= bottom:
        return None
    canvas = np.zeros(((bottom - top) * SUPERSAMPLING, (right - left) * SUPERSAMPLING), np.uint8)
    for part in placed:
        fixed_point = [
            np.round((((outline - (left, top)) * SUPERSAMPLING) - 0.5) * 16).astype(np.int32)
            for outline in part
        ]
        cv2.fillPoly(canvas, fixed_point, (1,), lineType=cv2.LINE_8, shift=4)
    return Stamp((slice(top, bottom), slice(left, right)), canvas.astype(bool))


def _pose(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return a random affine map (2, 3) from the unit frame to pixels."""
    height, width = size
    radius = rng.uniform(0.14, 0.28) * min(size)
    aspect = rng.uniform(0.85, 1.0)
    angle = rng.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = [rng.uniform(0.08, 0.92) * width, rng.uniform(0.08, 0.92) * height]
    return np.concatenate([turn @ np.diag([radius, radius * aspect]), np.c_[center]], axis=1)


def place(
    rng: np.random.Generator, shape: Shape, owners: np.ndarray, full_areas: Sequence[int]
) -> tuple[Stamp, int] | None:
    """Find a pose in which a shape lies inside the image and leaves earlier ones visible.

    Args:
        rng: Source of randomness.
        shape: The shape to place.
        owners: (H, W) * SUPERSAMPLING int, the instance visible at each subpixel, -1 for none.
        full_areas: Number of subpixels of every earlier instance without occlusion.

    Returns:
        The stamp and the number of subpixels of the whole shape, or None after `PLACING_ATTEMPTS`
        failures.
    """
    height, width = (side // SUPERSAMPLING for side in owners.shape)
    seen = np.bincount(owners.ravel() + 1, minlength=len(full_areas) + 1)[1:]
    needed = np.maximum(MIN_VISIBLE_SHARE * np.asarray(full_areas), MIN_VISIBLE_AREA)
    for _ in range(PLACING_ATTEMPTS):
        matrix = _pose(rng, (height, width))
        stamp = rasterize(shape, matrix, (height, width))
        if stamp is None:
            continue
        under = owners[stamp.fine_block][stamp.subpixels]
        left = seen - np.bincount(under + 1, minlength=len(full_areas) + 1)[1:]
        inside = stamp.subpixels.sum()
        full = _full_area(shape, matrix)
        if inside >= max(MIN_VISIBLE_SHARE * full, MIN_VISIBLE_AREA) and np.all(left >= needed):
            return stamp, full
    return None


def _full_area(shape: Shape, matrix: np.ndarray) -> int:
    """Return the number of subpixels of a shape that no border truncates."""
    side = int(np.ceil(3 * np.linalg.norm(matrix[:, 0])))  # a shape is at most 2 (1 + stroke) wide
    centered = np.concatenate([matrix[:, :2], np.full((2, 1), side / 2)], axis=1)
    stamp = rasterize(shape, centered, (side, side))
    return 0 if stamp is None else int(stamp.subpixels.sum())


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draw one image: a textured background, then objects from back to front.

    A new object may occlude earlier ones as long as `MIN_VISIBLE_SHARE` of each stays visible.

    Args:
        rng: Source of randomness.
        size: Image height and width in pixels.

    Returns:
        The image with the visible object of each subpixel.
    """
    colors = [background_color(rng)]
    image = texture(rng, size, colors[0])
    owners = np.full((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), -1, dtype=np.int8)
    classes: list[int] = []
    full_areas: list[int] = []
    for _ in range(int(rng.integers(3, 8))):
        label = int(rng.integers(len(CLASSES)))
        placed = place(rng, SHAPES[CLASSES[label]](rng), owners, full_areas)
        if placed is None:
            continue
        stamp, full_area = placed
        colors.append(object_color(rng, [colors[0], *colors[-2:]]))
        patch = image[stamp.block]
        cover = coverage(stamp.subpixels)[..., None]
        patch += (texture(rng, (patch.shape[0], patch.shape[1]), colors[-1]) - patch) * cover
        owners[stamp.fine_block][stamp.subpixels] = len(classes)
        classes.append(label)
        full_areas.append(full_area)
    return Scene(np.clip(np.round(image), 0, 255).astype(np.uint8), classes, owners)
