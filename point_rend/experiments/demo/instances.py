"""Pictures of the demo: input, coarse masks, PointRend's masks and ground truth, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util

from point_rend.inference.predictor import Predictor
from point_rend.utils.json_files import read_json
from point_rend.utils.logs import only_errors
from point_rend.utils.pictures import read_picture
from point_rend.visualization.drawing import color_of, match_colors, overlay_masks
from point_rend.visualization.layout import save_picture, side_by_side, stack

NUM_PICTURES = 6
MAGNIFICATION = 3  # of the pictures
MIN_SCORE = 0.6  # of the detections shown
MIN_BOX_IOU = 0.5  # of a detection with its object
TITLES = ("input", "coarse 7x7", "PointRend", "ground truth")


class Instances(NamedTuple):
    """The instances shown in one picture."""

    masks: np.ndarray  # (I, H, W) bool at the size of the picture
    boxes: np.ndarray  # (I, 4) x0, y0, x1, y1 in pixels of the picture


def predict(predictor: Predictor, image: np.ndarray) -> Instances:
    """Detect instances; their masks are rendered at the size of the picture, not of the image."""
    height, width = (side * MAGNIFICATION for side in image.shape[:2])
    found = predictor(image, output_size=(height, width))["instances"].to("cpu")
    found = found[found.scores >= MIN_SCORE]
    return Instances(found.pred_masks.numpy(), found.pred_boxes.tensor.numpy())


def render_annotations(annotations: Sequence[dict[str, Any]], size: tuple[int, int]) -> Instances:
    """Render the annotated instances of an image at the size of its picture.

    Args:
        annotations: COCO annotations with polygons or compressed RLE.
        size: Height and width of the image.
    """
    height, width = (side * MAGNIFICATION for side in size)
    masks = np.zeros((len(annotations), height, width), dtype=bool)
    boxes = np.zeros((len(annotations), 4))
    for i, annotation in enumerate(annotations):
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            mask = mask_util.decode(segmentation).astype(np.float32)
            large = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
            masks[i] = cv2.GaussianBlur(large, (0, 0), MAGNIFICATION / 2) > 0.5
        else:
            polygons = [[MAGNIFICATION * v for v in polygon] for polygon in segmentation]
            rles = mask_util.frPyObjects(polygons, height, width)
            masks[i] = mask_util.decode(mask_util.merge(rles))
        x, y, w, h = annotation["bbox"]
        boxes[i] = np.array([x, y, x + w, y + h]) * MAGNIFICATION
    return Instances(masks, boxes)


def make_panels(
    image: np.ndarray, coarse: Instances, fine: Instances, ground_truth: Instances
) -> list[np.ndarray]:
    """Make the panels of one image in the order of `TITLES`, each object in one color."""
    size = (image.shape[1] * MAGNIFICATION, image.shape[0] * MAGNIFICATION)
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    colors = [color_of(i) for i in range(len(ground_truth.masks))]
    return [
        large,
        overlay_masks(large, coarse.masks, match_colors(coarse.boxes, ground_truth.boxes)),
        overlay_masks(large, fine.masks, match_colors(fine.boxes, ground_truth.boxes)),
        overlay_masks(large, ground_truth.masks, colors),
    ]


def closeup(panels: Sequence[np.ndarray], box: np.ndarray, side: int = 260) -> list[np.ndarray]:
    """Cut a square around a box out of every panel, inside the panel, resized to `side` pixels."""
    height, width = panels[0].shape[:2]
    length = round(min(1.2 * max(box[2] - box[0], box[3] - box[1]), height, width))
    corner = (box[:2] + box[2:]) / 2 - length / 2
    x, y = np.clip(np.round(corner).astype(int), 0, (width - length, height - length))
    return [
        cv2.resize(
            panel[y : y + length, x : x + length], (side, side), interpolation=cv2.INTER_AREA
        )
        for panel in panels
    ]


def largest_detected(
    annotations: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]
) -> dict[int, dict[str, Any]]:
    """Find the largest detected object of every class; the largest one if none was detected.

    Args:
        annotations: COCO annotations.
        results: Detections in COCO's result format.

    Returns:
        An annotation for each category id.
    """
    boxes: dict[tuple[int, int], list[Any]] = {}
    for result in results:
        if result["score"] >= MIN_SCORE:
            key = (result["image_id"], result["category_id"])
            boxes.setdefault(key, []).append(result["bbox"])

    def rank(annotation: dict[str, Any]) -> tuple[bool, float]:
        key = (annotation["image_id"], annotation["category_id"])
        overlaps = mask_util.iou(boxes.get(key, []), [annotation["bbox"]], [0])
        return np.max(overlaps, initial=0.0) >= MIN_BOX_IOU, annotation["area"]

    ranked = sorted(annotations, key=rank)
    return {annotation["category_id"]: annotation for annotation in ranked}


def draw_pictures(
    config: str,
    weights: Path,
    json_file: Path,
    image_root: Path,
    results: Path,
    folder: Path,
    *,
    opts: Sequence[str] = (),
    coarse_opts: Sequence[str],
) -> list[Path]:
    """Draw the first validation images and the largest detected object of every class.

    Args:
        config: Name of the model's config.
        weights: The trained model.
        json_file: COCO annotations of the validation set.
        image_root: Its images.
        results: Detections of the model, in COCO's result format.
        folder: Folder of the pictures.
        opts: Config keys and values of the model.
        coarse_opts: More of them, with which it predicts its coarse masks.

    Returns:
        The files written.
    """
    content = read_json(json_file, what="annotation file")
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    detections = read_json(results, what="result file")
    largest = largest_detected(content["annotations"], detections)

    count = ("MODEL.ROI_HEADS.NUM_CLASSES", str(len(names)))
    shared = [*count, *opts]
    with only_errors("point_rend.mask_head", "fvcore.common.checkpoint"):  # it has no point head
        coarse_model = Predictor.from_config_file(config, [*shared, *coarse_opts], weights=weights)
    predictors = [coarse_model, Predictor.from_config_file(config, shared, weights=weights)]
    shown = [image["id"] for image in content["images"][:NUM_PICTURES]]
    needed = {*shown, *(annotation["image_id"] for annotation in largest.values())}
    panels: dict[int, list[np.ndarray]] = {}
    for record in content["images"]:
        if record["id"] in needed:
            image = read_picture(image_root / record["file_name"])
            size = (record["height"], record["width"])
            ground_truth = render_annotations(by_image.get(record["id"], []), size)
            coarse, fine = (predict(predictor, image) for predictor in predictors)
            panels[record["id"]] = make_panels(image, coarse, fine, ground_truth)

    rows = [side_by_side(panels[number], TITLES) for number in shown]
    files = [folder / f"image_{number:06d}.png" for number in shown]
    for file, row in zip(files, rows, strict=True):
        save_picture(file, row)
    closeups = []
    for category, annotation in sorted(largest.items()):
        x, y, w, h = annotation["bbox"]
        box = np.array([x, y, x + w, y + h]) * MAGNIFICATION
        cut = closeup(panels[annotation["image_id"]], box)
        closeups.append(side_by_side(cut, (names[category], *TITLES[1:])))
    pairs = [side_by_side(closeups[i : i + 2], gap=32) for i in range(0, len(closeups), 2)]
    files += [folder / "closeups.png", folder / "images.png"]
    save_picture(files[-2], stack(pairs))
    save_picture(files[-1], stack(rows))
    return files
