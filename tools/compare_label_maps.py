#!/usr/bin/env python
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

from point_rend.data.semantic import IGNORE_LABEL, read_class_names
from point_rend.evaluation.scores import format_table
from point_rend.evaluation.semantic_scores import SemanticScores
from point_rend.visualize import colour_of, save_picture, side_by_side
from tools.compare_results import named_result
from tools.evaluate_json import check_names


def read_predictions(file: Path, image_root: Path) -> dict[Path, list[dict[str, Any]]]:
    """Read `sem_seg_predictions.json`: per image, relative to its root, one RLE for every class.

    Raises:
        ValueError: if the file is not one of these, or is about images elsewhere.
    """
    content = json.loads(file.read_text())
    predictions = defaultdict(list)
    try:
        for record in content:
            name = Path(record["file_name"]).resolve().relative_to(image_root.resolve())
            predictions[name].append(record)
            record["category_id"], record["segmentation"]["size"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file} is not a sem_seg_predictions.json of train_net.py") from error
    return predictions


def label_map(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Put the classes' RLEs of an image together to (H, W) uint8; 255 where there is none."""
    labels = np.full(records[0]["segmentation"]["size"], IGNORE_LABEL, dtype=np.uint8)
    for record in records:
        labels[mask_util.decode(record["segmentation"]).astype(bool)] = record["category_id"]
    return labels


def painted(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (H, W, 3) uint8: each class in its colour, what does not count in black."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[:num_classes] = [colour_of(k) for k in range(num_classes)]
    return colours[labels]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
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
    try:
        check_names("--results", args.results)
    except ValueError as error:
        parser.error(str(error))

    num_classes = len(read_class_names(args.classes))
    found = {name: read_predictions(file, args.images) for name, file in args.results}
    scores = {name: SemanticScores(num_classes) for name in found}
    files = sorted(next(iter(found.values())))
    drawn = set(files[:: max(1, len(files) // max(1, args.num_images))][: args.num_images])
    for file in files:
        label_file = args.labels / file.with_suffix(".png")
        truth = cv2.imread(str(label_file), cv2.IMREAD_GRAYSCALE)
        if truth is None:
            raise FileNotFoundError(f"there is no label map {label_file}")
        predicted = {name: label_map(by_image[file]) for name, by_image in found.items()}
        for name, labels in predicted.items():
            scores[name].add(labels, truth)
        if file in drawn:
            panels = [painted(labels, num_classes) for labels in (*predicted.values(), truth)]
            titles = [*predicted, "ground truth"]
            if not args.without_photographs:
                panels.insert(0, cv2.imread(str(args.images / file)))
                titles.insert(0, "input")
            name = "_".join(file.with_suffix(".png").parts)
            save_picture(args.output / name, side_by_side(panels, titles))
    table = format_table({name: score.means() for name, score in scores.items()})
    print(f"\n{table}\n\nPictures: {args.output}")


if __name__ == "__main__":
    main()
