"""Compare semantic results of several models on one data set: mIoU, boundary mIoU, and pictures.

    python -m tools.compare_label_maps --images val --labels labels/val --output output/cmp \
        --classes road,car,tree \
        --results "SemanticFPN=output/a/inference/streets_val/sem_seg_predictions.json" \
        --results "PointRend=output/b/inference/streets_val/sem_seg_predictions.json"

Everything is read from the files that `train_net.py` leaves behind; no model is run.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

from point_rend.data.checks.rle import rle_fault
from point_rend.data.datasets.label_maps import IGNORE_LABEL, read_class_names
from point_rend.evaluation.coco_results import format_table
from point_rend.evaluation.semantic_iou import SemanticScores
from point_rend.utils.arguments import check_names, named_result
from point_rend.utils.errors import user_errors
from point_rend.utils.files import check_output
from point_rend.visualization.drawing import color_of
from point_rend.visualization.layout import save_picture, side_by_side

Predictions = Mapping[Path, Sequence[dict[str, Any]]]


def read_predictions(file: Path, image_root: Path, num_classes: int) -> Predictions:
    """Read `sem_seg_predictions.json`: per image, relative to its root, one RLE for every class.

    Raises:
        ValueError: if the file is not one of these or has no predictions, or if one is about an
            image elsewhere, of an unknown class, or no mask of its image.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is truncated or not JSON: {error}") from error
    if not isinstance(content, list) or not all(map(_is_prediction, content)):
        raise ValueError(f"{file} is not a sem_seg_predictions.json of train_net.py")
    if not content:
        raise ValueError(f"{file} has no predictions: expected some for every image")
    root = image_root.resolve()
    predictions: dict[Path, list[dict[str, Any]]] = defaultdict(list)
    for number, record in enumerate(content):
        image = Path(record["file_name"]).resolve()
        if not image.is_relative_to(root):
            raise ValueError(
                f"{file}: prediction {number} is about {image}, which does not lie in --images "
                f"{image_root}"
            )
        of_image = predictions[image.relative_to(root)]
        of_image.append(record)
        fault = _fault(record, of_image[0]["segmentation"]["size"], num_classes)
        if fault:
            raise ValueError(f"{file}: prediction {number} {fault}")
    return predictions


def _is_prediction(record: Any) -> bool:
    """Tell whether a record has the fields of a prediction."""
    if not isinstance(record, dict) or not isinstance(record.get("segmentation"), dict):
        return False
    size, counts = (record["segmentation"].get(key) for key in ("size", "counts"))
    return (
        isinstance(record.get("file_name"), str)
        and isinstance(record.get("category_id"), int)
        and isinstance(counts, str)
        and isinstance(size, list)
        and len(size) == 2
        and all(isinstance(side, int) for side in size)
    )


def _fault(record: Mapping[str, Any], size: tuple[int, int], num_classes: int) -> str | None:
    """Say what is wrong with a prediction for an image of a size (height, width)."""
    if not 0 <= record["category_id"] < num_classes:
        return (
            f"is of class {record['category_id']}, expected 0 to {num_classes - 1}, "
            f"since --classes has {num_classes}"
        )
    reason = rle_fault(record["segmentation"], *size)
    return f"has an {reason.text}" if reason and reason.fatal else None


def label_map(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Put the classes' RLEs of an image together to (H, W) uint8; 255 where there is none."""
    labels = np.full(records[0]["segmentation"]["size"], IGNORE_LABEL, dtype=np.uint8)
    for record in records:
        labels[mask_util.decode(record["segmentation"]).astype(bool)] = record["category_id"]
    return labels


def painted(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (H, W, 3) uint8: each class in its color, what does not count in black."""
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[:num_classes] = [color_of(k) for k in range(num_classes)]
    return colors[labels]


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what would fail only during the work.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a name is given twice, or --output cannot be written.
    """
    check_names("--results", args.results)
    for flag, folder in (("--images", args.images), ("--labels", args.labels)):
        if not folder.is_dir():
            raise FileNotFoundError(f"{flag}: there is no folder {folder}")
    if args.num_images < 0:
        raise ValueError(f"--num-images: expected 0 or more, got {args.num_images}")
    check_output(args.output, folder=True)


def check_images(found: Mapping[str, Predictions], labels: Path) -> None:
    """Refuse results of different images, and of images that have no label map.

    Args:
        found: Predictions by the names of the results.
        labels: Folder of the label maps.

    Raises:
        FileNotFoundError, ValueError: If there are such.
    """
    first, *others = found
    for name in others:
        for file in sorted(found[first].keys() ^ found[name].keys()):
            has, lacks = (first, name) if file in found[first] else (name, first)
            raise ValueError(
                f"--results: expected the same images in all, but {has!r} has {file} and "
                f"{lacks!r} has not"
            )
    for file in sorted(found[first]):
        if not (labels / file.with_suffix(".png")).is_file():
            raise FileNotFoundError(f"there is no label map {labels / file.with_suffix('.png')}")


def read_picture(file: Path, mode: int) -> np.ndarray:
    """Read an image, in a mode of OpenCV's.

    Raises:
        ValueError: If it cannot be read.
    """
    picture = cv2.imread(str(file), mode)
    if picture is None:
        raise ValueError(f"{file} is not there or not an image")
    return picture


def compare(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Score the results that the command line names, and write the pictures.

    Returns:
        mIoU and boundary mIoU in percent by the names of the results.

    Raises:
        OSError: If a file or folder is missing or cannot be read or written.
        ValueError: If the files do not fit together.
    """
    check_arguments(args)
    num_classes = len(read_class_names(args.classes))
    found = {name: read_predictions(file, args.images, num_classes) for name, file in args.results}
    check_images(found, args.labels)
    scores = {name: SemanticScores(num_classes) for name in found}
    files = sorted(next(iter(found.values())))
    drawn = set(files[:: max(1, len(files) // max(1, args.num_images))][: args.num_images])
    for file in files:
        label_file = args.labels / file.with_suffix(".png")
        truth = read_picture(label_file, cv2.IMREAD_GRAYSCALE)
        predicted = {name: label_map(by_image[file]) for name, by_image in found.items()}
        for name, labels in predicted.items():
            try:
                scores[name].add(labels, truth)
            except ValueError as error:
                raise ValueError(
                    f"{label_file} and {name!r}, with {num_classes} --classes: {error}"
                ) from error
        if file in drawn:
            panels = [painted(labels, num_classes) for labels in (*predicted.values(), truth)]
            titles = [*predicted, "ground truth"]
            if not args.without_photographs:
                panels.insert(0, read_picture(args.images / file, cv2.IMREAD_COLOR))
                titles.insert(0, "input")
            name = "_".join(file.with_suffix(".png").parts)
            save_picture(args.output / name, side_by_side(panels, titles))
    return {name: score.means() for name, score in scores.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 after an error that the user can put right.
    """
    parser = argparse.ArgumentParser(description="Compare semantic results of several models.")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--labels", type=Path, required=True, help="folder of the label maps")
    parser.add_argument("--classes", required=True, help="as for train_net.py --register-sem-seg")
    parser.add_argument(
        "--results",
        type=named_result,
        action="append",
        required=True,
        metavar="[NAME=]FILE",
        help="a sem_seg_predictions.json; may be repeated",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument(
        "--num-images", type=int, default=4, help="so many are drawn, spread evenly"
    )
    parser.add_argument(
        "--without-photographs",
        action="store_true",
        help="leave the images out of the pictures, where they must not be passed on",
    )
    args = parser.parse_args(argv)
    with user_errors():
        table = format_table(compare(args))
    print(f"\n{table}\n\nPictures: {args.output}")
