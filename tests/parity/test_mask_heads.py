"""Our mask heads against those of the stock project, with the same weights in one process."""

import pytest
import torch
from detectron2.modeling import build_mask_head
from detectron2.utils.events import EventStorage

from point_rend import ImplicitPointRendMaskHead, PointRendMaskHead, stock_heads
from tests.synthetic import (
    SHAPES,
    as_detections,
    random_features,
    random_proposals,
    randomize,
    small_head_config,
)

pytest.importorskip("detectron2.projects.point_rend")

VARIANTS = {  # name: (implicit head?, keys and values)
    "standard": (False, ()),
    "class-agnostic": (False, ("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True)),
    "coarse-first-layer-only": (False, ("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", False)),
    "two-levels": (
        False,
        (
            *("MODEL.POINT_HEAD.IN_FEATURES", "('p2', 'p3')"),
            *("MODEL.ROI_MASK_HEAD.IN_FEATURES", "('p3', 'p2')"),
        ),
    ),
    "implicit": (True, ()),
    "implicit-class-agnostic": (True, ("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True)),
    "implicit-positions-only": (True, ("MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED", False)),
}


@pytest.fixture(params=VARIANTS)
def pair(request):
    """The stock head and ours, with equal weights."""
    implicit, opts = VARIANTS[request.param]
    cfg = small_head_config("MODEL.POINT_HEAD.NUM_CLASSES", 5, *opts, implicit=implicit)
    ours = build_mask_head(cfg, SHAPES)
    with stock_heads():
        stock = build_mask_head(cfg, SHAPES)
    assert isinstance(ours, (PointRendMaskHead, ImplicitPointRendMaskHead))
    assert type(stock).__module__.startswith("detectron2.projects.point_rend")
    randomize(ours, scale=0.2 if implicit else 0.5)  # the implicit head multiplies predictions
    stock.load_state_dict(ours.state_dict(), strict=True)
    return stock, ours


def train_step(head, features, proposals, seed=3):
    head.train()
    head.zero_grad()
    with EventStorage() as storage:
        torch.manual_seed(seed)
        losses = head(features, proposals)
        sum(losses.values()).backward()
        metrics = {name: value for name, (value, _) in storage.latest().items()}
    gradients = {name: p.grad for name, p in head.named_parameters()}
    return losses, gradients, metrics


@pytest.mark.parametrize("boxes_per_image", [[4], [2, 0, 6]])
def test_losses_and_gradients_equal_the_stock_heads(pair, boxes_per_image):
    features = random_features(len(boxes_per_image))
    results = [train_step(head, features, random_proposals(boxes_per_image)) for head in pair]
    (stock_losses, stock_gradients, stock_metrics), (losses, gradients, metrics) = results
    assert losses.keys() == stock_losses.keys()
    for name, loss in stock_losses.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=0)
    for name, gradient in stock_gradients.items():
        error = (gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-8)
        assert error < 1e-4, name
    assert metrics.keys() == stock_metrics.keys()


@pytest.mark.parametrize("boxes_per_image", [[4], [2, 0, 6]])
def test_masks_equal_the_stock_heads(pair, boxes_per_image):
    features = random_features(len(boxes_per_image))
    masks = []
    with torch.no_grad():
        for head in pair:
            detections = head.eval()(features, as_detections(random_proposals(boxes_per_image)))
            masks.append(torch.cat([x.pred_masks for x in detections]))
    stock, ours = masks
    assert ours.shape == stock.shape == (sum(boxes_per_image), 1, 224, 224)
    assert 0.02 < (stock > 0.5).float().mean() < 0.99
    assert ((ours > 0.5) != (stock > 0.5)).float().mean() <= 1e-5
    # A tie at the end of the top N may fall otherwise, which changes single cells.
    assert ((ours - stock).abs() > 1e-5).float().mean() <= 1e-3
