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
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.modeling import build_model
from PIL import Image
from tqdm import tqdm

from point_rend.checkpoint import SafeDetectionCheckpointer, read_metadata
from point_rend.config import check_config, value_of
from point_rend.data.augmentation import build_augmentations
from point_rend.data.checks import MODES_BEYOND_8_BITS
from point_rend.data.coco import read_coco, summary
from point_rend.data.semantic import IMAGE_SUFFIXES, read_class_names
from point_rend.evaluation.test_time import (
    build_test_time_augmentation,
    check_test_time_augmentation,
)
from point_rend.uncertainty import label_map
from point_rend.visualize import (
    Colour,
    colour_of,
    overlay_masks,
    save_picture,
    write_names,
    written_whole,
)

# train_net.py is a script beside this folder, not a part of the package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import train_net

UNREADABLE = 1  # exit code if files could not be read
INTERRUPTED = 130
FORMATS = ("pictures", "coco", "masks", "labels")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov")
CODECS = {".avi": "MJPG"}  # of OpenCV, by suffix; of all others it is mp4v
FRAMES_PER_SECOND = 25.0  # of a camera that does not say
WINDOW = "PointRend"
ESCAPE = 27


class Classes(NamedTuple):
    """Names, ids and colours of the classes of one kind."""

    names: list[str]
    ids: list[int]  # in COCO files
    colours: list[Colour]


class Segment(NamedTuple):
    """Pixels of one image that belong together."""

    mask: np.ndarray  # (H, W) bool
    category: int
    is_thing: bool = False
    score: float | None = None
    box: tuple[float, ...] = ()  # x0, y0, x1, y1


class Prediction(NamedTuple):
    """What a model says of one image."""

    shown: list[Segment]  # in a picture
    instances: list[Segment]
    labels: np.ndarray | None  # (H, W)


class Frame(NamedTuple):
    """An image to be segmented."""

    name: str  # with a suffix; files of the results are called so
    image: np.ndarray  # (H, W, 3) uint8, BGR

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return str(Path(self.name).with_suffix(""))


# The model


class WholeModelCheckpointer(SafeDetectionCheckpointer):
    """Refuses a checkpoint that leaves parts of the model random, such as that of another kind."""

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        state = self.model.state_dict(keep_vars=True)
        lacking = set(incompatible.missing_keys)
        loaded = {id(tensor) for key, tensor in state.items() if key not in lacking}
        # A parameter that the model has under several names is there under one of them.
        missing = [key for key in state if key in lacking and id(state[key]) not in loaded]
        if missing:
            raise ValueError(
                f"{self._source} lacks {summary(missing)} of the {len(state)} parameters: expected "
                "weights of this model"
            )
        return incompatible


class Predictor:
    """A model with all that lies between a picture and its result.

    Args:
        cfg: config of the model and its weights; they are random if MODEL.WEIGHTS is empty.
        allow_unsafe: load a checkpoint that runs code.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if config, checkpoint and machine do not fit together.
    """

    def __init__(self, cfg: CfgNode, *, allow_unsafe: bool = False) -> None:
        check_config(cfg, training=False)
        check_test_time_augmentation(cfg)
        train_net.check_machine(cfg, 1)
        self.model = build_model(cfg).eval()
        WholeModelCheckpointer(self.model, allow_unsafe=allow_unsafe).load(cfg.MODEL.WEIGHTS)
        self.forward = self.model
        if cfg.TEST.AUG.ENABLED:
            self.forward = build_test_time_augmentation(cfg, self.model)
        self.augmentations = AugmentationList(build_augmentations(cfg, is_train=False))
        self.format = cfg.INPUT.FORMAT

    def inputs(self, image: np.ndarray) -> dict[str, Any]:
        """Prepare a picture (H, W, 3) uint8, BGR, for the model."""
        height, width = image.shape[:2]
        augmented = AugInput(image[:, :, ::-1] if self.format == "RGB" else image)
        self.augmentations(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        return {"image": torch.from_numpy(pixels), "height": height, "width": width}

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Segment pictures together."""
        return [_prediction(x) for x in self.forward([self.inputs(image) for image in images])]


def _prediction(result: Mapping[str, Any]) -> Prediction:
    """Convert a model's result for one image."""
    instances = _instances(result["instances"].to("cpu")) if "instances" in result else []
    labels, shown = None, instances
    if "sem_seg" in result:
        labels = label_map(result["sem_seg"]).cpu().numpy()
        labels = labels.astype(np.uint8 if len(result["sem_seg"]) <= 256 else np.uint16)
        shown = [Segment(labels == k, int(k)) for k in np.unique(labels)]
    if "panoptic_seg" in result:
        segments, known = result["panoptic_seg"]
        ids = segments.cpu().numpy()
        shown = [
            Segment(ids == x["id"], x["category_id"], x["isthing"], x.get("score")) for x in known
        ]
    return Prediction(shown, instances, labels)


def _instances(found: Any) -> list[Segment]:
    rows = zip(
        found.pred_masks.numpy(),
        found.pred_classes.tolist(),
        found.scores.tolist(),
        found.pred_boxes.tensor.tolist(),
        strict=True,
    )
    return [Segment(mask, k, True, score, tuple(box)) for mask, k, score, box in rows]


# Classes


def read_classes(text: str) -> tuple[list[str], list[int]]:
    """Read names and COCO ids out of a COCO file, or what `read_class_names` reads, with ids 1..K.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not sound.
    """
    if text.endswith(".json"):
        categories = sorted(read_coco(text)["categories"], key=lambda category: category["id"])
        return [x["name"] for x in categories], [x["id"] for x in categories]
    try:
        names = read_class_names(text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--classes {text}: expected text in UTF-8, one name per line, or a COCO file *.json: "
            f"{error}"
        ) from error
    return names, list(range(1, len(names) + 1))


def given_classes(cfg: CfgNode, count: train_net.ClassCount, text: str) -> Classes:
    """Read classes that the user gives.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not sound, or the number of its classes is not the model's.
    """
    names, ids = read_classes(text)
    number = value_of(cfg, count.key)
    if len(names) != number:
        raise ValueError(f"--classes has {len(names)} names, but {count.key} is {number}")
    return Classes(names, ids, [colour_of(k) for k in range(number)])


def known_classes(cfg: CfgNode, count: train_net.ClassCount, told: Mapping[str, Any]) -> Classes:
    """Look classes up in the checkpoint, or else in the data sets of the config.

    Args:
        cfg: the config.
        count: which classes.
        told: by the checkpoint, as of `read_metadata`.

    Returns:
        The classes of the first registered data set with as many, if the checkpoint tells nothing;
        without any, the names are numbers.

    Raises:
        ValueError: if the checkpoint tells of another number of classes.
    """
    number = value_of(cfg, count.key)
    if count.names in told:
        names = told[count.names]
        if len(names) != number:
            raise ValueError(
                f"{count.key} is {number}, but the classes of {cfg.MODEL.WEIGHTS} are "
                f"{summary(names)}: pass {count.key} {len(names)}, or name others with --classes"
            )
        return _classes(count.kind, told)
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if dataset in MetadataCatalog.list():
            known = MetadataCatalog.get(dataset).as_dict()
            if len(known.get(count.names) or ()) == number:
                return _classes(count.kind, known)
    return _classes(count.kind, {count.names: [f"class {k}" for k in range(number)]})


def _classes(kind: str, known: Mapping[str, Any]) -> Classes:
    """Read names, ids and colours out of fields of Detectron2's metadata; the names are there."""
    names = list(known[f"{kind}_classes"])
    to_index = known.get(f"{kind}_dataset_id_to_contiguous_id") or {}
    to_id = {index: dataset_id for dataset_id, index in to_index.items()}
    colours = [tuple(colour[::-1]) for colour in known.get(f"{kind}_colors") or ()]
    if len(colours) != len(names):
        colours = [colour_of(k) for k in range(len(names))]
    return Classes(names, [to_id.get(k, k + 1) for k in range(len(names))], colours)


def named_count(outputs: frozenset[str]) -> train_net.ClassCount:
    """Tell which classes of a model --classes names: of things if it has any, else of labels."""
    return next(count for count in train_net.CLASS_COUNTS if count.output in outputs)


class Legend(NamedTuple):
    """The classes of a model."""

    things: Classes
    stuff: Classes

    def of(self, segment: Segment) -> Classes:
        """Return the classes to which a segment's number belongs."""
        return self.things if segment.is_thing else self.stuff

    def name(self, segment: Segment) -> str:
        """Return what is written on a segment."""
        name = self.of(segment).names[segment.category]
        return name if segment.score is None else f"{name} {segment.score:.0%}"


def build_legend(
    cfg: CfgNode, outputs: frozenset[str], classes: str | None, *, allow_unsafe: bool = False
) -> Legend:
    """Name the classes of a model.

    Args:
        cfg: the config.
        outputs: fields of the model's results.
        classes: given by the user: the things, or without instances the labels. If not given, those
            of the checkpoint or, where it tells nothing, of the data sets.
        allow_unsafe: load a checkpoint that runs code.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if their number is not the model's, or the checkpoint cannot be read.
    """
    told = read_metadata(cfg.MODEL.WEIGHTS, allow_unsafe=allow_unsafe)
    things, stuff = (
        given_classes(cfg, count, classes)
        if classes is not None and count == named_count(outputs)
        else known_classes(cfg, count, told if count.output in outputs else {})
        for count in train_net.CLASS_COUNTS
    )
    return Legend(things, stuff)


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


def read_picture(file: Path) -> np.ndarray:
    """Read an image as it is to be looked at: (H, W, 3) uint8, BGR.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        with Image.open(file) as image:
            if image.mode.startswith(MODES_BEYOND_8_BITS):
                raise ValueError(f"is of mode {image.mode}: expected 8 bits per channel")
        return np.ascontiguousarray(read_image(str(file), "BGR"))
    # Pillow reports a broken file as any of the first three, by format.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: {error}") from error


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


# What comes out


def draw(
    image: np.ndarray, prediction: Prediction, legend: Legend, *, by_class: bool
) -> np.ndarray:
    """Paint a prediction over its picture.

    Args:
        image: (H, W, 3) uint8.
        prediction: of it.
        legend: the classes.
        by_class: instances have the colours of their classes, not all different ones.

    Returns:
        (H, W, 3) uint8.
    """
    segments = prediction.shown
    colours = [
        colour_of(i) if x.is_thing and not by_class else legend.of(x).colours[x.category]
        for i, x in enumerate(segments)
    ]
    masks = np.zeros((len(segments), *image.shape[:2]), dtype=bool)
    for mask, segment in zip(masks, segments, strict=True):
        mask[:] = segment.mask
    outline = max(1, min(image.shape[:2]) // 400)
    painted = overlay_masks(image, masks, colours, outline=outline)
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
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(self.content))


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
            unfinished = self.stack.enter_context(written_whole(self.path))
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


# The command


def build_parser(description: str) -> argparse.ArgumentParser:
    """Make a parser of the options with which every tool that runs a model is told which."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="instances of a lower score do not count (default 0.5)",
    )
    parser.add_argument(
        "--classes",
        help="names of the classes: a COCO file, a file with one name per line, or the names with "
        "commas between them; by default those of the checkpoint, or else of the data sets of the "
        "config, if registered",
    )
    parser.add_argument(
        "--allow-unsafe-checkpoint",
        action="store_true",
        help="load a checkpoint even if that runs code out of the file; only for files you trust",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys that overrule the file, as MODEL.WEIGHTS; these come last",
    )
    return parser


def read_config(args: argparse.Namespace) -> CfgNode:
    """Read the config and adapt it to the options of :func:`build_parser`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if something does not fit.
    """
    if not 0 <= args.confidence_threshold <= 1:
        raise ValueError(
            "--confidence-threshold: expected a number from 0 to 1, got "
            f"{args.confidence_threshold}"
        )
    cfg = train_net.read_config(args)
    if not cfg.MODEL.WEIGHTS:
        expected = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
        raise ValueError(f"MODEL.WEIGHTS is empty: expected a checkpoint, such as {expected}")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = args.confidence_threshold
    outputs = train_net.model_outputs(cfg)
    if "instances" in outputs and not cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is False: expected a model that segments")
    fill_class_counts(cfg, args, outputs)
    cfg.freeze()
    return cfg


def fill_class_counts(cfg: CfgNode, args: argparse.Namespace, outputs: frozenset[str]) -> None:
    """Take counts that nobody gives over from --classes, or else from the checkpoint.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file cannot be read.
    """
    unsaid = [
        count
        for count in train_net.CLASS_COUNTS
        if count.output in outputs and not train_net.says(args.config_file, args.opts, count.key)
    ]
    numbers: dict[str, int] = {}
    if args.classes is not None:
        numbers[named_count(outputs).key] = len(read_classes(args.classes)[0])
    elif unsaid:
        told = read_metadata(cfg.MODEL.WEIGHTS, allow_unsafe=args.allow_unsafe_checkpoint)
        numbers = {x.key: len(told[x.names]) for x in unsaid if x.names in told}
    for count in unsaid:
        if count.key in numbers:
            cfg.merge_from_list([count.key, numbers[count.key]])


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
