"""The first batches of a training on one page: images, objects, labels and training points.

Pictures are (H, W, 3) uint8 in BGR.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from PIL import Image, ImageDraw

from point_rend.engine.dry_run.recording import TRANSFORMS, Points
from point_rend.ground_truth.shared_masks import SharedMasks
from point_rend.rendering.box_masks import Crop
from point_rend.utils.pixel_format import PixelFormat, to_view
from point_rend.visualization.drawing import (
    Color,
    color_of,
    draw_points,
    overlay_masks,
    write_names,
)
from point_rend.visualization.fonts import legible, line_of
from point_rend.visualization.layout import stack

WIDTH = 2000  # of the page, in pixels
IMAGES_SHOWN = 4  # of each batch
SIDE_BY_SIDE = 3  # images of a batch from which on two share a row
GAP, MARGIN = 12, 24
PAPER, INK, QUIET = (255, 255, 255), "#1a1a1a", "#606060"
CELL: Color = (244, 242, 240)  # around a picture that does not fill its place
INSIDE: Color = (0, 225, 255)
OUTSIDE: Color = (255, 90, 30)
IGNORED: Color = (150, 150, 150)
LEFT: Color = (255, 200, 0)
RIGHT: Color = (200, 60, 255)
OTHER: Color = (255, 255, 255)
TALLEST = 1.25  # height of a panel, over its width
WIDEST = 36  # width of a panel, in percent of the page's
DIMMED = 0.7  # brightness below boxes without masks
NO_OBJECT = "no object"


class Shown(NamedTuple):
    """How the pixels and the classes of a training are shown.

    Attributes:
        pixel_format: Pixels that the model reads.
        metadata: The classes of the training set.
        ignore_value: Label of pixels that are not trained on.
    """

    pixel_format: PixelFormat
    metadata: Metadata
    ignore_value: int = 255


class Part(NamedTuple):
    """A panel of an image: a picture and a title."""

    picture: np.ndarray
    title: str


def page(
    title: str, batches: Sequence[Sequence[Mapping[str, Any]]], points: Any, shown: Shown
) -> np.ndarray:
    """Draw the page.

    Args:
        title: First line.
        batches: Samples as the model reads them.
        points: For each batch, for each image its points by heads.
        shown: How they are shown.
    """
    rows = [_line(title, 30, INK), _legend(batches, points, shown.ignore_value)]
    for number, batch in enumerate(batches):
        of_images = points[number] if number < len(points) else []
        few = f", the first {IMAGES_SHOWN}" if len(batch) > IMAGES_SHOWN else ""
        plural = "s" if len(batch) != 1 else ""
        rows.append(_line(f"Batch {number + 1}: {len(batch)} image{plural}{few}", 24, INK))
        columns = 2 if len(batch) >= SIDE_BY_SIDE else 1
        width = (WIDTH - GAP * 2 * (columns - 1)) // columns
        cells = [
            _cell(sample, of_images[i] if i < len(of_images) else [], shown, width)
            for i, sample in enumerate(batch[:IMAGES_SHOWN])
        ]
        for start in range(0, len(cells), columns):
            rows.append(_beside(cells[start : start + columns], gap=2 * GAP))
    body = stack(rows, gap=GAP)
    framed = np.full((body.shape[0] + 2 * MARGIN, WIDTH + 2 * MARGIN, 3), PAPER, np.uint8)
    framed[MARGIN:-MARGIN, MARGIN : MARGIN + body.shape[1]] = body
    return framed


def _legend(
    batches: Sequence[Sequence[Mapping[str, Any]]], points: Any, ignore_value: int
) -> np.ndarray:
    entries: list[tuple[Color, str]] = []
    found = [x for batch in points for image in batch for x in image]
    if any(x.boxes is not None for x in found):
        entries += [(INSIDE, "training point in its object"), (OUTSIDE, "beside it")]
    if any(x.boxes is None for x in found):
        entries.append((OTHER, "training point of a label map"))
    if any(bool(_ignored(x, ignore_value).any()) for x in found):
        entries.append((IGNORED, "ignored"))
    samples = [x for batch in batches for x in batch if "instances" in x]
    if any(x["instances"].has("gt_keypoints") for x in samples):
        entries += [(LEFT, "keypoint: left"), (RIGHT, "right"), (OTHER, "other")]
    strip = Image.new("RGB", (WIDTH, 34), PAPER)
    draw, x = ImageDraw.Draw(strip), 0.0
    for color, text in entries:
        draw.ellipse((x, 10, x + 14, 24), fill=color[::-1], outline="black", width=2)
        line = line_of(text, 18)
        line.draw(draw, (x + 22 + line.width / 2, 17), QUIET)
        x += 22 + line.width + 36
    return np.asarray(strip)[:, :, ::-1] if entries else np.full((1, WIDTH, 3), PAPER, np.uint8)


def _cell(
    sample: Mapping[str, Any], points: Sequence[Points], shown: Shown, width: int
) -> np.ndarray:
    """Draw all panels of an image, under a caption."""
    height, wide = sample["image"].shape[-2:]
    number = 1 + ("instances" in sample) + ("sem_seg" in sample) + len(points)
    panel = min((width - GAP * (number - 1)) // number, WIDEST * WIDTH // 100)
    scale = min(panel / wide, TALLEST * panel / height)
    parts = _parts(_Painter(sample, shown, scale), points)
    tallest = max(x.picture.shape[0] for x in parts)
    panels = []
    for picture, title in parts:
        frame = np.full((tallest, panel, 3), CELL, np.uint8)
        top, left = (tallest - picture.shape[0]) // 2, (panel - picture.shape[1]) // 2
        frame[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        panels.append(stack([_line(title, 16, QUIET, panel), frame], gap=2))
    name = Path(str(sample.get("file_name", f"image {sample.get('image_id', '')}"))).name
    before = f"{sample['width']}×{sample['height']} → " if "width" in sample else ""
    done = [str(x) for x in sample.get(TRANSFORMS, ())]
    caption = " · ".join([name, f"{before}{wide}×{height}", *done])
    return stack([_line(caption, 19, INK, width), _beside(panels, gap=GAP)], gap=2)


def _parts(painter: "_Painter", points: Sequence[Points]) -> list[Part]:
    """Draw the panels of an image."""
    sample = painter.sample
    parts = [Part(painter.image, "input")]
    if "instances" in sample:
        instances = sample["instances"]
        count = len(instances)
        title = f"{count} object{'s' if count != 1 else ''}" if count else NO_OBJECT
        parts.append(Part(painter.objects(names=True), title))
    if "sem_seg" in sample:
        parts.append(Part(painter.labels(names=True), "labels"))
    for own in points:
        title = f"{len(own.coords)} training points"
        if own.boxes is None:
            over = painter.labels(names=False)
        else:
            over = painter.objects(names=False)
            title += f", {own.boxes} box{'es' if own.boxes != 1 else ''}"
        parts.append(Part(painter.with_points(over, own), title))
    return parts


class _Painter:
    """Draws one image at a scale.

    Args:
        sample: As the model reads it.
        shown: How it is shown.
        scale: Pixels of a panel for one of the image.
    """

    def __init__(self, sample: Mapping[str, Any], shown: Shown, scale: float) -> None:
        self.sample, self.shown, self.scale = sample, shown, scale
        height, width = sample["image"].shape[-2:]
        self.size = max(1, round(width * scale)), max(1, round(height * scale))
        self.image = self._scaled(as_picture(sample["image"], shown.pixel_format))

    def _scaled(self, pixels: np.ndarray, *, exact: bool = False) -> np.ndarray:
        enlarges = self.scale > 1
        way = cv2.INTER_NEAREST if exact else cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA
        return cv2.resize(pixels, self.size, interpolation=way)

    def objects(self, *, names: bool) -> np.ndarray:
        """Draw masks, boxes, names and keypoints."""
        instances: Instances = self.sample["instances"]
        colors = [color_of(i) for i in range(len(instances))]
        masks = self._masks(instances)
        picture = cv2.convertScaleAbs(self.image, alpha=DIMMED)
        if masks:
            picture = overlay_masks(self.image, masks, colors, outline=1)
        if instances.has("gt_boxes") and names:
            for box, color in zip(instances.gt_boxes.tensor.tolist(), colors, strict=True):
                x0, y0, x1, y1 = (round(x * self.scale) for x in box)
                cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), color, 2, cv2.LINE_AA)
        if instances.has("gt_keypoints"):
            self._draw_keypoints(picture, instances.gt_keypoints.tensor)
        if not names:
            return picture
        classes = self.shown.metadata.get("thing_classes") or ()
        words = [_name(classes, int(k)) for k in instances.gt_classes]
        places = masks if instances.has("gt_masks") else self._boxes(instances)
        return write_names(picture, places, words)

    def _masks(self, instances: Instances) -> list[Crop]:
        if not instances.has("gt_masks"):
            return []
        masks = SharedMasks.of(instances.gt_masks, instances.image_size)
        found = []
        for i in range(len(masks)):
            pixels = masks[i : i + 1].tensor[0].numpy().astype(np.uint8)
            found.append(Crop.of(self._scaled(pixels, exact=True).astype(bool)))
        return found

    def _boxes(self, instances: Instances) -> list[Crop]:
        found = []
        for box in instances.gt_boxes.tensor.tolist():
            x0, y0, x1, y1 = (max(0, round(x * self.scale)) for x in box)
            found.append(Crop(np.ones((max(1, y1 - y0), max(1, x1 - x0)), dtype=bool), y0, x0))
        return found

    def _draw_keypoints(self, picture: np.ndarray, keypoints: torch.Tensor) -> None:
        names = self.shown.metadata.get("keypoint_names") or ()
        radius = max(3.0, min(self.size) / 90)
        for k in range(keypoints.shape[1]):
            name = names[k] if k < len(names) else ""
            color = (
                LEFT if name.startswith("left") else RIGHT if name.startswith("right") else OTHER
            )
            visible = keypoints[:, k, 2] > 0
            places = (keypoints[visible, k, :2] * self.scale).numpy()
            picture[:] = draw_points(picture, places, radius=radius, color=color)

    def labels(self, *, names: bool) -> np.ndarray:
        """Draw a label map in the colors of its classes, ignored pixels as they are."""
        labels = self.sample["sem_seg"].numpy()
        known = labels != self.shown.ignore_value
        present = [int(k) for k in np.unique(labels[known]) if 0 <= k < 255]
        metadata = self.shown.metadata
        colors = metadata.get("stuff_colors") or ()
        classes = metadata.get("stuff_classes") or ()
        painted = [tuple(colors[k][::-1]) if k < len(colors) else color_of(k) for k in present]
        small = self._scaled(labels.astype(np.uint8), exact=True)
        masks = [Crop.of(small == k) for k in present]
        picture = overlay_masks(self.image, masks, painted, outline=1)
        if names:
            picture = write_names(picture, masks, [_name(classes, k) for k in present])
        return picture

    def with_points(self, picture: np.ndarray, points: Points) -> np.ndarray:
        """Draw training points in the color of their labels."""
        places = (points.coords.float() * self.scale).numpy()
        labels = points.labels.float().numpy()
        ignored = _ignored(points, self.shown.ignore_value).numpy()
        radius = float(np.clip(min(self.size) / 160, 1.5, 3.0))
        kinds = [(ignored, IGNORED)]
        if points.boxes is not None:
            kinds += [(~ignored & (labels < 0.5), OUTSIDE), (~ignored & (labels >= 0.5), INSIDE)]
        else:
            kinds += [(~ignored, OTHER)]
        for chosen, color in kinds:
            picture = draw_points(picture, places[chosen], radius=radius, color=color)
        return picture


def _ignored(points: Points, ignore_value: int) -> torch.Tensor:
    """Return which points are not trained on, (P,) bool."""
    ignored = points.labels < 0
    return ignored if points.boxes is not None else ignored | (points.labels == ignore_value)


def as_picture(image: torch.Tensor, pixel_format: PixelFormat) -> np.ndarray:
    """Turn the input of a model (C, H, W) into a picture."""
    pixels = image.permute(1, 2, 0).numpy()
    if pixel_format.order == "RGB" and pixel_format.has_colors:
        pixels = pixels[:, :, ::-1]
    white = 255.0 if pixel_format.order in ("BGR", "RGB", "L") else None
    return to_view(np.maximum(pixels, 0), pixel_format, white=white)


def _name(classes: Sequence[str], number: int) -> str:
    instead = f"class {number}"
    return legible(classes[number], instead) if 0 <= number < len(classes) else instead


def _line(text: str, size: int, color: str, width: int | None = None) -> np.ndarray:
    """Draw a line of text on paper, at the left; by default as wide as the page."""
    width = width or WIDTH
    line = line_of(text, size, width)
    strip = Image.new("RGB", (width, round(size * 1.5)), PAPER)
    line.draw(ImageDraw.Draw(strip), (line.width / 2, size * 0.75), color)
    return np.asarray(strip)[:, :, ::-1]


def _beside(pictures: Sequence[np.ndarray], *, gap: int) -> np.ndarray:
    """Put pictures in a row on paper, aligned at the top."""
    height = max(x.shape[0] for x in pictures)
    width = sum(x.shape[1] for x in pictures) + gap * (len(pictures) - 1)
    row, left = np.full((height, width, 3), PAPER, np.uint8), 0
    for picture in pictures:
        row[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return row
