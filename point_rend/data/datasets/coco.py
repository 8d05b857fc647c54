"""COCO-format annotation files: reading them with all references checked, and registering."""

import json
import logging
import math
import os
from collections.abc import Iterable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)


# Fields of every record of a COCO file. LVIS has `coco_url` in place of `file_name`.
IMAGE_FIELDS = {"id": (int, str), "width": (int,), "height": (int,)}
CATEGORY_FIELDS = {"id": (int,), "name": (str,)}
ANNOTATION_FIELDS = {"id": (int, str), "image_id": (int, str), "category_id": (int,), "bbox": list}


def read_coco(json_file: str, *, image_name: str = "file_name") -> dict[str, Any]:
    """Read an instances file in COCO format and check all references in it.

    Args:
        json_file: Path of the file.
        image_name: Field with the file of an image.

    Returns:
        The content, with the lists "images", "categories" and "annotations" (empty in a test set
        without ground truth).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is truncated, not JSON or not COCO, if two records share an id, or if an
            annotation refers to a missing image or category.
    """
    content = _read_json(json_file)
    lists = ("images", "categories")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in lists
    ):
        found = f"keys {sorted(content)}" if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{json_file} is not in COCO's instances format: expected an object with the lists "
            f"'images', 'categories' and 'annotations', found {found}"
        )
    annotations = content.setdefault("annotations", [])
    if not isinstance(annotations, list):
        raise ValueError(f"{json_file}: 'annotations' must be a list, got {annotations!r:.80}")

    images = _index(json_file, "image", content["images"], IMAGE_FIELDS | {image_name: (str,)})
    categories = _index(json_file, "category", content["categories"], CATEGORY_FIELDS)
    _index(json_file, "annotation", annotations, ANNOTATION_FIELDS)
    for kind, records in {"image": images, "category": categories}.items():
        if not records:
            raise ValueError(f"{json_file}: expected at least one {kind}, found none")
        _check_references(json_file, annotations, kind, records)
    for image in content["images"]:
        if image["width"] <= 0 or image["height"] <= 0:
            raise ValueError(
                f"{json_file}: image {image['id']!r} ({image[image_name]}) has a size of "
                f"{image['width']} x {image['height']} pixels"
            )
    for annotation in annotations:
        _check_annotation(json_file, annotation)
    return content


def register_coco(name: str, json_file: str, image_root: str) -> int:
    """Register a data set in COCO's instances format; registering it again has no effect.

    Args:
        name: Name for DATASETS.TRAIN and DATASETS.TEST.
        json_file: Path of its annotations.
        image_root: Folder to which the file names of the images are relative.

    Returns:
        Number of its categories.

    Raises:
        FileNotFoundError: If the file or the folder does not exist.
        ValueError: If the file is invalid (see `read_coco`) or the name belongs to another set.
    """
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        if not _same_path(known.get("json_file"), json_file):
            raise ValueError(
                f"cannot register {json_file} as {name!r}: the name belongs to "
                f"{known.get('json_file') or 'a data set that is not in COCO format'}"
            )
        if not _same_path(known.get("image_root"), image_root):
            raise ValueError(
                f"cannot register {json_file} as {name!r} with the images of {image_root}: it has "
                f"those of {known.get('image_root')}"
            )
        return len(known.thing_classes)
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"the image folder of {name!r} does not exist: {image_root}")
    categories = sorted(read_coco(json_file)["categories"], key=lambda category: category["id"])
    classes = [category["name"] for category in categories]
    register_coco_instances(name, {"thing_classes": classes}, json_file, image_root)
    logger.info("registered %s: %s, %d classes", name, json_file, len(classes))
    return len(classes)


def _read_json(json_file: str) -> Any:
    try:
        with PathManager.open(json_file, "r", encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"annotation file {json_file} does not exist") from error
    except OSError as error:
        raise OSError(f"annotation file {json_file} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"annotation file {json_file} is truncated or not JSON: {error}"
        ) from error


def _index(
    json_file: str, kind: str, records: list[Any], fields: dict[str, Any]
) -> dict[int | str, dict[str, Any]]:
    """Check the fields of records and index them by their ids."""
    by_id: dict[int | str, dict[str, Any]] = {}
    for position, record in enumerate(records):
        for field, types in fields.items():
            if not isinstance(record, dict) or not isinstance(record.get(field), types):
                expected = types if isinstance(types, tuple) else (types,)
                raise ValueError(
                    f"{json_file}: {kind} at position {position} needs a valid {field!r} "
                    f"({' or '.join(x.__name__ for x in expected)}), got {record!r:.200}"
                )
        if record["id"] in by_id:
            raise ValueError(f"{json_file}: {kind} id {record['id']!r} is given twice")
        by_id[record["id"]] = record
    return by_id


def _check_references(
    json_file: str, annotations: list[Any], kind: str, known: dict[int | str, Any]
) -> None:
    field = f"{kind}_id"
    lost = [annotation for annotation in annotations if annotation[field] not in known]
    if lost:
        raise ValueError(
            f"{json_file}: annotation {lost[0]['id']!r} refers to {kind} {lost[0][field]!r}, "
            f"which the file does not have; so do {len(lost) - 1} more annotations"
        )


def _check_annotation(json_file: str, annotation: dict[str, Any]) -> None:
    """Refuse what no reader of COCO files can interpret; the geometry is not checked."""
    where = f"{json_file}: annotation {annotation['id']!r} of image {annotation['image_id']!r}"
    bbox = annotation["bbox"]
    if len(bbox) != 4 or not _all_finite(bbox):
        raise ValueError(f"{where}: bbox must be 4 numbers (x, y, width, height), got {bbox!r:.80}")
    if annotation.get("ignore", 0):
        raise ValueError(f"{where}: Detectron2 has no flag 'ignore'; use 'iscrowd'")
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        size, counts = mask.get("size"), mask.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not _all_natural(size):
            raise ValueError(f"{where}: RLE needs a size of (height, width), got {size!r:.80}")
        if not isinstance(counts, str) and not (isinstance(counts, list) and _all_natural(counts)):
            raise ValueError(f"{where}: RLE needs counts of 0 or more, got {counts!r:.80}")
    elif mask is not None and not (
        isinstance(mask, list) and all(isinstance(polygon, list) for polygon in mask)
    ):
        raise ValueError(f"{where}: segmentation must be polygons or an RLE, got {mask!r:.80}")


def _all_finite(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _all_natural(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


def _same_path(first: str | None, second: str) -> bool:
    return first is not None and os.path.realpath(first) == os.path.realpath(second)
