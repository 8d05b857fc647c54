"""Results in the image: those of Detectron2's post-processing, with masks that are pasted later."""

import copy
import json

import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN, build_model, detector_postprocess
from detectron2.structures import Boxes, Instances

from point_rend import load_config
from point_rend.evaluation.postprocessing import UnpastedMasks, coco_records, paste, postprocess
from point_rend.rendering.box_masks import BoxMasks
from tests.cli.test_predict import PANOPTIC, TINY_SEMANTIC
from tests.tiny_datasets import POINTREND, TINY_MODEL


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


@pytest.mark.parametrize("fields", [(), ("pred_masks",), ("pred_masks", "pred_keypoints")])
@pytest.mark.parametrize("count", [0, 20])
def test_records_are_those_of_detectron2_in_its_order(count: int, fields: tuple[str, ...]):
    values = {
        "pred_masks": torch.rand(count, 1, 28, 28),
        "pred_keypoints": torch.rand(count, 3, 3),
    }
    found = postprocess(random_detections(count, **{k: values[k] for k in fields}), 131, 97)
    pasted = copy.deepcopy(paste({"instances": found})["instances"])
    for instances in (copy.deepcopy(found), copy.deepcopy(pasted)):
        records = coco_records(instances, 7)
        assert json.dumps(records) == json.dumps(instances_to_coco_json(copy.deepcopy(pasted), 7))
        assert len(records) == len(found)


@pytest.mark.parametrize(
    ("config", "opts"), [(POINTREND, []), (PANOPTIC, TINY_SEMANTIC)], ids=["instance", "panoptic"]
)
@torch.no_grad()
def test_a_model_detects_the_same_when_its_masks_are_pasted_later(config: str, opts: list[str]):
    torch.manual_seed(0)
    more = ["MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", "0.0"]
    model = build_model(load_config(config, [*TINY_MODEL, *opts, *more])).eval()
    inputs = [
        {"image": 255 * torch.rand(3, 64, 96), "height": 90, "width": 150},
        {"image": 255 * torch.rand(3, 64, 64)},
    ]
    expected = model(inputs)
    wrapped = UnpastedMasks(model)
    assert not wrapped.training
    for ours, theirs in zip(wrapped(inputs), expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert isinstance(ours["instances"].pred_masks, BoxMasks)
        assert_same(ours["instances"], theirs["instances"])
        assert torch.equal(ours["instances"].pred_masks.tensor(), theirs["instances"].pred_masks)
        assert theirs["instances"].pred_masks.any()
        if "panoptic_seg" in theirs:
            assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
            assert torch.equal(ours["panoptic_seg"][0], theirs["panoptic_seg"][0])
            assert ours["panoptic_seg"][1] == theirs["panoptic_seg"][1]
            assert any(segment["isthing"] for segment in theirs["panoptic_seg"][1])


def test_other_models_return_what_they_return():
    model = torch.nn.Identity()
    assert UnpastedMasks(model)([{"sem_seg": 1}]) == [{"sem_seg": 1}]


@pytest.mark.parametrize("way", ["class", "object", "hook"])
@torch.no_grad()
def test_what_a_model_does_beyond_its_inference_is_not_skipped(way: str):
    def first_alone(outputs: list[dict]) -> list[dict]:
        return [{"instances": output["instances"][:1]} for output in outputs]

    class Own(GeneralizedRCNN):
        def forward(self, batched_inputs: list[dict]) -> list[dict]:
            return first_alone(super().forward(batched_inputs))

    model = build_model(load_config(POINTREND, TINY_MODEL)).eval()
    inputs = [{"image": 255 * torch.rand(3, 64, 96)}]
    assert len(model(inputs)[0]["instances"]) > 1
    if way == "class":
        model.__class__ = Own
    elif way == "object":
        forward = model.forward
        model.forward = lambda batch: first_alone(forward(batch))
    else:
        model.register_forward_hook(lambda *call: first_alone(call[-1]))
    (found,) = UnpastedMasks(model)(inputs)
    assert len(found["instances"]) == 1
