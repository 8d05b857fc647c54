"""Segmentation of files, videos and the camera, as `pointrend predict` runs it."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from detectron2.data.catalog import Metadata
from tqdm import tqdm

from point_rend.config.tasks import model_outputs
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
from point_rend.inference.outputs import Results, VideoFile, Window
from point_rend.inference.predictor import Predictor
from point_rend.inference.settings import read_settings
from point_rend.utils.pictures import IMAGE_SUFFIXES


class Outcome(NamedTuple):
    """The end of a run.

    Attributes:
        failures: A message for each input that could not be read.
        interrupted: Whether the user interrupted.
    """

    failures: list[str]
    interrupted: bool


def run(args: argparse.Namespace) -> Outcome:
    """Segment all inputs and write or show the results.

    Args:
        args: The parsed command line of `pointrend predict`.

    Raises:
        FileNotFoundError, OSError, ValueError: After an error that stops everything.
    """
    if args.batch_size < 1:
        raise ValueError(f"--batch-size: expected 1 or more, got {args.batch_size}")
    cfg, metadata = read_settings(args)
    check_formats(args.formats, model_outputs(cfg))
    failures: list[str] = []
    with ExitStack() as stack:
        frames, total, results = _open(args, metadata, failures, stack)
        predictor = Predictor(cfg, metadata=metadata, allow_unsafe=args.allow_unsafe_checkpoint)
        interrupted = _segment(batches(frames, args.batch_size), predictor, results, total)
        results.finish()
    return Outcome(failures, interrupted)


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


def _segment(
    frames: Iterator[list[Frame]], predictor: Predictor, results: Results, total: int | None
) -> bool:
    """Segment all frames; return whether the user interrupted."""
    with tqdm(total=total, unit="image") as bar:
        try:
            for batch in frames:
                images = [frame.image for frame in batch]
                try:
                    outputs = predictor(images, batch_size=len(batch))
                except torch.OutOfMemoryError as error:
                    raise ValueError(
                        f"MODEL.DEVICE {predictor.cfg.MODEL.DEVICE} ran out of memory: lower "
                        "--batch-size or INPUT.MIN_SIZE_TEST, or pass MODEL.DEVICE cpu"
                    ) from error
                for frame, output in zip(batch, outputs, strict=True):
                    if not results.add(frame, output):
                        return False
                    bar.update()
        except KeyboardInterrupt:
            return True
    return False
