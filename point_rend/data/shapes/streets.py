"""Drawn street scenes, painted from back to front with one polygon per part.

Sky, a skyline of buildings, vegetation, a wall, terrain, a fence, a sidewalk and a road with wavy
borders, poles with traffic lights and signs, an unlabeled blob, objects with the outlines of the
built-in shapes (each outline is a class), and an unlabeled hood. Each class has its own color, so
that the outlines are the difficult part.
"""

from typing import NamedTuple

import cv2
import numpy as np

from point_rend.data.shapes.outlines import SHAPES, Outline, Shape, circle, polar
from point_rend.data.shapes.scene import SUPERSAMPLING, Stamp, coverage, place, rasterize, texture

# Hue 0..180, saturation and value 0..255 of the classes without instances.
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

# Hue and outline of the classes with instances.
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


class Part(NamedTuple):
    """One labeled polygon; later parts hide earlier ones."""

    label: str
    polygon: np.ndarray  # (M, 2) int, columns and rows of its outermost pixels


class Street(NamedTuple):
    """One drawn image and its annotation, from back to front."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    parts: list[Part]


# ------------------------------------------------------------------------------
# Outlines: x from 0 to 1 across the image, y from 0 to 1 down
def _wave(rng: np.random.Generator, height: float) -> Outline:
    """Return the area below a wavy line."""
    x = np.linspace(-0.02, 1.02, 120)
    y = np.full_like(x, height)
    for amplitude, waves in ((0.025, rng.uniform(0.5, 2)), (0.012, rng.uniform(4, 9))):
        y += amplitude * np.sin(2 * np.pi * (waves * x + rng.uniform()))
    return np.concatenate([np.stack([x, y], axis=1), [[1.02, 1.02], [-0.02, 1.02]]])


def _skyline(rng: np.random.Generator, bottom: float) -> Outline:
    """Return a row of towers, some with gables."""
    edges = np.cumsum(rng.uniform(0.06, 0.16, int(rng.integers(3, 8))))
    left = rng.uniform(-0.1, 1.05 - edges[-1])
    line = [(left, bottom)]
    for x0, x1 in zip([left, *(left + edges[:-1])], left + edges, strict=True):
        top = rng.uniform(0.12, 0.36)
        gable = [((x0 + x1) / 2, top - rng.uniform(0.04, 0.1))] if rng.random() < 0.4 else []
        line += [(x0, top), *gable, (x1, top)]
    return np.array([*line, (line[-1][0], bottom)])


def _pickets(rng: np.random.Generator, bottom: float) -> Outline:
    """Return a fence of pickets above a rail."""
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
    """Return a lobed blob around a point."""
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    lobes, radius = int(rng.integers(7, 12)), rng.uniform(0.08, 0.16)
    waves = 0.13 * np.abs(np.sin(lobes * angle / 2)) + 0.1 * np.sin(2 * angle + rng.uniform(0, 6))
    aspect = size[0] / size[1]
    return polar(radius * (0.9 + waves), angle) * (aspect, 1) + (x, y)


def _scenery(rng: np.random.Generator, size: tuple[int, int]) -> list[tuple[str, Outline]]:
    """Return the background from back to front."""
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
def _color(label: str, rng: np.random.Generator) -> np.ndarray:
    """Return a color close to that of a class, (3,) float32 BGR."""
    if label in STUFF:
        hsv = np.array(STUFF[label]) + rng.uniform((-4, -12, -18), (4, 12, 18))
    else:
        hsv = np.array([THINGS[label][0] + rng.uniform(-5, 5), *rng.uniform(190, 250, 2)])
    hsv = np.array([hsv[0] % 180, *np.clip(hsv[1:], 0, 255)])
    return cv2.cvtColor(hsv.astype(np.uint8)[None, None], cv2.COLOR_HSV2BGR)[0, 0].astype("f4")


def _largest_outline(mask: np.ndarray) -> np.ndarray | None:
    """Trace the largest component of a mask, (M, 2); None if it is no polygon."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    contours = [contour[:, 0] for contour in contours if len(contour) >= 3]
    return max(contours, key=cv2.contourArea, default=None)


def _solid(stamp: Stamp) -> Stamp | None:
    """Keep the largest component and fill its holes, so that one polygon expresses it."""
    outline = _largest_outline(stamp.subpixels)
    if outline is None:
        return None
    canvas = np.zeros(stamp.subpixels.shape, dtype=np.uint8)
    cv2.fillPoly(canvas, [outline], (1,))
    return stamp._replace(subpixels=canvas.astype(bool))


def _paint(street: Street, label: str, stamp: Stamp, rng: np.random.Generator) -> None:
    """Add a part to the image and the annotation, unless it is thinner than a pixel."""
    cover = coverage(stamp.subpixels)
    outline = _largest_outline(cover > 0.5)
    if outline is None:
        return
    patch = street.image[stamp.block]
    height, width = cover.shape
    patch += (texture(rng, (height, width), _color(label, rng)) - patch) * cover[..., None]
    rows, columns = stamp.block
    street.parts.append(Part(label, outline + np.array([columns.start, rows.start])))


def draw_street(rng: np.random.Generator, size: tuple[int, int]) -> Street:
    """Draw one scene.

    Args:
        rng: Source of randomness.
        size: Image height and width in pixels.

    Returns:
        The image and its annotation.
    """
    street = Street(np.zeros((*size, 3), dtype=np.float32), [])
    whole_image = np.array([[size[1], 0, 0], [0, size[0], 0]], dtype=float)

    def add(label: str, shape: Shape) -> None:
        stamp = rasterize(shape, whole_image, size)
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
        placed = place(rng, SHAPES[THINGS[label][1]](rng), owners, full_areas)
        solid = None if placed is None else _solid(placed[0])
        if placed is None or solid is None:
            continue
        owners[solid.fine_block][solid.subpixels] = len(full_areas)
        full_areas.append(placed[1])
        _paint(street, label, solid, rng)

    hood = circle(1.0) * (0.45, rng.uniform(0.05, 0.09)) + (rng.uniform(0.4, 0.6), 1.0)
    add("ego vehicle", [[hood]])
    return street._replace(image=np.clip(np.round(street.image), 0, 255).astype(np.uint8))
