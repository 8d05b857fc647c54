"""Segmentation of files, videos and the camera, as `pointrend predict` runs it."""

import argparse
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from point_rend.config.defaults import pixel_format
from point_rend.config.dumping import dump_config
from point_rend.config.tasks import model_outputs
from point_rend.inference.inputs import (
    FRAMES_PER_SECOND,
    VIDEO_SUFFIXES,
    Frame,
    batches,
    find_images,
    read_images,
    read_video,
    result_names,
)
from point_rend.inference.outputs import COCO_NAME, Results, VideoFile, Window, paths_of
from point_rend.inference.predictor import Predictor
from point_rend.inference.progress import Progress, Source
from point_rend.inference.settings import Settings, read_settings
from point_rend.runtime.exported_model import build_exported_model
from point_rend.runtime.files import exported_file
from point_rend.tiling.grid import DEFAULT_OVERLAP, check_tiling
from point_rend.tiling.tiled import TiledPredictor, check_tiled_model
from point_rend.tiling.windows import is_georeferenced
from point_rend.utils.errors import INTERRUPTED
from point_rend.utils.files import check_that_inputs_stay
from point_rend.utils.pictures import IMAGE_SUFFIXES, PictureError
from point_rend.utils.reading import check_regular_file
from point_rend.visualization.predictions import Output


class Outcome(NamedTuple):
    """The end of a run.

    Attributes:
        failures: A message for each input that could not be read.
        exit_code: That of the process if a signal has ended the run, else 0.
    """

    failures: list[str]
    exit_code: int


def run(args: argparse.Namespace) -> Outcome:
    """Segment all inputs and write or show the results.

    Args:
        args: The parsed command line of `pointrend predict`.

    Raises:
        FileNotFoundError, OSError, ValueError: After an error that stops everything.
    """
    if args.batch_size < 1:
        raise ValueError(f"--batch-size: expected 1 or more, got {args.batch_size}")
    settings = read_settings(args)
    check_formats(args.formats, model_outputs(settings.cfg))
    check_tiling_options(args, settings)
    failures: list[str] = []
    with ExitStack() as stack:
        job = _open(args, settings, failures, stack)
        exit_code = 0
        if job.total != 0:
            predictor = build_predictor(args, settings)
            tiled = build_tiled(args, predictor)
            frames = batches(job.frames, args.batch_size)
            exit_code = _segment(frames, predictor, tiled, job, failures)
        job.results.finish()
    return Outcome(failures, exit_code)


def build_predictor(args: argparse.Namespace, settings: Settings, *, threads: int = 0) -> Predictor:
    """Load the model of a command line, whose masks stay unpasted.

    Args:
        args: The parsed command line.
        settings: Config and classes.
        threads: Of the runtime of an exported model; 0 leaves it to the runtime.

    Raises:
        FileNotFoundError, OSError, ValueError: As :class:`Predictor`.
    """
    model, exported = None, exported_file(args.model)
    if exported is not None:
        model = build_exported_model(
            settings.cfg,
            exported,
            backend=args.backend,
            threads=threads,
            allow_unsafe=args.allow_unsafe_checkpoint,
        )
    return Predictor(
        settings.cfg,
        metadata=settings.metadata,
        allow_unsafe=args.allow_unsafe_checkpoint,
        paste_masks=False,
        model=model,
    )


def build_tiled(args: argparse.Namespace, predictor: Predictor) -> TiledPredictor | None:
    """Return the predictor for tiles that a command line asks for, if it does."""
    if args.tile is None:
        return None
    return TiledPredictor(predictor, args.tile, _overlap(args), batch_size=args.batch_size)


def check_tiling_options(args: argparse.Namespace, settings: Settings) -> None:
    """Refuse options of tiles that do not fit.

    Raises:
        ValueError: If there are any.
    """
    if args.overlap is not None and args.tile is None:
        raise ValueError("--overlap needs --tile")
    if args.tile is not None:
        check_tiling(args.tile, _overlap(args), ("--tile", "--overlap"))
        check_tiled_model(settings.cfg)


def decisive_settings(args: argparse.Namespace, settings: Settings) -> dict[str, str]:
    """Describe what decides results, as named texts: config, weights, classes, tiles."""
    cfg, metadata = settings
    neutral = cfg.clone()
    neutral.defrost()
    neutral.OUTPUT_DIR, neutral.MODEL.WEIGHTS, neutral.MODEL.DEVICE = "", "", "cpu"
    weights = Source.of(cfg.MODEL.WEIGHTS)
    names = [metadata.get(key) or [] for key in ("thing_classes", "stuff_classes")]
    decisive = {
        "config": hashlib.sha256(dump_config(neutral).encode()).hexdigest(),
        "weights": f"{cfg.MODEL.WEIGHTS}, {weights.size} bytes of {weights.modified}",
        "classes": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
    }
    if args.tile is not None:
        decisive["tiles"] = f"{args.tile} {_overlap(args)}"
    return decisive


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


class _Job(NamedTuple):
    """The frames that are left to segment, their number if known, and the results."""

    frames: Iterator[Frame]
    total: int | None
    results: Results


def _open(
    args: argparse.Namespace, settings: Settings, failures: list[str], stack: ExitStack
) -> _Job:
    """Open inputs and outputs."""
    if args.input is not None:
        return _open_images(args, settings, failures, stack)
    return _open_video(args, settings, failures, stack)


def _open_images(
    args: argparse.Namespace, settings: Settings, failures: list[str], stack: ExitStack
) -> _Job:
    window = Window(wait=True) if args.output is None else None
    folder, picture = _folder_and_file(args.output, IMAGE_SUFFIXES)
    pixels = pixel_format(settings.cfg)
    found = find_images(args.input, folder if picture is None else None, pixel_format=pixels)
    if not found.files:
        raise ValueError(f"--input: {'; '.join(found.missing + found.passed_over)}")
    for message in found.passed_over:
        print(message, file=sys.stderr)
    failures += found.missing
    files = found.files
    if picture is not None and len(files) > 1:
        raise ValueError(f"--output {picture} is one file, but there are {len(files)} images")
    others = [format for format in args.formats if picture is None or format != "pictures"]
    progress = _progress(args, settings, folder if others else None, stack)

    names = result_names(files, progress.results if progress else {})
    if progress is not None:
        total = len(files)
        files = {
            name: file
            for name, file in files.items()
            if not progress.is_finished(name, Source.of(file))
        }
        if len(files) < total:
            left = f"{len(files)} are left" if files else "nothing is left to do"
            print(f"{total - len(files)} of {total} images are finished: {left}", file=sys.stderr)
    outputs: dict[Path, str | None] = {} if picture is None else {picture: None}
    if progress is not None:
        for name in files:
            is_map = args.tile is not None and is_georeferenced(files[name])
            paths = paths_of(names[name], progress.folder, others, is_map=is_map)
            outputs |= dict.fromkeys(paths.values(), names[name])
        if "pictures" in others:
            _check_that_formats_stay_apart(names.values(), others)
    _check_outputs(args, settings.cfg, outputs, progress, inputs=files.values())
    results = Results(
        settings.metadata,
        args.formats,
        progress=progress,
        picture=picture,
        window=window,
        pixel_format=pixels,
    )
    frames = read_images(files, names, failures, pixel_format=pixels, tile=args.tile)
    return _Job(frames, len(files), results)


def _open_video(
    args: argparse.Namespace, settings: Settings, failures: list[str], stack: ExitStack
) -> _Job:
    if not pixel_format(settings.cfg).is_plain:
        raise ValueError(
            f"{'--webcam' if args.webcam else '--video-input'}: a video has colors of 8 bits, but "
            f"the model expects INPUT.CHANNELS {settings.cfg.INPUT.CHANNELS}, INPUT.BITS "
            f"{settings.cfg.INPUT.BITS}: expected images (--input)"
        )
    window = Window(wait=False) if args.output is None else None
    folder, file = _folder_and_file(args.output, VIDEO_SUFFIXES)
    if args.video_input is not None and os.path.exists(args.video_input):
        check_regular_file(args.video_input, what="--video-input")
    capture, source = open_video(args)
    stack.callback(capture.release)
    if not capture.isOpened():
        if args.webcam:
            raise ValueError("--webcam: there is no camera")
        if not os.path.exists(args.video_input):
            raise FileNotFoundError(f"--video-input: there is no video {args.video_input}")
    outputs: dict[Path, str | None] = {}
    video = None
    if folder is not None and not args.frames and "pictures" in args.formats:
        suffix = Path(source).suffix.lower()
        name = f"{Path(source).stem}{suffix if suffix in VIDEO_SUFFIXES else '.mp4'}"
        file = file or folder / name
        outputs[file] = None
        rate = capture.get(cv2.CAP_PROP_FPS) or FRAMES_PER_SECOND
        video = VideoFile(file, rate)
    others = [x for x in args.formats if args.frames or x != "pictures"]
    progress = _progress(args, settings, folder if others else None, stack)
    _check_outputs(args, settings.cfg, outputs, progress, inputs=filter(None, [args.video_input]))
    frames = read_video(capture, source, failures)
    total: int | None = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if video is not None:
        stack.enter_context(video)
    if progress is not None and video is None and not args.webcam:
        frames = _unfinished(frames, progress)
        total = None if progress.results else total
    results = Results(
        settings.metadata,
        args.formats,
        progress=progress,
        video=video,
        window=window,
        by_class=True,
    )
    return _Job(frames, total or None, results)


def _folder_and_file(
    output: Path | None, suffixes: Sequence[str]
) -> tuple[Path | None, Path | None]:
    """Split --output into the folder of all results and the file of the only picture or video."""
    if output is not None and output.suffix.lower() in suffixes and not output.is_dir():
        return output.parent, output
    return output, None


def _progress(
    args: argparse.Namespace, settings: Settings, folder: Path | None, stack: ExitStack
) -> Progress | None:
    """Open the record of the output folder; without a folder there is none."""
    if folder is None:
        return None
    decisive = decisive_settings(args, settings)
    decisive["formats"] = " ".join(sorted(args.formats))
    if args.video_input is not None:
        video = Source.of(args.video_input)
        decisive["video"] = f"{args.video_input}, {video.size} bytes of {video.modified}"
    progress = Progress(folder, decisive, overwrite=args.overwrite)
    stack.callback(progress.close)
    return progress


def _check_that_formats_stay_apart(results: Iterable[str], formats: Sequence[str]) -> None:
    """Refuse pictures that would lie among the masks or the label maps."""
    for result in results:
        folder = Path(result).parts[0]
        if folder in ("masks", "labels") and folder in formats:
            raise ValueError(
                f"--input: the picture {result} would lie among the {folder} in --output: give "
                f"folders without a folder {folder}, or write the formats with two calls"
            )


def _check_outputs(
    args: argparse.Namespace,
    cfg: CfgNode,
    outputs: Mapping[Path, str | None],
    progress: Progress | None,
    *,
    inputs: Iterable[str | Path],
) -> None:
    """Refuse to overwrite an input, or without --overwrite any file that is not of this run.

    Args:
        args: The parsed command line.
        cfg: The config.
        outputs: The files and folders to be written, with the result names of their images.
        progress: The record.
        inputs: The images or the video.
    """
    if args.output is None:
        return
    everything = list(outputs)
    others = [] if progress is None else [progress.path]
    if progress is not None and "coco" in args.formats:
        others.append(progress.folder / COCO_NAME)
    read = [*inputs, cfg.MODEL.WEIGHTS, args.config_file or "", args.classes or ""]
    check_that_inputs_stay(read, [*everything, *others])
    continues = progress is not None and progress.continues
    if not continues:
        everything += others
    if args.overwrite:
        return
    started = progress.started if progress is not None else set()
    for path in everything:
        if os.path.lexists(path) and outputs.get(path) not in started:
            raise ValueError(
                f"--output: {path} exists, and is not of an earlier run of this command: choose "
                "another folder, or pass --overwrite to replace it"
            )


def _unfinished(frames: Iterator[Frame], progress: Progress) -> Iterator[Frame]:
    return (x for x in frames if not progress.is_finished(x.name, x.source))


def _segment(
    frames: Iterator[list[Frame]],
    predictor: Predictor,
    tiled: TiledPredictor | None,
    job: _Job,
    failures: list[str],
) -> int:
    """Segment all frames; return the exit code if a signal has ended the run, else 0."""
    with tqdm(total=job.total, unit="image") as bar:
        if tiled is not None:
            tiled.on_tile = functools.partial(_show_tile, bar)
        try:
            for batch in frames:
                try:
                    with _memory_is_named(predictor):
                        images = [frame.image for frame in batch]
                        outputs = _outputs(predictor, tiled, images)
                        job.results.start(batch)
                        for frame, output in zip(batch, outputs, strict=True):
                            if not job.results.add(frame, output):
                                return 0
                            bar.update()
                except PictureError as error:  # of an image that is read tile by tile
                    failures.append(str(error))
        except KeyboardInterrupt:
            return INTERRUPTED
        except SystemExit as stop:  # as `signals_end_the_command` raises it
            return int(stop.code or 0)
    return 0


def _show_tile(bar: tqdm, number: int, total: int) -> None:
    bar.set_postfix_str(f"tile {number} of {total}", refresh=False)
    bar.update(0)  # shown at most ten times a second


def predict_batch(
    predictor: Predictor, tiled: TiledPredictor | None, images: list[Any]
) -> Sequence[Output]:
    """Segment images together, in tiles if `tiled` is given.

    Raises:
        PictureError: If an image that is read tile by tile is broken.
        ValueError: If the device runs out of memory.
    """
    with _memory_is_named(predictor):
        if tiled is not None:
            return tiled.many(images)
        return predictor(images, batch_size=len(images))


def _outputs(
    predictor: Predictor, tiled: TiledPredictor | None, images: list[Any]
) -> Sequence[Output]:
    """Segment images as :func:`predict_batch`; the labels of an open one come when taken."""
    if tiled is None or isinstance(images[0], np.ndarray):
        return predict_batch(predictor, tiled, images)
    return [tiled.lazily(image) for image in images]


@contextmanager
def _memory_is_named(predictor: Predictor) -> Iterator[None]:
    """Turn an error of the device into one that names the settings."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"MODEL.DEVICE {predictor.cfg.MODEL.DEVICE} ran out of memory: lower --batch-size or "
            "INPUT.MIN_SIZE_TEST, or pass MODEL.DEVICE cpu"
        ) from error


def _overlap(args: argparse.Namespace) -> float:
    return DEFAULT_OVERLAP if args.overlap is None else args.overlap
