"""Files and windows made of predictions: pictures, COCO JSON, masks, label maps and videos."""

import io
import json
import math
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from pycocotools import mask as mask_util

from point_rend.data.datasets.keypoints import keypoint_fields
from point_rend.evaluation.postprocessing import coco_records
from point_rend.inference.inputs import Frame, stem_of
from point_rend.inference.large_outputs import (
    LabelView,
    instances_in_view,
    mask_bands,
    view_step,
    write_label_map,
)
from point_rend.inference.progress import Progress
from point_rend.rendering.mask_runs import RunMasks
from point_rend.utils.files import atomic_file, atomic_path
from point_rend.utils.pictures import LARGE
from point_rend.utils.pixel_format import PLAIN, PixelFormat, to_view
from point_rend.visualization.fonts import font_book
from point_rend.visualization.layout import save_picture
from point_rend.visualization.predictions import Output, draw, labels_of

CODECS = {".avi": "MJPG"}  # of OpenCV, by suffix; mp4v for all others
WINDOW = "PointRend"
ESCAPE = 27
COCO_NAME = "instances.json"
MASK_NAME = re.compile(r"\d{3,}_[\w-]*\.png")  # of a file that `save_masks` writes


class CocoFormat:
    """Instances in COCO's format, with scores; images are numbered in their order."""

    def __init__(self, metadata: Metadata) -> None:
        to_index = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        self.ids = {index: identity for identity, index in to_index.items()}
        names = metadata.get("thing_classes") or []
        self.categories = [
            {"id": self.ids[k], "name": name, **keypoint_fields(metadata)}
            for k, name in enumerate(names)
        ]

    def of_image(self, frame: Frame, output: Output) -> dict[str, Any]:
        """Return the size, the name and the instances of one image, not yet numbered."""
        height, width = frame.size
        annotations = self.annotations_of(output)
        return {"file_name": frame.name, "size": [height, width], "annotations": annotations}

    def annotations_of(self, output: Output) -> list[dict[str, Any]]:
        """Return the instances of one image; their `image_id` is 0."""
        return [
            {
                **found,
                "category_id": self.ids[found["category_id"]],
                "area": float(mask_util.area(found["segmentation"])),
                "iscrowd": 0,
            }
            for found in coco_records(output["instances"].to("cpu"), 0)
        ]

    def write(self, path: Path, of_images: Callable[[], Iterator[dict[str, Any]]]) -> None:
        """Write the file of all images, as :func:`write_coco`."""
        write_coco(path, self.categories, of_images)


def write_coco(
    path: Path,
    categories: Sequence[Mapping[str, Any]],
    of_images: Callable[[], Iterator[dict[str, Any]]],
) -> None:
    """Write the results of many images as one COCO file, one record at a time.

    Args:
        path: The file.
        categories: Ids and names of the classes.
        of_images: Iterates over the results of :meth:`CocoFormat.of_image`, each time from the
            start; one with an "id" keeps it as that of its image, the others are numbered.
    """
    with atomic_file(path) as binary:
        file = io.TextIOWrapper(binary, "utf-8")
        file.write('{"images": [')
        for number, image in enumerate(of_images(), start=1):
            height, width = image["size"]
            record = {"id": image.get("id", number), "file_name": image["file_name"]}
            file.write(", " * (number > 1))
            json.dump({**record, "height": height, "width": width}, file)
        file.write(f'], "categories": {json.dumps(categories)}, "annotations": [')
        last = 0
        for number, image in enumerate(of_images(), start=1):
            for annotation in image["annotations"]:
                last += 1
                file.write(", " * (last > 1))
                record = {"id": last, **annotation, "image_id": image.get("id", number)}
                json.dump(record, file)
        file.write("]}")
        file.flush()
        file.detach()


def save_masks(folder: Path, output: Output, metadata: Metadata) -> list[Path]:
    """Write the mask of every instance as a black picture with white pixels, best first.

    Masks of an earlier run are removed.

    Returns:
        The files.
    """
    for earlier in filter(MASK_NAME.fullmatch, os.listdir(folder) if folder.is_dir() else ()):
        (folder / earlier).unlink()
    found = output["instances"].to("cpu")
    files = []
    is_large = math.prod(found.image_size) > LARGE
    for number, category in enumerate(found.pred_classes.tolist()):
        name = metadata.get("thing_classes")[category]
        plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        files.append(folder / f"{number:03d}_{plain[:100]}.png")
        if is_large and isinstance(found.pred_masks, RunMasks):
            bands = mask_bands(found.pred_masks.masks[number], found.image_size)
            write_label_map(files[-1], bands, found.image_size)
        else:
            save_picture(files[-1], found.pred_masks[number].numpy().astype(np.uint8) * 255)
    return files


class VideoFile:
    """A video that is written frame by frame, of the size of the first frame."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self.path = path
        self.frames_per_second = frames_per_second
        self.writer: cv2.VideoWriter | None = None
        self.number = 0  # of frames
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
            OSError: If OpenCV cannot write such a video.
        """
        if self.writer is None:
            self.unfinished = self.stack.enter_context(atomic_path(self.path))
            codec = cv2.VideoWriter.fourcc(*CODECS.get(self.path.suffix.lower(), "mp4v"))
            size = (picture.shape[1], picture.shape[0])
            self.writer = cv2.VideoWriter(str(self.unfinished), codec, self.frames_per_second, size)
            if not self.writer.isOpened():
                raise OSError(f"OpenCV cannot write the video {self.path} of {size} pixels")
        self.writer.write(picture)
        self.number += 1

    def finish(self) -> None:
        """Complete the file, and make sure that it holds all frames.

        Raises:
            OSError: If it does not. OpenCV ignores errors in writing, such as a full disk.
        """
        if self.writer is None:
            return
        self.writer.release()
        capture = cv2.VideoCapture(str(self.unfinished))
        readable = 0
        while capture.isOpened() and capture.grab():
            readable += 1
        capture.release()
        if readable < self.number:
            raise OSError(
                f"{self.path} could not be saved: {readable} of {self.number} frames are readable; "
                "is the disk full?"
            )


class Window:
    """Shows pictures; Escape ends it.

    Args:
        wait: Whether to wait for a key after every picture.

    Raises:
        ValueError: If there is no display.
    """

    def __init__(self, *, wait: bool) -> None:
        displays = ("DISPLAY", "WAYLAND_DISPLAY")
        if sys.platform.startswith("linux") and not any(map(os.environ.get, displays)):
            raise ValueError("--output is missing, and there is no display to show results on")
        self.milliseconds = 0 if wait else 1

    def show(self, picture: np.ndarray) -> bool:
        """Show a picture; return whether to continue."""
        cv2.imshow(WINDOW, picture)
        return cv2.waitKey(self.milliseconds) != ESCAPE


class Results:
    """Writes and shows predictions.

    Args:
        metadata: The classes.
        formats: Some of pictures, coco, masks and labels.
        progress: Record of finished images, in the folder of the files; None for no files but
            `picture`.
        picture: File of the only picture, if it has a name of its own.
        video: Takes the pictures in place of files.
        window: Shows the pictures.
        by_class: See :func:`draw`.
        pixel_format: Pixels that the model expects.
    """

    def __init__(
        self,
        metadata: Metadata,
        formats: Sequence[str],
        *,
        progress: Progress | None = None,
        picture: Path | None = None,
        video: VideoFile | None = None,
        window: Window | None = None,
        by_class: bool = False,
        pixel_format: PixelFormat = PLAIN,
    ) -> None:
        self.metadata = metadata
        self.formats = formats
        self.progress = progress
        self.picture = picture
        self.video = video
        self.window = window
        self.by_class = by_class
        self.pixel_format = pixel_format
        self.coco = CocoFormat(metadata)
        if window is not None or "pictures" in formats:
            font_book()  # a wrong POINT_REND_FONT is an error before the first image

    def start(self, frames: Sequence[Frame]) -> None:
        """Announce the images that :meth:`add` gets next."""
        if self.progress is not None:
            self.progress.start([frame.result for frame in frames])

    def add(self, frame: Frame, output: Output) -> bool:
        """Write or show the result for one image; return whether to continue."""
        is_map = bool(frame.georeference)
        paths: dict[str, Path] = {}
        if self.progress is not None:
            paths = paths_of(frame.result, self.progress.folder, self.formats, is_map=is_map)
        shown = output
        if not isinstance(frame.image, np.ndarray):
            shown = self._reduced(frame, output, paths.get("labels"))
        elif "labels" in paths:
            labels = labels_of(output)
            if is_map:
                write_label_map(paths["labels"], [labels], labels.shape, frame.georeference)
            else:
                save_picture(paths["labels"], labels)
        picture = None
        if self.window is not None or "pictures" in self.formats:
            view = to_view(frame.view(), self.pixel_format)
            picture = draw(view, shown, self.metadata, by_class=self.by_class)
        if self.picture is not None and picture is not None:
            save_picture(self.picture, picture)
        if self.video is not None and picture is not None:
            self.video.add(picture)
        if self.progress is not None:
            files = [paths["labels"]] if "labels" in paths else []
            if "masks" in paths:
                files += save_masks(paths["masks"], output, self.metadata)
            if picture is not None and "pictures" in paths and not (self.video or self.picture):
                save_picture(paths["pictures"], picture)
                files.append(paths["pictures"])
            data = self.coco.of_image(frame, output) if "coco" in self.formats else None
            self.progress.finish(frame.name, frame.result, frame.source, files, data)
        return self.window is None or picture is None or self.window.show(picture)

    def _reduced(self, frame: Frame, output: Output, labels: Path | None) -> Output:
        """Return the result for the view of an image that is read in windows.

        Args:
            frame: The image.
            output: Its result; labels are computed only now.
            labels: File that gets all labels.
        """
        size, step = frame.size, view_step(frame.size)
        if "instances" in output:
            return {"instances": instances_in_view(output["instances"], step)}
        view = LabelView(size, step)
        bands = view.collect(output["label_bands"])
        if labels is not None:
            write_label_map(labels, bands, size, frame.georeference)
        deque(bands, maxlen=0)
        return {"labels": torch.from_numpy(view.labels)}

    def finish(self) -> None:
        """Complete the video, and write the file of all images together, if there were any."""
        if self.video is not None:
            self.video.finish()
        if self.progress is not None and self.progress.results and "coco" in self.formats:
            self.coco.write(self.progress.folder / COCO_NAME, self.progress.data)


def paths_of(
    result: str, folder: Path, formats: Sequence[str], *, is_map: bool = False
) -> dict[str, Path]:
    """Return the picture, the folder of masks and the label map of an image, by format.

    Args:
        result: Result name of the image.
        folder: Folder of the results.
        formats: Of :class:`Results`.
        is_map: Whether the label map gets the georeference of the image.
    """
    stem = stem_of(result)
    paths = {
        "pictures": folder / result,
        "masks": folder / "masks" / stem,
        "labels": folder / "labels" / f"{stem}{'.tif' if is_map else '.png'}",
    }
    return {name: path for name, path in paths.items() if name in formats}
