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
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
from tqdm import tqdm

from point_rend.config.tasks import model_outputs
from point_rend.data.datasets.label_maps import IMAGE_SUFFIXES
from point_rend.inference.classes import Legend, build_legend
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
from point_rend.inference.options import build_parser, read_config
from point_rend.inference.outputs import FORMATS, Results, VideoFile, Window
from point_rend.inference.predictor import Predictor
from point_rend.utils import errors


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
    with errors.user_errors(), ExitStack() as stack:
        if args.batch_size < 1:
            raise ValueError(f"--batch-size: expected 1 or more, got {args.batch_size}")
        cfg = read_config(args)
        outputs = model_outputs(cfg)
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
        raise SystemExit(errors.INTERRUPTED if was_interrupted else errors.FAILED)


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
