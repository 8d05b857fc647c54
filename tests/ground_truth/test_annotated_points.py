"""Annotated points of instances in the frame of their proposals."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from point_rend.ground_truth.annotated_points import (
    ABSENT_LABEL,
    annotated_points,
    has_annotated_points,
    number_of_annotated_points,
)
from point_rend.ground_truth.losses import binary_point_loss
from tests.synthetic import random_features, random_mask_head, random_proposals

BOX = [10.0, 20.0, 30.0, 60.0]
BOTH = pytest.mark.parametrize("implicit", [False, True], ids=["standard", "implicit"])


def image(points: list[list[tuple[float, float]]], labels: list[list[int]], box=BOX) -> Instances:
    found = Instances((100, 100), proposal_boxes=Boxes(torch.tensor([box] * len(labels))))
    found.gt_point_coords, found.gt_point_labels = torch.tensor(points), torch.tensor(labels)
    found.gt_classes = torch.zeros(len(labels), dtype=torch.int64)
    return found


def test_points_are_converted_to_the_frame_of_their_proposal():
    coords, labels = annotated_points(
        [image([[(10.0, 20.0), (15.0, 50.0), (30.0, 60.0)]], [[0, 1, 1]])]
    )
    assert coords.dtype == labels.dtype == torch.float32
    assert coords.tolist() == [[[0, 0], [0.25, 0.75], [1, 1]]]
    assert labels.tolist() == [[0, 1, 1]]


def test_points_outside_of_their_proposal_are_ignored_but_counted():
    outside = image([[(9.9, 30.0), (20.0, 60.1), (12.0, 30.0)]], [[1, 0, -1]])
    coords, labels = annotated_points([outside])
    assert labels.tolist() == [[-1, -1, -1]]
    assert coords.isfinite().all()
    assert number_of_annotated_points([outside]).item() == 3


def test_images_may_have_different_numbers_of_points_and_absent_ones_count_nowhere():
    one = image([[(12.0, 30.0)], [(12.0, 40.0)]], [[1], [0]])
    two = image(
        [[(12.0, 30.0), (0.0, 0.0)], [(11.0, 30.0), (30.0, 40.0)]], [[1, ABSENT_LABEL], [1, 1]]
    )
    empty = Instances((100, 100), proposal_boxes=Boxes(torch.zeros(0, 4)))
    coords, labels = annotated_points([one, empty, two])
    assert coords.shape == (4, 2, 2)
    assert labels.tolist() == [[1, -1], [0, -1], [1, -1], [1, 1]]
    assert number_of_annotated_points([one, empty, two]).item() == 5


def test_a_box_without_extent_ignores_its_points():
    coords, labels = annotated_points(
        [image([[(10.0, 20.0)]], [[1]], box=[10.0, 20.0, 10.0, 20.0])]
    )
    assert coords.isfinite().all()
    assert labels.tolist() == [[-1]]


def test_a_batch_has_annotated_points_or_masks():
    with_points, with_masks = image([[(12.0, 30.0)]], [[1]]), random_proposals([1])[0]
    empty = Instances((100, 100), proposal_boxes=Boxes(torch.zeros(0, 4)))
    assert has_annotated_points([with_points, empty])
    assert not has_annotated_points([with_masks, empty])
    assert not has_annotated_points([empty])
    with pytest.raises(ValueError, match="only some images of a batch have gt_point_coords"):
        has_annotated_points([with_points, with_masks])


def test_a_point_loss_may_be_averaged_over_another_number_of_points():
    logits, labels = torch.tensor([[0.0, 5.0]]), torch.tensor([[1.0, -1.0]])
    expected = torch.tensor(2.0).log()
    torch.testing.assert_close(binary_point_loss(logits, labels), expected)
    torch.testing.assert_close(binary_point_loss(logits, labels, torch.tensor(4)), expected / 4)


def step(head, instances: list[Instances]) -> tuple[dict[str, float], dict[str, float]]:
    with EventStorage() as storage:
        losses = head.train()(random_features(len(instances)), instances)
        sum(losses.values()).backward()
    return {k: x.item() for k, x in losses.items()}, {
        k: v for k, (v, _) in storage.latest().items()
    }


@BOTH
def test_heads_learn_from_objects_with_any_numbers_of_points_and_images_without_objects(implicit):
    head = random_mask_head(implicit=implicit)
    losses, logged = step(
        head,
        [
            image([[(12.0, 30.0)]], [[1]]),
            random_proposals([0])[0],
            image([[(12.0, 30.0), (20.0, 50.0)]], [[0, 1]]),
        ],
    )
    assert losses.keys() == {"loss_mask_point", "loss_l2" if implicit else "loss_mask"}
    assert all(loss > 0 for loss in losses.values())
    assert {"point/accuracy", "mask_rcnn/accuracy"} & logged.keys() == (
        {"point/accuracy"} if implicit else {"point/accuracy", "mask_rcnn/accuracy"}
    )
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name


@BOTH
@pytest.mark.parametrize("points", [0, 1], ids=["none at all", "all outside"])
def test_objects_without_points_in_their_proposals_have_a_loss_of_zero_with_a_graph(
    implicit, points
):
    head = random_mask_head(implicit=implicit)
    instances = image([[(0.0, 0.0)] * points], [[1] * points])
    instances.gt_point_coords = instances.gt_point_coords.reshape(1, points, 2)
    losses, _ = step(head, [instances])
    assert losses["loss_mask_point"] == 0
    assert all(p.grad is not None for p in head.point_head.parameters())
