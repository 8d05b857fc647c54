"""Whole models on a pretended GPU: the values of the CPU, no mix-up of devices, few waits."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from point_rend import load_config
from point_rend.data.loader.transport import to_device
from point_rend.engine.train_step import CheckedTrainer
from point_rend.evaluation.tta import AutocastModel, build_test_time_augmentation
from point_rend.ground_truth.shared_masks import share_masks
from tests.config.test_published_configs import SMALL
from tests.config.test_semantic_configs import PANOPTIC, sample
from tests.config.test_semantic_configs import SMALL as SMALL_SEMANTIC
from tests.pretended_cuda import Record
from tests.synthetic import as_detections, random_features, random_mask_head, random_proposals

CUDA = torch.device("cuda:0")
CLASSES = ("MODEL.ROI_HEADS.NUM_CLASSES", "3")
TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1}

INSTANCES = {
    "standard": ("pointrend_rcnn_R_50_FPN_1x_coco", ()),
    "implicit": ("implicit_pointrend_R_50_FPN_1x_coco", ()),
    "class-agnostic": (
        "pointrend_rcnn_R_50_FPN_1x_coco",
        (
            *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"),
            *("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", "True"),
            *("MODEL.ROI_HEADS.NAME", "PointRendROIHeads"),
        ),
    ),
}
SEMANTIC = {
    "semantic": "pointrend_semantic_R_50_FPN_1x_coco",
    "deeplab": "pointrend_deeplab_v3_plus_R_103_os16_90k_cityscapes",
}
KINDS = (*INSTANCES, *SEMANTIC, "panoptic")


def config_of(kind: str) -> CfgNode:
    """Return the config of a small model."""
    if kind in INSTANCES:
        name, opts = INSTANCES[kind]
        return load_config(f"InstanceSegmentation/{name}.yaml", [*SMALL, *CLASSES, *opts])
    if kind in SEMANTIC:
        return load_config(f"SemanticSegmentation/{SEMANTIC[kind]}.yaml", SMALL_SEMANTIC)
    return load_config(f"PanopticSegmentation/{PANOPTIC}.yaml", SMALL_SEMANTIC)


def small_model(kind: str) -> tuple[CfgNode, nn.Module, list[dict[str, Any]]]:
    """Return a small model with its config and two samples."""
    torch.manual_seed(0)
    cfg = config_of(kind)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = [sample(cfg), sample(cfg)]
    for image in batch:
        image["instances"] = share_masks([image["instances"]])[0]
    return cfg, model, batch


def train(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return losses and gradients."""
    torch.manual_seed(3)
    model.train().zero_grad()
    with EventStorage():
        losses = model(batch)
        sum(losses.values()).backward()
    gradients = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    return {name: x.detach().cpu().clone() for name, x in (losses | gradients).items()}


def predict(model: Any, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of each image by name, on the CPU."""
    with torch.no_grad():
        return [
            on_host
            for result in model(batch)
            for on_host in [
                {
                    name: value.to("cpu") if hasattr(value, "to") else (value[0].cpu(), *value[1:])
                    for name, value in result.items()
                }
            ]
        ]


def assert_same(found: Any, expected: Any) -> None:
    """Compare nested results value by value."""
    if hasattr(expected, "get_fields"):
        found, expected = found.get_fields(), expected.get_fields()
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif isinstance(getattr(expected, "tensor", expected), Tensor):
        found, expected = (getattr(x, "tensor", x) for x in (found, expected))
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    else:
        assert found == expected


def own_waits(cuda: Record) -> list[str]:
    """Return the waits of this package, without those of Detectron2 and of backward passes."""
    lines = [wait.line for wait in cuda.waits.elements()]
    return [
        x for x in lines if x.startswith("point_rend/") and " > " not in x and "_backward" not in x
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_inference_and_training_give_the_values_of_the_cpu(kind: str, cuda: Record):
    _, model, batch = small_model(kind)
    results, expected = predict(model.eval(), batch), train(model, batch)
    model = small_model(kind)[1].to("cuda")
    assert model.device.type == "cuda"
    cuda.clear()
    assert_same(predict(model.eval(), batch), results)
    assert cuda.num_operations > 0
    assert own_waits(cuda) == []  # in inference
    assert any(len(x) for result in results for x in result.values())
    assert_same(train(model, batch), expected)


@pytest.mark.usefixtures("cuda")
def test_a_coarse_head_alone_gives_the_values_of_the_cpu():
    head = random_mask_head("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False").eval()
    features, detected = random_features(2), as_detections(random_proposals([3, 0]))
    with torch.no_grad():
        expected = [x.pred_masks for x in head(features, detected)]
        there = {name: x.to("cuda") for name, x in features.items()}
        found = head.to("cuda")(there, [x.to("cuda") for x in detected])
    assert_same([x.pred_masks.cpu() for x in found], expected)


# Steps of a training


def on_the_device(kind: str, precision: torch.dtype = torch.float32) -> CheckedTrainer:
    """Return the training step of a model, whose batches are on the CPU."""
    _, model, batch = small_model(kind)
    model.to("cuda").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    torch.manual_seed(3)
    return CheckedTrainer(model, [batch] * 9, optimizer, precision=precision)


def step(trainer: CheckedTrainer) -> dict[str, float]:
    """Take a step and return the losses."""
    with EventStorage() as storage:
        trainer.run_step()
    return {name: value for name, (value, _) in storage.latest().items() if "loss" in name}


def test_a_batch_goes_to_the_device_from_pinned_memory_without_a_wait(cuda: Record):
    _, model, batch = small_model("panoptic")
    there = to_device(batch, CUDA)
    kinds = {(copy.to_device, copy.non_blocking, copy.pinned) for copy in cuda.copies}
    assert kinds == {(True, True, True)}
    # Of each image: its pixels, label map, boxes and classes; masks and the object of each.
    assert cuda.copies.total() == 2 * 6
    assert cuda.num_waits == 0, cuda
    to_device(there, CUDA)
    assert cuda.copies.total() == 2 * 6
    assert to_device(batch, torch.device("cpu")) is batch
    expected = train(model.to("cuda"), batch)
    model = small_model("panoptic")[1].to("cuda")
    assert_same(train(model, there), expected)
    assert all(x["image"].device.type == "cpu" for x in batch)


# The finite check waits, and what the losses of masks log.
WAITS = {"standard": 3, "semantic": 1, "panoptic": 3}


@pytest.mark.parametrize("kind", WAITS)
def test_a_step_of_a_training_waits_for_its_checks_and_logs_alone(kind: str, cuda: Record):
    trainer = on_the_device(kind)
    step(trainer)
    cuda.clear()
    step(trainer)
    assert len(own_waits(cuda)) <= WAITS[kind], own_waits(cuda)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("kind", "precision"), [("implicit", torch.bfloat16), ("panoptic", torch.float16)]
)
def test_steps_in_mixed_precision_are_close_to_those_in_float32(kind: str, precision: torch.dtype):
    expected = step(on_the_device(kind))
    trainer = on_the_device(kind, precision)
    found = step(trainer)
    assert found != expected
    for name, loss in expected.items():
        assert found[name] == pytest.approx(
            loss, abs=TOLERANCE[precision], rel=TOLERANCE[precision]
        )
    step(trainer)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("kind", ["standard", "semantic"])
def test_test_time_augmentation_gives_the_values_of_the_cpu(kind: str):
    cfg, model, batch = small_model(kind)
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (48, 64), 128
    results = []
    for device in ("cpu", "cuda"):
        augmented = build_test_time_augmentation(cfg, model.to(device).eval())
        results.append(predict(augmented, batch[:1]))
    assert_same(*results)


@pytest.mark.usefixtures("cuda")
def test_evaluation_in_mixed_precision_returns_results_of_the_same_form():
    _, model, batch = small_model("panoptic")
    model.to("cuda").eval()
    full = predict(model, batch)
    for precision in TOLERANCE:
        for result, expected in zip(
            predict(AutocastModel(model, precision), batch), full, strict=True
        ):
            assert result.keys() == expected.keys()
            if "sem_seg" in result:
                difference = (result["sem_seg"] - expected["sem_seg"]).abs().max()
                assert difference <= 0.2 * expected["sem_seg"].abs().max()
