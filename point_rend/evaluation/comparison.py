"""Pictures of the instances of several models side by side."""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

from point_rend.data.checks.masks import compressed_rle
from point_rend.evaluation.photographs import read_photograph
from point_rend.utils.files import check_that_inputs_stay
from point_rend.visualization.drawing import match_colors, overlay_masks
from point_rend.visualization.layout import save_picture, side_by_side

logger = logging.getLogger(__name__)
PANEL_HEIGHT = 480


def write_comparison(
    content: Mapping[str, Any],
    image_root: Path,
    results: Mapping[str, Sequence[dict[str, Any]]],
    output: Path,
    *,
    num_images: int,
    min_score: float,
    without_photographs: bool = False,
) -> None:
    """Write one picture per image: the photograph, each model's instances and the ground truth.

    Args:
        content: COCO annotations, as `read_coco` returns them.
        image_root: Folder of the images.
        results: Results with masks, as `read_results` returns them, by model.
        output: Folder for the pictures.
        num_images: Number of images, from the first on.
        min_score: Minimum score of the instances that are drawn.
        without_photographs: Paint on plain gray.

    Raises:
        FileNotFoundError: If an image is missing.
        ValueError: As `read_photograph`, or if an image would be overwritten.
    """
    images = content["images"][:num_images]
    files = [output / f"{number:02d}.jpg" for number in range(1, len(images) + 1)]
    check_that_inputs_stay([image_root / x["file_name"] for x in images], files)
    by_image = {name: results_by_image(own, min_score) for name, own in results.items()}
    ground_truth = defaultdict(list)
    for annotation in content["annotations"]:
        ground_truth[annotation["image_id"]].append(annotation)

    for record, file in zip(images, files, strict=True):
        image = read_photograph(image_root, record, without_photographs=without_photographs)
        rows = [instances[record["id"]] for instances in by_image.values()]
        rows.append(ground_truth[record["id"]])
        gt_boxes = box_corners(rows[-1], *image.shape[:2])
        panels = [draw_instances(image, instances, gt_boxes) for instances in rows]
        titles = [*by_image, "ground truth"]
        if not without_photographs:
            panels, titles = [image, *panels], ["input", *titles]
        size = (round(image.shape[1] * PANEL_HEIGHT / image.shape[0]), PANEL_HEIGHT)
        panels = [cv2.resize(panel, size, interpolation=cv2.INTER_AREA) for panel in panels]
        save_picture(file, side_by_side(panels, titles))
    earlier = [
        x for x in output.glob("*.jpg") if re.fullmatch(r"\d{2,}", x.stem) and x not in files
    ]
    if earlier:
        logger.warning(
            "%s has %d pictures of an earlier comparison, such as %s",
            output,
            len(earlier),
            earlier[0],
        )


def results_by_image(
    results: Sequence[dict[str, Any]], min_score: float
) -> defaultdict[Any, list[dict[str, Any]]]:
    """Group the results that reach a score by image id."""
    by_image = defaultdict(list)
    for result in results:
        if result["score"] >= min_score:
            by_image[result["image_id"]].append(result)
    return by_image


def draw_instances(
    image: np.ndarray, instances: Sequence[dict[str, Any]], gt_boxes: np.ndarray
) -> np.ndarray:
    """Paint instances over an image, in the colors of the overlapping true boxes (J, 4)."""
    height, width = image.shape[:2]
    masks = np.zeros((len(instances), height, width), dtype=bool)
    for mask, instance in zip(masks, instances, strict=True):
        mask[:] = mask_util.decode(compressed_rle(instance["segmentation"], height, width))
    boxes = box_corners(instances, height, width)
    return overlay_masks(image, masks, match_colors(boxes, gt_boxes))


def box_corners(instances: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Return the boxes of COCO records, or those of their masks, as (I, 4) x0, y0, x1, y1."""
    boxes = [
        x["bbox"]
        if "bbox" in x
        else mask_util.toBbox(compressed_rle(x["segmentation"], height, width))
        for x in instances
    ]
    stacked = np.array(boxes, dtype=float).reshape(-1, 4)
    stacked[:, 2:] += stacked[:, :2]
    return stacked
