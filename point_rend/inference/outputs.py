"""What `predict.py` makes of predictions: pictures, COCO JSON, masks, label maps and videos."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

from point_rend.inference.classes import Classes, Legend
from point_rend.inference.inputs import Frame
from point_rend.inference.predictor import Prediction
from point_rend.utils.files import atomic_path, write_text
from point_rend.visualization.drawing import color_of, overlay_masks, write_names
from point_rend.visualization.layout import save_picture

FORMATS = ("pictures", "coco", "masks", "labels")
CODECS = {".avi": "MJPG"}  # of OpenCV, by suffix; of all others it is mp4v
WINDOW = "PointRend"
ESCAPE = 27


def draw(
    image: np.ndarray, prediction: Prediction, legend: Legend, *, by_class: bool
) -> np.ndarray:
    """Paint a prediction over its picture.

    Args:
        image: (H, W, 3) uint8.
        prediction: of it.
        legend: the classes.
        by_class: instances have the colors of their classes, not all different ones.

    Returns:
        (H, W, 3) uint8.
    """
    segments = prediction.shown
    colors = [
        color_of(i) if x.is_thing and not by_class else legend.of(x).colors[x.category]
        for i, x in enumerate(segments)
    ]
    masks = np.zeros((len(segments), *image.shape[:2]), dtype=bool)
    for mask, segment in zip(masks, segments, strict=True):
        mask[:] = segment.mask
    outline = max(1, min(image.shape[:2]) // 400)
    painted = overlay_masks(image, masks, colors, outline=outline)
    return write_names(painted, masks, [legend.name(x) for x in segments])


class CocoFile:
    """Instances in COCO's format, with scores; the images are numbered in their order."""

    def __init__(self, classes: Classes) -> None:
        rows = zip(classes.ids, classes.names, strict=True)
        categories = [{"id": identity, "name": name} for identity, name in rows]
        self.ids = classes.ids
        self.content: dict[str, list[Any]] = {
            "images": [],
            "categories": categories,
            "annotations": [],
        }

    def add(self, frame: Frame, prediction: Prediction) -> None:
        """Add the instances of an image."""
        images, annotations = self.content["images"], self.content["annotations"]
        height, width = frame.image.shape[:2]
        image_id = len(images) + 1
        size = {"height": height, "width": width}
        images.append({"id": image_id, "file_name": frame.name, **size})
        for segment in prediction.instances:
            rle = mask_util.encode(np.asfortranarray(segment.mask.astype(np.uint8)))
            x0, y0, x1, y1 = segment.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.ids[segment.category],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(mask_util.area(rle)),
                    "iscrowd": 0,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "score": segment.score,
                }
            )

    def save(self, path: Path) -> None:
        """Write the file."""
        write_text(path, json.dumps(self.content))


def save_masks(folder: Path, prediction: Prediction, legend: Legend) -> None:
    """Write every instance as a black picture with its pixels white, best first."""
    for number, segment in enumerate(prediction.instances):
        name = legend.things.names[segment.category]
        plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        save_picture(folder / f"{number:03d}_{plain}.png", segment.mask.astype(np.uint8) * 255)


class VideoFile:
    """A video that is written frame by frame; the first one says its size."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self.path = path
        self.frames_per_second = frames_per_second
        self.writer: cv2.VideoWriter | None = None
        self.stack = ExitStack()

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.writer is not None:
            self.writer.release()
        self.stack.__exit__(*error)

    def add(self, picture: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8.

        Raises:
            OSError: if OpenCV cannot write such a video.
        """
        if self.writer is None:
            unfinished = self.stack.enter_context(atomic_path(self.path))
            codec = cv2.VideoWriter.fourcc(*CODECS.get(self.path.suffix.lower(), "mp4v"))
            size = (picture.shape[1], picture.shape[0])
            self.writer = cv2.VideoWriter(str(unfinished), codec, self.frames_per_second, size)
            if not self.writer.isOpened():
                raise OSError(f"OpenCV cannot write the video {self.path} of {size} pixels")
        self.writer.write(picture)


class Window:
    """Shows pictures; Escape ends it.

    Args:
        wait: for a key after every picture.

    Raises:
        ValueError: if there is no display.
    """

    def __init__(self, *, wait: bool) -> None:
        displays = ("DISPLAY", "WAYLAND_DISPLAY")
        if sys.platform.startswith("linux") and not any(map(os.environ.get, displays)):
            raise ValueError("--output is missing, and there is no display to show results on")
        self.milliseconds = 0 if wait else 1

    def show(self, picture: np.ndarray) -> bool:
        """Show a picture; tell whether to go on."""
        cv2.imshow(WINDOW, picture)
        return cv2.waitKey(self.milliseconds) != ESCAPE


class Results:
    """All that is made of the predictions.

    Args:
        legend: the classes.
        formats: of `FORMATS`.
        folder: where files go; None for none.
        picture: the file of the only picture, where it has a name of its own.
        video: takes the pictures in place of files.
        window: shows the pictures.
        by_class: see :func:`draw`.
    """

    def __init__(
        self,
        legend: Legend,
        formats: Sequence[str],
        *,
        folder: Path | None = None,
        picture: Path | None = None,
        video: VideoFile | None = None,
        window: Window | None = None,
        by_class: bool = False,
    ) -> None:
        self.legend = legend
        self.formats = formats
        self.folder = folder
        self.picture = picture
        self.video = video
        self.window = window
        self.by_class = by_class
        self.coco = CocoFile(legend.things)

    def add(self, frame: Frame, prediction: Prediction) -> bool:
        """Write or show one prediction; tell whether to go on."""
        picture = None
        if self.window is not None or "pictures" in self.formats:
            picture = draw(frame.image, prediction, self.legend, by_class=self.by_class)
        if self.folder is not None:
            if "coco" in self.formats:
                self.coco.add(frame, prediction)
            if "masks" in self.formats:
                save_masks(self.folder / "masks" / frame.stem, prediction, self.legend)
            if "labels" in self.formats:
                assert prediction.labels is not None
                save_picture(self.folder / "labels" / f"{frame.stem}.png", prediction.labels)
            if picture is not None and self.video is None:
                save_picture(self.picture or self.folder / frame.name, picture)
        if picture is not None and self.video is not None:
            self.video.add(picture)
        return self.window is None or picture is None or self.window.show(picture)

    def finish(self) -> None:
        """Write what belongs to all images together, if there was any."""
        if self.folder is not None and self.coco.content["images"]:
            self.coco.save(self.folder / "instances.json")
