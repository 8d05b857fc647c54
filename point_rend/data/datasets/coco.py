"""COCO-format annotation files: reading them with all references checked, and registering."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathManager

from point_rend.data.checks.points import FIELDS as POINT_FIELDS
from point_rend.data.checks.rle import form_fault, size_fault
from point_rend.utils.json_files import MAX_DATA_SET_BYTES, read_json, shown

logger = logging.getLogger(__name__)

MAX_CATEGORIES = 20_000  # the precision of all classes takes 1 GB in an evaluation
MAX_ID = 2**63 - 1
MAX_NAME = 4096  # characters
MAX_AREA = 1e18
MAX_COORDINATE = 1e9  # of boxes and keypoints, in pixels


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
    check_coco(content, json_file, image_name=image_name)
    return content


def check_coco(content: Any, json_file: str, *, image_name: str = "file_name") -> None:
    """Check the content of an instances file and all references in it.

    Args:
        content: The content; the list "annotations" is added if there is none.
        json_file: Its file, for messages.
        image_name: Field with the file of an image.

    Raises:
        ValueError: As :func:`read_coco`.
    """
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
    of_text = [identity for identity in images if isinstance(identity, str)]
    if 0 < len(of_text) < len(images):
        raise ValueError(
            f"{json_file}: {len(of_text)} of {len(images)} images have an id of text, such as "
            f"{shown(of_text[0])}: expected ids of one kind, numbers or text"
        )
    if len(categories) > MAX_CATEGORIES:
        raise ValueError(
            f"{json_file} has {len(categories)} categories, expected at most {MAX_CATEGORIES}"
        )
    for category in content["categories"]:
        _check_name(json_file, f"category {category['id']!r}", category["name"])
    for image in content["images"]:
        where = f"image {shown(image['id'])}"
        _check_name(json_file, where, image[image_name])
        fault = size_fault(image["height"], image["width"])
        if fault:
            raise ValueError(f"{json_file}: {where} ({image[image_name]}) {fault}")
    for annotation in annotations:
        _check_annotation(json_file, annotation)


def check_panoptic_file(json_file: str) -> None:
    """Refuse a file that is not in COCO's panoptic format, before Detectron2 reads it.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not JSON, or if a record lacks a field.
    """
    content = _read_json(json_file)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise ValueError(
            f"{json_file} is not in COCO's panoptic format: expected an object with the list "
            "'annotations'"
        )
    for position, record in enumerate(annotations):
        known = record if isinstance(record, dict) else {}
        identity, segments = known.get("image_id"), known.get("segments_info")
        if (
            not (type(identity) is int or (isinstance(identity, str) and identity.isdecimal()))
            or not isinstance(known.get("file_name"), str)
            or not isinstance(segments, list)
            or not all(isinstance(x, dict) and type(x.get("category_id")) is int for x in segments)
        ):
            raise ValueError(
                f"{json_file}: annotation at position {position} needs an image_id of digits, a "
                f"file_name and segments_info, each with a category_id; got {shown(record)}"
            )


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
    metadata = {"thing_classes": classes} | keypoint_metadata(categories)
    add_coco_instances(name, metadata, json_file, image_root)
    logger.info("registered %s: %s, %d classes", name, json_file, len(classes))
    return len(classes)


def add_coco_instances(
    name: str, metadata: dict[str, Any], json_file: str, image_root: str
) -> None:
    """Register a data set as Detectron2 does; its objects keep their annotated points."""
    DatasetCatalog.register(
        name, lambda: load_coco_json(json_file, image_root, name, [*POINT_FIELDS])
    )
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )


def keypoint_metadata(categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the names of the keypoints, and the pairs that a mirror image exchanges.

    Args:
        categories: Of a COCO file, some of them with the names of their "keypoints".

    Returns:
        Detectron2's metadata; empty without names, or if two categories have different ones.
    """
    named = [category["keypoints"] for category in categories if category.get("keypoints")]
    if not named or not all(names == named[0] for names in named):
        return {}
    names = named[0]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return {}
    pairs = [
        (name, mirrored)
        for name in names
        if "left" in name and (mirrored := name.replace("left", "right")) in names
    ]
    return {"keypoint_names": names, "keypoint_flip_map": pairs}


def crowd_flag(value: Any) -> int | None:
    """Return the "iscrowd" that a value means, 0 or 1; None if it means neither."""
    if value is None or (
        isinstance(value, int | float | np.bool_ | np.integer) and value in (0, 1)
    ):
        return int(value or 0)
    return int(value) if isinstance(value, str) and value in ("0", "1") else None


def repair_fields(annotations: Iterable[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Make "iscrowd" 0 or 1, and remove every "area" that is not a number of 0 or more, in place.

    Readers compute the missing area from the mask, or from the box if there is none.

    Args:
        annotations: As :func:`read_coco` accepts them, or those of another loader.

    Returns:
        The values that were replaced or removed, counted by field; true and false are no others.
    """
    found: dict[str, Counter[str]] = {"iscrowd": Counter(), "area": Counter()}
    for annotation in annotations:
        flag = annotation.get("iscrowd", 0)
        if type(flag) is not int:
            if not isinstance(flag, bool | np.bool_ | np.integer):
                found["iscrowd"][shown(flag)] += 1
            annotation["iscrowd"] = crowd_flag(flag)
        if "area" in annotation and not is_area(annotation["area"]):
            found["area"][_kind(annotation.pop("area"))] += 1
    return found


def is_area(value: Any) -> bool:
    """Return whether a value is a number of 0 or more pixels."""
    return type(value) in (int, float) and 0 <= value <= MAX_AREA


def _kind(value: Any) -> str:
    """Name the kind of a value that is not an area."""
    if type(value) in (int, float):
        return "negative" if value < 0 else "not finite or absurd"
    return {str: "text", list: "a list", dict: "an object", bool: "true or false"}.get(
        type(value), "null"
    )


def check_file_names(where: str, names: Iterable[str], root: str | os.PathLike[str]) -> None:
    """Refuse images outside their folder; links within it may lead anywhere.

    Args:
        where: The annotation file, for the message.
        names: File names of the images, absolute or relative to their folder.
        root: The folder.

    Raises:
        ValueError: If one is elsewhere, or has `..`, which leads elsewhere after a link.
    """
    prefix = os.path.join(os.path.abspath(root), "")
    outside = [
        name
        for name in names
        if ".." in name.replace(os.sep, "/").split("/")
        or (os.path.isabs(name) and not name.startswith(prefix))
    ]
    if outside:
        others = f" and {len(outside) - 1} others" if len(outside) > 1 else ""
        raise ValueError(
            f"{where}: the annotations name the image {shown(outside[0])}{others}: expected a file "
            f"in the image folder {root}, without '..'"
        )


def _read_json(json_file: str) -> Any:
    try:
        path = PathManager.get_local_path(json_file)
        return read_json(path, what="annotation file", max_bytes=MAX_DATA_SET_BYTES)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"annotation file {json_file} does not exist") from error
    except OSError as error:
        raise OSError(f"annotation file {json_file} cannot be read: {error}") from error


def _index(
    json_file: str, kind: str, records: list[Any], fields: dict[str, Any]
) -> dict[int | str, dict[str, Any]]:
    """Check the fields of records and index them by their ids."""
    by_id: dict[int | str, dict[str, Any]] = {}
    for position, record in enumerate(records):
        for field, types in fields.items():
            value = record.get(field) if isinstance(record, dict) else None
            if not isinstance(value, types) or isinstance(value, bool):
                expected = types if isinstance(types, tuple) else (types,)
                raise ValueError(
                    f"{json_file}: {kind} at position {position} needs a valid {field!r} "
                    f"({' or '.join(x.__name__ for x in expected)}), got {shown(record)}"
                )
        identity = record["id"]
        if isinstance(identity, int) and not -MAX_ID <= identity <= MAX_ID:
            raise ValueError(
                f"{json_file}: {kind} at position {position} has the id {shown(identity)}, "
                f"expected at most {MAX_ID}"
            )
        if identity in by_id:
            raise ValueError(f"{json_file}: {kind} id {shown(identity)} is given twice")
        by_id[identity] = record
    return by_id


def _check_references(
    json_file: str, annotations: list[Any], kind: str, known: dict[int | str, Any]
) -> None:
    field = f"{kind}_id"
    lost = [annotation for annotation in annotations if annotation[field] not in known]
    if lost:
        raise ValueError(
            f"{json_file}: annotation {shown(lost[0]['id'])} refers to {kind} "
            f"{shown(lost[0][field])}, which the file does not have; so do {len(lost) - 1} more "
            "annotations"
        )


def _check_name(json_file: str, where: str, name: str) -> None:
    """Refuse names that cannot be printed or written, or are longer than any path."""
    if len(name) > MAX_NAME:
        raise ValueError(
            f"{json_file}: {where} has a name of {len(name)} characters, expected at most "
            f"{MAX_NAME}"
        )
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"{json_file}: {where} has the name {shown(name)}, which is not valid Unicode"
        ) from None


def _check_annotation(json_file: str, annotation: dict[str, Any]) -> None:
    """Refuse what no reader of COCO files can interpret; the geometry is not checked."""
    bbox, keypoints = annotation["bbox"], annotation.get("keypoints")
    mask = annotation.get("segmentation")
    fault = None
    if len(bbox) != 4 or not _are_coordinates(bbox):
        fault = f"bbox must be 4 numbers (x, y, width, height), got {shown(bbox)}"
    elif annotation.get("ignore", 0) != 0:
        fault = "Detectron2 has no flag 'ignore'; use 'iscrowd'"
    elif crowd_flag(annotation.get("iscrowd", 0)) is None:
        fault = f"iscrowd must be 0 or 1, got {shown(annotation['iscrowd'])}"
    elif keypoints is not None and not (
        isinstance(keypoints, list) and len(keypoints) % 3 == 0 and _are_coordinates(keypoints)
    ):
        fault = f"keypoints must be numbers, 3 for each point, got {shown(keypoints)}"
    elif isinstance(mask, dict):
        fault = form_fault(mask)
    elif mask is not None and not (
        isinstance(mask, list) and all(isinstance(polygon, list) for polygon in mask)
    ):
        fault = f"segmentation must be polygons or an RLE, got {shown(mask)}"
    if fault:
        raise ValueError(
            f"{json_file}: annotation {shown(annotation['id'])} of image "
            f"{shown(annotation['image_id'])}: {fault}"
        )


def _are_coordinates(values: Sequence[Any]) -> bool:
    """Return whether all values are numbers of pixels; NaN is none."""
    return {*map(type, values)} <= {int, float} and all(
        -MAX_COORDINATE <= value <= MAX_COORDINATE for value in values
    )


def _same_path(first: str | None, second: str) -> bool:
    return first is not None and os.path.realpath(first) == os.path.realpath(second)
