"""Images and videos to predict on."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from point_rend.utils.pictures import IMAGE_SUFFIXES, read_picture

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov")
FRAMES_PER_SECOND = 25.0  # of a camera that does not report its rate


class Frame(NamedTuple):
    """An image to segment."""

    name: str  # with a suffix; the files of its results have this name
    image: np.ndarray  # (H, W, 3) uint8, BGR

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return str(Path(self.name).with_suffix(""))


def find_images(inputs: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Find the images of files, folders and patterns.

    Args:
        inputs: A folder stands for all images in it and its subfolders, by `IMAGE_SUFFIXES`.

    Returns:
        The files by the names of their results, relative to a given folder; and a message for each
        input without an image.

    Raises:
        ValueError: If the results of two files would have the same name.
    """
    found: dict[str, Path] = {}
    missing = []
    for text in inputs:
        paths = (
            [Path(text)]
            if os.path.exists(text)
            else map(Path, sorted(glob.glob(text, recursive=True)))
        )
        files = [pair for path in paths for pair in _named_files(path)]
        if not files:
            missing.append(f"no image found at {text}")
        for name, file in files:
            if found.setdefault(name, file).resolve() != file.resolve():
                raise ValueError(
                    f"{found[name]} and {file} would be written to one file {name}: give the "
                    "folder above both, or call twice"
                )
    return found, missing


def _named_files(path: Path) -> list[tuple[str, Path]]:
    if not path.is_dir():
        return [(path.name if path.suffix.lower() in IMAGE_SUFFIXES else f"{path.name}.png", path)]
    files = [file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]
    return [(str(file.relative_to(path)), file) for file in sorted(files) if file.is_file()]


def read_images(files: Mapping[str, Path], failures: list[str]) -> Iterator[Frame]:
    """Read images; add the reason for each that cannot be read to `failures`."""
    stems = Counter(Path(name).with_suffix("") for name in files)
    for name, file in files.items():
        try:
            image = read_picture(file)
        except (OSError, ValueError) as error:
            failures.append(str(error))
            continue
        twin = stems[Path(name).with_suffix("")] > 1
        yield Frame(f"{name}.png" if twin else name, image)


def read_video(capture: cv2.VideoCapture, file: str, failures: list[str]) -> Iterator[Frame]:
    """Read a video frame by frame; add a message to `failures` if not one frame can be read.

    Fewer frames than announced are reported, but are no failure: OpenCV cannot distinguish a
    truncated file from one that announces too many.
    """
    number = 0
    while True:
        has_frame, image = capture.read()
        if not has_frame:
            break
        number += 1
        yield Frame(f"{Path(file).stem}/{number:06d}.png", image)
    announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if number == 0:
        failures.append(f"{file}: not a video that OpenCV can read")
    elif number < announced:
        print(f"{file}: {number} frames, of {announced} that it announces", file=sys.stderr)


def batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Group frames into batches; the last one may be smaller."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def check_that_inputs_stay(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuse to overwrite an input.

    Raises:
        ValueError: If an output is an input, too.
    """
    both = {path.resolve() for path in inputs} & {path.resolve() for path in outputs}
    if both:
        raise ValueError(f"--output: {min(both)} is an input, which would be overwritten")
