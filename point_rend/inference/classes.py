"""Names, ids and colors of the classes of a model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from point_rend.checkpoint.class_metadata import read_metadata
from point_rend.config.defaults import value_of
from point_rend.data.datasets.classes import CLASS_COUNTS, ClassCount, summary
from point_rend.data.datasets.coco import read_coco
from point_rend.data.datasets.label_maps import read_class_names
from point_rend.inference.predictor import Segment
from point_rend.visualization.drawing import Color, color_of


class Classes(NamedTuple):
    """Names, ids and colors of the classes of one kind."""

    names: list[str]
    ids: list[int]  # in COCO files
    colors: list[Color]


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


def given_classes(cfg: CfgNode, count: ClassCount, text: str) -> Classes:
    """Read classes that the user gives.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not sound, or the number of its classes is not the model's.
    """
    names, ids = read_classes(text)
    number = value_of(cfg, count.key)
    if len(names) != number:
        raise ValueError(f"--classes has {len(names)} names, but {count.key} is {number}")
    return Classes(names, ids, [color_of(k) for k in range(number)])


def known_classes(cfg: CfgNode, count: ClassCount, told: Mapping[str, Any]) -> Classes:
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
    """Read names, ids and colors out of fields of Detectron2's metadata; the names are there."""
    names = list(known[f"{kind}_classes"])
    to_index = known.get(f"{kind}_dataset_id_to_contiguous_id") or {}
    to_id = {index: dataset_id for dataset_id, index in to_index.items()}
    colors = [tuple(color[::-1]) for color in known.get(f"{kind}_colors") or ()]
    if len(colors) != len(names):
        colors = [color_of(k) for k in range(len(names))]
    return Classes(names, [to_id.get(k, k + 1) for k in range(len(names))], colors)


def named_count(outputs: frozenset[str]) -> ClassCount:
    """Tell which classes of a model --classes names: of things if it has any, else of labels."""
    return next(count for count in CLASS_COUNTS if count.output in outputs)


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
        for count in CLASS_COUNTS
    )
    return Legend(things, stuff)
