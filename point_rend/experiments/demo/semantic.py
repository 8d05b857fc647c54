"""Three ways to label the street scenes of the semantic demo: their metrics and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from cityscapesscripts.helpers.labels import trainId2label
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.structures import ImageList
from torch import Tensor
from torch.nn import functional as F

from point_rend.evaluation.semantic_iou import SemanticIoU
from point_rend.experiments.demo.instances import closeup
from point_rend.inference.predictor import Predictor
from point_rend.rendering.uncertainty import label_map
from point_rend.utils.pictures import read_label_map, read_picture
from point_rend.visualization.drawing import paint_labels
from point_rend.visualization.layout import save_picture, side_by_side, stack

NUM_CLASSES = 19
COLORS = [trainId2label[i].color[::-1] for i in range(NUM_CLASSES)]  # BGR
VOID = 255
NUM_PICTURES = 6
MAGNIFICATION = 3  # of the pictures
TITLES = ("input", "coarse", "bilinear", "PointRend", "ground truth")
METHODS = ("coarse, nearest", "coarse, bilinear", "PointRend")


@torch.no_grad()
def predict(model: Any, image: np.ndarray) -> list[np.ndarray]:
    """Label an image with each of `METHODS`.

    Args:
        model: A trained `PointRendSemanticSegmentor` with a `SemSegFPNHead`, in eval mode.
        image: (H, W, 3) uint8, BGR.

    Returns:
        Three label maps (H, W) uint8.
    """
    pixels = torch.as_tensor(image.transpose(2, 0, 1).astype(np.float32), device=model.device)
    batch = ImageList.from_tensors(
        [(pixels - model.pixel_mean) / model.pixel_std], model.backbone.size_divisibility
    )
    head = model.sem_seg_head.coarse_sem_seg_head
    coarse = head.layers(model.backbone(batch.tensor))
    stride = head.common_stride
    rendered = model([{"image": pixels}])[0]["sem_seg"]

    def label(logits: Tensor) -> np.ndarray:
        height, width = image.shape[:2]
        return label_map(logits[:, :height, :width]).cpu().numpy().astype(np.uint8)

    nearest = F.interpolate(coarse, scale_factor=stride, mode="nearest")
    bilinear = F.interpolate(coarse, scale_factor=stride, mode="bilinear", align_corners=False)
    return [label(nearest[0]), label(bilinear[0]), label(rendered)]


def make_panels(image: np.ndarray, maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Make the panels of one image in the order of `TITLES`.

    Args:
        image: (H, W, 3) uint8, BGR.
        maps: The predictions and the ground truth, (H, W) uint8 each.
    """
    size = (image.shape[1] * MAGNIFICATION, image.shape[0] * MAGNIFICATION)
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    painted = [paint_labels(labels, COLORS) for labels in maps]
    return [large, *(cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in painted)]


def largest_boxes(instance_ids: np.ndarray) -> dict[int, tuple[int, np.ndarray]]:
    """Find the largest object of every class in an image.

    Args:
        instance_ids: (H, W), as Cityscapes defines them.

    Returns:
        For every label id the visible area, and the box x0, y0, x1, y1 in pixels.
    """
    found: dict[int, tuple[int, np.ndarray]] = {}
    for value in np.unique(instance_ids[instance_ids >= 1000]):
        y, x = np.nonzero(instance_ids == value)
        label, area = int(value) // 1000, len(y)
        if area > found.get(label, (0, None))[0]:
            found[label] = area, np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return found


def evaluate(
    config: str, weights: Path, data: Path, pictures: Path, *, opts: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Evaluate the three methods on the validation images and draw them.

    Args:
        config: Name of the model's config.
        weights: The trained model.
        data: The generated data set.
        pictures: Folder of the pictures.
        opts: Config keys and values of the model.

    Returns:
        "mIoU" and "boundary mIoU" in percent of each of `METHODS`.
    """
    count = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(NUM_CLASSES))
    model = Predictor.from_config_file(config, [*count, *opts], weights=weights).model
    records = load_cityscapes_semantic(str(data / "leftImg8bit/val"), str(data / "gtFine/val"))
    scores = [SemanticIoU(NUM_CLASSES, ignore_value=VOID) for _ in METHODS]
    rows: list[np.ndarray] = []
    objects: dict[int, tuple[int, list[np.ndarray]]] = {}  # area and close-up
    for record in sorted(records, key=lambda record: record["file_name"]):
        image = read_picture(record["file_name"])
        ground_truth = read_label_map(record["sem_seg_file_name"])
        predictions = predict(model, image)
        for score, prediction in zip(scores, predictions, strict=True):
            score.add(prediction, ground_truth)
        panels = make_panels(image, [*predictions, ground_truth])
        if len(rows) < NUM_PICTURES:
            rows.append(side_by_side(panels, TITLES))
        instance_file = record["sem_seg_file_name"].replace("labelTrainIds", "instanceIds")
        found = largest_boxes(read_label_map(instance_file))
        for label, (area, box) in found.items():
            if area > objects.get(label, (0, []))[0]:
                objects[label] = area, closeup(panels, box * MAGNIFICATION)
    closeups = [side_by_side(cut, TITLES) for _, (_, cut) in sorted(objects.items())]
    save_picture(pictures / "images.png", stack(rows))
    save_picture(pictures / "closeups.png", stack(closeups))
    return {name: score.means() for name, score in zip(METHODS, scores, strict=True)}
