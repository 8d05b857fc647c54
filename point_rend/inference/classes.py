"""Names, ids and colors of a model's classes, as Detectron2's metadata."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from point_rend.config.defaults import value_of
from point_rend.config.tasks import model_outputs
from point_rend.data.datasets.classes import CLASS_COUNTS, ClassCount, summary
from point_rend.data.datasets.coco import read_coco
from point_rend.data.datasets.label_maps import read_class_names
from point_rend.visualization.drawing import color_of

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
    try:
        names = read_class_names(text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--classes {text}: expected text in UTF-8, one name per line, or a COCO file *.json: "
            f"{error}"
        ) from error
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


def build_metadata(cfg: CfgNode, stored: Fields, given: Fields | None = None) -> Metadata:
    """Collect names, colors and ids of the classes that the model's results refer to.

    The first of these that has names of a kind, things or stuff, gives all its fields: the user,
    the checkpoint, a registered data set of the config with as many classes. Otherwise the names
    are numbers.

    Args:
        cfg: The config.
        stored: Fields from the checkpoint, as of `read_metadata`.
        given: Fields from the user, as of :func:`class_fields`.

    Returns:
        Metadata with `{kind}_classes`, `{kind}_colors` (RGB) and
        `{kind}_dataset_id_to_contiguous_id`, complete for each kind.

    Raises:
        ValueError: If the number of given or stored classes is not the model's.
    """
    fields: dict[str, Any] = {}
    for count in CLASS_COUNTS:
        if count.output in model_outputs(cfg):
            fields |= _complete(count.kind, _find_fields(cfg, count, stored, given or {}))
    return Metadata(name=cfg.MODEL.WEIGHTS).set(**fields)


def _find_fields(cfg: CfgNode, count: ClassCount, stored: Fields, given: Fields) -> Fields:
    number = value_of(cfg, count.key)
    if count.names in given:
        if len(given[count.names]) != number:
            raise ValueError(
                f"--classes has {len(given[count.names])} names, but {count.key} is {number}"
            )
        return given
    if count.names in stored:
        names = stored[count.names]
        if len(names) != number:
            raise ValueError(
                f"{count.key} is {number}, but the classes of {cfg.MODEL.WEIGHTS} are "
                f"{summary(names)}: pass {count.key} {len(names)}, or name others with --classes"
            )
        return stored
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if dataset in MetadataCatalog.list():
            known = MetadataCatalog.get(dataset).as_dict()
            if len(known.get(count.names) or ()) == number:
                return known
    return {count.names: [f"class {k}" for k in range(number)]}


def _complete(kind: str, known: Fields) -> dict[str, Any]:
    """Pick the fields of one kind; colors and ids that are missing are made up."""
    names = list(known[f"{kind}_classes"])
    colors = [tuple(color) for color in known.get(f"{kind}_colors") or ()]
    if len(colors) != len(names):
        colors = [color_of(k)[::-1] for k in range(len(names))]
    to_index = known.get(f"{kind}_dataset_id_to_contiguous_id") or {}
    to_id = {index: dataset_id for dataset_id, index in to_index.items()}
    ids = {to_id.get(k, k + 1): k for k in range(len(names))}
    return {
        f"{kind}_classes": names,
        f"{kind}_colors": colors,
        f"{kind}_dataset_id_to_contiguous_id": ids,
    }
