"""Figures of a rendering: steps, training points, uncertainty, comparisons."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from point_rend.rendering.coordinates import regular_grid
from point_rend.rendering.recording import Rendering, Step
from point_rend.rendering.sampling import PointSampler
from point_rend.visualization.drawing import (
    Color,
    color_of,
    overlay_masks,
    places_of_difference,
    uncertainty_picture,
)
from point_rend.visualization.layout import (
    Panel,
    panels_picture,
    save_animation,
    save_figure,
    save_picture,
)
from point_rend.visualization.view import View

Window = tuple[float, float, float, float]
MAX_COLUMNS = 4
MARGIN = 0.12  # around a box, as a share of its sides
MASK_COLOR = color_of(3)
NUM_ZOOMS = 2
ZOOM = 5  # approximate magnification


class Subject(NamedTuple):
    """A region of an image and its rendering.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        rendering: Rendering of this and other regions.
        region: Index of the region in the rendering.
        frame: Area of the grids of the rendering, in pixels of the image.
        window: Part of the image to show.
        colors: Colors of the classes, if the rendering has a channel for each class.
        color: Color of the mask, if it has a single channel.
    """

    image: np.ndarray
    rendering: Rendering
    region: int
    frame: Window
    window: Window
    colors: Sequence[Color]
    color: Color = MASK_COLOR

    def logits(self, grids: Tensor) -> np.ndarray:
        """Return this region (C, H, W) of grids (N, C, H, W)."""
        return grids[self.region].float().cpu().numpy()

    def view(self, size: int) -> View:
        """Return the view of the window; `size` is its longer side in pixels."""
        return View.around(self.window, size, self.frame)

    def with_margin(self) -> "Subject":
        """Enlarge the window by a margin, inside the image."""
        x0, y0, x1, y1 = self.window
        dx, dy = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
        height, width = self.image.shape[:2]
        larger = (max(x0 - dx, 0), max(y0 - dy, 0), min(x1 + dx, width), min(y1 + dy, height))
        return self._replace(window=larger)

    def squared(self) -> "Subject":
        """Extend the window to a square; outside the image its border is repeated."""
        x0, y0, x1, y1 = self.window
        half = max(x1 - x0, y1 - y0) / 2
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        return self._replace(window=(x - half, y - half, x + half, y + half))

    def labels(
        self, view: View, logits: np.ndarray, mode: Literal["bilinear", "nearest"]
    ) -> np.ndarray:
        """Segment a view by logits (C, h, w): (H, W), 1 for the mask, or the class."""
        if len(logits) == 1:
            probabilities = torch.from_numpy(logits).sigmoid().numpy()
            return (view.of_map(probabilities, mode)[0] > 0.5).astype(np.int64)
        return view.of_map(logits, mode).argmax(axis=0)

    def painted(self, view: View, labels: np.ndarray, *, outline: int) -> np.ndarray:
        """Paint labels (H, W) over a view of the image."""
        classes = np.unique(labels)
        colors = [self.colors[k] for k in classes] if self.colors else [self.color]
        if not self.colors:
            classes = np.array([1])
        masks = labels[None] == classes[:, None, None]
        return overlay_masks(view.of_image(self.image), masks, colors, outline=outline)


class Figure(NamedTuple):
    """A figure with the panels of its animation. Notebooks display it."""

    rows: list[list[Panel]]
    frames: list[Panel]

    def __repr__(self) -> str:
        return f"Figure of {sum(map(len, self.rows))} panels"

    def _repr_jpeg_(self) -> bytes:
        quality = (cv2.IMWRITE_JPEG_QUALITY, 75)
        return cv2.imencode(".jpg", panels_picture(self.rows), quality)[1].tobytes()


def in_rows(panels: Sequence[Panel]) -> Figure:
    """Arrange panels of the same size in rows; the animation shows all of them."""
    num_rows = math.ceil(len(panels) / MAX_COLUMNS)
    columns = math.ceil(len(panels) / num_rows)
    rows = [list(panels[i : i + columns]) for i in range(0, len(panels), columns)]
    return Figure(rows, list(panels))


def side_text(grid: Tensor | np.ndarray) -> str:
    """Return the height and width of a grid as text."""
    return "×".join(map(str, grid.shape[-2:]))


@torch.no_grad()
def all_grids(rendering: Rendering) -> list[tuple[Step, str]]:
    """List the coarse grid, the grids that rendering skips, and the steps.

    Rendering skips a grid on which every cell would be selected.

    Returns:
        Each grid with a description of its points.
    """
    first, *steps = rendering.steps()
    grids = []
    coarse, boxes = rendering.coarse_logits, rendering.boxes
    if coarse is not None:
        grids.append((Step(coarse, coarse.new_zeros(len(coarse), 0, 2), None), "coarse head"))
    if boxes is not None:
        if coarse is not None:
            side = 2 * coarse.shape[-1]
            while side < first.logits.shape[-1]:
                coords = regular_grid(len(coarse), side, coarse.device)
                logits = rendering.predict(coords).unflatten(2, (side, side))
                grids.append((Step(logits, coords, None), "every cell"))
                side *= 2
        grids.append((first, "every cell"))
    for step in steps:
        count = step.coords.shape[1]
        covers = count == step.logits[0, 0].numel()
        grids.append((step, "every cell" if covers else f"{count} points"))
    return grids


def steps_figure(subject: Subject, size: int) -> Figure:
    """Show the mask after each step with the points of the step."""
    view = subject.view(size)
    panels = [Panel(view.of_image(subject.image), "input")]
    panels += [step_panel(subject, view, *grid) for grid in all_grids(subject.rendering)]
    return in_rows(panels)


def step_panel(subject: Subject, view: View, step: Step, what: str) -> Panel:
    """Show the cells of a grid with the points that were predicted.

    Args:
        subject: The region.
        view: Its view.
        step, what: The grid with the description of its points, as of :func:`all_grids`.
    """
    logits = subject.logits(step.logits)
    picture = subject.painted(view, subject.labels(view, logits, "nearest"), outline=1)
    points, radius = step_points(subject, view, step, what)
    return Panel(picture, f"{side_text(logits)}, {what}", points, radius)


def step_points(subject: Subject, view: View, step: Step, what: str) -> tuple[np.ndarray, float]:
    """Return the selected points of a step (P, 2) in pixels of a view, and their radius.

    Args:
        subject, view, step, what: As of :func:`step_panel`. There are no points if the step
            predicts every cell.
    """
    if not what.endswith("points"):
        return np.zeros((0, 2)), 1.0
    shown = (view.frame[2] - view.frame[0]) / (view.window[2] - view.window[0])
    radius = np.clip(0.3 * view.size[1] * shown / step.logits.shape[-1], 1.2, 5)
    return view.of_points(step.coords[subject.region].cpu().numpy()), float(radius)


def training_points_figure(
    subject: Subject, size: int, samplers: Sequence[PointSampler], seed: int
) -> Figure:
    """Show the points that training would sample, over the coarse prediction.

    A head without a coarse prediction, such as the implicit one, trains at uniform points; its
    first grid is shown instead.
    """
    rendering = subject.rendering
    coarse = rendering.coarse_logits
    logits = next(rendering.steps()).logits if coarse is None else coarse
    logits = logits[subject.region : subject.region + 1].float().cpu()
    view = subject.view(size)
    labels = subject.labels(view, logits[0].numpy(), "bilinear")
    painted = subject.painted(view, labels, outline=1)
    panels = []
    for sampler in samplers:
        generator = torch.Generator().manual_seed(seed)
        coords = sampler.sample(logits, rendering.uncertainty, generator)
        k, beta = sampler.oversample_ratio, sampler.importance_sample_ratio
        title = "regular grid" if sampler.on_regular_grid else f"k = {k:g}, β = {beta:g}"
        panels.append(Panel(painted, title, view.of_points(coords[0].numpy()), size / 160))
    return in_rows(panels)


def uncertainty_figure(subject: Subject, size: int) -> Figure:
    """Show the uncertainty by which the steps selected their points, and the final one."""
    view = subject.view(size)
    maps = []
    for step in subject.rendering.steps():
        if step.uncertainty is not None:
            count = step.coords.shape[1]
            maps.append((step.uncertainty, f"{side_text(step.logits)}, before {count} points"))
    maps.append(
        (subject.rendering.uncertainty(step.logits), f"{side_text(step.logits)}, at the end")
    )
    panels = [Panel(view.of_image(subject.image), "input")]
    for values, title in maps:
        panels.append(Panel(uncertainty_picture(view.of_map(subject.logits(values))[0]), title))
    return in_rows(panels)


def comparison_figure(subject: Subject, size: int) -> Figure:
    """Show the coarse and the fine mask, and the places where they differ most, enlarged."""
    subject = subject.with_margin()
    view = subject.view(size)
    top, labels = _coarse_and_fine(subject, view)
    zooms = places_of_difference(*labels, side=max(1, size // ZOOM), count=NUM_ZOOMS)
    enlarged = []
    for number, window in enumerate(zooms, start=1):
        x0, y0, x1, y1 = window
        for panel in top:
            cv2.rectangle(panel.picture, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), 2)
        zoomed, _ = _coarse_and_fine(subject, view.zoomed(window, view.size[1]))
        enlarged.append([panel._replace(title=f"place {number}") for panel in zoomed])
    return Figure([top, *enlarged], top)


def instances_figure(subjects: Sequence[Subject], size: int) -> Figure:
    """Show the coarse and the fine masks of many instances, two instances in a row."""
    squares = [subject.with_margin().squared() for subject in subjects]
    panels = [_coarse_and_fine(subject, subject.view(size))[0] for subject in squares]
    pairs = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    return Figure([list(itertools.chain(*pair)) for pair in pairs], list(itertools.chain(*panels)))


def _coarse_and_fine(subject: Subject, view: View) -> tuple[list[Panel], list[np.ndarray]]:
    """Draw the input, the coarse and the rendered mask; also return the labels of the masks."""
    first, *steps = subject.rendering.steps()
    coarse = subject.rendering.coarse_logits
    coarse = first.logits if coarse is None else coarse
    fine = steps[-1].logits if steps else first.logits
    labels = [subject.labels(view, subject.logits(x), "bilinear") for x in (coarse, fine)]
    painted = [subject.painted(view, x, outline=2) for x in labels]
    titles = ("input", f"coarse {side_text(coarse)}", f"fine {side_text(fine)}")
    pictures = (view.of_image(subject.image), *painted)
    return [Panel(*pair) for pair in zip(pictures, titles, strict=True)], labels


def save(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure in several formats; `path` has no suffix. Returns the files."""
    writers: dict[str, Callable[[Path], None]] = {
        "png": lambda file: save_picture(file, panels_picture(figure.rows)),
        "gif": lambda file: save_animation(
            file, [panels_picture([[panel]]) for panel in figure.frames]
        ),
        "pdf": lambda file: save_figure(file, figure.rows),
    }
    files = [path.with_suffix(f".{name}") for name in formats]
    for name, file in zip(formats, files, strict=True):
        writers[name](file)
    return files
