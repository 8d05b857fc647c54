"""Pictures of masks: coloured overlays, panels side by side.

Images are (H, W, 3) uint8 in BGR, the order in which Detectron2 reads and OpenCV writes; masks are
(I, H, W) bool.

Shape letters: I instances, H and W the image sides in pixels.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

# Bright, and far apart in hue for neighbours in the list; BGR.
PALETTE: tuple[Colour, ...] = (
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
GREY: Colour = (160, 160, 160)


def colour_of(index: int) -> Colour:
    """Return the colour of the instance with this number; the palette repeats."""
    return PALETTE[index % len(PALETTE)]


def overlay_masks(
    image: np.ndarray,
    masks: np.ndarray,
    colours: Sequence[Colour] | None = None,
    *,
    opacity: float = 0.6,
    outline: int = 2,
) -> np.ndarray:
    """Paint masks over a greyed image, each in its colour with a white outline.

    Args:
        image: (H, W, 3) uint8.
        masks: (I, H, W) bool; later ones are painted over earlier ones.
        colours: one per mask; the palette in order if not given.
        opacity: of the fill, 0..1.
        outline: line width in pixels, 0 for none.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: the sizes or the numbers differ.
    """
    if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks {masks.shape} do not fit an image of {image.shape[:2]}")
    colours = [colour_of(i) for i in range(len(masks))] if colours is None else colours
    if len(colours) != len(masks):
        raise ValueError(f"{len(masks)} masks need as many colours, got {len(colours)}")
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    canvas = grey * np.float32(0.55)
    for mask, colour in zip(masks, colours, strict=True):
        canvas[mask] += opacity * (np.array(colour, dtype=np.float32) - canvas[mask])
    canvas = np.round(canvas).astype(np.uint8)
    if outline:
        for mask in masks:
            contours, _ = cv2.findContours(
                mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(canvas, contours, -1, (255, 255, 255), outline, cv2.LINE_AA)
    return canvas


def match_colours(boxes: np.ndarray, reference: np.ndarray) -> list[Colour]:
    """Give each box the colour of the reference box that it overlaps most.

    Args:
        boxes: (I, 4) x0, y0, x1, y1.
        reference: (J, 4), coloured by the palette in order.

    Returns:
        I colours; grey for a box whose best intersection over union is below 0.3.
    """
    corner = np.maximum(boxes[:, None, :2], reference[None, :, :2])
    opposite = np.minimum(boxes[:, None, 2:], reference[None, :, 2:])
    common = np.prod(np.clip(opposite - corner, 0, None), axis=2)  # (I, J)
    areas = [np.prod(some[:, 2:] - some[:, :2], axis=1) for some in (boxes, reference)]
    overlap = common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)
    return [colour_of(int(row.argmax())) if row.max(initial=0) >= 0.3 else GREY for row in overlap]


def side_by_side(
    panels: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, gap: int = 8
) -> np.ndarray:
    """Put pictures of one height in a row on white, each under its title.

    Args:
        panels: (H, W, 3) uint8 each; the widths may differ.
        titles: one per panel; no room is left for them if not given.
        gap: white pixels between panels.

    Returns:
        One picture (H + title height, sum of widths + gaps, 3) uint8.

    Raises:
        ValueError: no panel, different heights, or another number of titles than panels.
    """
    heights = {panel.shape[0] for panel in panels}
    if len(heights) != 1:
        raise ValueError(f"panels of one row need one height, got {sorted(heights)}")
    if titles is not None and len(titles) != len(panels):
        raise ValueError(f"{len(panels)} panels need as many titles, got {len(titles)}")
    height = heights.pop()
    head = 0 if titles is None else max(24, height // 16)
    width = sum(panel.shape[1] for panel in panels) + gap * (len(panels) - 1)
    picture = np.full((head + height, width, 3), 255, dtype=np.uint8)
    left = 0
    for i, panel in enumerate(panels):
        right = left + panel.shape[1]
        picture[head:, left:right] = panel
        if titles is not None:
            picture[:head, left:right] = _title(titles[i], (head, panel.shape[1]))
        left = right + gap
    return picture


def stack(rows: Sequence[np.ndarray], *, gap: int = 8) -> np.ndarray:
    """Put pictures below one another on white; narrower ones keep white at their right.

    Args:
        rows: (H, W, 3) uint8 each, at least one; the sizes may differ.
        gap: white pixels between rows.

    Returns:
        One picture as wide as the widest row.
    """
    width = max(row.shape[1] for row in rows)
    height = sum(row.shape[0] for row in rows) + gap * (len(rows) - 1)
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    top = 0
    for row in rows:
        picture[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0] + gap
    return picture


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture; the file appears complete or not at all.

    Args:
        path: file name with the suffix of a format that OpenCV knows; folders are made.
        picture: (H, W, 3) uint8.

    Raises:
        ValueError: an unknown suffix.
    """
    path = Path(path)
    try:
        encoded = cv2.imencode(path.suffix, picture)[1]
    except cv2.error as error:
        raise ValueError(f"cannot write {path}: unknown picture format {path.suffix!r}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".picture-", dir=path.parent) as scratch:
        unfinished = Path(scratch) / path.name
        unfinished.write_bytes(encoded.tobytes())
        os.replace(unfinished, path)


def _title(text: str, size: tuple[int, int]) -> np.ndarray:
    """Draw centred black text on white, (H, W, 3) uint8."""
    height, width = size
    strip = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(size=height * 0.68)
    ImageDraw.Draw(strip).text((width / 2, height / 2), text, fill="black", font=font, anchor="mm")
    return np.asarray(strip)
