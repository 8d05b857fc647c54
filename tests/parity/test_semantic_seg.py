"""Our semantic head against that of the stock project, with the same weights in one process."""

import pytest
import torch
from detectron2.modeling import build_sem_seg_head

from point_rend import PointRendSemSegHead, stock_heads
from tests.synthetic import SHAPES, random_features, randomize
from tests.synthetic_semantic import random_labels, small_semantic_config

pytest.importorskip("detectron2.projects.point_rend")

VARIANTS = {
    "stock-config": (),
    "coarse-each-layer": ("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", True),
    "two-classes": ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2),
    "stride-8": (
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "('p3',)", "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 3),
    ),
}


@pytest.fixture(params=VARIANTS)
def pair(request):
    """The stock head and ours, with equal weights, and their number of classes."""
    cfg = small_semantic_config(*VARIANTS[request.param])
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    ours = build_sem_seg_head(cfg, SHAPES)
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = num_classes
    with stock_heads():
        stock = build_sem_seg_head(cfg, SHAPES)
    assert isinstance(ours, PointRendSemSegHead)
    assert type(stock).__module__.startswith("detectron2.projects.point_rend")
    randomize(ours)
    stock.load_state_dict(ours.state_dict(), strict=True)
    return stock, ours, num_classes


@pytest.mark.parametrize("num_images", [1, 3])
def test_losses_and_gradients_equal_the_stock_heads(pair, num_images):
    *heads, num_classes = pair
    features = random_features(num_images)
    labels = random_labels(num_images, num_classes)
    results = []
    for head in heads:
        head.train()
        torch.manual_seed(4)
        nothing, losses = head(features, labels)
        assert nothing is None
        sum(losses.values()).backward()
        results.append((losses, {name: p.grad for name, p in head.named_parameters()}))
    (stock_losses, stock_gradients), (losses, gradients) = results
    assert losses.keys() == stock_losses.keys() == {"loss_sem_seg", "loss_sem_seg_point"}
    for name, loss in stock_losses.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=0)
    for name, gradient in stock_gradients.items():
        error = (gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-8)
        assert error < 1e-4, name


@pytest.mark.parametrize("num_images", [1, 3])
def test_logits_equal_the_stock_heads(pair, num_images):
    stock, ours, num_classes = pair
    features = random_features(num_images)
    with torch.no_grad():
        expected, _ = stock.eval()(features)
        logits, losses = ours.eval()(features)
    assert losses == {}
    assert logits.shape == expected.shape == (num_images, num_classes, 64, 96)
    assert ((logits - expected).abs() > 1e-5).float().mean() <= 1e-4
    assert (logits.argmax(1) != expected.argmax(1)).float().mean() <= 1e-5
