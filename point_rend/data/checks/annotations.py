"""Checks of a data set before a run: complete images and usable annotations.

Detectron2 meets most of these errors in the middle of a training, or drops annotations silently.
An annotation is a dict as in a COCO file; one that Detectron2 has loaded also has a "bbox_mode".
"""

import copy
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from point_rend.data.checks.boxes import (
    SHARES,
    Comparison,
    Shares,
    are_many,
    compare_boxes,
    reach_beyond,
)
from point_rend.data.checks.image_files import (
    Annotation,
    Examples,
    ImageRecord,
    check_image_files,
    shortlist,
)
from point_rend.data.checks.masks import Mask, measure_masks
from point_rend.data.checks.points import FIELDS as POINT_FIELDS
from point_rend.data.checks.points import is_far_outside, usable_points
from point_rend.data.checks.rle import Fault, Size
from point_rend.data.datasets.classes import describe
from point_rend.data.datasets.coco import (
    check_file_names,
    check_panoptic_file,
    is_repaired,
    read_coco,
    repair_fields,
)
from point_rend.data.datasets.cocofied_lvis import read_lvis
from point_rend.data.datasets.loading import load_records
from point_rend.data.datasets.packed import GroupedLists, LazyList, Packed
from point_rend.data.datasets.packed_coco import PackedCoco, read_packed_coco
from point_rend.data.datasets.panoptic import check_panoptic_labels, check_stuff_labels
from point_rend.utils.garbage import cycles_uncollected
from point_rend.utils.json_files import shown
from point_rend.utils.pixel_format import PLAIN, PixelFormat

logger = logging.getLogger(__name__)
CHUNK = 1 << 13  # annotations that are examined at once
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
    check_panoptic_labels(name, evaluated=not training)
    check_stuff_labels(name)
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
        packed = Packed()
        images = [
            ImageRecord(
                "",
                position,
                record.get("height"),
                record.get("width"),
                record["annotations"],
            )
            for position, record in enumerate(records)
            if not _is_known_as_good(record.setdefault("annotations", []), (masks, points))
        ]
        for owned in _chunks(images):
            changed = {int(x.image.image_id) for x in owned if not is_repaired(x.annotation)}
            repair_fields([x.annotation for x in owned])
            kept: dict[int, list[Annotation]] = {int(x.image.image_id): [] for x in owned}
            sizes = [_size(x.image) for x in owned]
            cleaned = clean_annotations(
                [x.annotation for x in owned], sizes, masks=masks, points=points
            )
            for (annotation, image, _), result in zip(owned, cleaned, strict=True):
                position = int(image.image_id)
                if result.annotation is not annotation:
                    changed.add(position)
                if result.annotation is not None:
                    kept[position].append(result.annotation)
            for position in changed:
                if isinstance(records[position]["annotations"], LazyList):
                    packed.append(kept[position])
                    records[position]["annotations"] = LazyList(packed, len(packed) - 1)
                else:
                    records[position]["annotations"] = kept[position]
        return records

    DatasetCatalog[name] = load_clean


def _is_known_as_good(annotations: Sequence[Annotation], checked: tuple[bool, bool]) -> bool:
    """Return whether a check of the same things has found nothing in a lazy list."""
    if not isinstance(annotations, LazyList):
        return False
    found = getattr(annotations.lists, "found", {}).get(checked)
    return found is not None and annotations.number not in found


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
    impossible: Sequence[str]
    fatal: Sequence[str]
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
    examination = _Examination(masks=masks, points=points, observe=observe)
    with cycles_uncollected():
        for owned in _chunks(data.images):
            examination.add(owned)
    lists = getattr(data.images[0].annotations, "lists", None) if data.images else None
    if isinstance(lists, GroupedLists):
        lists.found[masks, points] = examination.found
    return examination.findings(data.categories)


class _Owned(NamedTuple):
    """An annotation, its image, and its place among the annotations of that."""

    annotation: Annotation
    image: ImageRecord
    place: int

    def name(self) -> str:
        """Name the annotation in a message."""
        label = self.annotation.get("id", f"at position {self.place}")
        return f"annotation {label} of image {self.image.image_id} ({self.image.file_name})"

    def box(self) -> str:
        """Show its box."""
        return shown(list(self.annotation["bbox"]))


def _chunks(images: Iterable[ImageRecord]) -> Iterator[list[_Owned]]:
    """Yield the annotations of images, some thousands at once."""
    chunk: list[_Owned] = []
    for image in images:
        chunk += [_Owned(x, image, place) for place, x in enumerate(image.annotations)]
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Examination:
    """The check of annotations; only counts and examples are kept of them.

    Args:
        masks, points, observe: As of :func:`examine`.
    """

    def __init__(
        self,
        *,
        masks: bool,
        points: bool,
        observe: Callable[[Annotation, Cleaned], None] | None,
    ) -> None:
        self._masks = masks
        self._points = points
        self._observe = observe
        self._total = self._usable = self._crowds = 0
        self._replaced: dict[str, Counter[str]] = {"iscrowd": Counter(), "area": Counter()}
        self._of_class: Counter[Any] = Counter()
        self.found: set[int] = set()  # of the lists of annotations, if they are lazy
        self._impossible, self._fatal = Examples(), Examples()
        self._holes, self._astray = Examples(), Examples()
        # Of the annotations with a usable mask:
        self._compared = 0
        self._first: tuple[_Owned, Sequence[float]] | None = None
        self._fits: Counter[str] = Counter()
        self._differing, self._other_areas = Examples(), Examples()
        self._mask_shares = Shares()
        # Of those without a mask:
        self._alone = 0
        self._first_alone: _Owned | None = None
        self._beyond = Examples()
        self._box_shares = Shares()

    def add(self, owned: Sequence[_Owned]) -> None:
        """Check some annotations."""
        annotations = [x.annotation for x in owned]
        for own in owned:
            if not is_repaired(own.annotation):
                self._note(own)
        for field, values in repair_fields(annotations).items():
            self._replaced[field].update(values)
        self._of_class.update(x["category_id"] for x in annotations if "category_id" in x)
        compared: list[_Owned] = []
        alone: list[_Owned] = []
        boxes: list[Sequence[float]] = []
        areas: list[float] = []
        sizes = [_size(x.image) for x in owned]
        for own, cleaned in zip(
            owned,
            clean_annotations(annotations, sizes, masks=self._masks, points=self._points),
            strict=True,
        ):
            is_crowd = own.annotation.get("iscrowd", 0)
            self._crowds += bool(is_crowd)
            if not self._masks and _is_dropped(own.annotation.get("segmentation")):
                text = "no polygon of 6 or more numbers: its box is not loaded"
                faults = [*cleaned.faults, Fault(text, fatal=False)]
                cleaned = Cleaned(None, faults, cleaned.mask)
            if self._observe is not None:
                self._observe(own.annotation, cleaned)
            self._total += 1
            annotation, faults, mask = cleaned
            if annotation is not None and not is_crowd:
                self._usable += 1
                if self._points and is_far_outside(annotation, _absolute_box(annotation)):
                    self._astray.add(own.name)
            if faults:
                self._note(own)
                self._add_faults(own, faults)
            if mask.box is not None and not is_crowd:
                if mask.has_hole:
                    self._holes.add(own.name)
                if annotation is not None:
                    compared.append(own)
                    boxes.append(mask.box)
                    areas.append(mask.area)
            elif annotation is not None and not is_crowd:
                alone.append(own)
        if alone:
            self._add_alone(alone)
        if compared:
            self._add_compared(compared, boxes, areas)

    def _note(self, own: _Owned) -> None:
        if isinstance(own.image.annotations, LazyList):
            self.found.add(own.image.annotations.number)

    def _add_faults(self, own: _Owned, faults: Sequence[Fault]) -> None:
        def text() -> str:
            return f"{own.name()}: " + "; ".join(fault.text for fault in faults)

        self._impossible.add(text)
        if any(fault.fatal for fault in faults):
            self._fatal.add(text)

    def _add_alone(self, alone: Sequence[_Owned]) -> None:
        boxes, sides = _absolute_boxes([x.annotation for x in alone]), _sides(alone)
        self._first_alone = self._first_alone or alone[0]
        self._alone += len(alone)
        self._box_shares.add(boxes, sides)
        for number in np.flatnonzero(reach_beyond(boxes, sides)).tolist():
            own = alone[number]
            self._beyond.add(lambda own=own: f"{own.name()}, bbox {own.box()}")  # type: ignore[misc]

    def _add_compared(
        self, compared: Sequence[_Owned], boxes: Sequence[Sequence[float]], areas: Sequence[float]
    ) -> None:
        self._first = self._first or (compared[0], list(boxes[0]))
        self._compared += len(compared)
        of_masks, sides = np.array(boxes), _sides(compared)
        self._mask_shares.add(of_masks, sides)
        comparison = compare_boxes(
            _absolute_boxes([x.annotation for x in compared]), of_masks, sides
        )
        self._fits.update(comparison.fits)
        for number in np.flatnonzero(comparison.differs).tolist():
            own, box = compared[number], boxes[number]
            self._differing.add(
                lambda own=own, box=box: (  # type: ignore[misc]
                    f"{own.name()}, bbox {own.box()}, of the mask {shown(_as_box(box))}"
                )
            )
        for own, area in zip(compared, areas, strict=True):
            given = own.annotation.get("area")
            if (
                area >= SMALLEST_COMPARED
                and given is not None
                and not area <= AREA_RATIO * given <= AREA_RATIO**2 * area
            ):
                self._other_areas.add(
                    lambda own=own, area=area: (  # type: ignore[misc]
                        f"{own.name()}: {shown(own.annotation['area'])}, its mask {area:.0f}"
                    )
                )

    def findings(self, categories: Sequence[Mapping[str, Any]]) -> Findings:
        """Return the result.

        Args:
            categories: Of the data set, in COCO's form.
        """
        warnings = list(_warnings_of_fields(self._replaced, self._total))
        if self._holes and self._masks:
            warnings.append(
                f"{len(self._holes)} annotations have a polygon within another one, which COCO "
                "fills: a hole needs an RLE" + shortlist(self._holes)
            )
        if self._astray:
            warnings.append(
                f"{len(self._astray)} annotations have points outside of their box, which train "
                "only where proposals include them" + shortlist(self._astray)
            )
        if 2 * len(self._other_areas) > self._compared:
            warnings.append(
                f"{len(self._other_areas)} of {self._compared} annotations have another 'area' "
                "than their mask, which decides whether an object counts as small, medium or large"
                + shortlist(self._other_areas)
            )
        warnings += _warnings_of_names(categories, self._of_class)
        other_format = None
        if self._first_alone is not None:
            own, number = self._first_alone, self._alone
            if self._box_shares:
                other_format = (
                    f"the {number} boxes without a mask seem to be {SHARES}: expected x, y, width, "
                    f"height in pixels, got {own.box()} for {own.name()}"
                )
            elif are_many(len(self._beyond), number):
                warnings.append(
                    f"{len(self._beyond)} of {number} boxes without a mask reach beyond their "
                    "images: expected x, y, width, height; are they corners?"
                    + shortlist(self._beyond)
                )
        if self._first is not None:
            own, box = self._first
            comparison = Comparison(np.empty(0), self._fits, self._compared)
            if self._mask_shares:
                other_format = (
                    f"the coordinates of all {self._compared} masks seem to be {SHARES}: expected "
                    f"pixels, got a mask of x0, y0, x1, y1 {shown(box)} for {own.name()}"
                )
            elif comparison.suspected:
                other_format = (
                    f"{comparison.fitting} of {self._compared} boxes seem to be "
                    f"{comparison.suspected}, compared with their masks: expected x, y, width, "
                    f"height in pixels, such as {shown(_as_box(box))} for {own.name()}, got "
                    f"{own.box()}"
                )
            else:
                other_format = None
            if self._differing and not other_format:
                warnings.append(
                    f"{len(self._differing)} of {self._compared} boxes differ from those of their "
                    "masks" + shortlist(self._differing)
                )
        return Findings(
            Usable(
                self._usable,
                len(self._impossible),
                self._replaced["iscrowd"].total(),
                self._crowds,
            ),
            self._total,
            self._impossible,
            self._fatal,
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


def _sides(owned: Sequence[_Owned]) -> np.ndarray:
    """Return the width and height of their images (N, 2), NaN if unknown."""
    sizes = [_size(x.image) for x in owned]
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


def _warnings_of_names(
    categories: Sequence[Mapping[str, Any]], counts: Mapping[Any, int]
) -> Iterator[str]:
    """Warn of classes with the same name.

    It is no error: some tools export the name of a group as a class of its own without objects.
    """
    ids: dict[str, list[Any]] = {}
    for category in categories:
        ids.setdefault(category["name"], []).append(category["id"])
    repeated = {name: same for name, same in ids.items() if len(same) > 1}
    if repeated:
        texts = [
            f"{shown(name)}: " + ", ".join(f"id {x} ({counts[x]} annotations)" for x in same)
            for name, same in repeated.items()
        ]
        yield f"{len(repeated)} class names belong to several ids" + shortlist(texts)


def _warn_of_repeated_images(where: str, images: Sequence[ImageRecord]) -> None:
    """Warn of files that several images share, each with objects that the others lack."""
    shared = Counter(image.file_name for image in images)
    annotated = Counter(
        image.file_name for image in images if shared[image.file_name] > 1 and image.annotations
    )
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
            "keypoints, or several name different ones, or a name occurs twice: expected one list "
            "'keypoints' of different names"
        )
    if len(names) != number:
        raise ValueError(f"{describe(name)} names {len(names)} keypoints, but {key} is {number}")
    without = {category["id"] for category in data.categories if not category.get("keypoints")}
    wrong, is_labeled = Examples(), False
    for image in data.images:
        for annotation in image.annotations:
            found = annotation.get("keypoints") or ()
            if annotation.get("iscrowd", 0) or (not found and annotation["category_id"] in without):
                continue
            if len(found) != 3 * number:
                label = f"annotation {annotation.get('id')} of image {image.image_id}"
                wrong.add(lambda label=label, found=found: f"{label} has {len(found)} numbers")  # type: ignore[misc]
            is_labeled = is_labeled or any(visibility > 0 for visibility in found[2::3])
    if wrong:
        raise ValueError(
            f"{describe(name)}: {len(wrong)} annotations have no {number} keypoints of 3 numbers "
            "(x, y, visibility)" + shortlist(wrong)
        )
    if not is_labeled:
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
        root = metadata.image_root
        if evaluator_type == "coco":
            packed = read_packed_coco(json_file)
            check_file_names(json_file, (x.file_name for x in packed.images), root)
            return _of_packed(packed, root)
        content = read_lvis(json_file)
        _check_lvis_loading(name, content)
        for image in content["images"]:
            # Detectron2 takes the last folder and the name from the address.
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
        check_file_names(json_file, (x["file_name"] for x in content["images"]), root)
        return _of_content(content, root)

    if json_file and evaluator_type == "coco_panoptic_seg":
        read_coco(json_file)
    if metadata.get("panoptic_json"):
        numbered = evaluator_type == "coco_panoptic_seg"
        check_panoptic_file(metadata.panoptic_json, numbered=numbered)
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


def _of_packed(packed: PackedCoco, image_root: str) -> DataSet:
    images = [
        ImageRecord(
            os.path.join(image_root, image.file_name),
            image.identity,
            image.height,
            image.width,
            LazyList(packed.annotations, position),
        )
        for position, image in enumerate(packed.images)
    ]
    return DataSet(images, packed.categories)


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
