"""Compare the results of several models on one data set: a table of AP, and pictures side by side.

    python tools/compare_results.py --annotations val.json --image-root val --output output/cmp \
        --results "4×conv=output/a/inference/val/coco_instances_results.json" \
        --results "PointRend=output/b/inference/val/coco_instances_results.json"

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

from point_rend.data.checks.rle import compressed_rle
from point_rend.data.datasets.coco import read_coco
from point_rend.evaluation.coco_results import average_precision, format_table
from point_rend.utils.arguments import check_names, named_result
from point_rend.utils.files import check_output
from point_rend.visualization.drawing import match_colors, overlay_masks
from point_rend.visualization.layout import save_picture, side_by_side

# So that the folder of tools can be imported from a script that lies in it.
PANEL_HEIGHT = 480


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode a COCO segmentation, polygons or RLE, to (height, width) bool."""
    return mask_util.decode(compressed_rle(segmentation, height, width)).astype(bool)


def draw(image: np.ndarray, instances: Sequence[dict[str, Any]], truth: np.ndarray) -> np.ndarray:
    """Paint instances over an image in the colors of the true boxes (J, 4) that they overlap."""
    height, width = image.shape[:2]
    masks = np.zeros((len(instances), height, width), dtype=bool)
    for mask, instance in zip(masks, instances, strict=True):
        mask[:] = decode(instance["segmentation"], height, width)
    return overlay_masks(image, masks, match_colors(corners(instances, height, width), truth))


def corners(instances: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Return the boxes of COCO records, or those around their masks, as (I, 4) x0, y0, x1, y1."""
    boxes = [
        x["bbox"]
        if "bbox" in x
        else mask_util.toBbox(compressed_rle(x["segmentation"], height, width))
        for x in instances
    ]
    stacked = np.array(boxes, dtype=float).reshape(-1, 4)
    stacked[:, 2:] += stacked[:, :2]
    return stacked


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if a file cannot be used.
    """
    parser = argparse.ArgumentParser(description="Compare results of several models.")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotations")
    parser.add_argument("--image-root", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--results",
        type=named_result,
        action="append",
        required=True,
        metavar="[NAME=]FILE",
        help="COCO results with masks; may be repeated",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--num-images", type=int, default=4, help="the first so many are drawn")
    parser.add_argument(
        "--without-photographs",
        action="store_true",
        help="paint on plain gray, for photographs that must not be passed on",
    )
    parser.add_argument("--min-score", type=float, default=0.5, help="of the instances drawn")
    args = parser.parse_args(argv)

    table: dict[str, dict[str, float]] = {}
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    try:
        check_names("--results", args.results)
        check_output(args.output, folder=True)
        content = read_coco(str(args.annotations))
        for name, file in args.results:
            table[name] = average_precision(args.annotations, file)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for name, file in args.results:
        found[name] = defaultdict(list)
        for result in json.loads(file.read_text()):
            if result["score"] >= args.min_score:
                found[name][result["image_id"]].append(result)
    truth = defaultdict(list)
    for annotation in content["annotations"]:
        truth[annotation["image_id"]].append(annotation)

    for number, record in enumerate(content["images"][: args.num_images], start=1):
        image_file = args.image_root / record["file_name"]
        image = cv2.imread(str(image_file))
        if image is None:
            parser.error(f"{image_file} is not there or not an image")
        if args.without_photographs:
            image = np.full_like(image, 80)
        boxes = corners(truth[record["id"]], *image.shape[:2])
        rows = [by_image[record["id"]] for by_image in found.values()] + [truth[record["id"]]]
        panels = [draw(image, instances, boxes) for instances in rows]
        titles = [*found, "ground truth"]
        if not args.without_photographs:
            panels, titles = [image, *panels], ["input", *titles]
        size = (round(image.shape[1] * PANEL_HEIGHT / image.shape[0]), PANEL_HEIGHT)
        panels = [cv2.resize(panel, size, interpolation=cv2.INTER_AREA) for panel in panels]
        picture = side_by_side(panels, titles)
        save_picture(args.output / f"{number:02d}.jpg", picture)
    print(f"\n{format_table(table)}\n\nPictures: {args.output}")
