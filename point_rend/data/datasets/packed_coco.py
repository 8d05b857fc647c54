"""COCO files of millions of annotations, checked and loaded in compact form."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from point_rend.data.checks.points import FIELDS as POINT_FIELDS
from point_rend.data.datasets.coco_checks import CocoChecks
from point_rend.data.datasets.packed import GroupedLists, Packed, list_of
from point_rend.utils.json_stream import Kind, iterate_pieces

logger = logging.getLogger(__name__)

MAX_STREAMED_BYTES = 16 << 30  # annotations of Objects365 have 5 GB


class ImageEntry(NamedTuple):
    """The fields of an image that are used."""

    identity: int | str
    file_name: str
    height: int
    width: int


class PackedCoco:
    """The checked content of an instances file, with its annotations in compact form.

    Attributes:
        images: In the order of the file.
        categories: As in the file.
        annotations: Of each image, by its position.
    """

    def __init__(
        self, images: list[ImageEntry], categories: list[dict[str, Any]], annotations: GroupedLists
    ) -> None:
        self.images = images
        self.categories = categories
        self.annotations = annotations


_packed: WeakValueDictionary[tuple[Any, ...], PackedCoco] = WeakValueDictionary()


def read_packed_coco(json_file: str) -> PackedCoco:
    """Read an instances file of any size, or return what is in memory if it has not changed.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_coco`.
    """
    with naming_errors(json_file):
        path = PathManager.get_local_path(json_file)
        key = (path, *_state(path))
        content = _packed.get(key)
        if content is None:
            _packed[key] = content = _pack(json_file, path)
    return content


def _state(path: str) -> tuple[int, ...]:
    """Return what is another after a change of a file; nothing if it cannot be opened."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _pack(json_file: str, path: str) -> PackedCoco:
    checks = CocoChecks(json_file)
    images: list[ImageEntry] = []
    categories: list[dict[str, Any]] = []
    annotations = Packed()
    keep: dict[str, Callable[[Any], None]] = {
        "images": lambda x: images.append(
            ImageEntry(x["id"], x["file_name"], x["height"], x["width"])
        ),
        "categories": categories.append,
        "annotations": annotations.append,
    }
    content: Any = None
    pieces = iterate_pieces(path, what="annotation file", max_bytes=MAX_STREAMED_BYTES)
    for kind, key, value in pieces:
        if kind is Kind.ITEM:
            if key in keep and checks.lists[key](value):
                try:
                    keep[key](value)
                except RecursionError:  # parsed, but too deep to be packed
                    raise ValueError(f"annotation file {path} is nested too deeply") from None
        elif kind is Kind.OBJECT:
            content = {}
        else:
            value = [] if kind is Kind.LIST else value
            if key is None:
                content = value
            else:
                content[key] = value
    checks.finish(content)
    grouped = GroupedLists(annotations, checks.image_of_annotations(), len(images))
    return PackedCoco(images, categories, grouped)


@contextlib.contextmanager
def naming_errors(json_file: str) -> Iterator[None]:
    """Name an annotation file in the errors of opening it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"annotation file {json_file} does not exist") from error
    except OSError as error:
        raise OSError(f"annotation file {json_file} cannot be read: {error}") from error


class CocoLoader:
    """Loads a file as Detectron2's `load_coco_json`, from its compact form.

    Args:
        name: Registered name of the data set.
        json_file: Its annotations.
        image_root: Folder of its images.
    """

    def __init__(self, name: str, json_file: str, image_root: str) -> None:
        self.name = name
        self.json_file = json_file
        self.image_root = image_root
        self._content: PackedCoco | None = None  # keeps what was read in memory

    def content(self) -> PackedCoco:
        """Read the file, unless it was read and has not changed since."""
        self._content = read_packed_coco(self.json_file)
        return self._content

    def __call__(self) -> list[dict[str, Any]]:
        """Return a record of each image, in the order of their ids."""
        content = self.content()
        categories = sorted(content.categories, key=lambda category: category["id"])
        numbers = {category["id"]: number for number, category in enumerate(categories)}
        MetadataCatalog.get(self.name).set(
            thing_classes=[category["name"] for category in categories],
            thing_dataset_id_to_contiguous_id=numbers,
        )
        lists = _TrainingLists(content.annotations, numbers)
        images = content.images
        logger.info("loaded %d images of %s from %s", len(images), self.name, self.json_file)
        return [
            {
                "file_name": os.path.join(self.image_root, images[position].file_name),
                "height": images[position].height,
                "width": images[position].width,
                "image_id": images[position].identity,
                "annotations": list_of(lists, position),
            }
            for position in sorted(range(len(images)), key=lambda x: images[x].identity)
        ]


class _TrainingLists:
    """The annotations of images in Detectron2's format."""

    def __init__(self, annotations: GroupedLists, numbers: dict[int, int]) -> None:
        self.found = annotations.found
        self._annotations = annotations
        self._numbers = numbers

    def __getitem__(self, index: int) -> Iterator[dict[str, Any]]:
        return (
            converted
            for annotation in self._annotations[index]
            if (converted := _in_detectron2_format(annotation, self._numbers)) is not None
        )


def _in_detectron2_format(
    annotation: dict[str, Any], numbers: dict[int, int]
) -> dict[str, Any] | None:
    """Convert an annotation; return None if it has polygons, but none that is one."""
    found: dict[str, Any] = {
        key: annotation[key] for key in ("iscrowd", "bbox") if key in annotation
    }
    if "keypoints" in annotation:
        points = annotation["keypoints"]
        # COCO numbers the pixels; Detectron2 measures from the edge of the first one.
        found["keypoints"] = points and [
            value if place % 3 == 2 else value + 0.5 for place, value in enumerate(points)
        ]
    found["category_id"] = numbers[annotation["category_id"]]
    found |= {field: annotation[field] for field in POINT_FIELDS if field in annotation}
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and mask:
        if isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, *mask["size"])
        found["segmentation"] = mask
    elif mask:
        polygons = [polygon for polygon in mask if len(polygon) % 2 == 0 and len(polygon) >= 6]
        if not polygons:
            return None
        found["segmentation"] = polygons
    found["bbox_mode"] = BoxMode.XYWH_ABS
    return found
