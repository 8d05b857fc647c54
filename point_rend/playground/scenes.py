"""Pictures that a model segments once, and their views: whole or enlarged, after any step.

A layer is one kind of segments of a picture: its instances, or its label map. A panoptic model may
give both. The steps of a layer are the grids of its rendering, from the coarse prediction on;
the last one is the mask, or the label map, that the model gives.

Pictures are (H, W, 3) uint8, BGR. Letters in shapes: N instances, S side of a mask.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from torch import Tensor

from point_rend.config.tasks import model_outputs
from point_rend.evaluation.postprocessing import postprocess
from point_rend.inference.predictor import Predictor
from point_rend.inference.rendered_subjects import detect, find_region
from point_rend.rendering.box_masks import BoxMasks
from point_rend.rendering.recording import Step, recorded_renderings
from point_rend.utils.bands import read_pixels
from point_rend.utils.pictures import PictureError, open_picture, shown_size
from point_rend.utils.pixel_format import PixelFormat, to_view
from point_rend.visualization.drawing import color_of, draw_points, places_of_difference
from point_rend.visualization.predictions import Segment, draw_segments, segments_of_labels
from point_rend.visualization.rendering_figures import (
    Subject,
    all_grids,
    side_text,
    step_panel,
    step_points,
)
from point_rend.visualization.view import View

WHOLE_SIDE = 960  # longer side of a view of the whole picture, in pixels
CLOSEUP_SIDE = 600
CLOSEUP_SHARE = 5  # longer side of a picture over that of a close-up of its label map
LAST = -1  # the step after which a layer is complete
FIRST_COLOR = 1  # of the palette, whose color 0 is that of points
MAX_PIXELS = 50_000_000
MAX_SCENES = 4  # that are kept; each holds features of its picture

Grid = tuple[Step, str]  # with the description of its points


class Row(NamedTuple):
    """A segment in the table.

    Attributes:
        key: Number of the instance, best first, or index of the class.
        name: Name of the class.
        score: Of an instance; None in a label map.
        share: Share of the picture that it covers, 0..1.
    """

    key: int
    name: str
    score: float | None
    share: float


class Layer(Protocol):
    """Segments of a picture, after each step of their rendering."""

    @property
    def steps(self) -> list[str]:
        """Descriptions of the steps."""

    def rows(self, threshold: float = 0, classes: Sequence[str] = ()) -> list[Row]:
        """List the segments.

        Args:
            threshold: Lowest score of an instance.
            classes: Names of the classes to keep; all of them if there are none.
        """

    def whole(self, step: int, keys: Sequence[int], *, points: bool = False) -> np.ndarray:
        """Draw the whole picture.

        Args:
            step: Index of a step.
            keys: Of the segments to draw.
            points: Whether to draw the points that were predicted in the step.
        """

    def closeup(self, step: int, key: int, *, points: bool = False) -> np.ndarray:
        """Draw the enlarged surroundings of a segment; arguments as of :meth:`whole`."""


class InstanceLayer:
    """The instances of a picture.

    Args:
        predictor: With an instance or a panoptic model, whose score threshold is the lowest of
            the page.
        image: The picture as the predictor takes it.

    Raises:
        ValueError: If the model has no point head for masks.
    """

    def __init__(self, predictor: Predictor, image: np.ndarray) -> None:
        found, subjects = detect(predictor, image)
        self._metadata = predictor.metadata
        self._image = whole_picture(to_view(image, predictor.pixel_format))
        height, width = self._image.shape[:2]
        window = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
        self._subjects = [
            x._replace(color=color_of(FIRST_COLOR + i)) for i, x in enumerate(subjects)
        ]
        self._views = [View(x.frame, window, (height, width)) for x in subjects]
        self._masks = found.pred_masks[:, 0]
        boxes = Instances(
            found.image_size,
            pred_boxes=found.pred_boxes.clone(),
            scores=found.scores,
            pred_classes=found.pred_classes,
            keys=torch.arange(len(found), device=found.scores.device),
        )
        self._found = postprocess(boxes, height, width)
        self._grids: dict[int, list[Grid]] = {}
        for subject in subjects:
            if id(subject.rendering) not in self._grids:
                self._grids[id(subject.rendering)] = all_grids(subject.rendering)
        self._by_step: dict[int, dict[int, Segment]] = {}

    @property
    def steps(self) -> list[str]:
        """Descriptions of the steps."""
        return [describe(*grid) for grid in max(self._grids.values(), key=len, default=[])]

    def rows(self, threshold: float = 0, classes: Sequence[str] = ()) -> list[Row]:
        """List the segments, best first; arguments as of :class:`Layer`."""
        names, area = self._metadata.thing_classes, self._image[..., 0].size
        rows = [
            Row(key, names[x.category], x.score, float(x.mask.mask.sum()) / area)
            for key, x in self._segments(LAST).items()
        ]
        return [
            row
            for row in rows
            if (row.score or 0) > threshold and (not classes or row.name in classes)
        ]

    def whole(self, step: int, keys: Sequence[int], *, points: bool = False) -> np.ndarray:
        """Draw the whole picture; arguments as of :class:`Layer`."""
        segments = self._segments(step)
        chosen = [segments[key] for key in keys]
        colors = [FIRST_COLOR + key for key in keys]
        picture = draw_segments(self._image, chosen, self._metadata, colors)
        for key in keys if points else ():
            subject, view = self._subjects[key], self._views[key]
            coords, radius = step_points(subject, view, *self._grid(key, step))
            picture = draw_points(picture, coords, radius=radius)
        return picture

    def closeup(self, step: int, key: int, *, points: bool = False) -> np.ndarray:
        """Draw the enlarged surroundings of an instance; arguments as of :class:`Layer`."""
        subject = self._subjects[key].with_margin().squared()
        view = subject.view(CLOSEUP_SIDE)
        return draw_step(subject, view, self._grid(key, step), step, points=points)

    def _grid(self, key: int, step: int) -> Grid:
        """Return the grid of an instance; a small one may need fewer steps than others."""
        grids = self._grids[id(self._subjects[key].rendering)]
        return grids[step if step < len(grids) else LAST]

    def _segments(self, step: int) -> dict[int, Segment]:
        """Return the segments after a step by their keys."""
        step = LAST if step == len(self.steps) - 1 else step
        if step not in self._by_step:
            self._by_step[step] = self._paste(step)
        return self._by_step[step]

    def _paste(self, step: int) -> dict[int, Segment]:
        found, size = self._found, self._image.shape[:2]
        keys = found.keys.tolist()
        rows = zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
        facts = dict(zip(keys, rows, strict=True))
        by_side: dict[int, list[int]] = {}  # indices of masks of one size
        for index, key in enumerate(keys):
            by_side.setdefault(len(self._mask(key, step)), []).append(index)
        segments = {}
        for indices in by_side.values():
            masks = torch.stack([self._mask(keys[i], step) for i in indices])
            crops = BoxMasks(masks, found.pred_boxes.tensor[indices], size).crops()
            for i, crop in zip(indices, crops, strict=True):
                category, score = facts[keys[i]]
                segments[keys[i]] = Segment(crop, category, True, score)
        return {key: segments[key] for key in keys}

    def _mask(self, key: int, step: int) -> Tensor:
        """Return the mask (S, S) of an instance, in probabilities."""
        if step == LAST:
            return self._masks[key]
        return self._grid(key, step)[0].logits[self._subjects[key].region, 0].sigmoid()


class LabelLayer:
    """The label map of a picture.

    Args:
        predictor: With a semantic or a panoptic model.
        image: The picture as the predictor takes it.

    Raises:
        ValueError: If the model has no point head for labels.
    """

    def __init__(self, predictor: Predictor, image: np.ndarray) -> None:
        self._metadata = predictor.metadata
        colors = [color[::-1] for color in self._metadata.stuff_colors]
        self._subject = find_region(predictor, image, None, colors)
        self._image = whole_picture(self._subject.image)
        self._view = self._subject.view(WHOLE_SIDE)
        self._grids = all_grids(self._subject.rendering)
        self._by_step: dict[int, np.ndarray] = {}

    @property
    def steps(self) -> list[str]:
        """Descriptions of the steps."""
        return [describe(*grid) for grid in self._grids]

    def rows(self, threshold: float = 0, classes: Sequence[str] = ()) -> list[Row]:
        """List the segments, the largest first; arguments as of :class:`Layer`."""
        del threshold  # labels have no scores
        names, labels = self._metadata.stuff_classes, self._labels(LAST)
        indices, counts = np.unique(labels, return_counts=True)
        rows = [
            Row(int(k), names[k], None, float(count) / labels.size)
            for k, count in zip(indices, counts, strict=True)
            if not classes or names[k] in classes
        ]
        return sorted(rows, key=lambda row: -row.share)

    def whole(self, step: int, keys: Sequence[int], *, points: bool = False) -> np.ndarray:
        """Draw the whole picture; arguments as of :class:`Layer`."""
        segments = segments_of_labels(self._labels(step))
        chosen = [segment for segment in segments if segment.category in keys]
        picture = draw_segments(self._image, chosen, self._metadata)
        if points:
            coords, radius = step_points(self._subject, self._view, *self._grids[step])
            picture = draw_points(picture, coords, radius=radius)
        return picture

    def closeup(self, step: int, key: int, *, points: bool = False) -> np.ndarray:
        """Draw the place where rendering changes a class most; arguments as of :class:`Layer`."""
        side = max(1, WHOLE_SIDE // CLOSEUP_SHARE)
        coarse, fine = (self._labels(x) == key for x in (0, LAST))
        (window,) = places_of_difference(coarse, fine, side=side, count=1) or [
            (0, 0, *self._view.size[::-1])
        ]
        view = self._view.zoomed(window, CLOSEUP_SIDE)
        return draw_step(self._subject, view, self._grids[step], step, points=points)

    def _labels(self, step: int) -> np.ndarray:
        step %= len(self._grids)
        if step not in self._by_step:
            logits = self._subject.logits(self._grids[step][0].logits)
            self._by_step[step] = self._subject.labels(self._view, logits, "bilinear")
        return self._by_step[step]


LAYERS: dict[str, tuple[str, Callable[[Predictor, np.ndarray], Layer]]] = {
    "instances": ("instances", InstanceLayer),
    "sem_seg": ("labels", LabelLayer),
}


class Scenes:
    """The pictures that were segmented last, each once.

    Args:
        predictor: Whose score threshold is the lowest of the page.

    Attributes:
        predictor: As given.
        kinds: Names of the layers of each picture.

    Raises:
        ValueError: If the model has no head that renders.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.kinds = rendered_layers(predictor)
        self._kept: OrderedDict[str, dict[str, Layer]] = OrderedDict()

    def of(self, path: str | Path) -> Mapping[str, Layer]:
        """Segment a picture, unless it is one of the last.

        Args:
            path: Its file.

        Returns:
            The layers by name.

        Raises:
            FileNotFoundError, PictureError, ValueError: As of :func:`read_bounded`.
        """
        key = str(path)
        if key not in self._kept:
            image = read_bounded(path, self.predictor.pixel_format)
            build = dict(LAYERS.values())
            layers = {kind: build[kind](self.predictor, image) for kind in self.kinds}
            self._kept[key] = layers
        self._kept.move_to_end(key)
        while len(self._kept) > MAX_SCENES:
            self._kept.popitem(last=False)
        return self._kept[key]

    def classes(self) -> list[str]:
        """Return the names of all classes."""
        metadata: Metadata = self.predictor.metadata
        kinds = {"instances": "thing_classes", "labels": "stuff_classes"}
        names = [name for kind in self.kinds for name in metadata.get(kinds[kind])]
        return list(dict.fromkeys(names))


def rendered_layers(predictor: Predictor) -> list[str]:
    """Return the names of the layers that a model renders.

    Raises:
        ValueError: If it renders none.
    """
    model: Any = predictor.model
    heads: dict[str, Any] = {
        "instances": getattr(getattr(model, "roi_heads", None), "mask_head", None),
        "sem_seg": getattr(model, "sem_seg_head", None),
    }
    found = []
    name = predictor.cfg.MODEL.META_ARCHITECTURE
    reason = ValueError(f"MODEL.META_ARCHITECTURE {name} has no head that renders")
    for output in sorted(model_outputs(predictor.cfg) & heads.keys()):
        if heads[output] is None:
            continue
        try:
            with recorded_renderings(heads[output]):
                found.append(LAYERS[output][0])
        except ValueError as error:
            reason = error
    if not found:
        raise reason
    return found


def read_bounded(path: str | Path, pixel_format: PixelFormat) -> np.ndarray:
    """Read a picture of at most `MAX_PIXELS`, or one of n channels.

    Args:
        path, pixel_format: As of :func:`~point_rend.utils.bands.read_pixels`.

    Returns:
        An array as `Predictor` takes it.

    Raises:
        FileNotFoundError, PictureError, ValueError: As of `read_pixels`; or if it has too many
            pixels.
    """
    if pixel_format.is_plain:
        with open_picture(path) as picture:
            width, height = shown_size(picture)
            if width * height > MAX_PIXELS:
                raise PictureError(
                    path,
                    f"is too large: it has {width} × {height} pixels, and this page takes up to "
                    f"{MAX_PIXELS // 1_000_000} million",
                )
    return read_pixels(path, pixel_format)


def whole_picture(image: np.ndarray) -> np.ndarray:
    """Resize a picture to `WHOLE_SIDE`."""
    height, width = image.shape[:2]
    size = View.around((0, 0, width, height), WHOLE_SIDE).size
    mode = cv2.INTER_AREA if max(height, width) > WHOLE_SIDE else cv2.INTER_CUBIC
    return cv2.resize(image, size[::-1], interpolation=mode)


def describe(step: Step, what: str) -> str:
    """Describe a step: its grid and its points."""
    return f"{side_text(step.logits)}, {what}"


def draw_step(subject: Subject, view: View, grid: Grid, step: int, *, points: bool) -> np.ndarray:
    """Draw the cells of a grid with the points of the step, or the smooth result of the last."""
    if step == LAST:
        logits = subject.logits(grid[0].logits)
        return subject.painted(view, subject.labels(view, logits, "bilinear"), outline=2)
    panel = step_panel(subject, view, *grid)
    return panel.drawn() if points else panel.picture
