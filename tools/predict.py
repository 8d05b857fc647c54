#!/usr/bin/env python
"""Segment pictures or a video with a trained model: pictures, COCO JSON, masks or label maps.

    python tools/predict.py --config-file output/my_run/config.yaml --input photographs '*.jpg' \
        --output output/predictions --opts MODEL.WEIGHTS output/my_run/model_final.pth

takes the options of Detectron2's demo.py; models of instances, of semantic and of panoptic
segmentation will do. Without --output the results are shown in a window.

A file that cannot be read is named when all are done, and the exit code is 1 then; it is 2 after an
error that stops everything, such as no input at all, 130 after Ctrl-C, which completes what was
begun.
"""

import argparse
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
from tqdm import tqdm

from point_rend.data.semantic import IMAGE_SUFFIXES

# Also when this file is run as a script, beside which `tools` is no package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import train_net
from tools.predict_model import (
    Legend,
    Predictor,
    build_legend,
    build_parser,
    read_config,
    read_picture,
)
from tools.predict_results import FORMATS, Frame, Results, VideoFile, Window

UNREADABLE = 1  # exit code if files could not be read
INTERRUPTED = 130
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov")
FRAMES_PER_SECOND = 25.0  # of a camera that does not say


# What goes in


def find_images(inputs: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Find the images that files, folders and patterns mean.

    Args:
        inputs: a folder means all images in it and below, of the suffixes in `IMAGE_SUFFIXES`.

    Returns:
        The files by the names of their results, which have the folders below the one given; and
        those inputs that mean none.

    Raises:
        ValueError: if two files have one name.
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
            missing.append(f"{text}: there is no image")
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
    """Read images; those that cannot be read are added to the failures with their reason."""
    stems = Counter(Path(name).with_suffix("") for name in files)
    for name, file in files.items():
        try:
            image = read_picture(file)
        except ValueError as error:
            failures.append(str(error))
            continue
        twin = stems[Path(name).with_suffix("")] > 1
        yield Frame(f"{name}.png" if twin else name, image)


def read_video(capture: cv2.VideoCapture, file: str, failures: list[str]) -> Iterator[Frame]:
    """Read a video frame by frame; one without a frame that can be read is added to the failures.

    A file may be cut off, or announce more frames than it has: which of both OpenCV cannot tell, so
    that fewer frames than announced are told and are no failure.
    """
    number = 0
    while True:
        is_there, image = capture.read()
        if not is_there:
            break
        number += 1
        yield Frame(f"{Path(file).stem}/{number:06d}.png", image)
    announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if number == 0:
        failures.append(f"{file}: not a video that OpenCV can read")
    elif number < announced:
        print(f"{file}: {number} frames, of {announced} that it announces", file=sys.stderr)


def batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Group frames."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# The command


def check_formats(formats: Sequence[str], outputs: frozenset[str]) -> None:
    """Refuse formats for which a model has nothing.

    Raises:
        ValueError: if there are any.
    """
    needed = {"coco": "instances", "masks": "instances", "labels": "sem_seg"}
    for name in formats:
        if name in needed and needed[name] not in outputs:
            raise ValueError(f"--formats {name} needs {needed[name]}, which this model has not")


def open_video(args: argparse.Namespace) -> tuple[cv2.VideoCapture, str]:
    """Open the video or the camera; return also the file, after which results are called."""
    if args.webcam:
        return cv2.VideoCapture(0), "webcam"
    return cv2.VideoCapture(args.video_input), args.video_input


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: the arguments; those of the process if not given.

    Raises:
        SystemExit: with one of the codes that are described at the top.
    """
    parser = build_parser("Segment pictures or a video with a trained model.")
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, folders (with all below), or patterns in quotes",
    )
    sources.add_argument("--video-input", metavar="FILE")
    sources.add_argument("--webcam", action="store_true", help="take pictures with the camera")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder; or a file, for one picture or a video. A window if not given",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=["pictures"],
        help="pictures (default) with everything painted over; coco, a file instances.json; masks, "
        "one PNG for each instance; labels, one PNG for each image with the numbers of the classes",
    )
    parser.add_argument(
        "--frames", action="store_true", help="write a video's pictures one by one, not as a video"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images together (default 1)")
    args = parser.parse_args(argv)

    failures: list[str] = []
    with train_net.user_errors(), ExitStack() as stack:
        if args.batch_size < 1:
            raise ValueError(f"--batch-size: expected 1 or more, got {args.batch_size}")
        cfg = read_config(args)
        outputs = train_net.model_outputs(cfg)
        check_formats(args.formats, outputs)
        unsafe = args.allow_unsafe_checkpoint
        legend = build_legend(cfg, outputs, args.classes, allow_unsafe=unsafe)
        frames, total, results = _open(args, legend, failures, stack)
        predictor = Predictor(cfg, allow_unsafe=unsafe)
        was_interrupted = _run(batches(frames, args.batch_size), predictor, results, total)
        results.finish()
    for failure in failures:
        print(f"{parser.prog}: cannot be read: {failure}", file=sys.stderr)
    if was_interrupted or failures:
        raise SystemExit(INTERRUPTED if was_interrupted else UNREADABLE)


def _open(
    args: argparse.Namespace, legend: Legend, failures: list[str], stack: ExitStack
) -> tuple[Iterator[Frame], int | None, Results]:
    """Open what is read and what is written: frames, their number if known, and results."""
    is_video = args.input is None
    window = Window(wait=not is_video) if args.output is None else None
    folder, file = args.output, None
    suffixes = VIDEO_SUFFIXES if is_video else IMAGE_SUFFIXES
    if folder is not None and folder.suffix.lower() in suffixes and not folder.is_dir():
        folder, file = args.output.parent, args.output

    if not is_video:
        files, missing = find_images(args.input)
        if not files:
            raise ValueError(f"--input: {'; '.join(missing)}")
        failures += missing
        if file is not None and len(files) > 1:
            raise ValueError(f"--output {file} is one file, but there are {len(files)} images")
        if folder is not None and "pictures" in args.formats:
            check_that_inputs_stay(files.values(), [file or folder / name for name in files])
        results = Results(legend, args.formats, folder=folder, picture=file, window=window)
        return read_images(files, failures), len(files), results

    capture, source = open_video(args)
    stack.callback(capture.release)
    if not capture.isOpened():
        if args.webcam:
            raise ValueError("--webcam: there is no camera")
        if not os.path.exists(args.video_input):
            raise FileNotFoundError(f"--video-input: there is no video {args.video_input}")
    video = None
    if folder is not None and not args.frames:
        suffix = Path(source).suffix.lower()
        name = f"{Path(source).stem}{suffix if suffix in VIDEO_SUFFIXES else '.mp4'}"
        file = file or folder / name
        if args.video_input is not None:
            check_that_inputs_stay([Path(args.video_input)], [file])
        rate = capture.get(cv2.CAP_PROP_FPS) or FRAMES_PER_SECOND
        video = stack.enter_context(VideoFile(file, rate))
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    results = Results(
        legend, args.formats, folder=folder, video=video, window=window, by_class=True
    )
    return read_video(capture, source, failures), total if total > 0 else None, results


def check_that_inputs_stay(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Refuse to write a picture over one that is read.

    Raises:
        ValueError: if that would happen.
    """
    both = {path.resolve() for path in inputs} & {path.resolve() for path in outputs}
    if both:
        raise ValueError(f"--output: {min(both)} is an input, which would be overwritten")


def _run(
    frames: Iterator[list[Frame]], predictor: Predictor, results: Results, total: int | None
) -> bool:
    """Segment all frames; tell whether the user has interrupted it."""
    with tqdm(total=total, unit="image") as bar:
        try:
            for batch in frames:
                predictions = predictor([frame.image for frame in batch])
                for frame, prediction in zip(batch, predictions, strict=True):
                    if not results.add(frame, prediction):
                        return False
                    bar.update()
        except KeyboardInterrupt:
            return True
    return False


if __name__ == "__main__":
    main()
