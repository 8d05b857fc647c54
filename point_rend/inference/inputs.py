"""Images and videos to predict on."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import numpy as np

from point_rend.inference.large_outputs import read_view, view_step
from point_rend.inference.progress import Source
from point_rend.tiling.grid import Window
from point_rend.tiling.windows import WindowedImage, open_windows
from point_rend.utils.bands import image_suffixes, read_pixels
from point_rend.utils.pictures import IMAGE_SUFFIXES, OTHER_SUFFIXES, is_stray_file
from point_rend.utils.pixel_format import PLAIN, PixelFormat

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov")
FRAMES_PER_SECOND = 25.0  # of a camera that does not report its rate


class Frame(NamedTuple):
    """An image to segment."""

    name: str  # relative to the given folder
    result: str  # with the suffix of a picture; see `result_names`
    image: np.ndarray | WindowedImage  # as `Predictor` takes it; open for this frame only
    source: Source = Source.of(None)
    georeference: Mapping[str, Any] = MappingProxyType({})  # for the label map

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if isinstance(self.image, np.ndarray):
            height, width = self.image.shape[:2]
            return height, width
        return self.image.size

    def view(self) -> np.ndarray:
        """Return the image, reduced by :func:`read_view` if it is read in windows."""
        if isinstance(self.image, np.ndarray):
            return self.image
        return read_view(self.image, view_step(self.size))


class Found(NamedTuple):
    """Images to segment.

    Attributes:
        files: The files by the names of their images, relative to a given folder.
        missing: A message for each input without an image.
        passed_over: A message for each folder that is left out.
    """

    files: dict[str, Path]
    missing: list[str]
    passed_over: list[str]


def find_images(
    inputs: Sequence[str], output: Path | None = None, *, pixel_format: PixelFormat = PLAIN
) -> Found:
    """Find the images of files, folders and patterns.

    Args:
        inputs: A folder stands for all images in it and its subfolders, linked ones too, by
            `image_suffixes`.
        output: Folder of the results; below an input folder it is passed over.
        pixel_format: Pixels that the model expects.

    Raises:
        ValueError: If two files would have the same name, or a given folder is `output`.
    """
    found = Found({}, [], [])
    for text in inputs:
        paths = (
            [Path(text)]
            if os.path.exists(text)
            else map(Path, sorted(glob.glob(text, recursive=True)))
        )
        suffixes = image_suffixes(pixel_format)
        pairs = [
            pair
            for path in paths
            for pair in _named_files(path, output, found.passed_over, suffixes)
        ]
        if not pairs:
            found.missing.append(f"no image found at {text}")
        for name, file in pairs:
            if found.files.setdefault(name, file).resolve() != file.resolve():
                raise ValueError(
                    f"{found.files[name]} and {file} would have results of one name {name}: give "
                    "the folder above both, or call twice"
                )
    return found


def _named_files(
    path: Path, output: Path | None, passed_over: list[str], wanted: Sequence[str]
) -> list[tuple[str, Path]]:
    if not path.is_dir():
        return [(path.name, path)]
    if output is not None and output.exists() and output.samefile(path):
        raise ValueError(
            f"--output {output} is a folder of --input: the results would be among the images"
        )
    names = names_below(path, output, passed_over, wanted)
    return [(name, path / name) for name in names]


def names_below(
    folder: Path,
    output: Path | None,
    passed_over: list[str],
    wanted: Sequence[str] = IMAGE_SUFFIXES,
) -> list[str]:
    """Find all images in a folder and its subfolders, linked ones too, by their suffixes.

    Args:
        folder: The folder.
        output: Folder of the results, which is passed over.
        passed_over: Gets a message for what is left out.
        wanted: The suffixes, as of :func:`~point_rend.utils.bands.image_suffixes`.

    Returns:
        Names relative to the folder, sorted part by part.
    """
    start = len(os.path.join(folder, ""))
    if str(folder) == ".":
        start = 0
    names, suffixes = [], Counter[str]()
    for file in _files_below(folder, output, passed_over):
        name = str(file)[start:]
        relative = Path(name)
        if is_stray_file(relative):
            continue
        suffixes[relative.suffix.lower()] += 1
        if relative.suffix.lower() in wanted:
            names.append(name)
    others = [f"{suffixes[x]} {x}" for x in sorted(OTHER_SUFFIXES) if suffixes[x]]
    if others:
        kinds = ", ".join(others)
        passed_over.append(f"{folder}: left out are {kinds}: convert them to JPEG or PNG")
    return sorted(names, key=lambda name: name.replace(os.sep, "\0"))


def _files_below(folder: Path, output: Path | None, passed_over: list[str]) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders in any order, each once, those of links last.

    A folder of a million files is not held in memory.
    """
    waiting, visited = [folder], dict[tuple[int, int], Path]()
    while waiting:
        path = waiting.pop(0)
        status = path.stat()
        former = visited.setdefault((status.st_dev, status.st_ino), path)
        if former != path:
            passed_over.append(f"{path} is {former}, whose images are among the others")
            continue
        if output is not None and output.exists() and output.samefile(path):
            passed_over.append(f"{path} holds the results: its images are not segmented")
            continue
        folders: list[Path] = []
        links: list[Path] = []
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(Path(entry.path))
                else:
                    yield Path(entry.path)
        waiting = [*sorted(folders), *waiting, *sorted(links)]


def result_names(names: Iterable[str], earlier: Mapping[str, str]) -> dict[str, str]:
    """Choose the names of the results, different even without their suffixes.

    Args:
        names: Of images; one with the suffix of a picture is its own result name if no other image
            differs from it by the suffix alone.
        earlier: Result names that are already in use, by the names of their images.

    Returns:
        The result names by the names of the images.
    """
    chosen = {name: earlier[name] for name in names if name in earlier}
    used = {stem_of(result) for result in earlier.values()}
    rest = [name for name in names if name not in earlier]
    wanted = {name: name if _is_picture(name) else f"{name}.png" for name in rest}
    number = Counter(map(stem_of, wanted.values()))
    for name in sorted(rest, key=lambda name: number[stem_of(wanted[name])] > 1):
        result = wanted[name]
        if number[stem_of(result)] > 1:
            result += ".png"
        while stem_of(result) in used:
            result += ".png"
        used.add(stem_of(result))
        chosen[name] = result
    return chosen


def stem_of(result: str) -> str:
    """Return a result name without its suffix."""
    return str(Path(result).with_suffix(""))


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def read_images(
    files: Mapping[str, Path],
    results: Mapping[str, str],
    failures: list[str],
    *,
    pixel_format: PixelFormat = PLAIN,
    tile: int | None = None,
) -> Iterator[Frame]:
    """Read images; add the reason for each that cannot be read to `failures`.

    Args:
        files: By the names of the images.
        results: The result names, as of :func:`result_names`.
        failures: Changed in place.
        pixel_format: Pixels that the model expects.
        tile: Side in pixels of the tiles in which images are segmented; larger images are opened
            and not read.
    """
    for name, file in files.items():
        source = Source.of(file)
        with ExitStack() as stack:
            image: np.ndarray | WindowedImage
            georeference: Mapping[str, Any] = {}
            try:
                if tile is None:
                    image = read_pixels(file, pixel_format)
                else:
                    image = stack.enter_context(open_windows(file, pixel_format))
                    georeference = image.georeference
                    if max(image.size) <= tile:
                        image = image.read(Window(0, 0, *image.size))
            except (OSError, ValueError) as error:
                failures.append(str(error))
                continue
            yield Frame(name, results[name], image, source, georeference)


def read_video(capture: cv2.VideoCapture, file: str, failures: list[str]) -> Iterator[Frame]:
    """Read a video frame by frame; add a message to `failures` if not one frame can be read.

    Fewer frames than announced are reported, but are no failure: OpenCV cannot distinguish a
    truncated file from one that announces too many.
    """
    number, source = 0, Source.of(file)
    while True:
        has_frame, image = capture.read()
        if not has_frame:
            break
        number += 1
        name = f"{Path(file).stem}/{number:06d}.png"
        yield Frame(name, name, image, source)
    announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if number == 0:
        failures.append(f"{file}: not a video that OpenCV can read")
    elif number < announced:
        print(f"{file}: {number} frames, of {announced} that it announces", file=sys.stderr)


def batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Group frames into batches; the last one may be smaller, and one that is open is alone."""
    batch: list[Frame] = []
    for frame in frames:
        is_open = not isinstance(frame.image, np.ndarray)
        if is_open and batch:
            yield batch
            batch = []
        batch.append(frame)
        if len(batch) == size or is_open:
            yield batch
            batch = []
    if batch:
        yield batch
