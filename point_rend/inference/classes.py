"""Names, ids and colors of a model's classes, as Detectron2's metadata."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from point_rend.config.defaults import value_of
from point_rend.config.tasks import model_outputs
from point_rend.data.datasets.class_files import read_class_names
from point_rend.data.datasets.class_matching import OPTION, published_classes
from point_rend.data.datasets.class_names import (
    compare_names,
    match_by_name,
    same_but_for_spelling,
    summarize,
)
from point_rend.data.datasets.classes import CLASS_COUNTS, ClassCount
from point_rend.data.datasets.coco import read_coco
from point_rend.data.datasets.keypoints import build_keypoint_metadata
from point_rend.visualization.drawing import color_of

logger = logging.getLogger(__name__)

Fields = Mapping[str, Any]  # of Detectron2's metadata


def read_classes(text: str) -> tuple[list[str], list[int]]:
    """Read names and ids of classes.

    Args:
        text: A COCO file, or names as :func:`read_class_names` reads them, with ids 1..K.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    if text.endswith(".json"):
        categories = sorted(read_coco(text)["categories"], key=lambda category: category["id"])
        return [x["name"] for x in categories], [x["id"] for x in categories]
    names = read_class_names(text, at_most=None)
    return names, list(range(1, len(names) + 1))


def class_fields(outputs: frozenset[str], text: str) -> dict[str, Any]:
    """Read the classes of `--classes`: the things of a model that has any, else its labels.

    Args:
        outputs: Fields of the model's results.
        text: As of :func:`read_classes`.
    """
    kind = next(count.kind for count in CLASS_COUNTS if count.output in outputs)
    names, ids = read_classes(text)
    to_index = {identity: index for index, identity in enumerate(ids)}
    return {f"{kind}_classes": names, f"{kind}_dataset_id_to_contiguous_id": to_index}


def build_metadata(
    cfg: CfgNode, stored: Fields, given: Fields | None = None, *, by_position: bool = False
) -> Metadata:
    """Collect names, colors and ids of the classes that the model's results refer to.

    The first of these that has names of a kind, things or stuff, gives all its fields: the user,
    the checkpoint, a registered data set of the config with as many classes. Otherwise the names
    are numbers. The user's are brought into the model's order if the checkpoint has the same names.

    Args:
        cfg: The config.
        stored: Fields from the checkpoint, as of `read_metadata`.
        given: Fields from the user, as of :func:`class_fields`.
        by_position: Whether the user's classes are in the model's order, whatever their names.

    Returns:
        Metadata with `{kind}_classes`, `{kind}_colors` (RGB) and
        `{kind}_dataset_id_to_contiguous_id`, complete for each kind, and with the names of the
        keypoints and the lines between them, where they are known.

    Raises:
        ValueError: If the number of given or stored classes is not the model's, or if some of the
            given names are those of other classes in the checkpoint.
    """
    fields: dict[str, Any] = {}
    known = {**published_classes(cfg.MODEL.WEIGHTS), **stored}
    for count in CLASS_COUNTS:
        if count.output in model_outputs(cfg):
            found = _find_fields(cfg, count, known, given or {}, by_position=by_position)
            fields |= _complete(count.kind, found)
    fields |= build_keypoint_metadata(cfg, stored)
    return Metadata(name=cfg.MODEL.WEIGHTS).set(**fields)


def _find_fields(
    cfg: CfgNode, count: ClassCount, stored: Fields, given: Fields, *, by_position: bool
) -> Fields:
    number = value_of(cfg, count.key)
    if count.names in given:
        if len(given[count.names]) != number:
            raise ValueError(
                f"--classes has {len(given[count.names])} names, but {count.key} is {number}"
            )
        if count.names not in stored:
            return given
        own = stored[count.names]
        return _in_order_of_model(cfg.MODEL.WEIGHTS, count, own, given, by_position=by_position)
    if count.names in stored:
        names = stored[count.names]
        if len(names) != number:
            raise ValueError(
                f"{count.key} is {number}, but the classes of {cfg.MODEL.WEIGHTS} are "
                f"{summarize(names)}: pass {count.key} {len(names)}, or name others with --classes"
            )
        return stored
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if dataset in MetadataCatalog.list():
            known = MetadataCatalog.get(dataset).as_dict()
            if len(known.get(count.names) or ()) == number:
                return known
    return {count.names: [f"class {k}" for k in range(number)]}


def _in_order_of_model(
    weights: str,
    count: ClassCount,
    of_model: Sequence[str],
    given: Fields,
    *,
    by_position: bool,
) -> Fields:
    """Bring the user's classes into the model's order; other names than its own rename classes.

    Raises:
        ValueError: If some of the names are those of other classes of the model.
    """
    names = given[count.names]
    order = match_by_name(of_model, names)
    if list(of_model) == list(names):
        return given
    comparison = compare_names(weights, of_model, "--classes", names, kind=count.kind)
    if order is not None and not by_position:
        logger.warning("%s; they are matched by name", comparison)
        own_index = {index: k for k, index in enumerate(order)}
        key = f"{count.kind}_dataset_id_to_contiguous_id"
        ids = {identity: own_index[index] for identity, index in given.get(key, {}).items()}
        return {count.names: list(of_model), key: ids}
    moved = any(name in names for name, new in zip(of_model, names, strict=False) if name != new)
    if moved and not by_position:
        raise ValueError(
            f"{comparison}: expected the names of the checkpoint in any order, or other names in "
            f"the order of its classes; {OPTION} takes them by their position"
        )
    if not same_but_for_spelling(of_model, names):
        logger.warning("%s; the classes are renamed by their position", comparison)
    return given


def _complete(kind: str, known: Fields) -> dict[str, Any]:
    """Pick the fields of one kind; colors and ids that are missing are made up."""
    names = list(known[f"{kind}_classes"])
    colors = [tuple(color) for color in known.get(f"{kind}_colors") or ()]
    if len(colors) != len(names):
        colors = [color_of(k)[::-1] for k in range(len(names))]
    to_index = known.get(f"{kind}_dataset_id_to_contiguous_id") or {}
    to_id = {index: dataset_id for dataset_id, index in to_index.items()}
    ids = {to_id.get(k, k + 1): k for k in range(len(names))}
    if len(ids) < len(names):  # two classes would share an id
        ids = {k + 1: k for k in range(len(names))}
    return {
        f"{kind}_classes": names,
        f"{kind}_colors": colors,
        f"{kind}_dataset_id_to_contiguous_id": ids,
    }
