"""The models that `predict.py` and `visualize_points.py` run: options, weights and classes."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.modeling import build_model
from PIL import Image

from point_rend.checkpoint import SafeDetectionCheckpointer, read_metadata
from point_rend.config import check_config, value_of
from point_rend.data.augmentation import build_augmentations
from point_rend.data.checks import MODES_BEYOND_8_BITS
from point_rend.data.coco import read_coco, summary
from point_rend.data.semantic import read_class_names
from point_rend.evaluation.test_time import (
    build_test_time_augmentation,
    check_test_time_augmentation,
)
from point_rend.uncertainty import label_map
from point_rend.visualize import Colour, colour_of

# train_net.py is a script beside this folder, not a part of the package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import train_net


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


# Options


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
