"""Panels side by side, saved as pictures, animations and figures."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from point_rend.utils.files import atomic_file, write_bytes
from point_rend.visualization.drawing import POINT_COLOR, draw_points
from point_rend.visualization.fonts import families, legible, line_of

MILLISECONDS = 1000
INCHES_PER_PANEL = 2.2  # a figure of three columns is as wide as a page
DOTS_PER_INCH = 72
UNDATED: dict[str, dict[str, None]] = {  # metadata without the date, by the suffix of a figure
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
    ".svgz": {"Date": None},
}


class Panel(NamedTuple):
    """A picture with points to be drawn on it.

    Attributes:
        picture: (H, W, 3) uint8.
        title: Title above the picture.
        points: (P, 2) x, y in pixels of the picture.
        radius: Radius of a point in pixels.
    """

    picture: np.ndarray
    title: str
    points: np.ndarray = np.zeros((0, 2))
    radius: float = 2.0

    def drawn(self) -> np.ndarray:
        """Return the picture with its points."""
        return draw_points(self.picture, self.points, radius=self.radius)


def side_by_side(
    panels: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, gap: int = 8
) -> np.ndarray:
    """Put pictures of the same height in a row on white, each under its title.

    Args:
        panels: (H, W, 3) uint8 each; the widths may differ.
        titles: One per panel; without them no space is left.
        gap: White pixels between panels.

    Returns:
        One picture (H + title height, sum of widths + gaps, 3) uint8.

    Raises:
        ValueError: If there is no panel, or if heights or numbers of titles and panels differ.
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
    """Stack pictures on white, aligned at the left.

    Args:
        rows: (H, W, 3) uint8 each, at least one; the sizes may differ.
        gap: White pixels between rows.

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
        path: File name with the suffix of a format of OpenCV; folders are created.
        picture: (H, W, 3) uint8; or (H, W) uint8, or uint16 for PNG.

    Raises:
        ValueError: If the suffix is unknown.
    """
    path = Path(path)
    try:
        encoded = cv2.imencode(path.suffix, picture)[1]
    except cv2.error as error:
        raise ValueError(f"cannot write {path}: unknown picture format {path.suffix!r}") from error
    write_bytes(path, encoded.tobytes())


def save_animation(
    path: str | Path, pictures: Sequence[np.ndarray], *, seconds: float = 1.0
) -> None:
    """Write a looping GIF of pictures, the last one shown twice as long.

    Args:
        path: File name; folders are created.
        pictures: (H, W, 3) uint8, at least one, all of one size.
        seconds: Time for which each is shown.

    Raises:
        ValueError: If there is no picture, or if sizes differ.
    """
    sizes = {picture.shape for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f"an animation needs pictures of one size, got {sorted(sizes)}")
    frames = [Image.fromarray(picture[:, :, ::-1]) for picture in pictures]
    durations = [round(seconds * MILLISECONDS)] * (len(frames) - 1)
    durations.append(round(2 * seconds * MILLISECONDS))
    with atomic_file(path) as file:
        frames[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
        )


def panels_picture(rows: Sequence[Sequence[Panel]]) -> np.ndarray:
    """Return one picture of rows of panels; the panels of a row have the same height."""
    return stack([side_by_side([p.drawn() for p in row], [p.title for p in row]) for row in rows])


def save_figure(path: str | Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Write rows of panels as a figure for a paper, with points and titles as vectors.

    Args:
        path: File name with the suffix of a format of Matplotlib. The same rows give the same .pdf
            or .svg file.
        rows: At least one row of panels.
    """
    # Matplotlib takes a second to import, and only this function needs it.
    import matplotlib
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    heights = [max(p.picture.shape[0] / p.picture.shape[1] for p in row) for row in rows]
    head = 0.16  # height of a panel's title, over the width of a panel
    size = (INCHES_PER_PANEL * columns, INCHES_PER_PANEL * sum(h + head for h in heights))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(rows), columns, height_ratios=[h + head for h in heights])
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            height, width = panel.picture.shape[:2]
            axes = figure.add_subplot(grid[i, j])
            axes.imshow(panel.picture[:, :, ::-1], extent=(0, width, height, 0))
            diameter = 2 * panel.radius * INCHES_PER_PANEL * DOTS_PER_INCH / width
            color = [[c / 255 for c in POINT_COLOR[::-1]]]
            x, y = panel.points.T
            axes.scatter(x, y, s=diameter**2, c=color, linewidths=0)
            title = legible(panel.title)
            axes.set_title(title, fontsize=8, family=families(title) or None, parse_math=False)
            axes.set_xlim(0, width)
            axes.set_ylim(height, 0)
            axes.set_axis_off()
    same_ids = matplotlib.rc_context({"svg.hashsalt": "point_rend"})  # else random ones
    buffer, suffix = io.BytesIO(), Path(path).suffix.lower()
    with same_ids:
        figure.savefig(buffer, format=suffix[1:], dpi=300, metadata=UNDATED.get(suffix))
    write_bytes(path, buffer.getvalue())


def _title(text: str, size: tuple[int, int]) -> np.ndarray:
    """Draw centered black text on white, (H, W, 3) uint8, smaller if it does not fit."""
    height, width = size
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    full = height * 0.6
    length = line_of(text, full).width
    line = line_of(text, full * min(1, 0.98 * width / max(length, 1)))
    line.draw(draw, (width / 2, height / 2), "black")
    return np.asarray(strip)
