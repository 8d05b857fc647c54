"""Pictures of masks and points: colored overlays, points, names and uncertainty maps.

Images are (H, W, 3) uint8 in BGR, the order in which Detectron2 reads and OpenCV writes; masks are
(I, H, W) bool. Windows are x0, y0, x1, y1.

Shape letters: I instances, P points, C channels, H and W the image sides in pixels.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from point_rend.rendering.box_masks import Crop
from point_rend.visualization.fonts import line_of

Color = tuple[int, int, int]
Masks = np.ndarray | Sequence[Crop]  # of an image: (I, H, W) bool, or cut out

# Bright colors, consecutive ones far apart in hue; BGR.
PALETTE: tuple[Color, ...] = (
    (75, 25, 230),
    (75, 200, 60),
    (25, 225, 255),
    (240, 130, 0),
    (230, 50, 240),
    (240, 240, 70),
    (48, 130, 245),
    (212, 190, 250),
    (60, 245, 210),
    (180, 30, 145),
    (128, 128, 0),
    (180, 215, 255),
)
GRAY: Color = (160, 160, 160)
POINT_COLOR: Color = (60, 40, 255)


def _crops(masks: Masks, image: np.ndarray) -> list[Crop]:
    """Cut masks out, after a check that they fit the image."""
    if not isinstance(masks, np.ndarray):
        return list(masks)
    if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks {masks.shape} do not fit an image of {image.shape[:2]}")
    return [Crop.of(mask) for mask in masks]


def color_of(index: int) -> Color:
    """Return the color of the instance with this index; the palette repeats."""
    return PALETTE[index % len(PALETTE)]


def overlay_masks(
    image: np.ndarray,
    masks: Masks,
    colors: Sequence[Color] | None = None,
    *,
    opacity: float = 0.6,
    outline: int = 2,
) -> np.ndarray:
    """Paint masks over a darkened gray image, each in its color with a white outline.

    Args:
        image: (H, W, 3) uint8.
        masks: (I, H, W) bool, or I crops; later ones cover earlier ones.
        colors: One per mask; by default the palette in order.
        opacity: Opacity of the fill, 0..1.
        outline: Line width in pixels, 0 for none.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: If the sizes or the numbers differ.
    """
    crops = _crops(masks, image)
    colors = [color_of(i) for i in range(len(masks))] if colors is None else colors
    if len(colors) != len(masks):
        raise ValueError(f"{len(masks)} masks need as many colors, got {len(colors)}")
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    canvas = gray * np.float32(0.55)
    for crop, color in zip(crops, colors, strict=True):
        part = canvas[crop.window]
        part[crop.mask] += opacity * (np.array(color, dtype=np.float32) - part[crop.mask])
    canvas = np.round(canvas).astype(np.uint8)
    if outline:
        for crop in filter(lambda crop: crop.mask.size, crops):
            contours, _ = cv2.findContours(
                crop.mask.astype(np.uint8),
                cv2.RETR_CCOMP,
                cv2.CHAIN_APPROX_NONE,
                offset=(crop.left, crop.top),
            )
            cv2.drawContours(canvas, contours, -1, (255, 255, 255), outline, cv2.LINE_AA)
    return canvas


def paint_labels(labels: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Paint a label map, each class in its color and every other value in black.

    Args:
        labels: (H, W) uint8, the indices of the classes.
        colors: One per class.

    Returns:
        (H, W, 3) uint8.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    return palette[labels]


def match_colors(boxes: np.ndarray, reference: np.ndarray) -> list[Color]:
    """Assign to each box the color of the reference box that it overlaps most.

    Args:
        boxes: (I, 4) x0, y0, x1, y1.
        reference: (J, 4), with the colors of the palette in order.

    Returns:
        I colors; gray for a box whose best intersection over union is below 0.3.
    """
    corner = np.maximum(boxes[:, None, :2], reference[None, :, :2])
    opposite = np.minimum(boxes[:, None, 2:], reference[None, :, 2:])
    common = np.prod(np.clip(opposite - corner, 0, None), axis=2)  # (I, J)
    areas = [np.prod(some[:, 2:] - some[:, :2], axis=1) for some in (boxes, reference)]
    overlap = common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)
    return [color_of(int(row.argmax())) if row.max(initial=0) >= 0.3 else GRAY for row in overlap]


def draw_points(
    picture: np.ndarray,
    points: np.ndarray,
    *,
    radius: float = 2.0,
    color: Color = POINT_COLOR,
) -> np.ndarray:
    """Draw points as dots with a thin dark rim.

    Args:
        picture: (H, W, 3) uint8.
        points: (P, 2) x, y; the upper left corner of the picture is (0, 0), and the center of its
            first pixel (0.5, 0.5). Points outside are not visible.
        radius: Radius of the dots in pixels.
        color: Color of the dots.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    bits = 4  # of a pixel's fraction
    canvas = picture.copy()
    corners = np.round((np.asarray(points) - 0.5) * 2**bits).astype(int)
    for size, paint in ((1.25 * radius, (0, 0, 0)), (radius, color)):
        for x, y in corners.tolist():
            length = round(size * 2**bits)
            cv2.circle(canvas, (x, y), length, paint, cv2.FILLED, cv2.LINE_AA, bits)
    return canvas


LEAST_KEYPOINT_SCORE = 0.05  # of those that are drawn, as by Detectron2


def draw_keypoints(
    picture: np.ndarray, keypoints: np.ndarray, lines: Sequence[tuple[int, int, Color]] = ()
) -> np.ndarray:
    """Draw the keypoints of instances, and the lines of their skeleton.

    Args:
        picture: (H, W, 3) uint8.
        keypoints: (I, P, 3) x, y as of :func:`draw_points`, and a score; those with a score of 0.05
            or less are left out, with their lines.
        lines: Pairs of numbers of keypoints, with the color of the line between them.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    bits = 4  # of a pixel's fraction
    canvas = picture.copy()
    width = max(1, min(picture.shape[:2]) // 200)
    is_drawn = keypoints[:, :, 2] > LEAST_KEYPOINT_SCORE
    for points, drawn in zip(keypoints[:, :, :2], is_drawn, strict=True):
        corners = np.round((points - 0.5) * 2**bits).astype(int).tolist()
        for start, end, color in lines:
            if drawn[start] and drawn[end]:
                cv2.line(canvas, corners[start], corners[end], color, width, cv2.LINE_AA, bits)
    return draw_points(canvas, keypoints[is_drawn][:, :2], radius=1.5 * width + 0.5)


def write_names(picture: np.ndarray, masks: Masks, names: Sequence[str]) -> np.ndarray:
    """Write a name on every mask, at its widest place, in a font that has its letters.

    Args:
        picture: (H, W, 3) uint8.
        masks: (I, H, W) bool, or I crops; an empty one gets no name.
        names: One per mask, as of :func:`~point_rend.visualization.fonts.legible`. One that is
            wider than the picture is written without its middle.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    height, width = picture.shape[:2]
    size = float(np.clip(min(height, width) / 30, 11, 40))
    canvas = Image.fromarray(picture)  # white and black are the same in BGR
    draw = ImageDraw.Draw(canvas)
    for crop, name in zip(_crops(masks, picture), names, strict=True):
        inside = cv2.distanceTransform(np.pad(crop.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
        y, x = np.unravel_index(int(inside.argmax()), inside.shape)
        if inside[y, x] == 0:
            continue
        line = line_of(name, size, width)
        half, middle = line.width / 2, line.height / 2
        place = (
            max(half, min(float(x) + crop.left - 1, width - half)),
            max(middle, min(float(y) + crop.top - 1, height - middle)),
        )
        line.draw(draw, place, "white", outline="black")
    return np.array(canvas)


def uncertainty_picture(uncertainty: np.ndarray) -> np.ndarray:
    """Color uncertainties from black through red to yellow, the most uncertain.

    Args:
        uncertainty: (H, W), at most 0: minus the difference of the two largest logits, as
            :mod:`point_rend.rendering.uncertainty` computes it. Brightness is twice the
            probability of the second class.

    Returns:
        (H, W, 3) uint8.
    """
    odds = np.exp(np.minimum(uncertainty.astype(np.float64), 0))
    second_best = odds / (1 + odds)
    return cv2.applyColorMap(np.round(510 * second_best).astype(np.uint8), cv2.COLORMAP_INFERNO)


def places_of_difference(
    one: np.ndarray, other: np.ndarray, *, side: int, count: int
) -> list[tuple[int, int, int, int]]:
    """Find the squares in which two maps differ most.

    Args:
        one: (H, W) of any type.
        other: (H, W).
        side: Side of the squares in pixels, at most that of the map.
        count: Maximum number of squares. They overlap by at most a quarter.

    Returns:
        Windows inside the map, most different first; none if nothing differs.
    """
    height, width = one.shape
    rows, columns = min(side, height), min(side, width)
    different = np.pad((one != other).astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    counts = (
        different[rows:, columns:]
        - different[:-rows, columns:]
        - different[rows:, :-columns]
        + different[:-rows, :-columns]
    )  # of the square at each left upper corner
    windows: list[tuple[int, int, int, int]] = []
    while len(windows) < count and counts.any():
        y, x = (int(v) for v in np.unravel_index(int(counts.argmax()), counts.shape))
        windows.append((x, y, x + columns, y + rows))
        near_y, near_x = -(-3 * rows // 4), -(-3 * columns // 4)  # rounded up
        counts[max(0, y - near_y) : y + near_y, max(0, x - near_x) : x + near_x] = 0
    return windows
