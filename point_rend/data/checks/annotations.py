"""Checks of a data set before a run: complete images and usable annotations.

Detectron2 meets most of these errors in the middle of a training, or drops annotations silently.
An annotation is a dict as in a COCO file; one that Detectron2 has loaded also has a "bbox_mode".
"""

import copy
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from point_rend.data.checks.image_files import Annotation, ImageRecord, check_image_files, shortlist
from point_rend.data.checks.rle import Fault, rle_fault
from point_rend.data.datasets.classes import describe
from point_rend.data.datasets.coco import read_coco
from point_rend.data.datasets.loading import load_records

logger = logging.getLogger(__name__)


class Usable(NamedTuple):
    """Result of a check.

    Attributes:
        annotations: Number of usable annotations, without crowds.
        faults: Number of annotations that are impossible, entirely or in part.
    """

    annotations: int
    faults: int


def check_datasets(
    train: Sequence[str], test: Sequence[str], *, masks: bool, skip_broken_images: bool = False
) -> tuple[str, ...]:
    """Check all data sets of a run.

    Args:
        train: Registered names of the training sets; may be empty.
        test: Registered names of the sets that are evaluated.
        masks: Whether the annotations need masks.
        skip_broken_images: Whether the training skips unusable images.

    Returns:
        The training sets with impossible annotations, which have to be removed.

    Raises:
        FileNotFoundError: As `check_dataset`.
        ValueError: As `check_dataset`, or if there is nothing to train on.
    """
    for name in dict.fromkeys(test):
        check_dataset(name, training=False, masks=masks)
    found = {
        name: check_dataset(name, training=True, masks=masks, skip_broken_images=skip_broken_images)
        for name in dict.fromkeys(train)
    }
    if found and not any(usable.annotations for usable in found.values()):
        raise ValueError("no annotation is left to train on in " + ", ".join(map(describe, found)))
    return tuple(name for name, usable in found.items() if usable.faults)


def check_dataset(
    name: str, *, training: bool, masks: bool, skip_broken_images: bool = False
) -> Usable:
    """Check the images and annotations of a registered data set before a run.

    A warning names impossible annotations. A training removes them (see
    `leave_out_impossible_annotations`). An evaluation keeps them, so that its AP is comparable;
    annotations that it cannot read are an error.

    Args:
        name: Registered name.
        training: Whether the set is for training rather than for evaluation.
        masks: Whether the annotations need masks.
        skip_broken_images: Whether unusable images only cause a warning.

    Returns:
        The numbers of usable and impossible annotations.

    Raises:
        FileNotFoundError: If images or the annotation file are missing.
        ValueError: If images are truncated or differ in size from their record, if the annotation
            file is invalid, or if a broken annotation cannot be removed.
    """
    images = _load_images(name)
    check_image_files(name, images, skip_broken=skip_broken_images)

    usable, impossible, fatal = 0, [], []
    for image in images:
        for position, annotation in enumerate(image.annotations):
            label = annotation.get("id", f"at position {position}")
            where = f"annotation {label} of image {image.image_id} ({image.file_name})"
            remainder, reasons = clean_annotation(annotation, image.height, image.width, masks)
            if remainder is not None and not annotation.get("iscrowd", 0):
                usable += 1
            if reasons:
                impossible.append(f"{where}: {'; '.join(reason.text for reason in reasons)}")
                if any(reason.fatal for reason in reasons):
                    fatal.append(impossible[-1])

    if fatal and not training:
        raise ValueError(
            f"{describe(name)} cannot be evaluated: {len(fatal)} annotations are broken"
            + shortlist(fatal)
        )
    if fatal and _evaluator_type(name) == "lvis":
        raise ValueError(
            f"{describe(name)} cannot be loaded: {len(fatal)} annotations are broken"
            + shortlist(fatal)
        )
    if impossible:
        outcome = "left out, wholly or in part" if training else "kept for the evaluation"
        logger.warning(
            "%s: %d annotations are impossible and are %s%s",
            describe(name),
            len(impossible),
            outcome,
            shortlist(impossible),
        )
    return Usable(usable, len(impossible))


def leave_out_impossible_annotations(name: str, *, masks: bool) -> None:
    """Remove impossible annotations from a registered data set whenever it is loaded.

    Args:
        name: Registered name.
        masks: Whether the annotations need masks.
    """
    load: Callable[[], list[dict[str, Any]]] = DatasetCatalog[name]

    def load_clean() -> list[dict[str, Any]]:
        records = load()
        for record in records:
            sides = record.get("height"), record.get("width")
            cleaned = (
                clean_annotation(annotation, *sides, masks)[0]
                for annotation in record.get("annotations", [])
            )
            record["annotations"] = [annotation for annotation in cleaned if annotation is not None]
        return records

    DatasetCatalog[name] = load_clean


def clean_annotation(
    annotation: Annotation, height: int | None, width: int | None, masks: bool
) -> tuple[Annotation | None, list[Fault]]:
    """Remove the impossible parts of an annotation.

    Args:
        annotation: One object, with "bbox" and, if `masks`, "segmentation".
        height: Height of the image in pixels, if known.
        width: Width of the image in pixels, if known.
        masks: Whether a mask is needed.

    Returns:
        The annotation with its usable parts, or None; and the faults of the others.
    """
    first, second, third, fourth = annotation["bbox"]
    if annotation.get("bbox_mode", BoxMode.XYWH_ABS) == BoxMode.XYXY_ABS:
        third, fourth = third - first, fourth - second
    empty = not (third > 0 and fourth > 0)
    reasons = [Fault(f"bbox of size {third} x {fourth}", fatal=False)] if empty else []
    remainder, of_mask = _clean_mask(annotation, height, width) if masks else (annotation, [])
    return None if empty else remainder, reasons + of_mask


def _clean_mask(
    annotation: Annotation, height: int | None, width: int | None
) -> tuple[Annotation | None, list[Fault]]:
    """Do the same as :func:`clean_annotation` for the mask alone."""
    mask = annotation.get("segmentation")
    if not mask:
        return None, [Fault("no segmentation")]
    if isinstance(mask, dict):
        reason = rle_fault(mask, height, width)
        return (None, [reason]) if reason else (annotation, [])

    faults = [_polygon_fault(polygon) for polygon in mask]
    reasons = [
        Fault(f"polygon {number} of {len(mask)} {fault}")
        for number, fault in enumerate(faults, start=1)
        if fault
    ]
    possible = [polygon for polygon, fault in zip(mask, faults, strict=True) if not fault]
    if not possible:
        return None, reasons
    if all(_polygon_area(polygon) == 0 for polygon in possible):
        return None, [*reasons, Fault("polygons of area 0", fatal=False)]
    return (annotation | {"segmentation": possible} if reasons else annotation), reasons


def _load_images(name: str) -> list[ImageRecord]:
    """Return the images of a data set with all their annotations, also those that loading drops."""
    metadata = MetadataCatalog.get(name)
    if _evaluator_type(name) == "coco" and metadata.get("json_file"):
        return _images_of_json(read_coco(metadata.json_file), metadata.image_root)
    if _evaluator_type(name) == "lvis":
        content = read_coco(metadata.json_file, image_name="coco_url")
        for image in content["images"]:
            # Detectron2 takes the last folder and the name from the address.
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
        return _images_of_json(content, metadata.image_root)

    # Any other loader, such as that of Cityscapes, may take minutes: it runs once.
    loaded = load_records(name)
    DatasetCatalog[name] = lambda: copy.deepcopy(loaded)
    return [
        ImageRecord(
            record["file_name"],
            record.get("image_id", position),
            record.get("height"),
            record.get("width"),
            record.get("annotations", []),
        )
        for position, record in enumerate(loaded)
    ]


def _images_of_json(content: dict[str, Any], image_root: str) -> list[ImageRecord]:
    annotations: dict[int | str, list[Annotation]] = {
        image["id"]: [] for image in content["images"]
    }
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    return [
        ImageRecord(
            os.path.join(image_root, image["file_name"]),
            image["id"],
            image["height"],
            image["width"],
            annotations[image["id"]],
        )
        for image in content["images"]
    ]


def _evaluator_type(name: str) -> str | None:
    return MetadataCatalog.get(name).get("evaluator_type")


def _polygon_fault(polygon: Sequence[float]) -> str | None:
    if len(polygon) % 2 or len(polygon) < 6:
        return f"has {len(polygon)} numbers, a polygon needs an even count of 6 or more"
    try:
        finite = np.isfinite(np.asarray(polygon, dtype=np.float64)).all()
    except (TypeError, ValueError):
        return "has coordinates that are not numbers"
    return None if finite else "has coordinates that are not finite"


def _polygon_area(polygon: Sequence[float]) -> float:
    """Compute the area by the shoelace formula, with the first corner as the origin."""
    corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    x, y = (corners[1:] - corners[0]).T
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2
