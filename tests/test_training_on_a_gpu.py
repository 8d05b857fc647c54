"""Training steps of the heads on a pretended GPU: the values of the CPU, and few waits."""

from collections.abc import Mapping

import pytest
import torch
from detectron2.modeling import build_mask_head, build_sem_seg_head
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from point_rend import PointRendSemanticSegmentor, stock_heads
from point_rend.ground_truth.shared_masks import share_masks
from tests.parity.test_training_labels import with_polygons
from tests.pretended_cuda import Record
from tests.synthetic import (
    SHAPES,
    random_features,
    random_mask_head,
    random_proposals,
    small_head_config,
)
from tests.synthetic_semantic import random_labels, small_semantic_config, smooth_images
from tests.test_meta_arch import model_of

COUNTS = [20, 12]


def training_step(head: nn.Module, *inputs: object) -> tuple[dict, dict, dict]:
    """Return the losses, the gradients and what is logged."""
    head.train().zero_grad()
    torch.manual_seed(3)
    with EventStorage() as storage:
        losses = head(*inputs)
        losses = losses if isinstance(losses, Mapping) else losses[1]
        sum(losses.values()).backward()
        logged = {name: value for name, (value, _) in storage.latest().items()}
    return losses, {name: x.grad for name, x in head.named_parameters()}, logged


def assert_equal_values(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].detach().cpu(), value.detach()), name


def proposals(kind: str) -> list[Instances]:
    instances = random_proposals(COUNTS)
    if kind == "polygons":
        for x in instances:
            x.gt_boxes = x.proposal_boxes
        with_polygons(instances)
    return share_masks(instances)


# Waits of a step: one for what each loss logs; polygons are rasterized on the CPU, as in
# Detectron2, and their objects are looked up there.
WAITS = {
    ("bitmaps", False): 2,
    ("polygons", False): 4,
    ("bitmaps", True): 1,
    ("polygons", True): 2,
}


@pytest.mark.parametrize(("kind", "implicit"), WAITS)
def test_a_step_of_the_mask_heads_gives_the_values_of_the_cpu_with_few_waits(
    kind: str, implicit: bool, cuda: Record
):
    head, features = random_mask_head(implicit=implicit), random_features(2)
    instances = proposals(kind)
    losses, gradients, logged = training_step(head, features, instances)
    gradients = {name: x.clone() for name, x in gradients.items()}
    head.to("cuda")
    there = {name: x.to("cuda") for name, x in features.items()}
    instances = [x.to("cuda") for x in instances]
    cuda.clear()
    found_losses, found_gradients, found_logged = training_step(head, there, instances)
    assert cuda.num_waits <= WAITS[kind, implicit], cuda
    assert_equal_values(found_losses, losses)
    assert_equal_values(found_gradients, gradients)
    assert found_logged == logged
    assert ("mask_rcnn/accuracy" in logged) != implicit
    assert "point/accuracy" in logged


@pytest.mark.parametrize("implicit", [False, True], ids=["standard", "implicit"])
def test_a_step_of_the_mask_heads_waits_less_than_one_of_the_stock_project(
    implicit: bool, cuda: Record
):
    pytest.importorskip("detectron2.projects.point_rend")
    cfg = small_head_config("MODEL.POINT_HEAD.NUM_CLASSES", 5, implicit=implicit)
    ours = build_mask_head(cfg, SHAPES).to("cuda")
    with stock_heads():
        stock = build_mask_head(cfg, SHAPES).to("cuda")
    features = {name: x.to("cuda") for name, x in random_features(2).items()}
    waits = []
    for head, share in ((ours, share_masks), (stock, list)):
        instances = share([x.to("cuda") for x in random_proposals(COUNTS)])
        cuda.clear()
        training_step(head, features, instances)
        waits.append(cuda.num_waits)
    assert waits[0] < waits[1] / 2


@pytest.mark.parametrize("sizes", [None, [(64, 96), (40, 70)]], ids=["padded", "own-sizes"])
def test_a_step_of_the_semantic_head_gives_the_values_of_the_cpu_without_a_wait(
    sizes: list | None, cuda: Record
):
    torch.manual_seed(0)
    head = build_sem_seg_head(small_semantic_config(), SHAPES)
    features, labels = random_features(2), random_labels(2, 6)
    losses, gradients, _ = training_step(head, features, labels, sizes)
    gradients = {name: x.clone() for name, x in gradients.items()}
    head.to("cuda")
    there = {name: x.to("cuda") for name, x in features.items()}
    labels = labels.to("cuda")
    cuda.clear()
    found_losses, found_gradients, _ = training_step(head, there, labels, sizes)
    assert cuda.num_waits == 0, cuda
    assert_equal_values(found_losses, losses)
    assert_equal_values(found_gradients, gradients)


def test_a_semantic_model_trains_on_images_of_the_host_without_a_wait(cuda: Record):
    model = model_of(PointRendSemanticSegmentor).to("cuda")
    inputs = smooth_images([(64, 96), (40, 52)])
    cuda.clear()
    losses, _, _ = training_step(model, inputs)
    assert cuda.num_waits == 0, cuda
    assert all(loss.is_cuda for loss in losses.values())
