"""Outlines of the shapes: stars, gears, leaves, letters and others."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

Outline = np.ndarray  # (M, 2) float, closed polygon in the unit frame
Part = list[Outline]  # filled by the even-odd rule: an outline inside another is a hole
Shape = list[Part]  # the union of its parts


def circle(radius: float, center: tuple[float, float] = (0.0, 0.0), points: int = 72) -> Outline:
    """Return a circle as a polygon with this number of points."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + np.asarray(center)


def polar(radius: np.ndarray, angle: np.ndarray) -> Outline:
    """Return the outline through points (M,) in polar coordinates; angles in radians."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _stroke(path: Sequence[tuple[float, float]] | np.ndarray, width: float) -> Shape:
    """Return a path drawn with a round pen: a bar per segment, a disc at every joint and end."""
    points = np.asarray(path, dtype=float)
    parts: Shape = [[circle(width / 2, (x, y), 16)] for x, y in points]
    for start, end in itertools.pairwise(points):
        along = (end - start) / max(float(np.linalg.norm(end - start)), 1e-9)
        side = np.array([-along[1], along[0]]) * width / 2
        parts.append([np.stack([start + side, end + side, end - side, start - side])])
    return parts


def _star(rng: np.random.Generator) -> Shape:
    tips = int(rng.integers(5, 9))
    angle = np.arange(2 * tips) * np.pi / tips
    radius = np.where(np.arange(2 * tips) % 2 == 0, 1.0, rng.uniform(0.36, 0.52))
    return [[polar(radius, angle)]]


def _gear(rng: np.random.Generator) -> Shape:
    teeth = int(rng.integers(8, 15))
    root = rng.uniform(0.72, 0.8)
    step = 2 * np.pi / teeth
    corners = np.array([0.0, 0.12, 0.38, 0.5]) * step  # foot, tip, tip, foot of a tooth
    angle = (np.arange(teeth)[:, None] * step + corners).reshape(-1)
    radius = np.tile([root, 1.0, 1.0, root], teeth)
    return [[polar(radius, angle), circle(rng.uniform(0.22, 0.42))]]


def _leaf(rng: np.random.Generator) -> Shape:
    width = rng.uniform(0.4, 0.55)
    serrations = int(rng.integers(7, 12))
    t = np.linspace(0, 1, 2 * serrations + 1)
    saw = np.where(np.arange(len(t)) % 2 == 0, 0.82, 1.0)
    half = width * np.sin(np.pi * t**0.8) * saw
    y = 0.7 - 1.7 * t
    blade = np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[-2:0:-1]])
    bend = rng.uniform(-0.25, 0.25)
    return [[blade], *_stroke([(0.0, 0.66), (bend * 0.4, 0.85), (bend, 1.0)], 0.09)]


def _arc(center: tuple[float, float], rx: float, ry: float, start: float, end: float) -> list:
    angle = np.radians(np.linspace(start, end, 17))
    return [(center[0] + rx * np.cos(a), center[1] + ry * np.sin(a)) for a in angle]


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


def _letter(rng: np.random.Generator) -> Shape:
    strokes = LETTERS[str(rng.choice(sorted(LETTERS)))]
    width = rng.uniform(0.22, 0.32)
    return [part for path in strokes for part in _stroke(np.asarray(path) * 0.9, width)]


def _ring(rng: np.random.Generator) -> Shape:
    return [[circle(1.0), circle(rng.uniform(0.62, 0.82))]]


def _snowflake(rng: np.random.Generator) -> Shape:
    width = rng.uniform(0.11, 0.15)
    twigs = [(rng.uniform(0.4, 0.5), 0.3), (rng.uniform(0.68, 0.76), 0.22)]  # distance, length
    shape: Shape = []
    for arm in np.arange(6) * np.pi / 3:
        out = np.array([np.cos(arm), np.sin(arm)])
        shape += _stroke(np.stack([np.zeros(2), 0.94 * out]), width)
        for distance, length in twigs:
            for turn in (-np.pi / 3, np.pi / 3):
                twig = np.array([np.cos(arm + turn), np.sin(arm + turn)]) * length
                shape += _stroke(np.stack([distance * out, distance * out + twig]), width * 0.9)
    return shape


def _key(rng: np.random.Generator) -> Shape:
    bow = rng.uniform(0.36, 0.42)
    width = rng.uniform(0.14, 0.18)
    shape: Shape = [[circle(bow, (-1 + bow, 0)), circle(bow * 0.55, (-1 + bow, 0))]]
    shape += _stroke([(-1 + 1.9 * bow, 0), (0.95, 0)], width)
    for x in np.linspace(0.45, 0.9, int(rng.integers(2, 4))):
        shape += _stroke([(x, 0), (x, rng.uniform(0.26, 0.4))], width * 0.85)
    return shape


def _bolt(rng: np.random.Generator) -> Shape:
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


SHAPES: dict[str, Callable[[np.random.Generator], Shape]] = {
    "star": _star,
    "gear": _gear,
    "leaf": _leaf,
    "letter": _letter,
    "ring": _ring,
    "snowflake": _snowflake,
    "key": _key,
    "bolt": _bolt,
}
CLASSES: tuple[str, ...] = tuple(SHAPES)
