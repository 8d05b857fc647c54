"""Drawn streets in the layout of Cityscapes: every pixel is labeled, 8 classes have instances.

    leftImg8bit/SPLIT/CITY/CITY_000000_NUMBER_leftImg8bit.png
    gtFine/SPLIT/CITY/CITY_000000_NUMBER_gtFine_{labelIds,labelTrainIds,instanceIds,color}.png
    gtFine/SPLIT/CITY/CITY_000000_NUMBER_gtFine_polygons.json

The ids are those of cityscapesscripts, whose scripts draw the same label images from the polygons.

Shape letters: M points of an outline, H and W the image sides in pixels.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cityscapesscripts.helpers.labels import name2label
from PIL import Image, ImageDraw

from point_rend.data.shapes.manifest import write_once
from point_rend.data.shapes.streets import Part, Street, draw_street

CITIES = {"train": "drawnham", "val": "sketchford"}
UNLABELED = "unlabeled"


class CityscapesSplit(NamedTuple):
    """Folders of one split."""

    image_dir: Path
    gt_dir: Path


def paint_ids(
    parts: list[Part], size: tuple[int, int], number: Callable[[Part], int]
) -> np.ndarray:
    """Fill the polygons of an annotation from back to front.

    Args:
        parts: Parts from back to front.
        size: Image height and width in pixels.
        number: Returns the value of a part; called once for each, in order.

    Returns:
        (H, W) int32; 0, the id of unlabeled pixels, outside all parts.
    """
    canvas = Image.new("I", size[::-1], name2label[UNLABELED].id)
    drawer = ImageDraw.Draw(canvas)
    for part in parts:
        drawer.polygon([(int(x), int(y)) for x, y in part.polygon], fill=number(part))
    return np.asarray(canvas)


def label_images(parts: list[Part], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Make the label images of an annotation.

    Args:
        parts: Parts from back to front.
        size: Image height and width in pixels.

    Returns:
        By the ending of the file name: (H, W) uint8 "labelIds" and "labelTrainIds", uint16
        "instanceIds", and "color" (H, W, 3) uint8 in RGB.
    """
    seen: dict[str, int] = {}

    def instance_id(part: Part) -> int:
        label = name2label[part.label]
        if not label.hasInstances:
            return label.id
        seen[part.label] = seen.get(part.label, -1) + 1
        return 1000 * label.id + seen[part.label]

    ids = paint_ids(parts, size, lambda part: name2label[part.label].id).astype(np.uint8)
    instance_ids = paint_ids(parts, size, instance_id).astype(np.uint16)
    train_ids = np.full(256, name2label[UNLABELED].trainId, dtype=np.uint8)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for label in name2label.values():
        if label.id >= 0:
            train_ids[label.id], colors[label.id] = label.trainId, label.color
    return {
        "labelIds": ids,
        "labelTrainIds": train_ids[ids],
        "instanceIds": instance_ids,
        "color": colors[ids],
    }


def _files(folder: Path, split: str, number: int) -> dict[str, Path]:
    """Return the files of an image by their content."""
    city = CITIES[split]
    stem = f"{city}_000000_{number:06d}"
    annotation = folder / "gtFine" / split / city / f"{stem}_gtFine"
    images = ("labelIds", "labelTrainIds", "instanceIds", "color")
    files = {kind: Path(f"{annotation}_{kind}.png") for kind in images}
    files["polygons"] = Path(f"{annotation}_polygons.json")
    files["image"] = folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    return files


def _write_street(files: dict[str, Path], street: Street) -> None:
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    height, width = street.image.shape[:2]
    Image.fromarray(np.ascontiguousarray(street.image[..., ::-1])).save(files["image"])
    for kind, pixels in label_images(street.parts, (height, width)).items():
        Image.fromarray(pixels).save(files[kind])
    objects = [{"label": part.label, "polygon": part.polygon.tolist()} for part in street.parts]
    content = {"imgHeight": height, "imgWidth": width, "objects": objects}
    files["polygons"].write_text(json.dumps(content))


def generate_cityscapes(
    output_dir: str | Path,
    *,
    num_train: int = 300,
    num_val: int = 60,
    image_size: tuple[int, int] = (256, 512),
    seed: int = 0,
) -> dict[str, CityscapesSplit]:
    """Write the data set, unless the directory already holds it.

    The arguments and errors are those of :func:`point_rend.data.shapes.coco.generate`. The same
    arguments give the same pixels (with the same versions of NumPy, OpenCV and Pillow).

    Returns:
        The folders of "train" and "val".
    """
    counts = {"train": num_train, "val": num_val}
    folder = Path(output_dir)
    numbered = [(split, i) for split, count in counts.items() for i in range(count)]

    def write(unfinished: Path) -> None:
        for split, number in numbered:
            rng = np.random.default_rng([seed, list(CITIES).index(split), number])
            _write_street(_files(unfinished, split, number), draw_street(rng, image_size))

    files = [str(file) for image in numbered for file in _files(Path(), *image).values()]
    generator = "point_rend.data.cityscapes_layout 1"
    write_once(folder, generator, counts, image_size, seed, files=files, write=write)
    return {
        split: CityscapesSplit(folder / "leftImg8bit" / split, folder / "gtFine" / split)
        for split in counts
    }
