"""The built-in data set as Cityscapes is published: every pixel labelled, objects of 8 classes.

A scene is painted from back to front, one polygon per part: sky, a skyline of buildings,
vegetation, wall and fence, bands of terrain, sidewalk and road with wavy borders, poles with
traffic lights and signs, a blob without a class, objects with the outlines of `shapes` (each
outline is a class), and a bonnet without a class. Each class has a colour of its own, so that what
is difficult is the outline.

    leftImg8bit/SPLIT/CITY/CITY_000000_NUMBER_leftImg8bit.png
    gtFine/SPLIT/CITY/CITY_000000_NUMBER_gtFine_{labelIds,labelTrainIds,instanceIds,color}.png
    gtFine/SPLIT/CITY/CITY_000000_NUMBER_gtFine_polygons.json

The ids are those of cityscapesscripts, and its scripts draw the same label images from the
polygons.

Shape letters: M points of an outline, H and W the image sides in pixels.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import name2label
from PIL import Image, ImageDraw

from .shapes import (
    FIGURES,
    SUPERSAMPLING,
    Figure,
    Outline,
    Stamp,
    circle,
    coverage,
    place,
    polar,
    rasterize,
    request_of,
    texture,
    write_once,
)

CITIES = {"train": "drawnham", "val": "sketchford"}
UNLABELED = "unlabeled"

# Hue 0..180, saturation and value 0..255 of what has no instances.
STUFF: dict[str, tuple[int, int, int]] = {
    "sky": (105, 90, 225),
    "building": (10, 80, 130),
    "vegetation": (58, 150, 105),
    "wall": (170, 50, 185),
    "fence": (18, 160, 90),
    "terrain": (38, 110, 165),
    "sidewalk": (150, 60, 170),
    "road": (120, 25, 85),
    "pole": (0, 15, 45),
    "traffic light": (28, 230, 245),
    "traffic sign": (0, 15, 245),
    "static": (80, 60, 150),
    "ego vehicle": (110, 60, 35),
}
# The hue and the outline of what has instances.
THINGS: dict[str, tuple[int, str]] = {
    "person": (0, "star"),
    "rider": (14, "gear"),
    "car": (120, "leaf"),
    "truck": (42, "letter"),
    "bus": (64, "ring"),
    "train": (88, "snowflake"),
    "motorcycle": (140, "key"),
    "bicycle": (162, "bolt"),
}


class CityscapesSplit(NamedTuple):
    """Where one split lies on disk."""

    image_dir: Path
    gt_dir: Path


class Part(NamedTuple):
    """One labelled polygon; later parts hide earlier ones."""

    label: str
    polygon: np.ndarray  # (M, 2) int, columns and rows of its outermost pixels


class Street(NamedTuple):
    """One drawn image and its annotation, from back to front."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    parts: list[Part]


# ------------------------------------------------------------------------------
# Outlines: x from 0 to 1 across the image, y from 0 to 1 down


def _wave(rng: np.random.Generator, height: float) -> Outline:
    """Everything below a wavy line."""
    x = np.linspace(-0.02, 1.02, 120)
    y = np.full_like(x, height)
    for amplitude, waves in ((0.025, rng.uniform(0.5, 2)), (0.012, rng.uniform(4, 9))):
        y += amplitude * np.sin(2 * np.pi * (waves * x + rng.uniform()))
    return np.concatenate([np.stack([x, y], axis=1), [[1.02, 1.02], [-0.02, 1.02]]])


def _skyline(rng: np.random.Generator, bottom: float) -> Outline:
    """Towers side by side, some with gables."""
    edges = np.cumsum(rng.uniform(0.06, 0.16, int(rng.integers(3, 8))))
    left = rng.uniform(-0.1, 1.05 - edges[-1])
    line = [(left, bottom)]
    for x0, x1 in zip([left, *(left + edges[:-1])], left + edges, strict=True):
        top = rng.uniform(0.12, 0.36)
        gable = [((x0 + x1) / 2, top - rng.uniform(0.04, 0.1))] if rng.random() < 0.4 else []
        line += [(x0, top), *gable, (x1, top)]
    return np.array([*line, (line[-1][0], bottom)])


def _pickets(rng: np.random.Generator, bottom: float) -> Outline:
    """A fence whose pickets have gaps between them, above a rail."""
    left, step = rng.uniform(-0.1, 0.7), rng.uniform(0.025, 0.04)
    top, rail = bottom - rng.uniform(0.14, 0.2), bottom - 0.05
    line = [(left, bottom)]
    for x in left + step * np.arange(rng.integers(6, 16)):
        line += [(x, rail), (x, top), (x + 0.5 * step, top - 0.02)]
        line += [(x + 0.55 * step, top), (x + 0.55 * step, rail)]
    return np.array([*line, (line[-1][0], bottom)])


def _box(x0: float, y0: float, x1: float, y1: float) -> Outline:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _crown(rng: np.random.Generator, x: float, y: float, size: tuple[int, int]) -> Outline:
    """A lobed blob around a point."""
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    lobes, radius = int(rng.integers(7, 12)), rng.uniform(0.08, 0.16)
    waves = 0.13 * np.abs(np.sin(lobes * angle / 2)) + 0.1 * np.sin(2 * angle + rng.uniform(0, 6))
    aspect = size[0] / size[1]
    return polar(radius * (0.9 + waves), angle) * (aspect, 1) + (x, y)


def _scenery(rng: np.random.Generator, size: tuple[int, int]) -> list[tuple[str, Outline]]:
    """Lay out everything behind the objects, from back to front."""
    horizon = rng.uniform(0.42, 0.52)
    pavement = horizon + rng.uniform(0.07, 0.12)
    kerb = pavement + rng.uniform(0.08, 0.14)
    scenery = [("sky", _box(-0.1, -0.1, 1.1, 1.1))]
    scenery += [("building", _skyline(rng, horizon + 0.1)) for _ in range(rng.integers(1, 3))]
    for _ in range(rng.integers(2, 5)):
        x, y = rng.uniform(0, 1), horizon - rng.uniform(0, 0.15)
        scenery.append(("vegetation", _crown(rng, x, y, size)))
    left = rng.uniform(-0.1, 0.6)
    wall = _box(left, horizon - rng.uniform(0.05, 0.1), left + rng.uniform(0.2, 0.5), horizon + 0.1)
    scenery.append(("wall", wall))
    scenery.append(("terrain", _wave(rng, horizon)))
    scenery.append(("fence", _pickets(rng, horizon + 0.06)))
    scenery.append(("sidewalk", _wave(rng, pavement)))
    scenery.append(("road", _wave(rng, kerb)))
    aspect = size[0] / size[1]
    for _ in range(rng.integers(2, 5)):
        x, top, half = rng.uniform(0.03, 0.97), rng.uniform(0.1, 0.3), rng.uniform(0.008, 0.014)
        scenery.append(("pole", _box(x - half * aspect, top, x + half * aspect, pavement + 0.03)))
        reach = rng.uniform(0.045, 0.07)
        if rng.random() < 0.5:
            lamp = _box(x - reach * aspect / 2, top - reach, x + reach * aspect / 2, top + reach)
            scenery.append(("traffic light", lamp))
        else:
            corners = int(rng.choice([3, 4, 8, 40]))
            sign = circle(1.2 * reach, points=corners) @ np.array([[0, 1], [-1, 0]])
            scenery.append(("traffic sign", sign * (aspect, 1) + (x, top)))
    return scenery


# ------------------------------------------------------------------------------
# Painting


def _colour(label: str, rng: np.random.Generator) -> np.ndarray:
    """Vary the colour of a class a little, (3,) float32 BGR."""
    if label in STUFF:
        hsv = np.array(STUFF[label]) + rng.uniform((-4, -12, -18), (4, 12, 18))
    else:
        hsv = np.array([THINGS[label][0] + rng.uniform(-5, 5), *rng.uniform(190, 250, 2)])
    hsv = np.array([hsv[0] % 180, *np.clip(hsv[1:], 0, 255)])
    return cv2.cvtColor(hsv.astype(np.uint8)[None, None], cv2.COLOR_HSV2BGR)[0, 0].astype("f4")


def _largest_outline(mask: np.ndarray) -> np.ndarray | None:
    """Trace the largest piece of a mask, (M, 2) its outermost cells; None without a polygon."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    contours = [contour[:, 0] for contour in contours if len(contour) >= 3]
    return max(contours, key=cv2.contourArea, default=None)


def _solid(stamp: Stamp) -> Stamp | None:
    """Keep the largest piece of a stamp and fill its holes: what one polygon can express."""
    outline = _largest_outline(stamp.subpixels)
    if outline is None:
        return None
    canvas = np.zeros(stamp.subpixels.shape, dtype=np.uint8)
    cv2.fillPoly(canvas, [outline], (1,))
    return stamp._replace(subpixels=canvas.astype(bool))


def _paint(street: Street, label: str, stamp: Stamp, rng: np.random.Generator) -> None:
    """Add a part to the picture and to the annotation; nothing if it is too thin for a pixel."""
    cover = coverage(stamp.subpixels)
    outline = _largest_outline(cover > 0.5)
    if outline is None:
        return
    patch = street.image[stamp.block]
    height, width = cover.shape
    patch += (texture(rng, (height, width), _colour(label, rng)) - patch) * cover[..., None]
    rows, columns = stamp.block
    street.parts.append(Part(label, outline + np.array([columns.start, rows.start])))


def draw_street(rng: np.random.Generator, size: tuple[int, int]) -> Street:
    """Draw one scene.

    Args:
        rng: the only source of randomness.
        size: image height and width in pixels.

    Returns:
        The image and its annotation.
    """
    street = Street(np.zeros((*size, 3), dtype=np.float32), [])
    whole_image = np.array([[size[1], 0, 0], [0, size[0], 0]], dtype=float)

    def add(label: str, figure: Figure) -> None:
        stamp = rasterize(figure, whole_image, size)
        solid = None if stamp is None else _solid(stamp)
        if solid is not None:
            _paint(street, label, solid, rng)

    for label, outline in _scenery(rng, size):
        add(label, [[outline]])
    add("static", [[_crown(rng, rng.uniform(0, 1), rng.uniform(0.65, 0.9), size)]])

    owners = np.full((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), -1, dtype=np.int8)
    full_areas: list[int] = []
    for _ in range(int(rng.integers(3, 7))):
        label = str(rng.choice(list(THINGS)))
        placed = place(rng, FIGURES[THINGS[label][1]](rng), owners, full_areas)
        solid = None if placed is None else _solid(placed[0])
        if placed is None or solid is None:
            continue
        owners[solid.fine_block][solid.subpixels] = len(full_areas)
        full_areas.append(placed[1])
        _paint(street, label, solid, rng)

    bonnet = circle(1.0) * (0.45, rng.uniform(0.05, 0.09)) + (rng.uniform(0.4, 0.6), 1.0)
    add("ego vehicle", [[bonnet]])
    return street._replace(image=np.clip(np.round(street.image), 0, 255).astype(np.uint8))


def paint_ids(
    parts: list[Part], size: tuple[int, int], number: Callable[[Part], int]
) -> np.ndarray:
    """Fill the polygons of an annotation one over the other.

    Args:
        parts: from back to front.
        size: image height and width in pixels.
        number: the value of a part; called once for each, in order.

    Returns:
        (H, W) int32; 0, the id of what has no label, where no part is.
    """
    canvas = Image.new("I", size[::-1], name2label[UNLABELED].id)
    drawer = ImageDraw.Draw(canvas)
    for part in parts:
        drawer.polygon([(int(x), int(y)) for x, y in part.polygon], fill=number(part))
    return np.asarray(canvas)


def label_images(parts: list[Part], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Make the label images of an annotation.

    Args:
        parts: from back to front.
        size: image height and width in pixels.

    Returns:
        By the name in the file: (H, W) uint8 "labelIds" and "labelTrainIds", uint16
        "instanceIds", and "color" (H, W, 3) uint8 in RGB.
    """
    seen: dict[str, int] = {}

    def instance_id(part: Part) -> int:
        label = name2label[part.label]
        if not label.hasInstances:
            return label.id
        seen[part.label] = seen.get(part.label, -1) + 1
        return 1000 * label.id + seen[part.label]

    ids = paint_ids(parts, size, lambda part: name2label[part.label].id).astype(np.uint8)
    instance_ids = paint_ids(parts, size, instance_id).astype(np.uint16)
    train_ids = np.full(256, name2label[UNLABELED].trainId, dtype=np.uint8)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for label in name2label.values():
        if label.id >= 0:
            train_ids[label.id], colours[label.id] = label.trainId, label.color
    return {
        "labelIds": ids,
        "labelTrainIds": train_ids[ids],
        "instanceIds": instance_ids,
        "color": colours[ids],
    }


# ------------------------------------------------------------------------------
# Files


def _files(folder: Path, split: str, number: int) -> dict[str, Path]:
    """Name the files of an image by what they hold."""
    city = CITIES[split]
    stem = f"{city}_000000_{number:06d}"
    annotation = folder / "gtFine" / split / city / f"{stem}_gtFine"
    images = ("labelIds", "labelTrainIds", "instanceIds", "color")
    files = {kind: Path(f"{annotation}_{kind}.png") for kind in images}
    files["polygons"] = Path(f"{annotation}_polygons.json")
    files["image"] = folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    return files


def _write_street(files: dict[str, Path], street: Street) -> None:
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    height, width = street.image.shape[:2]
    Image.fromarray(np.ascontiguousarray(street.image[..., ::-1])).save(files["image"])
    for kind, pixels in label_images(street.parts, (height, width)).items():
        Image.fromarray(pixels).save(files[kind])
    objects = [{"label": part.label, "polygon": part.polygon.tolist()} for part in street.parts]
    content = {"imgHeight": height, "imgWidth": width, "objects": objects}
    files["polygons"].write_text(json.dumps(content))


def generate_cityscapes(
    output_dir: str | Path,
    *,
    num_train: int = 300,
    num_val: int = 60,
    image_size: tuple[int, int] = (256, 512),
    seed: int = 0,
) -> dict[str, CityscapesSplit]:
    """Write the data set, or find it there already.

    The directory appears complete or not at all. The same arguments give the same pixels (with the
    same versions of NumPy, OpenCV and Pillow), and a larger set begins with a smaller one's images.

    Args:
        output_dir: new or empty directory, or one that holds this very data set.
        num_train: training images, at least 1.
        num_val: validation images, at least 1.
        image_size: height and width in pixels, each at least 64.
        seed: at least 0.

    Returns:
        "train" and "val" with their folders of images and annotations.

    Raises:
        ValueError: a number out of its range.
        FileExistsError: the directory holds something else.
    """
    counts = {"train": num_train, "val": num_val}
    wanted = request_of("point_rend.data.cityscapes_layout 1", counts, image_size, seed)
    folder = Path(output_dir)
    numbered = [(split, i) for split, count in counts.items() for i in range(count)]

    def write(unfinished: Path) -> None:
        for split, number in numbered:
            rng = np.random.default_rng([seed, list(CITIES).index(split), number])
            _write_street(_files(unfinished, split, number), draw_street(rng, image_size))

    expected = [file for place in numbered for file in _files(folder, *place).values()]
    write_once(folder, wanted, expected, write)
    return {
        split: CityscapesSplit(folder / "leftImg8bit" / split, folder / "gtFine" / split)
        for split in counts
    }
