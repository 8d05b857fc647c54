"""Annotations of data sets as arrays: a few numbers per object, and no masks.

Shape letters: I images, N annotations.
"""

import re
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from point_rend.data.checks.annotations import Cleaned, DataSet, examine, load_data_set
from point_rend.data.checks.image_files import Annotation
from point_rend.data.datasets.classes import describe

EXAMPLES = 3  # of each kind of fault
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


class Faults(NamedTuple):
    """Annotations with the same fault.

    Attributes:
        kind: The fault; N stands for numbers.
        number: Number of annotations.
        examples: The first few annotations.
    """

    kind: str
    number: int
    examples: list[str]


class Objects(NamedTuple):
    """All annotations of some data sets.

    Attributes:
        files: I image files.
        image_ids: I ids.
        sizes: (I, 2) width and height in pixels, NaN if unknown.
        image: (N,) index of the image.
        label: (N,) index of the class.
        sides: (N, 2) width and height of the box in pixels.
        area: (N,) pixels of the mask, or of the box without one.
        crowd: (N,) bool.
        kept: (N,) bool: possible annotations, which a training loads, with crowds.
        parts: (N,) polygons of the mask; 0 for an RLE.
        corners: (N,) corners of these polygons.
        has_hole: (N,) bool: a polygon lies within another, which COCO fills.
        faults: Impossible annotations, by kind.
        warnings: Doubtful properties.
    """

    files: list[str]
    image_ids: list[int | str]
    sizes: np.ndarray
    image: np.ndarray
    label: np.ndarray
    sides: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    kept: np.ndarray
    parts: np.ndarray
    corners: np.ndarray
    has_hole: np.ndarray
    faults: list[Faults]
    warnings: list[str]

    @property
    def usable(self) -> np.ndarray:
        """What a training learns from (N,) bool: possible annotations that are no crowds."""
        return self.kept & ~self.crowd

    def per_image(self, chosen: np.ndarray) -> np.ndarray:
        """Count annotations (N,) bool of each image (I,)."""
        return np.bincount(self.image[chosen], minlength=len(self.files))


def read_objects(names: Sequence[str], *, masks: bool, points: bool = False) -> Objects:
    """Read and check the annotations of data sets, one set after the other.

    Args:
        names: Registered names.
        masks: Whether the annotations need masks.
        points: Whether they need annotated points.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a data set cannot be loaded.
    """
    return _joined([_read_set(name, masks=masks, points=points) for name in names])


class _Columns:
    """Numbers of the annotations of a set, in their order; the annotations are not kept."""

    def __init__(self) -> None:
        self.numbers = {
            name: array(code)
            for code, names in {
                "d": ("width", "height", "area"),
                "q": ("category", "corners", "parts"),
                "b": ("crowd", "kept", "has_hole"),
            }.items()
            for name in names
        }
        self.kinds: dict[str, Faults] = {}

    def add(self, annotation: Annotation, cleaned: Cleaned) -> None:
        """Add an annotation and the result of its check."""
        width, height = _sides(annotation)
        mask, polygons = cleaned.mask, annotation.get("segmentation")
        parts = polygons if isinstance(polygons, list) else []
        values = {
            "width": width,
            "height": height,
            "area": mask.area if mask.box is not None else max(width * height, 0.0),
            "category": annotation["category_id"],
            "corners": sum(len(x) // 2 for x in parts if hasattr(x, "__len__")),
            "parts": len(parts),
            "crowd": bool(annotation.get("iscrowd", 0)),
            "kept": cleaned.annotation is not None,
            "has_hole": mask.has_hole,
        }
        for name, value in values.items():
            self.numbers[name].append(value)
        for kind in {NUMBER.sub("N", fault.text) for fault in cleaned.faults}:
            known = self.kinds.get(kind, Faults(kind, 0, []))
            examples = [*known.examples, f"annotation {annotation.get('id', '')}".rstrip()]
            self.kinds[kind] = Faults(kind, known.number + 1, examples[:EXAMPLES])

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array(self.numbers[name])


def _read_set(name: str, *, masks: bool, points: bool) -> Objects:
    data = load_data_set(name)
    columns = _Columns()
    findings = examine(data, masks=masks, points=points, observe=columns.add)
    warnings = [*findings.warnings, *([findings.other_format] if findings.other_format else [])]
    return Objects(
        files=[image.file_name for image in data.images],
        image_ids=[image.image_id for image in data.images],
        sizes=np.array(
            [(x.width or np.nan, x.height or np.nan) for x in data.images], dtype=np.float64
        ).reshape(-1, 2),
        image=np.repeat(np.arange(len(data.images)), [len(x.annotations) for x in data.images]),
        label=_labels(name, data, columns["category"]),
        sides=np.stack([columns["width"], columns["height"]], axis=1),
        area=columns["area"],
        crowd=columns["crowd"].astype(bool),
        kept=columns["kept"].astype(bool),
        parts=columns["parts"],
        corners=columns["corners"],
        has_hole=columns["has_hole"].astype(bool),
        faults=[*columns.kinds.values()],
        warnings=[f"{describe(name)}: {text}" for text in warnings],
    )


def _sides(annotation: Annotation) -> tuple[float, float]:
    """Return width and height of a box."""
    x, y, third, fourth = annotation["bbox"]
    if annotation.get("bbox_mode", BoxMode.XYWH_ABS) == BoxMode.XYXY_ABS:
        return third - x, fourth - y
    return third, fourth


def _labels(name: str, data: DataSet, ids: np.ndarray) -> np.ndarray:
    """Return the indices of the classes (N,), as Detectron2's loaders give them, by their ids."""
    if not data.categories:
        return ids
    known = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
    if not known:
        known = {own: k for k, own in enumerate(sorted(x["id"] for x in data.categories))}
    unique, inverse = np.unique(ids, return_inverse=True)
    indices = np.array([known[int(own)] for own in unique], dtype=np.int64)
    return indices[inverse] if len(unique) else ids


def _joined(sets: Sequence[Objects]) -> Objects:
    """Join data sets in their order."""
    starts = np.cumsum([0, *(len(x.files) for x in sets)])
    kinds: dict[str, Faults] = {}
    for faults in (fault for x in sets for fault in x.faults):
        known = kinds.setdefault(faults.kind, Faults(faults.kind, 0, []))
        examples = [*known.examples, *faults.examples][:EXAMPLES]
        kinds[faults.kind] = Faults(faults.kind, known.number + faults.number, examples)
    arrays = {
        field: np.concatenate([getattr(x, field) for x in sets])
        for field in Objects._fields
        if isinstance(getattr(sets[0], field), np.ndarray)
    }
    arrays["image"] = np.concatenate(
        [x.image + start for x, start in zip(sets, starts, strict=False)]
    )
    return Objects(
        **arrays,
        files=[file for x in sets for file in x.files],
        image_ids=[identity for x in sets for identity in x.image_ids],
        faults=sorted(kinds.values(), key=lambda x: -x.number),
        warnings=[warning for x in sets for warning in x.warnings],
    )
