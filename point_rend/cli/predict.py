"""`pointrend predict`: segment images or a video.

    pointrend predict --config-file output/my_run/config.yaml --input photographs '*.jpg' \
        --output output/predictions --opts MODEL.WEIGHTS output/my_run/model_final.pth

The options are those of Detectron2's demo.py. Instance, semantic and panoptic models all work.
Without --output the results are shown in a window.

Files that cannot be read are named at the end; the exit code is then 1. It is 2 after an error that
stops everything, such as no input at all, and 130 after Ctrl-C, which finishes the current files.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
from detectron2.data.catalog import Metadata
from tqdm import tqdm

from point_rend.config.tasks import model_outputs
from point_rend.data.datasets.label_maps import IMAGE_SUFFIXES
from point_rend.inference.inputs import (
    FRAMES_PER_SECOND,
    VIDEO_SUFFIXES,
    Frame,
    batches,
    check_that_inputs_stay,
    find_images,
    read_images,
    read_video,
)
from point_rend.inference.options import build_parser, read_settings
from point_rend.inference.outputs import FORMATS, Results, VideoFile, Window
from point_rend.inference.predictor import Predictor
from point_rend.utils import errors


def check_formats(formats: Sequence[str], outputs: frozenset[str]) -> None:
    """Refuse formats that need other outputs than the model's.

    Raises:
        ValueError: If there are any.
    """
    needed = {"coco": "instances", "masks": "instances", "labels": "sem_seg"}
    for name in formats:
        if name in needed and needed[name] not in outputs:
            raise ValueError(
                f"--formats {name} needs {needed[name]}, which this model does not predict"
            )


def open_video(args: argparse.Namespace) -> tuple[cv2.VideoCapture, str]:
    """Open the video or the camera; return it with the file name for the results."""
    if args.webcam:
        return cv2.VideoCapture(0), "webcam"
    return cv2.VideoCapture(args.video_input), args.video_input


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With one of the codes above.
    """
    parser = build_parser("Segment images or a video with a trained model.")
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, folders (with all below), or patterns in quotes",
    )
    sources.add_argument("--video-input", metavar="FILE")
    sources.add_argument("--webcam", action="store_true", help="use the camera")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder, or a file for a single image or a video; by default a window",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=["pictures"],
        help="pictures (default): segments painted over the image; coco: one file instances.json; "
        "masks: one PNG per instance; labels: one PNG of class indices per image",
    )
    parser.add_argument(
        "--frames", action="store_true", help="write the pictures of a video one by one"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (default 1)")
    args = parser.parse_args(argv)

    failures: list[str] = []
    with errors.user_errors(), ExitStack() as stack:
        if args.batch_size < 1:
            raise ValueError(f"--batch-size: expected 1 or more, got {args.batch_size}")
        cfg, metadata = read_settings(args)
        check_formats(args.formats, model_outputs(cfg))
        frames, total, results = _open(args, metadata, failures, stack)
        predictor = Predictor(cfg, metadata=metadata, allow_unsafe=args.allow_unsafe_checkpoint)
        was_interrupted = _run(batches(frames, args.batch_size), predictor, results, total)
        results.finish()
    for failure in failures:
        print(f"{parser.prog}: cannot be read: {failure}", file=sys.stderr)
    if was_interrupted or failures:
        raise SystemExit(errors.INTERRUPTED if was_interrupted else errors.FAILED)


def _open(
    args: argparse.Namespace, metadata: Metadata, failures: list[str], stack: ExitStack
) -> tuple[Iterator[Frame], int | None, Results]:
    """Open inputs and outputs: return the frames, their number if known, and the results."""
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
        results = Results(metadata, args.formats, folder=folder, picture=file, window=window)
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
        metadata, args.formats, folder=folder, video=video, window=window, by_class=True
    )
    return read_video(capture, source, failures), total if total > 0 else None, results


def _run(
    frames: Iterator[list[Frame]], predictor: Predictor, results: Results, total: int | None
) -> bool:
    """Segment all frames; return whether the user interrupted."""
    with tqdm(total=total, unit="image") as bar:
        try:
            for batch in frames:
                images = [frame.image for frame in batch]
                outputs = predictor(images, batch_size=len(batch))
                for frame, output in zip(batch, outputs, strict=True):
                    if not results.add(frame, output):
                        return False
                    bar.update()
        except KeyboardInterrupt:
            return True
    return False
