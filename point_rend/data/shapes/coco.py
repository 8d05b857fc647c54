"""Drawn scenes as a data set in COCO format."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util

from point_rend.data.shapes.manifest import write_once
from point_rend.data.shapes.outlines import CLASSES
from point_rend.data.shapes.scene import SUPERSAMPLING, Scene, draw_scene


class Split(NamedTuple):
    """Files of one split."""

    json_file: Path
    image_root: Path


def trace_polygons(subpixels: np.ndarray) -> list[list[float]] | None:
    """Trace the outlines of a visible mask as COCO polygons.

    Args:
        subpixels: (H, W) * SUPERSAMPLING bool, not empty.

    Returns:
        One flat list x0, y0, x1, y1, ... in pixels for each connected component of at least one
        pixel; None if the mask has a hole of at least one pixel, which polygons cannot express.
    """
    pixel = SUPERSAMPLING**2
    contours, hierarchy = cv2.findContours(
        subpixels.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    polygons = []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        if cv2.contourArea(contour) < pixel:
            continue
        if parent >= 0:
            return None
        corners = cv2.approxPolyDP(contour, 0.2 * SUPERSAMPLING, closed=True)[:, 0]
        if len(corners) >= 3:
            polygons.append(np.round((corners + 0.5) / SUPERSAMPLING, 3).reshape(-1).tolist())
    return polygons or None


def annotate(scene: Scene, *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Describe a scene in COCO annotations: polygons, or compressed RLE for masks with holes.

    Args:
        scene: The drawn scene.
        image_id: Id of the image.
        first_id: Id of its first annotation; the ids are consecutive.

    Returns:
        One dict per instance; pycocotools computes area and bbox from the segmentation.
    """
    height, width = scene.image.shape[:2]
    annotations = []
    for i, (label, mask) in enumerate(zip(scene.classes, scene.masks, strict=True)):
        segmentation: Any = trace_polygons(scene.owners == i)
        if segmentation is None:
            rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": [height, width], "counts": rle["counts"].decode("ascii")}
        else:
            rle = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        annotations.append(
            {
                "id": first_id + i,
                "image_id": image_id,
                "category_id": label + 1,
                "iscrowd": 0,
                "area": float(mask_util.area(rle)),
                "bbox": [float(v) for v in mask_util.toBbox(rle)],
                "segmentation": segmentation,
            }
        )
    return annotations


def _write_split(folder: Path, name: str, count: int, size: tuple[int, int], seed: int) -> None:
    """Draw one split into `folder`/`name` and `folder`/annotations."""
    (folder / name).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        rng = np.random.default_rng([seed, ("train", "val").index(name), number])
        scene = draw_scene(rng, size)
        file_name = f"{number:06d}.jpg"
        ok, encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        if not ok:
            raise OSError(f"OpenCV could not encode {file_name} of split {name}")
        (folder / name / file_name).write_bytes(encoded.tobytes())
        images.append(
            {
                "id": number,
                "file_name": file_name,
                "height": size[0],
                "width": size[1],
                "license": 1,
            }
        )
        annotations += annotate(scene, image_id=number, first_id=len(annotations) + 1)
    content = {
        "info": {"description": f"Drawn shapes, split {name}, seed {seed}", "version": "1.0"},
        "licenses": [
            {
                "id": 1,
                "name": "CC0-1.0",
                "url": "https://creativecommons.org/publicdomain/zero/1.0/",
            }
        ],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i, "name": label, "supercategory": "shape"} for i, label in enumerate(CLASSES, 1)
        ],
    }
    _json_file(folder, name).write_text(json.dumps(content))


def _json_file(folder: Path, name: str) -> Path:
    return folder / "annotations" / f"instances_{name}.json"


def generate(
    output_dir: str | Path,
    *,
    num_train: int = 300,
    num_val: int = 60,
    image_size: tuple[int, int] = (256, 256),
    seed: int = 0,
) -> dict[str, Split]:
    """Write the data set, unless the directory already holds it.

    The directory appears complete or not at all. The same arguments give the same bytes (with the
    same versions of NumPy and OpenCV).

    Args:
        output_dir: New or empty directory, or one that holds this very data set.
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.
        image_size: Height and width in pixels, each at least 64.
        seed: Seed of all random numbers, at least 0.

    Returns:
        The files of "train" and "val".

    Raises:
        ValueError: If a number is out of its range.
        FileExistsError: If the directory holds something else.
    """
    counts = {"train": num_train, "val": num_val}
    folder = Path(output_dir)
    files = [str(_json_file(Path(), name)) for name in counts]
    for name, count in counts.items():
        files += [f"{name}/{number:06d}.jpg" for number in range(1, count + 1)]

    def write(unfinished: Path) -> None:
        for name, count in counts.items():
            _write_split(unfinished, name, count, image_size, seed)

    generator = "point_rend.data.shapes 1"
    write_once(folder, generator, counts, image_size, seed, files=files, write=write)
    return {name: Split(_json_file(folder, name), folder / name) for name in counts}
