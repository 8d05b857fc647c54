"""Checks of the records in a COCO file, and of all references between them."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from point_rend.data.checks.rle import form_fault, size_fault
from point_rend.utils.json_files import shown

MAX_CATEGORIES = 20_000  # the precision of all classes takes 1 GB in an evaluation
MAX_ID = 2**63 - 1
MAX_NAME = 4096  # characters
MAX_AREA = 1e18
MAX_COORDINATE = 1e9  # of boxes and keypoints, in pixels


# Fields of every record of a COCO file. LVIS has `coco_url` in place of `file_name`.
IMAGE_FIELDS = {"id": (int, str), "width": (int,), "height": (int,)}
CATEGORY_FIELDS = {"id": (int,), "name": (str,)}
ANNOTATION_FIELDS = {"id": (int, str), "image_id": (int, str), "category_id": (int,), "bbox": list}


def check_coco(content: Any, json_file: str, *, image_name: str = "file_name") -> None:
    """Check the content of an instances file and all references in it.

    Args:
        content: The content; the list "annotations" is added if there is none.
        json_file: Its file, for messages.
        image_name: Field with the file of an image.

    Raises:
        ValueError: As :func:`read_coco`.
    """
    checks = CocoChecks(json_file, image_name=image_name)
    if isinstance(content, dict):
        for kind, check in checks.lists.items():
            if isinstance(content.get(kind), list):
                for record in content[kind]:
                    check(record)
    checks.finish(content)
    if "annotations" not in content:
        content["annotations"] = []


class CocoChecks:
    """The checks of an instances file, record by record, in any order of its lists.

    Args:
        json_file: The file, for messages.
        image_name: Field with the file of an image.

    Attributes:
        lists: The method that takes the records of each list.
    """

    def __init__(self, json_file: str, *, image_name: str = "file_name") -> None:
        self._file = json_file
        self._image_name = image_name
        fields = IMAGE_FIELDS | {image_name: (str,)}
        self._images = _Records(json_file, "image", fields)
        self._categories = _Records(json_file, "category", CATEGORY_FIELDS)
        self._annotations = _Records(json_file, "annotation", ANNOTATION_FIELDS)
        self._references = {"image": _References(), "category": _References()}
        self._text_ids = 0
        self._first_text_id = ""
        self._faults: dict[str, ValueError] = {}  # the first of each list
        self.lists: dict[str, Callable[[Any], bool]] = {
            "images": self.add_image,
            "categories": self.add_category,
            "annotations": self.add_annotation,
        }

    def add_image(self, image: Any) -> bool:
        """Check the next image; return whether it can be used if all others can be."""
        if not self._images.add(image):
            return False
        if isinstance(image["id"], str):
            self._first_text_id = self._first_text_id if self._text_ids else image["id"]
            self._text_ids += 1
        return self._accepts("images", self._check_image, image)

    def add_category(self, category: Any) -> bool:
        """Check the next category; return as :meth:`add_image`."""
        return self._categories.add(category) and self._accepts(
            "categories", self._check_category, category
        )

    def add_annotation(self, annotation: Any) -> bool:
        """Check the next annotation; return as :meth:`add_image`."""
        if not self._annotations.add(annotation):
            return False
        for kind, references in self._references.items():
            references.add(annotation[f"{kind}_id"], annotation["id"])
        return self._accepts("annotations", self._check_annotation, annotation)

    def image_of_annotations(self) -> np.ndarray:
        """Return the position of the image of each annotation, after :meth:`finish`."""
        return self._references["image"].positions(self._images.ids)

    def finish(self, content: Any) -> None:
        """Raise the first fault of the file, if there is one.

        Args:
            content: The content; its lists may be empty by now.

        Raises:
            ValueError: As :func:`read_coco`.
        """
        lists = ("images", "categories")
        if not isinstance(content, dict) or not all(
            isinstance(content.get(key), list) for key in lists
        ):
            found = (
                f"keys {sorted(content)}" if isinstance(content, dict) else type(content).__name__
            )
            raise ValueError(
                f"{self._file} is not in COCO's instances format: expected an object with the "
                f"lists 'images', 'categories' and 'annotations', found {found}"
            )
        annotations = content.get("annotations", [])
        if not isinstance(annotations, list):
            raise ValueError(f"{self._file}: 'annotations' must be a list, got {annotations!r:.80}")
        images, categories = self._images, self._categories
        for records in (images, categories, self._annotations):
            if records.fault:
                raise records.fault
        for kind, records in {"image": images, "category": categories}.items():
            if not records.ids:
                raise ValueError(f"{self._file}: expected at least one {kind}, found none")
            self._check_references(kind, records.ids)
        if 0 < self._text_ids < len(images.ids):
            raise ValueError(
                f"{self._file}: {self._text_ids} of {len(images.ids)} images have an id of text, "
                f"such as {shown(self._first_text_id)}: expected ids of one kind, numbers or text"
            )
        if len(categories.ids) > MAX_CATEGORIES:
            raise ValueError(
                f"{self._file} has {len(categories.ids)} categories, expected at most "
                f"{MAX_CATEGORIES}"
            )
        for name in ("categories", "images", "annotations"):
            if name in self._faults:
                raise self._faults[name]

    def _accepts(self, name: str, check: Callable[[dict[str, Any]], None], record: Any) -> bool:
        """Check a record, unless one before it in its list has a fault."""
        if name in self._faults:
            return False
        try:
            check(record)
        except ValueError as error:
            self._faults[name] = error
            return False
        return True

    def _check_references(self, kind: str, known: Iterable[int | str]) -> None:
        references = self._references[kind]
        lost = np.flatnonzero(references.positions(known) < 0)
        if lost.size:
            referring, missing = references.example(int(lost[0]))
            raise ValueError(
                f"{self._file}: annotation {shown(referring)} refers to {kind} {shown(missing)}, "
                f"which the file does not have; so do {lost.size - 1} more annotations"
            )

    def _check_category(self, category: dict[str, Any]) -> None:
        _check_name(self._file, f"category {category['id']!r}", category["name"])

    def _check_image(self, image: dict[str, Any]) -> None:
        where, name = f"image {shown(image['id'])}", image[self._image_name]
        _check_name(self._file, where, name)
        fault = size_fault(image["height"], image["width"])
        if fault:
            raise ValueError(f"{self._file}: {where} ({name}) {fault}")

    def _check_annotation(self, annotation: dict[str, Any]) -> None:
        """Refuse what no reader of COCO files can interpret; the geometry is not checked."""
        fault = _fault_of_annotation(annotation)
        if fault:
            raise ValueError(
                f"{self._file}: annotation {shown(annotation['id'])} of image "
                f"{shown(annotation['image_id'])}: {fault}"
            )


class _Records:
    """The records of one list: their fields, and their ids.

    Attributes:
        ids: The ids as the keys of a dict, in their order.
        fault: The first fault; no record after it is checked.
    """

    def __init__(self, json_file: str, kind: str, fields: dict[str, Any]) -> None:
        self._where = f"{json_file}: {kind}"
        self._fields = {
            field: types if isinstance(types, tuple) else (types,)
            for field, types in fields.items()
        }
        self.ids: dict[int | str, None] = {}
        self.fault: ValueError | None = None

    def add(self, record: Any) -> bool:
        """Check the next record; return whether it and all before it are without fault."""
        if self.fault:
            return False
        position = len(self.ids)
        for field, types in self._fields.items():
            value = record.get(field) if isinstance(record, dict) else None
            if not isinstance(value, types) or isinstance(value, bool):
                self.fault = ValueError(
                    f"{self._where} at position {position} needs a valid {field!r} "
                    f"({' or '.join(x.__name__ for x in types)}), got {shown(record)}"
                )
                return False
        identity = record["id"]
        if isinstance(identity, int) and not -MAX_ID <= identity <= MAX_ID:
            self.fault = ValueError(
                f"{self._where} at position {position} has the id {shown(identity)}, "
                f"expected at most {MAX_ID}"
            )
        elif identity in self.ids:
            self.fault = ValueError(f"{self._where} id {shown(identity)} is given twice")
        else:
            self.ids[identity] = None
        return self.fault is None


class _References:
    """The records of a list to which annotations refer, by id."""

    def __init__(self) -> None:
        self._codes: dict[int | str, int] = {}
        self._code_of = array("i")
        self._first: list[int | str] = []  # annotation that refers to each

    def add(self, identity: int | str, annotation: int | str) -> None:
        """Add the reference of the next annotation."""
        code = self._codes.setdefault(identity, len(self._codes))
        if code == len(self._first):
            self._first.append(annotation)
        self._code_of.append(code)

    def positions(self, known: Iterable[int | str]) -> np.ndarray:
        """Return the position of the record of each annotation (N,), -1 if it is not known."""
        position = {identity: number for number, identity in enumerate(known)}
        of_code = [position.get(identity, -1) for identity in self._codes]
        return np.array(of_code, dtype=np.int64)[np.asarray(self._code_of)]

    def example(self, number: int) -> tuple[int | str, int | str]:
        """Return an annotation that is the first with its reference, and this reference."""
        code = self._code_of[number]
        return self._first[code], list(self._codes)[code]


def crowd_flag(value: Any) -> int | None:
    """Return the "iscrowd" that a value means, 0 or 1; None if it means neither."""
    if value is None or (
        isinstance(value, int | float | np.bool_ | np.integer) and value in (0, 1)
    ):
        return int(value or 0)
    return int(value) if isinstance(value, str) and value in ("0", "1") else None


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


def _fault_of_annotation(annotation: dict[str, Any]) -> str | None:
    bbox, keypoints = annotation["bbox"], annotation.get("keypoints")
    mask = annotation.get("segmentation")
    if len(bbox) != 4 or not _are_coordinates(bbox):
        return f"bbox must be 4 numbers (x, y, width, height), got {shown(bbox)}"
    if annotation.get("ignore", 0) != 0:
        return "Detectron2 has no flag 'ignore'; use 'iscrowd'"
    if crowd_flag(annotation.get("iscrowd", 0)) is None:
        return f"iscrowd must be 0 or 1, got {shown(annotation['iscrowd'])}"
    if keypoints is not None and not (
        isinstance(keypoints, list) and len(keypoints) % 3 == 0 and _are_coordinates(keypoints)
    ):
        return f"keypoints must be numbers, 3 for each point, got {shown(keypoints)}"
    if isinstance(mask, dict):
        return form_fault(mask)
    if mask is not None and not (
        isinstance(mask, list) and all(isinstance(polygon, list) for polygon in mask)
    ):
        return f"segmentation must be polygons or an RLE, got {shown(mask)}"
    return None


def _are_coordinates(values: Sequence[Any]) -> bool:
    """Return whether all values are numbers of pixels; NaN is none."""
    return {*map(type, values)} <= {int, float} and all(
        -MAX_COORDINATE <= value <= MAX_COORDINATE for value in values
    )
