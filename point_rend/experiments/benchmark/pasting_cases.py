"""Benchmark cases of what follows rendering: from the masks of boxes to RLEs of the whole image.

Shapes: N boxes, S side of a mask.
"""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from point_rend.evaluation.postprocessing import coco_records
from point_rend.experiments.benchmark.case import Agreement, Case, Comparison
from point_rend.experiments.benchmark.instance_cases import MASK_SIDE, boxes_and_classes
from point_rend.experiments.benchmark.random_inputs import random_boxes, smooth_noise
from point_rend.experiments.benchmark.settings import Settings
from point_rend.rendering.box_masks import BoxMasks

Records = list[dict[str, Any]]


def pasting_cases(settings: Settings) -> list[Case]:
    """Return the cases of pasting and encoding, by the number of boxes."""
    grid = boxes_and_classes(settings, (20, 100), (1,))
    numbers = dict.fromkeys(num_boxes for num_boxes, _ in grid)
    return [_pasting_case(num_boxes, settings.sizes.pasted_image) for num_boxes in numbers]


def record_agreement(ours: Records, baseline: Records) -> Agreement:
    """Compare the pixels of encoded masks, in which a probability is 0 or 1."""
    our_masks, masks = (
        [mask_util.decode(record["segmentation"]) for record in records]
        for records in (ours, baseline)
    )
    pairs = list(zip(our_masks, masks, strict=True))
    return Agreement(
        differing=float(np.mean([one != other for one, other in pairs])),
        largest=float(max((one != other).any() for one, other in pairs)),
        boundary=float(np.mean([mask[:, 1:] != mask[:, :-1] for mask in masks])),
    )


def _pasting_case(num_boxes: int, image_size: tuple[int, int]) -> Case:
    def build(settings: Settings) -> Comparison:
        generator = torch.Generator().manual_seed(settings.seed)
        boxes = random_boxes(num_boxes, image_size, generator).to(settings.device)
        side = (MASK_SIDE, MASK_SIDE)
        noise = [smooth_noise(1, side, generator)[0] for _ in range(num_boxes)]
        probabilities = (4 * torch.cat(noise)).sigmoid().to(settings.device)

        def records(masks: Tensor | BoxMasks) -> Records:
            found = Instances(image_size, pred_boxes=Boxes(boxes), pred_masks=masks)
            found.scores = found.pred_classes = torch.zeros(num_boxes)
            return coco_records(found.to("cpu"), 0)

        def ours() -> Records:
            return records(BoxMasks(probabilities, boxes, image_size))

        def baseline() -> Records:
            return records(BoxMasks(probabilities, boxes, image_size).tensor())

        return Comparison(ours, baseline, record_agreement)

    height, width = image_size
    return Case(
        name=f"pasting into {height}×{width} and encoding, {num_boxes} boxes",
        parameters={"boxes": num_boxes},
        baseline="Detectron2",
        build=build,
        baseline_bytes=num_boxes * height * width,
    )
