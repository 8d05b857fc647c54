"""Checks of a data set before a run: complete images and usable annotations.

Detectron2 meets most of these errors in the middle of a training, or drops annotations silently.
An annotation is a dict as in a COCO file; one that Detectron2 has loaded also has a "bbox_mode".
"""

import copy
import functools
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from point_rend.data.checks.boxes import (
    SHARES,
    Comparison,
    beyond_images,
    compare_boxes,
    seem_shares,
)
from point_rend.data.checks.image_files import Annotation, ImageRecord, check_image_files, shortlist
from point_rend.data.checks.masks import Mask, measure_masks
from point_rend.data.checks.points import FIELDS as POINT_FIELDS
from point_rend.data.checks.points import is_far_outside, usable_points
from point_rend.data.checks.rle import Fault, Size
from point_rend.data.datasets.classes import describe
from point_rend.data.datasets.coco import (
    check_file_names,
    check_panoptic_file,
    read_coco,
    repair_fields,
)
from point_rend.data.datasets.cocofied_lvis import read_lvis
from point_rend.data.datasets.loading import load_records
from point_rend.utils.json_files import shown
from point_rend.utils.pixel_format import PLAIN, PixelFormat

logger = logging.getLogger(__name__)
SMALLEST_COMPARED = 4.0  # pixels of a mask
AREA_RATIO = 4  # between the area of an annotation and that of its mask
FILE_FIELDS = {  # of the records of any data set, with the metadata of their folders
    "file_name": "image_root",
    "sem_seg_file_name": "sem_seg_root",
    "pan_seg_file_name": "panoptic_root",
}


class Usable(NamedTuple):
    """Result of a check.

    Attributes:
        annotations: Number of usable annotations, without crowds.
        faults: Number of annotations that are impossible, entirely or in part.
        repaired: Number of annotations with fields that readers expect in another form.
        crowds: Number of crowds.
    """

    annotations: int
    faults: int
    repaired: int = 0
    crowds: int = 0


class DataSet(NamedTuple):
    """The content of a data set.

    Attributes:
        images: With all their annotations.
        categories: In COCO's form; empty if they are unknown.
    """

    images: list[ImageRecord]
    categories: Sequence[Mapping[str, Any]] = ()


def check_datasets(
    train: Sequence[str],
    test: Sequence[str],
    *,
    masks: bool,
    points: bool = False,
    keypoints: int = 0,
    skip_broken_images: bool = False,
    pixel_format: PixelFormat = PLAIN,
    test_losses: bool = False,
) -> tuple[str, ...]:
    """Check all data sets of a run.

    Args:
        train: Registered names of the training sets; may be empty.
        test: Registered names of the sets that are evaluated.
        masks: Whether the annotations need masks.
        points: Whether those of the training sets need annotated points in their place.
        keypoints: Number of keypoints that they need.
        skip_broken_images: Whether the training skips unusable images.
        pixel_format: Pixels that the model expects.
        test_losses: Whether the losses on the evaluated sets are computed.

    Returns:
        The training sets, and those whose losses are computed, with annotations that have to be
        removed or repaired.

    Raises:
        FileNotFoundError: As `check_dataset`.
        ValueError: As `check_dataset`, or if there is nothing to train on or for a loss.
    """
    evaluated = {
        name: check_dataset(
            name, training=False, masks=masks, keypoints=keypoints, pixel_format=pixel_format
        )
        for name in dict.fromkeys(test)
    }
    with_losses = evaluated if test_losses else {}
    for name, usable in with_losses.items():
        if not usable.annotations:
            raise ValueError(
                f"TEST.VALIDATION_LOSS is True, but {describe(name)} has no annotation of which a "
                "loss could be computed"
            )
    found = {
        name: check_dataset(
            name,
            training=True,
            masks=masks and not points,
            points=points,
            keypoints=keypoints,
            skip_broken_images=skip_broken_images,
            pixel_format=pixel_format,
        )
        for name in dict.fromkeys(train)
    }
    if found and not any(usable.annotations for usable in found.values()):
        crowds, faults = (sum(x) for x in list(zip(*found.values(), strict=True))[3:0:-2])
        reasons = [
            f"{crowds} annotations are crowds (iscrowd 1), which are not trained on: set iscrowd 0 "
            "if each is one object"
        ] * bool(crowds) + [f"{faults} are impossible"] * bool(faults)
        raise ValueError(
            "no annotation is left to train on in "
            + ", ".join(map(describe, found))
            + "".join(f"; {reason}" for reason in reasons or ["the images have no annotations"])
        )
    return tuple(
        name for name, usable in (with_losses | found).items() if usable.faults or usable.repaired
    )


def check_dataset(
    name: str,
    *,
    training: bool,
    masks: bool,
    points: bool = False,
    keypoints: int = 0,
    skip_broken_images: bool = False,
    pixel_format: PixelFormat = PLAIN,
) -> Usable:
    """Check the images and annotations of a registered data set before a run.

    A warning names impossible annotations. A training removes them (see
    `leave_out_impossible_annotations`). An evaluation keeps them, so that its AP is comparable;
    annotations that it cannot read are an error. Boxes in another format are always an error, if
    they are most boxes of the set.

    Args:
        name: Registered name.
        training: Whether the set is for training rather than for evaluation.
        masks: Whether the annotations need masks.
        points: Whether they need annotated points.
        keypoints: Number of keypoints that they need.
        skip_broken_images: Whether unusable images only cause a warning.
        pixel_format: Pixels that the model expects.

    Returns:
        The numbers of usable, impossible and other annotations.

    Raises:
        FileNotFoundError: If images or the annotation file are missing.
        ValueError: If images are truncated or differ in size from their record, if a file name
            leaves the folder of the images, if the annotation file is invalid, or if a broken
            annotation cannot be removed.
    """
    data = load_data_set(name)
    check_image_files(name, data.images, skip_broken=skip_broken_images, pixel_format=pixel_format)
    where = describe(name)
    if training:
        _warn_of_repeated_images(where, data.images)
    if keypoints:
        _check_keypoints(name, data, keypoints)
    if points:
        _check_points(name, data)
    found = examine(data, masks=masks, points=points)
    json_file = MetadataCatalog.get(name).get("json_file")
    if json_file and not training and _evaluator_type(name) == "coco_panoptic_seg":
        check_ground_truth(json_file, read_coco(json_file), masks=masks)
    if found.fatal and not training:
        raise ValueError(
            f"{where} cannot be evaluated: {len(found.fatal)} annotations are broken"
            + shortlist(found.fatal)
        )
    if found.fatal and _evaluator_type(name) == "lvis":
        raise ValueError(
            f"{where} cannot be loaded: {len(found.fatal)} annotations are broken"
            + shortlist(found.fatal)
        )
    if found.other_format:
        raise ValueError(f"{where}: {found.other_format}")
    if found.impossible:
        outcome = "left out, wholly or in part" if training else "kept for the evaluation"
        logger.warning(
            "%s: %d annotations are impossible and are %s%s",
            where,
            len(found.impossible),
            outcome,
            shortlist(found.impossible),
        )
    for warning in found.warnings:
        warn_once(f"{where}: {warning}")
    if training and found.usable.crowds:
        crowds, total = found.usable.crowds, found.total
        say = logger.warning if 2 * crowds >= total else logger.info
        say(
            "%s: %d of %d annotations are crowds (iscrowd 1), which are not trained on",
            where,
            crowds,
            total,
        )
    if not training and not found.total:
        logger.warning("%s has no annotations: its AP is undefined", where)
    return found.usable


def check_ground_truth(
    json_file: str | os.PathLike[str], content: Mapping[str, Any], *, masks: bool = True
) -> None:
    """Check the annotations of a file before results are compared with them; repair their fields.

    Args:
        json_file: The file, for messages.
        content: Its content, as `read_coco` returns it; "iscrowd" and "area" are repaired in place.
        masks: Whether masks are compared rather than boxes.

    Raises:
        ValueError: If there are no annotations, if one has no mask where it is needed or one that
            cannot be read, or if boxes are compared that are in another format.
    """
    if not content["annotations"]:
        raise ValueError(
            f"{json_file} has no annotations: expected ground truth to compare the results with"
        )
    found = examine(_of_content(content), masks=masks)
    if found.fatal:
        raise ValueError(
            f"{json_file}: {len(found.fatal)} annotations cannot be compared with results"
            + shortlist(found.fatal)
        )
    if found.other_format and not masks:
        raise ValueError(f"{json_file}: {found.other_format}")
    empty = [f"{len(found.impossible)} annotations are impossible" + shortlist(found.impossible)]
    for warning in (
        *(empty if found.impossible else ()),
        *([found.other_format] if found.other_format else ()),
        *found.warnings,
    ):
        warn_once(f"{json_file}: {warning}")


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, unless the same one was logged before."""
    logger.warning(message)


def leave_out_impossible_annotations(name: str, *, masks: bool, points: bool = False) -> None:
    """Remove impossible annotations from a registered data set whenever it is loaded.

    Args:
        name: Registered name.
        masks: Whether the annotations need masks.
        points: Whether they need annotated points.
    """
    load: Callable[[], list[dict[str, Any]]] = DatasetCatalog[name]

    def load_clean() -> list[dict[str, Any]]:
        records = load()
        annotations = [x for record in records for x in record.get("annotations", [])]
        sizes = [
            _size(ImageRecord("", "", record.get("height"), record.get("width"), ()))
            for record in records
            for _ in record.get("annotations", [])
        ]
        repair_fields(annotations)
        cleaned = clean_annotations(annotations, sizes, masks=masks, points=points)
        for record in records:
            of_record = itertools.islice(cleaned, len(record.get("annotations", [])))
            record["annotations"] = [x.annotation for x in of_record if x.annotation is not None]
        return records

    DatasetCatalog[name] = load_clean


class Cleaned(NamedTuple):
    """An annotation after the check.

    Attributes:
        annotation: Its usable parts, or None.
        faults: Of the other parts.
        mask: Its mask, usable or not.
    """

    annotation: Annotation | None
    faults: list[Fault]
    mask: Mask


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
    size = None if height is None or width is None else (height, width)
    (cleaned,) = clean_annotations([annotation], [size], masks=masks)
    return cleaned.annotation, cleaned.faults


def clean_annotations(
    annotations: Sequence[Annotation],
    sizes: Sequence[Size | None],
    *,
    masks: bool,
    points: bool = False,
) -> Iterator[Cleaned]:
    """Remove the impossible parts of many annotations; see :func:`clean_annotation`."""
    measured = measure_masks([x.get("segmentation") for x in annotations], sizes)
    for annotation, size, mask in zip(annotations, sizes, measured, strict=True):
        faults = _box_faults(annotation, size)
        remainder = None if faults else annotation
        if masks:
            faults += mask.faults
            if mask.usable is None:
                remainder = None
            elif mask.faults and remainder is not None:
                remainder = annotation | {"segmentation": mask.usable}
        if points and not annotation.get("iscrowd", 0):
            fields, faults_of_points = usable_points(annotation, size)
            faults += faults_of_points
            if fields is None:
                remainder = None
            elif faults_of_points and remainder is not None:
                remainder = remainder | fields
        yield Cleaned(remainder, faults, mask)


def _box_faults(annotation: Annotation, size: Size | None) -> list[Fault]:
    x, y, third, fourth = annotation["bbox"]
    if annotation.get("bbox_mode", BoxMode.XYWH_ABS) == BoxMode.XYXY_ABS:
        third, fourth = third - x, fourth - y
    if not (third > 0 and fourth > 0):
        return [Fault(f"bbox of size {third} x {fourth}", fatal=False)]
    if size and not (x < size[1] and y < size[0] and x + third > 0 and y + fourth > 0):
        text = f"bbox outside its image of {size[1]} x {size[0]} pixels"
        return [Fault(text, fatal=False)]
    return []


class Findings(NamedTuple):
    """Everything that was found in a data set, in words.

    Attributes:
        usable: Numbers of annotations.
        total: Number of all annotations.
        impossible: Annotations that are impossible, wholly or in part.
        fatal: Those among them that cannot be read.
        warnings: Doubtful properties of the whole set.
        other_format: The reason why the boxes seem to be in another format, if they do.
    """

    usable: Usable
    total: int
    impossible: list[str]
    fatal: list[str]
    warnings: list[str]
    other_format: str | None


def examine(
    data: DataSet,
    *,
    masks: bool,
    points: bool = False,
    observe: Callable[[Annotation, Cleaned], None] | None = None,
) -> Findings:
    """Check all annotations; repair the fields of those from a file, in place.

    Args:
        data: The data set.
        masks: Whether the annotations need masks.
        points: Whether they need annotated points.
        observe: Receives each annotation and its result, in the order of the images.
    """
    owners = [image for image in data.images for _ in image.annotations]
    annotations = [annotation for image in data.images for annotation in image.annotations]
    sizes = [_size(image) for image in owners]
    places = [place for image in data.images for place in range(len(image.annotations))]

    def where(number: int) -> str:
        image = owners[number]
        label = annotations[number].get("id", f"at position {places[number]}")
        return f"annotation {label} of image {image.image_id} ({image.file_name})"

    replaced = repair_fields(annotations)
    crowds = sum(bool(annotation.get("iscrowd", 0)) for annotation in annotations)
    usable, impossible, fatal, holes, astray = 0, [], [], [], []
    compared: list[int] = []
    alone: list[int] = []  # without a mask
    boxes: list[Sequence[float]] = []
    areas: list[float] = []
    for number, cleaned in enumerate(
        clean_annotations(annotations, sizes, masks=masks, points=points)
    ):
        is_crowd = annotations[number].get("iscrowd", 0)
        if not masks and _is_dropped(annotations[number].get("segmentation")):
            fault = Fault("no polygon of 6 or more numbers: its box is not loaded", fatal=False)
            cleaned = Cleaned(None, [*cleaned.faults, fault], cleaned.mask)
        if observe is not None:
            observe(annotations[number], cleaned)
        if cleaned.annotation is not None and not is_crowd:
            usable += 1
            if points and is_far_outside(cleaned.annotation, _absolute_box(cleaned.annotation)):
                astray.append(where(number))
        if cleaned.faults:
            texts = "; ".join(fault.text for fault in cleaned.faults)
            impossible.append(f"{where(number)}: {texts}")
            if any(fault.fatal for fault in cleaned.faults):
                fatal.append(impossible[-1])
        if cleaned.mask.box is not None and not is_crowd:
            if cleaned.mask.has_hole:
                holes.append(where(number))
            if cleaned.annotation is not None:
                compared.append(number)
                boxes.append(cleaned.mask.box)
                areas.append(cleaned.mask.area)
        elif cleaned.annotation is not None and not is_crowd:
            alone.append(number)

    warnings = list(_warnings_of_fields(replaced, len(annotations)))
    if holes and masks:
        warnings.append(
            f"{len(holes)} annotations have a polygon within another one, which COCO fills: a hole "
            "needs an RLE" + shortlist(holes)
        )
    if astray:
        warnings.append(
            f"{len(astray)} annotations have points outside of their box, which train only where "
            "proposals include them" + shortlist(astray)
        )
    warnings += _warnings_of_areas(annotations, compared, areas, where)
    warnings += _warnings_of_names(data.categories, annotations)
    other_format = None
    if alone:
        found = _absolute_boxes([annotations[x] for x in alone])
        sides = _sides([sizes[x] for x in alone])
        beyond = [alone[x] for x in beyond_images(found, sides)]
        if seem_shares(found, sides):
            other_format = (
                f"the {len(alone)} boxes without a mask seem to be {SHARES}: expected x, y, width, "
                f"height in pixels, got {shown(list(annotations[alone[0]]['bbox']))} for "
                f"{where(alone[0])}"
            )
        elif beyond:
            warnings.append(
                f"{len(beyond)} of {len(alone)} boxes without a mask reach beyond their images: "
                "expected x, y, width, height; are they corners?"
                + shortlist(
                    [f"{where(x)}, bbox {shown(list(annotations[x]['bbox']))}" for x in beyond]
                )
            )
    if compared and seem_shares(np.array(boxes), _sides([sizes[x] for x in compared])):
        other_format = (
            f"the coordinates of all {len(compared)} masks seem to be {SHARES}: expected pixels, "
            f"got a mask of x0, y0, x1, y1 {shown(list(boxes[0]))} for {where(compared[0])}"
        )
    elif compared:
        comparison = _compare(
            [annotations[x] for x in compared], boxes, [sizes[x] for x in compared]
        )
        other_format = comparison.suspected and (
            f"{comparison.fitting} of {len(compared)} boxes seem to be {comparison.suspected}, "
            "compared with their masks: expected x, y, width, height in pixels, such as "
            f"{shown(_as_box(boxes[0]))} for {where(compared[0])}, got "
            f"{shown(list(annotations[compared[0]]['bbox']))}"
        )
        differing = [
            f"{where(compared[k])}, bbox {shown(list(annotations[compared[k]]['bbox']))}, of the "
            f"mask {shown(_as_box(boxes[k]))}"
            for k in np.flatnonzero(comparison.differs)
        ]
        if differing and not other_format:
            warnings.append(
                f"{len(differing)} of {len(compared)} boxes differ from those of their masks"
                + shortlist(differing)
            )
    repaired = replaced["iscrowd"].total()
    return Findings(
        Usable(usable, len(impossible), repaired, crowds),
        len(annotations),
        impossible,
        fatal,
        warnings,
        other_format,
    )


def _is_dropped(segmentation: Any) -> bool:
    """Return whether Detectron2's loader drops an object for its polygons, with its box."""
    return (
        isinstance(segmentation, list)
        and bool(segmentation)
        and not any(len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in segmentation)
    )


def _size(image: ImageRecord) -> Size | None:
    known = image.height is not None and image.width is not None
    return (image.height, image.width) if known else None  # type: ignore[return-value]


def _as_box(corners: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = corners
    return [round(x, 1) for x in (x0, y0, x1 - x0, y1 - y0)]


def _compare(
    annotations: Sequence[Annotation],
    of_masks: Sequence[Sequence[float]],
    sizes: Sequence[Size | None],
) -> Comparison:
    return compare_boxes(_absolute_boxes(annotations), np.array(of_masks), _sides(sizes))


def _absolute_box(annotation: Annotation) -> tuple[float, float, float, float]:
    x, y, width, height = _absolute_boxes([annotation])[0].tolist()
    return x, y, width, height


def _absolute_boxes(annotations: Sequence[Annotation]) -> np.ndarray:
    """Return the boxes (N, 4) as x, y, width, height."""
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
    modes = np.array(
        [x.get("bbox_mode", BoxMode.XYWH_ABS) == BoxMode.XYXY_ABS for x in annotations]
    )
    boxes[modes, 2:] -= boxes[modes, :2]
    return boxes


def _sides(sizes: Sequence[Size | None]) -> np.ndarray:
    """Return the width and height of images (N, 2), NaN if unknown."""
    return np.array([size[::-1] if size else (np.nan, np.nan) for size in sizes], dtype=np.float64)


def _warnings_of_fields(replaced: Mapping[str, Counter[str]], total: int) -> Iterator[str]:
    outcomes = {"iscrowd": "read as 0 or 1", "area": "computed from the masks or boxes"}
    for field, values in replaced.items():
        if values:
            kinds = ", ".join(f"{value}: {count}" for value, count in values.most_common(5))
            yield (
                f"{values.total()} of {total} annotations have no valid {field!r} ({kinds}), which "
                f"is {outcomes[field]}"
            )


def _warnings_of_areas(
    annotations: Sequence[Annotation],
    numbers: Sequence[int],
    areas: Sequence[float],
    where: Callable[[int], str],
) -> Iterator[str]:
    """Warn of areas of other things than the masks, if they are more than half of all."""
    differing = [
        (number, area)
        for number, area in zip(numbers, areas, strict=True)
        if area >= SMALLEST_COMPARED
        and "area" in annotations[number]
        and not area <= AREA_RATIO * annotations[number]["area"] <= AREA_RATIO**2 * area
    ]
    if 2 * len(differing) > len(numbers):
        examples = [
            f"{where(number)}: {shown(annotations[number]['area'])}, its mask {area:.0f}"
            for number, area in differing
        ]
        yield (
            f"{len(differing)} of {len(numbers)} annotations have another 'area' than their mask, "
            "which decides whether an object counts as small, medium or large" + shortlist(examples)
        )


def _warnings_of_names(
    categories: Sequence[Mapping[str, Any]], annotations: Sequence[Annotation]
) -> Iterator[str]:
    """Warn of classes with the same name.

    It is no error: some tools export the name of a group as a class of its own without objects.
    """
    ids: dict[str, list[Any]] = {}
    for category in categories:
        ids.setdefault(category["name"], []).append(category["id"])
    repeated = {name: same for name, same in ids.items() if len(same) > 1}
    if repeated:
        counts = Counter(annotation["category_id"] for annotation in annotations)
        texts = [
            f"{shown(name)}: " + ", ".join(f"id {x} ({counts[x]} annotations)" for x in same)
            for name, same in repeated.items()
        ]
        yield f"{len(repeated)} class names belong to several ids" + shortlist(texts)


def _warn_of_repeated_images(where: str, images: Sequence[ImageRecord]) -> None:
    """Warn of files that several images share, each with objects that the others lack."""
    annotated = Counter(image.file_name for image in images if image.annotations)
    repeated = [f"{file}: {number} images" for file, number in annotated.items() if number > 1]
    if repeated:
        warn_once(
            f"{where}: {len(repeated)} files belong to several images: the objects of one are "
            "background in the others; expected one image for each file" + shortlist(repeated)
        )


def _check_points(name: str, data: DataSet) -> None:
    """Refuse a training set without any annotated points.

    Raises:
        ValueError: If no annotation has them.
    """
    total = sum(len(image.annotations) for image in data.images)
    if total and not any(
        field in annotation
        for image in data.images
        for annotation in image.annotations
        for field in POINT_FIELDS
    ):
        raise ValueError(
            f"{describe(name)}: INPUT.POINT_SUP is True, but none of its {total} annotations has "
            f"{' and '.join(POINT_FIELDS)}: annotate points, or draw them from masks with "
            "`pointrend prepare-point-annotations`"
        )


def _check_keypoints(name: str, data: DataSet, number: int) -> None:
    """Refuse a training set without the keypoints that a model needs.

    Raises:
        ValueError: If an annotation has another number of them, if their names are unknown, or if
            none is labeled.
    """
    names = MetadataCatalog.get(name).get("keypoint_names")
    key = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
    if not names:
        raise ValueError(
            f"{describe(name)}: MODEL.KEYPOINT_ON is True, but no category of the file names its "
            "keypoints: expected a list 'keypoints' of names"
        )
    if len(names) != number:
        raise ValueError(f"{describe(name)} names {len(names)} keypoints, but {key} is {number}")
    wrong = [
        f"annotation {annotation.get('id')} of image {image.image_id} has "
        f"{len(annotation.get('keypoints') or ())} numbers"
        for image in data.images
        for annotation in image.annotations
        if not annotation.get("iscrowd", 0) and len(annotation.get("keypoints") or ()) != 3 * number
    ]
    if wrong:
        raise ValueError(
            f"{describe(name)}: {len(wrong)} annotations have no {number} keypoints of 3 numbers "
            "(x, y, visibility)" + shortlist(wrong)
        )
    objects = (x for image in data.images for x in image.annotations if not x.get("iscrowd", 0))
    if not any(visibility > 0 for x in objects for visibility in x["keypoints"][2::3]):
        raise ValueError(
            f"{describe(name)}: no keypoint has a visibility of 1 or 2: expected labeled keypoints"
        )


def load_data_set(name: str) -> DataSet:
    """Return a registered data set with all its annotations, also those that loading drops.

    Raises:
        ValueError: As `read_coco`, or if a file name leaves the folder of the images.
    """
    metadata = MetadataCatalog.get(name)
    evaluator_type, json_file = _evaluator_type(name), metadata.get("json_file")
    if json_file and evaluator_type in ("coco", "lvis"):
        if evaluator_type == "coco":
            content = read_coco(json_file)
        else:
            content = read_lvis(json_file)
            _check_lvis_loading(name, content)
            for image in content["images"]:
                # Detectron2 takes the last folder and the name from the address.
                image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
        root = metadata.image_root
        check_file_names(json_file, (x["file_name"] for x in content["images"]), root)
        return _of_content(content, root)

    if json_file and evaluator_type == "coco_panoptic_seg":
        read_coco(json_file)
    if metadata.get("panoptic_json"):
        check_panoptic_file(metadata.panoptic_json)
    # Any other loader, such as that of Cityscapes, may take minutes: it runs once.
    loaded = load_records(name)
    DatasetCatalog[name] = lambda: copy.deepcopy(loaded)
    for field, folder in FILE_FIELDS.items():
        root = metadata.get(folder)
        if root:
            names = (os.path.relpath(x[field], root) for x in loaded if field in x)
            check_file_names(describe(name), names, root)
    return DataSet(
        [
            ImageRecord(
                record["file_name"],
                record.get("image_id", position),
                record.get("height"),
                record.get("width"),
                record.get("annotations", []),
            )
            for position, record in enumerate(loaded)
        ]
    )


def _check_lvis_loading(name: str, content: Mapping[str, Any]) -> None:
    """Refuse what the loader of Detectron2 for LVIS asserts on, or reads as another class."""
    classes = len(MetadataCatalog.get(name).get("thing_classes") or ())
    known = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id") or range(
        1, classes + 1
    )
    for category in content["categories"]:
        if classes and category["id"] not in known:
            raise ValueError(
                f"{describe(name)}: category {category['name']!r} has the id {category['id']}, "
                f"which is none of the {classes} classes of LVIS"
            )
    coded = [x["id"] for x in content["annotations"] if isinstance(x.get("segmentation"), dict)]
    if coded:
        raise ValueError(
            f"{describe(name)}: {len(coded)} annotations have an RLE, such as annotation "
            f"{coded[0]}: Detectron2 reads polygons only in LVIS's format; register the file as "
            "COCO"
        )


def _of_content(content: Mapping[str, Any], image_root: str = "") -> DataSet:
    annotations: dict[int | str, list[Annotation]] = {
        image["id"]: [] for image in content["images"]
    }
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    images = [
        ImageRecord(
            os.path.join(image_root, image.get("file_name", image.get("coco_url", ""))),
            image["id"],
            image["height"],
            image["width"],
            annotations[image["id"]],
        )
        for image in content["images"]
    ]
    return DataSet(images, content["categories"])


def _evaluator_type(name: str) -> str | None:
    return MetadataCatalog.get(name).get("evaluator_type")
