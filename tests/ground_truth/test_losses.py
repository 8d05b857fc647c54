"""The point loss and the accuracy, against formulas written out for single points."""

import math

import pytest
import torch

from point_rend.ground_truth.losses import (
    IGNORED_LABEL,
    binary_point_accuracy,
    binary_point_loss,
    semantic_point_loss,
)


def one_loss(logit: float, label: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -label * math.log(probability) - (1 - label) * math.log(1 - probability)


def test_loss_is_the_mean_cross_entropy():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    loss = binary_point_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    pairs = zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    assert loss.item() == pytest.approx(sum(one_loss(*pair) for pair in pairs) / 12, rel=1e-5)


def test_ignored_points_do_not_count_in_the_mean():  # defect 6
    logits = torch.tensor([[0.3, -2.0, 5.0], [1.0, 7.0, -7.0]])
    labels = torch.tensor([[1.0, 0.25, -1.0], [0.0, -1.0, -1.0]])
    expected = (one_loss(0.3, 1) + one_loss(-2, 0.25) + one_loss(1, 0)) / 3
    assert binary_point_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_ignored_points_have_no_gradient_and_the_others_their_share():
    logits = torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 0.0, -1.0]])
    binary_point_loss(logits, labels).backward()
    counted = labels != IGNORED_LABEL
    expected = torch.where(counted, (logits.sigmoid() - labels) / 3, 0.0)
    torch.testing.assert_close(logits.grad, expected.detach())


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)], ids=["all-ignored", "N=0", "P=0"])
def test_where_no_point_counts_the_loss_is_zero_with_a_graph(shape):
    logits = torch.randn(shape, requires_grad=True)
    loss = binary_point_loss(logits, torch.full(shape, -1.0))
    assert loss.shape == ()
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.shape == shape
    assert (logits.grad == 0).all()


def test_extreme_logits_give_a_finite_loss():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = binary_point_loss(logits, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits_have_a_float32_loss(dtype):
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.ones(4, 500)
    loss = binary_point_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, binary_point_loss(logits.float(), labels))


def test_gradients_of_the_loss_are_those_of_finite_differences():
    logits = torch.randn(2, 4, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 0.3, -1.0], [0.5, -1.0, 1.0, 0.0]])
    assert torch.autograd.gradcheck(
        lambda x: binary_point_loss(x, labels), logits, eps=1e-2, atol=1e-3, rtol=1e-2
    )


def test_accuracy_thresholds_soft_labels():  # defect 7
    logits = torch.tensor([[2.0, 2.0, -2.0, -2.0, 0.1]])
    labels = torch.tensor([[0.6, 0.4, 0.4, 0.6, 1.0]])
    accuracy = binary_point_accuracy(logits, labels)
    assert accuracy.dtype == torch.float32
    assert accuracy.shape == ()
    assert accuracy.item() == pytest.approx(3 / 5)


def test_accuracy_leaves_ignored_points_out():
    logits, labels = torch.tensor([[1.0, -1.0, 1.0, -1.0]]), torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    assert binary_point_accuracy(logits, labels).item() == 0.5


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_accuracy_is_zero_where_no_point_counts(shape):
    assert binary_point_accuracy(torch.randn(shape), torch.full(shape, -1.0)).item() == 0


def test_accuracy_needs_no_graph():
    logits = torch.randn(2, 3, requires_grad=True)
    assert not binary_point_accuracy(logits, torch.ones(2, 3)).requires_grad


def test_ignored_points_do_not_count_in_the_semantic_loss():
    logits = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20).reshape(2, 10) % 4
    labels[0, 3:] = 255
    terms = [
        -logits[n, :, p].log_softmax(0)[labels[n, p]]
        for n in range(2)
        for p in range(10)
        if labels[n, p] != 255
    ]
    loss = semantic_point_loss(logits, labels, 255)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
