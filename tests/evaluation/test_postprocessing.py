"""Results in the image: those of Detectron2's post-processing, with masks that are pasted later."""

import copy

import pytest
import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances

from point_rend.evaluation.postprocessing import paste, postprocess
from point_rend.rendering.box_masks import BoxMasks


def random_detections(count: int, **more: torch.Tensor) -> Instances:
    """Detections in an input of 60 × 80 pixels; some boxes are outside, some empty."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([120, 90]) - 20
    boxes = torch.cat((corners.amin(dim=1), corners.amax(dim=1)), dim=1)
    boxes[::5, 2] = boxes[::5, 0]
    return Instances(
        (60, 80),
        pred_boxes=Boxes(boxes),
        scores=torch.rand(count, generator=generator),
        pred_classes=torch.arange(count),
        **more,
    )


def assert_same(found: Instances, expected: Instances) -> None:
    assert found.image_size == expected.image_size
    assert found.get_fields().keys() == expected.get_fields().keys()
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    for name in found.get_fields().keys() - {"pred_boxes", "pred_masks"}:
        assert torch.equal(found.get(name), expected.get(name))


@pytest.mark.parametrize("count", [0, 40])
@pytest.mark.parametrize("size", [(60, 80), (131, 97)])
def test_results_are_those_of_detectron2(count: int, size: tuple[int, int]):
    masks = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    keypoints = torch.rand(count, 3, 3, generator=torch.Generator().manual_seed(2))
    detections = random_detections(count, pred_masks=masks, pred_keypoints=keypoints)
    expected = detector_postprocess(copy.deepcopy(detections), *size)
    found = postprocess(detections, *size)
    assert len(found) < max(count, 1)
    assert_same(found, expected)
    assert isinstance(found.pred_masks, BoxMasks)
    pasted = paste({"instances": found, "other": 1})
    assert pasted["other"] == 1
    assert_same(pasted["instances"], expected)
    assert pasted["instances"].pred_masks.dtype == expected.pred_masks.dtype
    assert torch.equal(pasted["instances"].pred_masks, expected.pred_masks)
    assert torch.equal(
        torch.stack([*found.pred_masks, masks.new_zeros(size)])[:-1].bool(),
        expected.pred_masks.bool(),
    )


def test_detections_without_masks_are_those_of_detectron2():
    expected = detector_postprocess(random_detections(20), 131, 97)
    found = postprocess(random_detections(20), 131, 97)
    assert_same(found, expected)
    assert paste({"instances": found})["instances"] is found
