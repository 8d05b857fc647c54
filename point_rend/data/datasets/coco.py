"""COCO-format annotation files: reading them with all references checked, and registering."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from point_rend.data.datasets.coco_checks import MAX_AREA, check_coco, crowd_flag
from point_rend.data.datasets.keypoints import keypoint_metadata
from point_rend.data.datasets.packed_coco import CocoLoader, naming_errors
from point_rend.utils.json_files import MAX_DATA_SET_BYTES, read_json, shown

logger = logging.getLogger(__name__)


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


def read_panoptic(json_file: str) -> dict[str, Any]:
    """Read a file in COCO's panoptic format whose segments are compared with others.

    Returns:
        The content; "iscrowd" of the segments is 0 or 1.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: As :func:`check_panoptic_file`, or if a category or a segment is incomplete or
            given twice.
    """
    content = check_panoptic_file(json_file, numbered=False)
    categories = content.get("categories")
    if not isinstance(categories, list) or not all(
        isinstance(x, dict)
        and type(x.get("id")) is int
        and isinstance(x.get("name"), str)
        and x.get("isthing") in (0, 1)
        for x in categories
    ):
        raise ValueError(
            f"{json_file}: expected 'categories', each with an id, a name and isthing 0 or 1"
        )
    known = {x["id"] for x in categories}
    if len(known) < len(categories):
        raise ValueError(f"{json_file}: two categories have one id")
    images: set[str] = set()
    for annotation in content["annotations"]:
        where = f"{json_file}: image {shown(annotation['image_id'])}"
        if str(annotation["image_id"]) in images:
            raise ValueError(f"{where} is given twice")
        images.add(str(annotation["image_id"]))
        if not is_within(annotation["file_name"]):
            raise ValueError(
                f"{where}: its labels are {shown(annotation['file_name'])}, expected a file within "
                "the folder of the labels"
            )
        ids: set[int] = set()
        for segment in annotation["segments_info"]:
            identity, crowd = segment.get("id"), crowd_flag(segment.get("iscrowd", 0))
            if type(identity) is not int or not 0 < identity < 256**3 or crowd is None:
                raise ValueError(
                    f"{where}: segment {shown(segment)} needs an id from 1 to {256**3 - 1}, and "
                    "iscrowd 0 or 1"
                )
            if identity in ids or segment["category_id"] not in known:
                reason = "is given twice" if identity in ids else "has an unknown category"
                raise ValueError(f"{where}: segment {identity} {reason}")
            ids.add(identity)
            segment["iscrowd"] = crowd
    return content


def is_within(name: str) -> bool:
    """Return whether the path of a file is relative and has no `..`."""
    return not os.path.isabs(name) and ".." not in name.replace(os.sep, "/").split("/")


def check_panoptic_file(json_file: str, *, numbered: bool = True) -> dict[str, Any]:
    """Refuse a file that is not in COCO's panoptic format, before Detectron2 reads it.

    Args:
        json_file: Path of the file.
        numbered: Whether the ids of its images have to be numbers, as Detectron2 needs those of
            COCO; those of Cityscapes are names.

    Returns:
        Its content.

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
            not (type(identity) is int or isinstance(identity, str))
            or (numbered and isinstance(identity, str) and not identity.isdecimal())
            or not isinstance(known.get("file_name"), str)
            or not isinstance(segments, list)
            or not all(isinstance(x, dict) and type(x.get("category_id")) is int for x in segments)
        ):
            digits = " of digits" if numbered else ""
            raise ValueError(
                f"{json_file}: annotation at position {position} needs an image_id{digits}, a "
                f"file_name and segments_info, each with a category_id; got {shown(record)}"
            )
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
    loader = CocoLoader(name, json_file, image_root)
    categories = sorted(loader.content().categories, key=lambda category: category["id"])
    classes = [category["name"] for category in categories]
    metadata = {"thing_classes": classes} | keypoint_metadata(categories)
    add_coco_instances(loader, metadata)
    logger.info("registered %s: %s, %d classes", name, json_file, len(classes))
    return len(classes)


def add_coco_instances(loader: CocoLoader, metadata: dict[str, Any]) -> None:
    """Register a data set as Detectron2 does; its objects keep their annotated points."""
    DatasetCatalog.register(loader.name, loader)
    MetadataCatalog.get(loader.name).set(
        json_file=loader.json_file,
        image_root=loader.image_root,
        evaluator_type="coco",
        **metadata,
    )


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


def is_repaired(annotation: Mapping[str, Any]) -> bool:
    """Return whether :func:`repair_fields` leaves an annotation as it is."""
    has_area = "area" not in annotation or is_area(annotation["area"])
    return has_area and type(annotation.get("iscrowd", 0)) is int


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
    with naming_errors(json_file):
        path = PathManager.get_local_path(json_file)
        return read_json(path, what="annotation file", max_bytes=MAX_DATA_SET_BYTES)


def _same_path(first: str | None, second: str) -> bool:
    return first is not None and os.path.realpath(first) == os.path.realpath(second)
