"""The built-in data set: drawn objects whose outlines are hard for a coarse mask.

Stars, gears, leaves, letters, rings, snowflakes, keys and bolts, textured, turned and partly hidden
by one another, over textured backgrounds. Every image depends only on the seed, its size, its split
and its number, so a larger set begins with the images of a smaller one. What is written is ordinary
COCO: JPEG images and one JSON file per split, with polygons for objects without holes and RLE for
objects with holes. The command line also writes Cityscapes' layout (`cityscapes_layout`).

    python -m point_rend.data.shapes --output datasets/shapes --train 300 --val 60 --size 256
    python -m point_rend.data.shapes --layout cityscapes --output datasets/cityscapes --size 256 512

Shape letters: M points of an outline, I instances, H and W the image sides in pixels.
Outlines are drawn in the unit frame: x to the right, y down, the object inside [-1, 1]².
"""

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util

SUPERSAMPLING = 4  # subpixels per pixel side while drawing
MIN_VISIBLE_SHARE = 0.85
MIN_VISIBLE_AREA = 24 * SUPERSAMPLING**2  # subpixels
PLACING_ATTEMPTS = 12  # per object, before it is left out
MANIFEST = "shapes.json"

Outline = np.ndarray  # (M, 2) float, closed polygon in the unit frame
Part = list[Outline]  # filled by the even-odd rule: an outline inside another is a hole
Figure = list[Part]  # the union of its parts


class Split(NamedTuple):
    """Where one split lies on disk."""

    json_file: Path
    image_root: Path


@dataclass(frozen=True)
class Scene:
    """One drawn image and what can be seen in it.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        classes: index into `CLASSES` of each of the I instances, from the rearmost to the foremost.
        owners: (H, W) * SUPERSAMPLING int, the instance seen at each subpixel, -1 for none.
    """

    image: np.ndarray
    classes: list[int]
    owners: np.ndarray

    @property
    def masks(self) -> np.ndarray:
        """(I, H, W) bool: the pixels that an instance fills by more than half: disjoint."""
        masks = np.zeros((len(self.classes), *self.image.shape[:2]), dtype=bool)
        for i, mask in enumerate(masks):
            mask[:] = coverage(self.owners == i) > 0.5
        return masks


def coverage(subpixels: np.ndarray) -> np.ndarray:
    """The filled share of every pixel, (H, W) float32 in 0..1, of (H, W) * SUPERSAMPLING bool."""
    size = (subpixels.shape[1] // SUPERSAMPLING, subpixels.shape[0] // SUPERSAMPLING)
    return cv2.resize(subpixels.astype(np.float32), size, interpolation=cv2.INTER_AREA)


# ------------------------------------------------------------------------------
# Figures


def circle(radius: float, centre: tuple[float, float] = (0.0, 0.0), points: int = 72) -> Outline:
    """Draw a circle of so many corners."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + np.asarray(centre)


def polar(radius: np.ndarray, angle: np.ndarray) -> Outline:
    """Draw an outline through points (M,) in polar coordinates; the angle in radians."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _stroke(path: Sequence[tuple[float, float]] | np.ndarray, width: float) -> Figure:
    """A pen of that width led along `path`: a bar per segment, round at every joint and end."""
    points = np.asarray(path, dtype=float)
    parts: Figure = [[circle(width / 2, (x, y), 16)] for x, y in points]
    for start, end in itertools.pairwise(points):
        along = (end - start) / max(float(np.linalg.norm(end - start)), 1e-9)
        side = np.array([-along[1], along[0]]) * width / 2
        parts.append([np.stack([start + side, end + side, end - side, start - side])])
    return parts


def _star(rng: np.random.Generator) -> Figure:
    tips = int(rng.integers(5, 9))
    angle = np.arange(2 * tips) * np.pi / tips
    radius = np.where(np.arange(2 * tips) % 2 == 0, 1.0, rng.uniform(0.36, 0.52))
    return [[polar(radius, angle)]]


def _gear(rng: np.random.Generator) -> Figure:
    teeth = int(rng.integers(8, 15))
    root = rng.uniform(0.72, 0.8)
    step = 2 * np.pi / teeth
    corners = np.array([0.0, 0.12, 0.38, 0.5]) * step  # foot, tip, tip, foot of a tooth
    angle = (np.arange(teeth)[:, None] * step + corners).reshape(-1)
    radius = np.tile([root, 1.0, 1.0, root], teeth)
    return [[polar(radius, angle), circle(rng.uniform(0.22, 0.42))]]


def _leaf(rng: np.random.Generator) -> Figure:
    width = rng.uniform(0.4, 0.55)
    serrations = int(rng.integers(7, 12))
    t = np.linspace(0, 1, 2 * serrations + 1)
    saw = np.where(np.arange(len(t)) % 2 == 0, 0.82, 1.0)
    half = width * np.sin(np.pi * t**0.8) * saw
    y = 0.7 - 1.7 * t
    blade = np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[-2:0:-1]])
    bend = rng.uniform(-0.25, 0.25)
    return [[blade], *_stroke([(0.0, 0.66), (bend * 0.4, 0.85), (bend, 1.0)], 0.09)]


def _arc(centre: tuple[float, float], rx: float, ry: float, start: float, end: float) -> list:
    angle = np.radians(np.linspace(start, end, 17))
    return [(centre[0] + rx * np.cos(a), centre[1] + ry * np.sin(a)) for a in angle]


LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "A": [[(-0.7, 0.9), (0, -0.9), (0.7, 0.9)], [(-0.42, 0.25), (0.42, 0.25)]],
    "E": [[(0.55, -0.9), (-0.5, -0.9), (-0.5, 0.9), (0.55, 0.9)], [(-0.5, 0), (0.4, 0)]],
    "F": [[(0.6, -0.9), (-0.5, -0.9), (-0.5, 0.9)], [(-0.5, -0.05), (0.4, -0.05)]],
    "H": [[(-0.6, -0.9), (-0.6, 0.9)], [(0.6, -0.9), (0.6, 0.9)], [(-0.6, 0), (0.6, 0)]],
    "K": [[(-0.5, -0.9), (-0.5, 0.9)], [(0.6, -0.9), (-0.5, 0.05), (0.6, 0.9)]],
    "M": [[(-0.75, 0.9), (-0.7, -0.9), (0, 0.3), (0.7, -0.9), (0.75, 0.9)]],
    "P": [[(-0.5, 0.9), (-0.5, -0.9), *_arc((0.1, -0.4), 0.5, 0.5, -90, 90), (-0.5, 0.1)]],
    "R": [
        [(-0.5, 0.9), (-0.5, -0.9), *_arc((0.1, -0.4), 0.5, 0.5, -90, 90), (-0.5, 0.1)],
        [(0.05, 0.1), (0.6, 0.9)],
    ],
    "S": [
        [
            *_arc((0, -0.45), 0.55, 0.45, -25, -270),
            *_arc((0, 0.45), 0.6, 0.45, -90, 160),
        ]
    ],
    "W": [[(-0.85, -0.9), (-0.45, 0.9), (0, -0.4), (0.45, 0.9), (0.85, -0.9)]],
    "Z": [[(-0.6, -0.9), (0.6, -0.9), (-0.6, 0.9), (0.6, 0.9)]],
}


def _letter(rng: np.random.Generator) -> Figure:
    strokes = LETTERS[str(rng.choice(sorted(LETTERS)))]
    width = rng.uniform(0.22, 0.32)
    return [part for path in strokes for part in _stroke(np.asarray(path) * 0.9, width)]


def _ring(rng: np.random.Generator) -> Figure:
    return [[circle(1.0), circle(rng.uniform(0.62, 0.82))]]


def _snowflake(rng: np.random.Generator) -> Figure:
    width = rng.uniform(0.11, 0.15)
    twigs = [(rng.uniform(0.4, 0.5), 0.3), (rng.uniform(0.68, 0.76), 0.22)]  # distance, length
    figure: Figure = []
    for arm in np.arange(6) * np.pi / 3:
        out = np.array([np.cos(arm), np.sin(arm)])
        figure += _stroke(np.stack([np.zeros(2), 0.94 * out]), width)
        for distance, length in twigs:
            for turn in (-np.pi / 3, np.pi / 3):
                twig = np.array([np.cos(arm + turn), np.sin(arm + turn)]) * length
                figure += _stroke(np.stack([distance * out, distance * out + twig]), width * 0.9)
    return figure


def _key(rng: np.random.Generator) -> Figure:
    bow = rng.uniform(0.36, 0.42)
    width = rng.uniform(0.14, 0.18)
    figure: Figure = [[circle(bow, (-1 + bow, 0)), circle(bow * 0.55, (-1 + bow, 0))]]
    figure += _stroke([(-1 + 1.9 * bow, 0), (0.95, 0)], width)
    for x in np.linspace(0.45, 0.9, int(rng.integers(2, 4))):
        figure += _stroke([(x, 0), (x, rng.uniform(0.26, 0.4))], width * 0.85)
    return figure


def _bolt(rng: np.random.Generator) -> Figure:
    lean = rng.uniform(-0.06, 0.06)
    outline = [
        (0.25 + lean, -1.0),
        (-0.5, 0.15),
        (-0.08, 0.1),
        (-0.3 - lean, 1.0),
        (0.5, -0.25),
        (0.1, -0.2),
        (0.6 + lean, -1.0),
    ]
    return [[np.array(outline)]]


FIGURES: dict[str, Callable[[np.random.Generator], Figure]] = {
    "star": _star,
    "gear": _gear,
    "leaf": _leaf,
    "letter": _letter,
    "ring": _ring,
    "snowflake": _snowflake,
    "key": _key,
    "bolt": _bolt,
}
CLASSES: tuple[str, ...] = tuple(FIGURES)


# ------------------------------------------------------------------------------
# Textures


def _colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """Draw a colour of any hue, (3,) float32 BGR; the limits are out of 0..255."""
    hsv = [rng.uniform(0, 180), rng.uniform(*saturation), rng.uniform(*value)]
    bgr = cv2.cvtColor(np.array([[hsv]], dtype=np.uint8), cv2.COLOR_HSV2BGR)
    return bgr[0, 0].astype(np.float32)


def _background_colour(rng: np.random.Generator) -> np.ndarray:
    return _colour(rng, (10, 70), (60, 215))


def _object_colour(rng: np.random.Generator, others: Sequence[np.ndarray]) -> np.ndarray:
    """A vivid colour that differs clearly from the others, a few at most."""
    while True:
        colour = _colour(rng, (150, 255), (120, 255))
        if all(np.abs(colour - other).sum() > 150 for other in others):
            return colour


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Smooth noise of several wavelengths, (H, W) in 0..1."""
    height, width = size
    field = np.zeros(size, dtype=np.float32)
    for cells, weight in ((3, 0.5), (8, 0.3), (24, 0.2)):
        grid = rng.random((cells, cells), dtype=np.float32)
        field += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1)


def texture(rng: np.random.Generator, size: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """A patch of gradient, stripes, clouds or speckles around `colour`, (H, W, 3) float32."""
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
    other = np.clip(colour + rng.uniform(-70, 70) + rng.uniform(-15, 15, 3), 0, 255).astype(
        np.float32
    )
    patch = colour + field[..., None] * (other - colour)
    return patch + rng.normal(0, 4, (height, width, 1)).astype(np.float32)


# ------------------------------------------------------------------------------
# Scenes


class Stamp(NamedTuple):
    """A figure drawn on the subpixels of the smallest block of whole pixels that holds it."""

    block: tuple[slice, slice]  # of image pixels
    subpixels: np.ndarray  # (block height, block width) * SUPERSAMPLING, bool

    @property
    def fine_block(self) -> tuple[slice, slice]:
        """The same block in subpixels of the image."""
        s = SUPERSAMPLING
        rows, columns = self.block
        return slice(rows.start * s, rows.stop * s), slice(columns.start * s, columns.stop * s)


def rasterize(figure: Figure, matrix: np.ndarray, size: tuple[int, int]) -> Stamp | None:
    """Fill a figure at its place in an image.

    Args:
        figure: parts in the unit frame.
        matrix: (2, 3) affine map from the unit frame to pixels; the first pixel is [0, 1]².
        size: image height and width in pixels.

    Returns:
        What of it lies inside the image, None if nothing does.
    """
    placed = [[outline @ matrix[:, :2].T + matrix[:, 2] for outline in part] for part in figure]
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
    """A random place, turn, size and aspect: a (2, 3) affine map from the unit frame to pixels."""
    height, width = size
    radius = rng.uniform(0.14, 0.28) * min(size)
    aspect = rng.uniform(0.85, 1.0)
    angle = rng.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = [rng.uniform(0.08, 0.92) * width, rng.uniform(0.08, 0.92) * height]
    return np.concatenate([turn @ np.diag([radius, radius * aspect]), np.c_[centre]], axis=1)


def place(
    rng: np.random.Generator, figure: Figure, owners: np.ndarray, full_areas: Sequence[int]
) -> tuple[Stamp, int] | None:
    """Look for a place where a figure lies well inside the image and hides no earlier one too far.

    Args:
        rng: the only source of randomness.
        figure: what is placed.
        owners: (H, W) * SUPERSAMPLING int, the instance seen at each subpixel, -1 for none.
        full_areas: subpixels of every earlier instance before anything hid it.

    Returns:
        The stamp and the subpixels of the whole figure, or None after `PLACING_ATTEMPTS` failures.
    """
    height, width = (side // SUPERSAMPLING for side in owners.shape)
    seen = np.bincount(owners.ravel() + 1, minlength=len(full_areas) + 1)[1:]
    needed = np.maximum(MIN_VISIBLE_SHARE * np.asarray(full_areas), MIN_VISIBLE_AREA)
    for _ in range(PLACING_ATTEMPTS):
        matrix = _pose(rng, (height, width))
        stamp = rasterize(figure, matrix, (height, width))
        if stamp is None:
            continue
        under = owners[stamp.fine_block][stamp.subpixels]
        left = seen - np.bincount(under + 1, minlength=len(full_areas) + 1)[1:]
        inside = stamp.subpixels.sum()
        full = _full_area(figure, matrix)
        if inside >= max(MIN_VISIBLE_SHARE * full, MIN_VISIBLE_AREA) and np.all(left >= needed):
            return stamp, full
    return None


def _full_area(figure: Figure, matrix: np.ndarray) -> int:
    """Subpixels of a figure that no border cuts off."""
    side = int(
        np.ceil(3 * np.linalg.norm(matrix[:, 0]))
    )  # the figure is at most 2 (1 + stroke) wide
    centred = np.concatenate([matrix[:, :2], np.full((2, 1), side / 2)], axis=1)
    stamp = rasterize(figure, centred, (side, side))
    return 0 if stamp is None else int(stamp.subpixels.sum())


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draw one image: a textured background, then objects from back to front.

    A new object may hide earlier ones as long as `MIN_VISIBLE_SHARE` of each stays visible.

    Args:
        rng: the only source of randomness.
        size: image height and width in pixels.

    Returns:
        The image and which object is seen where.
    """
    colours = [_background_colour(rng)]
    image = texture(rng, size, colours[0])
    owners = np.full((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), -1, dtype=np.int8)
    classes: list[int] = []
    full_areas: list[int] = []
    for _ in range(int(rng.integers(3, 8))):
        label = int(rng.integers(len(CLASSES)))
        placed = place(rng, FIGURES[CLASSES[label]](rng), owners, full_areas)
        if placed is None:
            continue
        stamp, full_area = placed
        colours.append(_object_colour(rng, [colours[0], *colours[-2:]]))
        patch = image[stamp.block]
        cover = coverage(stamp.subpixels)[..., None]
        patch += (texture(rng, (patch.shape[0], patch.shape[1]), colours[-1]) - patch) * cover
        owners[stamp.fine_block][stamp.subpixels] = len(classes)
        classes.append(label)
        full_areas.append(full_area)
    return Scene(np.clip(np.round(image), 0, 255).astype(np.uint8), classes, owners)


# ------------------------------------------------------------------------------
# COCO


def trace_polygons(subpixels: np.ndarray) -> list[list[float]] | None:
    """Trace the outlines of a visible mask as COCO polygons.

    Args:
        subpixels: (H, W) * SUPERSAMPLING bool, not empty.

    Returns:
        One flat list x0, y0, x1, y1, ... in pixels per connected piece of at least one pixel, or
        None when the mask has a hole of at least one pixel, which polygons cannot express.
    """
    pixel = SUPERSAMPLING**2
    contours, hierarchy = cv2.findContours(
        subpixels.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    polygons = []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        if cv2.contourArea(contour) < pixel:
            continue
        if parent >= 0:
            return None
        corners = cv2.approxPolyDP(contour, 0.2 * SUPERSAMPLING, closed=True)[:, 0]
        if len(corners) >= 3:
            polygons.append(np.round((corners + 0.5) / SUPERSAMPLING, 3).reshape(-1).tolist())
    return polygons or None


def annotate(scene: Scene, *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Describe a scene in COCO annotations: polygons where they can, compressed RLE elsewhere.

    Args:
        scene: what was drawn.
        image_id: id of the image.
        first_id: id of its first annotation; the others count on.

    Returns:
        One dict per instance; area and bbox as pycocotools computes them from the segmentation.
    """
    height, width = scene.image.shape[:2]
    annotations = []
    for i, (label, mask) in enumerate(zip(scene.classes, scene.masks, strict=True)):
        segmentation: Any = trace_polygons(scene.owners == i)
        if segmentation is None:
            rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": [height, width], "counts": rle["counts"].decode("ascii")}
        else:
            rle = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        annotations.append(
            {
                "id": first_id + i,
                "image_id": image_id,
                "category_id": label + 1,
                "iscrowd": 0,
                "area": float(mask_util.area(rle)),
                "bbox": [float(v) for v in mask_util.toBbox(rle)],
                "segmentation": segmentation,
            }
        )
    return annotations


def _write_split(folder: Path, name: str, count: int, size: tuple[int, int], seed: int) -> None:
    """Draw one split into `folder`/`name` and `folder`/annotations."""
    (folder / name).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        rng = np.random.default_rng([seed, ("train", "val").index(name), number])
        scene = draw_scene(rng, size)
        file_name = f"{number:06d}.jpg"
        ok, encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        if not ok:
            raise OSError(f"OpenCV could not encode {file_name} of split {name}")
        (folder / name / file_name).write_bytes(encoded.tobytes())
        images.append(
            {
                "id": number,
                "file_name": file_name,
                "height": size[0],
                "width": size[1],
                "license": 1,
            }
        )
        annotations += annotate(scene, image_id=number, first_id=len(annotations) + 1)
    content = {
        "info": {"description": f"Drawn shapes, split {name}, seed {seed}", "version": "1.0"},
        "licenses": [
            {
                "id": 1,
                "name": "CC0-1.0",
                "url": "https://creativecommons.org/publicdomain/zero/1.0/",
            }
        ],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i, "name": label, "supercategory": "shape"} for i, label in enumerate(CLASSES, 1)
        ],
    }
    _json_file(folder, name).write_text(json.dumps(content))


def _json_file(folder: Path, name: str) -> Path:
    return folder / "annotations" / f"instances_{name}.json"


def request_of(
    generator: str, counts: Mapping[str, int], image_size: tuple[int, int], seed: int
) -> dict[str, Any]:
    """Describe the data set that is asked for, as its manifest does.

    Args:
        generator: name and version of what draws it.
        counts: images per split.
        image_size: height and width in pixels.
        seed: of all random numbers.

    Raises:
        ValueError: a number out of its range.
    """
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"the {name} split needs at least 1 image, got {count}")
    if min(image_size) < 64:
        raise ValueError(f"images need sides of at least 64 pixels, got {tuple(image_size)}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    return {"generator": generator, **counts, "image_size": list(image_size), "seed": seed}


def write_once(
    folder: Path,
    wanted: dict[str, Any],
    files: Sequence[Path],
    write: Callable[[Path], None],
) -> None:
    """Let a data set appear, complete or not at all, unless it is there already.

    Args:
        folder: new or empty directory, or one that holds this very data set.
        wanted: what the data set is, kept beside it as JSON.
        files: all its files.
        write: writes them into the directory that it is given.

    Raises:
        FileExistsError: the directory holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()):
        _complain_about_difference(folder, wanted, files)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".shapes-", dir=folder.parent) as scratch:
        unfinished = Path(scratch) / "data"
        write(unfinished)
        (unfinished / MANIFEST).write_text(json.dumps(wanted))
        os.replace(unfinished, folder)


def _complain_about_difference(folder: Path, wanted: dict[str, Any], files: Sequence[Path]) -> None:
    """Raise unless `folder` holds exactly the data set that `wanted` describes."""
    manifest = folder / MANIFEST
    advice = "choose another directory or delete this one"
    if not manifest.is_file():
        raise FileExistsError(
            f"{folder} is not empty and holds no data set of this generator: {advice}"
        )
    found = json.loads(manifest.read_text())
    if found != wanted:
        raise FileExistsError(f"{folder} holds the data set {found}, not {wanted}: {advice}")
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise FileExistsError(
            f"{folder} has lost {len(missing)} files, {missing[0]} first: {advice}"
        )


def generate(
    output_dir: str | Path,
    *,
    num_train: int = 300,
    num_val: int = 60,
    image_size: tuple[int, int] = (256, 256),
    seed: int = 0,
) -> dict[str, Split]:
    """Write the data set, or find it there already.

    The directory appears complete or not at all. The same arguments give the same bytes (with the
    same versions of NumPy and OpenCV).

    Args:
        output_dir: new or empty directory, or one that holds this very data set.
        num_train: training images, at least 1.
        num_val: validation images, at least 1.
        image_size: height and width in pixels, each at least 64.
        seed: at least 0.

    Returns:
        "train" and "val" with their JSON file and image folder.

    Raises:
        ValueError: a number out of its range.
        FileExistsError: the directory holds something else.
    """
    counts = {"train": num_train, "val": num_val}
    wanted = request_of("point_rend.data.shapes 1", counts, image_size, seed)
    folder = Path(output_dir)
    files = []
    for name, count in counts.items():
        files.append(_json_file(folder, name))
        files += [folder / name / f"{number:06d}.jpg" for number in range(1, count + 1)]

    def write(unfinished: Path) -> None:
        for name, count in counts.items():
            _write_split(unfinished, name, count, image_size, seed)

    write_once(folder, wanted, files, write)
    return {name: Split(_json_file(folder, name), folder / name) for name in counts}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m point_rend.data.shapes",
        description="Draw the built-in data set.",
    )
    parser.add_argument("--output", required=True, type=Path, help="new directory")
    parser.add_argument(
        "--layout",
        choices=["coco", "cityscapes"],
        default="coco",
        help="objects in COCO's format (default), or whole scenes as Cityscapes publishes them",
    )
    parser.add_argument("--train", type=int, default=300, help="training images (default 300)")
    parser.add_argument("--val", type=int, default=60, help="validation images (default 60)")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[256], help="side, or height and width, in pixels"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error(f"--size takes one or two numbers, got {len(args.size)}")
    numbers = {
        "num_train": args.train,
        "num_val": args.val,
        "image_size": (args.size[0], args.size[-1]),
        "seed": args.seed,
    }
    try:
        if args.layout == "coco":
            lines = [
                f"{name}: {split.json_file} (images in {split.image_root})"
                for name, split in generate(args.output, **numbers).items()
            ]
        else:
            from .cityscapes_layout import generate_cityscapes

            lines = [
                f"{name}: {split.gt_dir} (images in {split.image_dir})"
                for name, split in generate_cityscapes(args.output, **numbers).items()
            ]
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
