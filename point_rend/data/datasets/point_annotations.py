"""Annotated points drawn from masks: data sets for point supervision.

The format is that of the PointSup project: annotations have "point_coords", pixels x, y counted
from 0, and "point_labels", 1 in the object and 0 outside of it, in place of "segmentation".
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

from point_rend.data.checks.annotations import clean_annotations
from point_rend.data.checks.masks import CHUNK, compress_masks
from point_rend.data.checks.points import FIELDS, MOST_POINTS
from point_rend.data.checks.rle import Fault, Record, Size, decode_counts
from point_rend.data.datasets.coco import add_coco_instances
from point_rend.data.datasets.coco_checks import CocoChecks
from point_rend.data.datasets.packed_coco import MAX_STREAMED_BYTES, CocoLoader, naming_errors
from point_rend.utils.files import atomic_file, check_output
from point_rend.utils.json_stream import Kind, iterate_list, iterate_pieces

# The set that configs of the PointSup project name; `prepare-point-annotations` writes its file.
COCO_POINTS = "coco_2017_train_points_n10_v1_without_masks"
COCO_POINTS_FILE = "coco/annotations/instances_train2017_n10_v1_without_masks.json"
ROLE = "annotation file"
MOST_REASONS = 3
Annotation = dict[str, Any]


class Converted(NamedTuple):
    """Outcome of a conversion.

    Attributes:
        annotations: Number of annotations in the new file.
        left_out: Number of the others.
        reasons: Why the first of these are left out.
    """

    annotations: int
    left_out: int
    reasons: list[str]


def register_point_annotations() -> None:
    """Register COCO's training images with ten points for each object; again has no effect."""
    if COCO_POINTS not in DatasetCatalog:
        root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
        loader = CocoLoader(
            COCO_POINTS,
            os.path.join(root, COCO_POINTS_FILE),
            os.path.join(root, "coco/train2017"),
        )
        add_coco_instances(loader, _get_builtin_metadata("coco"))


def write_point_annotations(
    source: Path, target: Path, *, points: int, seed: int = 0, overwrite: bool = False
) -> Converted:
    """Draw points from the masks of a file in COCO's format, and write them in place of the masks.

    The points of an object are uniform in its box and depend on the seed and its id alone. Objects
    that cannot be used, such as those without a mask, are left out. The annotations are read one by
    one, twice, so that they take no memory.

    Args:
        source: The file with masks.
        target: The file to write.
        points: Number of points for each object.
        seed: Seed of the points.
        overwrite: Whether to replace a file that exists.

    Raises:
        FileNotFoundError: If the source does not exist.
        ValueError: If it is invalid, if the target exists, or if no object is left.
        NotSavedError: If the target cannot be written.
    """
    if not 1 <= points <= MOST_POINTS:
        raise ValueError(f"--points: expected 1 to {MOST_POINTS}, got {points}")
    check_output(target, flag="output", inputs=[source])
    if os.path.lexists(target) and not overwrite:
        raise ValueError(f"output: {target} exists: choose another name, or pass --overwrite")
    content, total = _read_all_but_annotations(source)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    reasons: list[str] = []
    written = 0
    with atomic_file(target) as file:
        file.write(json.dumps(content)[:-1].encode() + b', "annotations": [')
        annotations = iterate_list(source, "annotations", what=ROLE) if total else iter(())
        for annotation in _with_points(annotations, sizes, points, seed, reasons):
            file.write((",\n" if written else "\n").encode() + json.dumps(annotation).encode())
            written += 1
        file.write(b"\n]}\n")
        if not written:
            raise ValueError(
                f"{source}: no mask of its {total} annotations can be used"
                + (f", such as {reasons[0]}" if reasons else "")
            )
    return Converted(written, total - written, reasons)


def _read_all_but_annotations(source: Path) -> tuple[dict[str, Any], int]:
    """Check a file, and return its content without annotations, and their number."""
    checks = CocoChecks(str(source))
    content: Any = None
    total = 0
    with naming_errors(str(source)):
        for kind, key, value in iterate_pieces(source, what=ROLE, max_bytes=MAX_STREAMED_BYTES):
            if kind is Kind.OBJECT:
                content = {}
            elif key is None:
                content = [] if kind is not Kind.VALUE else value
            elif kind is Kind.ITEM:
                if key in checks.lists:
                    checks.lists[key](value)
                if key == "annotations":
                    total += 1
                else:
                    content[key].append(value)
            else:
                content[key] = [] if kind is Kind.LIST else value
    checks.finish(content)
    content.pop("annotations", None)
    return content, total


def _with_points(
    annotations: Iterator[Annotation],
    sizes: Mapping[Any, Size],
    points: int,
    seed: int,
    reasons: list[str],
) -> Iterator[Annotation]:
    """Yield usable annotations with points; append the reasons for some of the others."""
    while chunk := list(itertools.islice(annotations, CHUNK)):
        usable = []
        all_sizes = [sizes[x["image_id"]] for x in chunk]
        for original, cleaned in zip(
            chunk, clean_annotations(chunk, all_sizes, masks=True), strict=True
        ):
            if cleaned.annotation is None:
                reason = "; ".join(fault.text for fault in cleaned.faults)
                _append(reasons, f"annotation {original['id']}: {reason}")
            else:
                usable.append(cleaned.annotation)
        usable_sizes = [sizes[x["image_id"]] for x in usable]
        masks = compress_masks([x["segmentation"] for x in usable], usable_sizes)
        for annotation, mask, size in zip(usable, masks, usable_sizes, strict=True):
            if isinstance(mask, Fault):
                _append(reasons, f"annotation {annotation['id']}: {mask.text}")
                continue
            pixels = _draw(annotation["bbox"], size, points, _generator(seed, annotation["id"]))
            fields = (pixels.tolist(), _read(mask, pixels).tolist())
            yield {k: v for k, v in annotation.items() if k != "segmentation"} | dict(
                zip(FIELDS, fields, strict=True)
            )


def _append(reasons: list[str], reason: str) -> None:
    if len(reasons) < MOST_REASONS:
        reasons.append(reason)


def _generator(seed: int, identity: int | str) -> np.random.Generator:
    """Return the random numbers of an annotation."""
    digest = hashlib.sha256(f"{seed} {identity!r}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4"))


def _draw(
    bbox: Sequence[float], size: Size, number: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw pixels x, y (number, 2), uniform in the part of a box that lies in its image."""
    corner, sides = np.array(bbox[:2], dtype=np.float64), np.array(bbox[2:], dtype=np.float64)
    limits = np.array(size[::-1])
    near, far = np.clip(corner, 0, limits), np.clip(corner + sides, 0, limits)
    pixels = np.floor(near + generator.random((number, 2)) * (far - near)).astype(np.int64)
    return np.minimum(pixels, limits - 1)


def _read(mask: Record, pixels: np.ndarray) -> np.ndarray:
    """Return which pixels (P, 2) lie in a compressed mask: 0 or 1, (P,)."""
    ends = decode_counts(mask["counts"]).cumsum()
    places = pixels[:, 0] * mask["size"][0] + pixels[:, 1]  # column by column
    return np.searchsorted(ends, places, side="right") % 2
