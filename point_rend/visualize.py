"""Pictures of masks and points: coloured overlays, enlarged windows, panels, figures, animations.

Images are (H, W, 3) uint8 in BGR, the order in which Detectron2 reads and OpenCV writes; masks are
(I, H, W) bool. Windows are x0, y0, x1, y1.

Shape letters: I instances, P points, C channels, H and W the image sides in pixels.
"""

import functools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .sampling import point_sample

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
POINT_COLOUR: Colour = (60, 40, 255)

MILLISECONDS = 1000
INCHES_PER_PANEL = 2.2  # a figure of three columns is as wide as a page
DOTS_PER_INCH = 72
UNDATED: dict[str, dict[str, None]] = {  # what leaves the date out of a figure, by its suffix
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
    ".svgz": {"Date": None},
}


class Panel(NamedTuple):
    """A picture with points that are still to be drawn on it.

    Attributes:
        picture: (H, W, 3) uint8.
        title: what stands above it.
        points: (P, 2) x, y in pixels of the picture.
        radius: of a point, in pixels.
    """

    picture: np.ndarray
    title: str
    points: np.ndarray = np.zeros((0, 2))
    radius: float = 2.0

    def drawn(self) -> np.ndarray:
        """Return the picture with its points."""
        return draw_points(self.picture, self.points, radius=self.radius)


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


def draw_points(
    picture: np.ndarray,
    points: np.ndarray,
    *,
    radius: float = 2.0,
    colour: Colour = POINT_COLOUR,
) -> np.ndarray:
    """Draw dots with a thin dark rim.

    Args:
        picture: (H, W, 3) uint8.
        points: (P, 2) x, y; the left upper corner of the picture is (0, 0), and the centre of its
            first pixel (0.5, 0.5). Points outside do not show.
        radius: in pixels.
        colour: of the dots.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    bits = 4  # of a pixel's fraction
    canvas = picture.copy()
    corners = np.round((np.asarray(points) - 0.5) * 2**bits).astype(int)
    for size, paint in ((1.25 * radius, (0, 0, 0)), (radius, colour)):
        for x, y in corners.tolist():
            length = round(size * 2**bits)
            cv2.circle(canvas, (x, y), length, paint, cv2.FILLED, cv2.LINE_AA, bits)
    return canvas


def write_names(picture: np.ndarray, masks: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Write a name on every mask, where the mask is widest.

    Args:
        picture: (H, W, 3) uint8.
        masks: (I, H, W) bool; nothing is written on an empty one.
        names: one per mask.

    Returns:
        (H, W, 3) uint8, a new array.
    """
    height, width = picture.shape[:2]
    size = float(np.clip(min(height, width) / 30, 11, 40))
    canvas = Image.fromarray(picture)  # white and black are the same in BGR
    draw = ImageDraw.Draw(canvas)
    font = _font(size)
    for mask, name in zip(masks, names, strict=True):
        inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
        y, x = np.unravel_index(int(inside.argmax()), inside.shape)
        if inside[y, x] == 0:
            continue
        half = draw.textlength(name, font=font) / 2
        place = (
            max(half, min(float(x) - 1, width - half)),
            max(size / 2, min(float(y) - 1, height - size / 2)),
        )
        draw.text(place, name, "white", font=font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.array(canvas)


def uncertainty_picture(uncertainty: np.ndarray) -> np.ndarray:
    """Colour uncertainties from black over red to yellow, which is most unsure.

    Args:
        uncertainty: (H, W), at most 0, as the functions of :mod:`point_rend.uncertainty` rate
            logits: less than 0 by the difference of the two best logits. Brightness is twice the
            probability of the second best.

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
        side: of the squares, in pixels; they are cut to the map.
        count: how many at most. They do not overlap by more than a quarter.

    Returns:
        Windows inside the map, most different first; none where nothing differs.
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


@dataclass(frozen=True)
class View:
    """A window of an image, enlarged, and a frame in it that maps of other resolutions cover.

    Args:
        frame: what the maps cover, in pixels of the image; it may lie partly outside the window.
        window: what is shown, in pixels of the image.
        size: height and width of the view.

    Raises:
        ValueError: if one of them is empty.
    """

    frame: tuple[float, float, float, float]
    window: tuple[float, float, float, float]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        for name, (x0, y0, x1, y1) in (("frame", self.frame), ("window", self.window)):
            if not (x0 < x1 and y0 < y1):
                raise ValueError(f"{name}: expected x0 < x1 and y0 < y1, got {(x0, y0, x1, y1)}")
        if min(self.size) < 1:
            raise ValueError(f"size: expected a height and a width of 1 or more, got {self.size}")

    @classmethod
    def around(
        cls,
        window: tuple[float, float, float, float],
        longest_side: int,
        frame: tuple[float, float, float, float] | None = None,
    ) -> "View":
        """Show a window in its proportions; the frame is the window if not given."""
        width, height = window[2] - window[0], window[3] - window[1]
        scale = longest_side / max(width, height, 1e-9)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return cls(frame or window, window, size)

    def of_map(
        self, values: np.ndarray, mode: Literal["bilinear", "nearest"] = "nearest"
    ) -> np.ndarray:
        """Show maps that cover the frame.

        Args:
            values: (C, h, w).
            mode: ``nearest`` shows the cells as they are; ``bilinear`` interpolates, and fades to
                0 outside the frame, as masks are pasted into images.

        Returns:
            (C, H, W) float32.
        """
        return self._sample(values, self.frame, mode, "zeros")

    def of_image(self, image: np.ndarray) -> np.ndarray:
        """Show the window of an image (h, w, 3) uint8: (H, W, 3) uint8."""
        frame = (0, 0, image.shape[1], image.shape[0])
        shown = self._sample(image.transpose(2, 0, 1), frame, "bilinear", "border")
        return np.round(shown.transpose(1, 2, 0)).astype(np.uint8, order="C")

    def of_points(self, coords: np.ndarray) -> np.ndarray:
        """Convert (P, 2) in [0, 1]² of the frame to pixels of the view; only those that show."""
        x0, y0, x1, y1 = self.frame
        left, top, right, bottom = self.window
        in_image = coords * (x1 - x0, y1 - y0) + (x0, y0)
        in_window = (in_image - (left, top)) / (right - left, bottom - top)
        showing = ((in_window >= 0) & (in_window <= 1)).all(axis=1)
        return in_window[showing] * self.size[::-1]

    def zoomed(self, window: tuple[int, int, int, int], longest_side: int) -> "View":
        """Return the view of a part of this one, given in this one's pixels."""
        left, top, right, bottom = self.window
        scale = ((right - left) / self.size[1], (bottom - top) / self.size[0]) * 2
        x0, y0, x1, y1 = (v * s for v, s in zip(window, scale, strict=True))
        size = View.around(window, longest_side).size
        return View(self.frame, (left + x0, top + y0, left + x1, top + y1), size)

    def _sample(
        self,
        values: np.ndarray,
        frame: tuple[float, float, float, float],
        mode: str,
        padding_mode: str,
    ) -> np.ndarray:
        height, width = self.size
        left, top, right, bottom = self.window
        x0, y0, x1, y1 = frame
        x = (left + (np.arange(width) + 0.5) * (right - left) / width - x0) / (x1 - x0)
        y = (top + (np.arange(height) + 0.5) * (bottom - top) / height - y0) / (y1 - y0)
        coords = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1))  # (H, W, 2)
        maps = torch.from_numpy(np.ascontiguousarray(values)).float()
        shown = point_sample(maps[None], coords[None].float(), mode=mode, padding_mode=padding_mode)
        return shown[0].numpy()


def check_output(path: str | Path, *, folder: bool = False) -> None:
    """Make sure, before the work for it, that what --output names can be written; nothing is left.

    Args:
        path: Of a file, whose folder need not be there.
        folder: Whether it is a folder instead, for files in it.

    Raises:
        ValueError: If it cannot.
    """
    path = Path(path)
    nearest = path if folder else path.parent  # folder that is there
    try:
        while not os.path.lexists(nearest):
            nearest = nearest.parent
        if not nearest.is_dir():
            reason = f"{nearest} is no folder"
        elif path.is_dir() and not folder:
            reason = "it is a folder, expected a file"
        else:
            with tempfile.TemporaryFile(dir=nearest):
                return
    except OSError as error:
        reason = f"in {nearest}: {error.strerror}"
    raise ValueError(f"--output {path} cannot be written: {reason}")


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Let a file appear complete or not at all; its folder is made.

    Yields:
        The file to write, of the same name, in a folder that is gone afterwards.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as scratch:
        unfinished = Path(scratch) / path.name
        yield unfinished
        os.replace(unfinished, path)


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture; the file appears complete or not at all.

    Args:
        path: file name with the suffix of a format that OpenCV knows; folders are made.
        picture: (H, W, 3) uint8; or (H, W) uint8, or uint16 for PNG.

    Raises:
        ValueError: an unknown suffix.
    """
    path = Path(path)
    try:
        encoded = cv2.imencode(path.suffix, picture)[1]
    except cv2.error as error:
        raise ValueError(f"cannot write {path}: unknown picture format {path.suffix!r}") from error
    with written_whole(path) as unfinished:
        unfinished.write_bytes(encoded.tobytes())


def save_animation(
    path: str | Path, pictures: Sequence[np.ndarray], *, seconds: float = 1.0
) -> None:
    """Write a GIF that shows pictures one after the other, for ever; the last one twice as long.

    Args:
        path: file name; folders are made.
        pictures: (H, W, 3) uint8, at least one, all of one size.
        seconds: how long each is shown.

    Raises:
        ValueError: no picture, or pictures of different sizes.
    """
    sizes = {picture.shape for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f"an animation needs pictures of one size, got {sorted(sizes)}")
    frames = [Image.fromarray(picture[:, :, ::-1]) for picture in pictures]
    durations = [round(seconds * MILLISECONDS)] * (len(frames) - 1)
    durations.append(round(2 * seconds * MILLISECONDS))
    with written_whole(path) as unfinished:
        frames[0].save(
            unfinished,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
        )


def panels_picture(rows: Sequence[Sequence[Panel]]) -> np.ndarray:
    """Put rows of panels, each row of one height, below one another in one picture."""
    return stack([side_by_side([p.drawn() for p in row], [p.title for p in row]) for row in rows])


def save_figure(path: str | Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Write rows of panels as a figure for a paper; points and titles are not pixels but vectors.

    Args:
        path: file name with the suffix of a format that Matplotlib knows; .pdf and .svg are of
            vectors, and the same rows give the same file.
        rows: of panels, at least one.
    """
    # Matplotlib takes a second to import, and only this function needs it.
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    heights = [max(p.picture.shape[0] / p.picture.shape[1] for p in row) for row in rows]
    title = 0.16  # height of a panel's title, over the width of a panel
    size = (INCHES_PER_PANEL * columns, INCHES_PER_PANEL * sum(h + title for h in heights))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(rows), columns, height_ratios=[h + title for h in heights])
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            height, width = panel.picture.shape[:2]
            axes = figure.add_subplot(grid[i, j])
            axes.imshow(panel.picture[:, :, ::-1], extent=(0, width, height, 0))
            diameter = 2 * panel.radius * INCHES_PER_PANEL * DOTS_PER_INCH / width
            colour = [[c / 255 for c in POINT_COLOUR[::-1]]]
            x, y = panel.points.T
            axes.scatter(x, y, s=diameter**2, c=colour, linewidths=0)
            axes.set_title(panel.title, fontsize=8)
            axes.set_xlim(0, width)
            axes.set_ylim(height, 0)
            axes.set_axis_off()
    same_ids = matplotlib.rc_context({"svg.hashsalt": "point_rend"})  # else random ones
    with written_whole(path) as unfinished, same_ids:
        figure.savefig(unfinished, dpi=300, metadata=UNDATED.get(unfinished.suffix.lower()))


def _title(text: str, size: tuple[int, int]) -> np.ndarray:
    """Draw centred black text on white, (H, W, 3) uint8; smaller where it would not fit."""
    height, width = size
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    full = height * 0.6
    length = draw.textlength(text, font=_font(full))
    font = _font(full * min(1, 0.98 * width / max(length, 1)))
    draw.text((width / 2, height / 2), text, fill="black", font=font, anchor="mm")
    return np.asarray(strip)


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    """Return a font that knows "×" and Greek, as Pillow's own does not."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
