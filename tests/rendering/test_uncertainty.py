"""Uncertainty of binary predictions, against loops and limit cases."""

import pytest
import torch

from point_rend.rendering.uncertainty import (
    foreground_uncertainty,
    label_map,
    select_class_channel,
    top2_margin_uncertainty,
)


@pytest.mark.parametrize("inner", [(), (5,), (3, 4)], ids=["vectors", "points", "grids"])
def test_selected_channel_is_that_of_each_regions_class(inner):
    values = torch.randn(4, 6, *inner)
    classes = torch.tensor([5, 0, 3, 3])
    selected = select_class_channel(values, classes)
    assert selected.shape == (4, 1, *inner)
    for region, class_id in enumerate(classes.tolist()):
        assert torch.equal(selected[region, 0], values[region, class_id])


def test_class_agnostic_values_are_their_own_selection():
    values = torch.randn(4, 1, 5)
    assert torch.equal(select_class_channel(values, torch.tensor([5, 0, 3, 3])), values)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_regions_have_no_channels_to_select(channels):
    none = torch.zeros(0, dtype=torch.long)
    assert select_class_channel(torch.zeros(0, channels, 7), none).shape == (0, 1, 7)


def test_selection_passes_gradient_to_the_chosen_channel_only():
    values = torch.randn(2, 3, 4, requires_grad=True)
    select_class_channel(values, torch.tensor([2, 0])).sum().backward()
    expected = torch.zeros(2, 3, 4)
    expected[0, 2] = expected[1, 0] = 1
    assert torch.equal(values.grad, expected)


def test_uncertainty_is_largest_at_the_boundary_and_symmetric():
    logits = torch.tensor([0.0, 0.1, -0.1, 3.0, -50.0]).reshape(1, 1, 5)
    scores = foreground_uncertainty(logits)
    assert scores.shape == (1, 1, 5)
    assert scores.flatten().tolist() == pytest.approx([0, -0.1, -0.1, -3, -50])


def test_uncertainty_orders_points_as_the_distance_of_the_probability_from_one_half():
    logits = torch.randn(2, 1, 50, generator=torch.Generator().manual_seed(0)) * 3
    scores = foreground_uncertainty(logits)
    by_probability = -(logits.sigmoid() - 0.5).abs()
    assert scores.shape == by_probability.shape
    assert torch.equal(scores.argsort(dim=2), by_probability.argsort(dim=2))


def test_uncertainty_looks_at_the_class_of_each_region():
    logits = torch.tensor([[[9.0], [-1.0]], [[2.0], [7.0]]])  # 2 regions, 2 classes, 1 point
    scores = foreground_uncertainty(logits, torch.tensor([1, 0]))
    assert scores.shape == (2, 1, 1)
    assert scores.flatten().tolist() == [-1.0, -2.0]


@pytest.mark.parametrize("channels", [2, 3, 19])
@pytest.mark.parametrize("inner", [(5,), (3, 4)], ids=["points", "grids"])
def test_the_margin_is_between_the_two_largest_of_sorted_logits(channels, inner):
    logits = torch.randn(2, channels, *inner, generator=torch.Generator().manual_seed(0))
    logits[0, :2] = 9.0  # equally likely
    margin = top2_margin_uncertainty(logits)
    ranked = logits.sort(dim=1, descending=True).values
    assert margin.dtype == torch.float32
    assert margin.shape == (2, 1, *inner)
    assert torch.equal(margin[:, 0], ranked[:, 1] - ranked[:, 0])
    assert (margin[0] == 0).all()


@pytest.mark.parametrize("inner", [(), (7,), (5, 6)], ids=["vector", "points", "map"])
def test_a_label_is_the_first_class_of_the_largest_logit(inner):
    logits = torch.randint(3, (6, *inner), generator=torch.Generator().manual_seed(0)).float()
    labels = label_map(logits)
    assert labels.dtype == torch.int64
    assert labels.shape == inner
    assert torch.equal(labels, logits.argmax(dim=0))


def test_one_class_is_rated_as_a_binary_prediction():  # defect 10
    logits = torch.tensor([[[3.0, -1.0, 0.0]]])
    assert top2_margin_uncertainty(logits).tolist() == [[[-3.0, -1.0, 0.0]]]
