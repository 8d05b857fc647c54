"""Subclasses and readers of the stock heads: honored or refused, never ignored."""

import importlib

import pytest
import torch
from detectron2.modeling import build_mask_head
from detectron2.utils.events import EventStorage

import point_rend
from point_rend import stock_heads
from point_rend.coarse_mask_head import CoarseMaskHead
from point_rend.roi_heads import PointRendROIHeads
from tests.synthetic import (
    SHAPES,
    as_detections,
    random_features,
    random_proposals,
    randomize,
    small_head_config,
)

mask_head = pytest.importorskip("detectron2.projects.point_rend.mask_head")
point_head = pytest.importorskip("detectron2.projects.point_rend.point_head")
roi_heads = pytest.importorskip("detectron2.projects.point_rend.roi_heads")
semantic_seg = pytest.importorskip("detectron2.projects.point_rend.semantic_seg")

CLASSES = {
    mask_head.ConvFCHead: CoarseMaskHead,
    mask_head.PointRendMaskHead: point_rend.PointRendMaskHead,
    mask_head.ImplicitPointRendMaskHead: point_rend.ImplicitPointRendMaskHead,
    point_head.StandardPointHead: point_rend.StandardPointHead,
    point_head.ImplicitPointHead: point_rend.ImplicitPointHead,
    semantic_seg.PointRendSemSegHead: point_rend.PointRendSemSegHead,
    roi_heads.PointRendROIHeads: PointRendROIHeads,
}


def methods(stock: type) -> list[str]:
    own = (base for base in stock.__mro__ if base in CLASSES)
    return sorted({n for base in own for n in vars(base) if callable(getattr(base, n))})


HOOKS = [
    (ours, name)
    for stock, ours in CLASSES.items()
    for name in methods(stock)
    if not name.startswith("__")
]


@pytest.mark.parametrize(("ours", "name"), HOOKS, ids=lambda x: getattr(x, "__name__", x))
def test_a_method_of_a_stock_head_is_one_of_ours_or_its_override_is_refused(ours, name):
    if hasattr(ours, name):
        return
    for bases, members in (((ours,), {name: id}), ((type("Mixin", (), {name: id}), ours), {})):
        message = rf"Custom\.{name} would never be called.*; override \w+.* instead"
        with pytest.raises(TypeError, match=message):
            type("Custom", bases, members)


def test_the_hooks_of_point_supervision_lead_to_the_method_for_training_points():
    for name in ("_sample_train_points", "_uniform_sample_train_points"):
        for base in (point_rend.PointRendMaskHead, point_rend.ImplicitPointRendMaskHead):
            with pytest.raises(TypeError, match=r"override sample_training_points\(self, inst"):
                type("Custom", (base,), {name: id})


def test_a_subclass_of_a_stock_head_is_built_and_runs_as_before():
    class Custom(mask_head.ImplicitPointRendMaskHead):
        def _uniform_sample_train_points(self, instances):
            return super()._uniform_sample_train_points(instances)

    cfg = small_head_config("MODEL.POINT_HEAD.NUM_CLASSES", 5, implicit=True)
    with EventStorage():
        losses = Custom(cfg, SHAPES)(random_features(1), random_proposals([3]))
    assert losses.keys() == {"loss_l2", "loss_mask_point"}


# The method for training points


def with_points(instances, seed=0):
    """Give all proposals seven labeled points in their boxes, as fields in pixels."""
    generator = torch.Generator().manual_seed(seed)
    for x in instances:
        near, far = x.proposal_boxes.tensor[:, None].split(2, dim=2)
        x.gt_point_coords = near + torch.rand(len(x), 7, 2, generator=generator) * (far - near)
        x.gt_point_labels = torch.randint(2, (len(x), 7), generator=generator)
        x.remove("gt_masks")
    return instances


def given_points(instances):
    boxes = torch.cat([x.proposal_boxes.tensor for x in instances])[:, None]
    coords = torch.cat([x.gt_point_coords for x in instances]) - boxes[..., :2]
    coords = coords / (boxes[..., 2:] - boxes[..., :2])
    labels = torch.cat([x.gt_point_labels for x in instances]).float()
    return coords, labels.masked_fill(((coords < 0) | (coords > 1)).any(dim=2), -1)


class OurPointSupervision(point_rend.ImplicitPointRendMaskHead):
    def sample_training_points(self, instances, coarse_logits):
        assert coarse_logits is None
        return given_points(instances)


class StockPointSupervision(mask_head.ImplicitPointRendMaskHead):
    def _uniform_sample_train_points(self, instances):
        return given_points(instances)


def test_training_on_given_points_equals_the_same_subclass_of_the_stock_head():
    cfg = small_head_config("MODEL.POINT_HEAD.NUM_CLASSES", 5, implicit=True)
    ours, stock = OurPointSupervision(cfg, SHAPES), StockPointSupervision(cfg, SHAPES)
    randomize(ours, scale=0.2)
    stock.load_state_dict(ours.state_dict())
    features, losses = random_features(2), []
    for head in (ours, stock):
        with EventStorage():
            losses.append(head(features, with_points(random_proposals([4, 2]))))
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[1].items():
        torch.testing.assert_close(losses[0][name], loss, rtol=1e-5, atol=0)


def test_a_given_point_outside_of_its_box_does_not_count():
    head = OurPointSupervision(small_head_config(implicit=True), SHAPES)
    randomize(head, scale=0.2)
    losses = []
    for label in (0, 1):
        (instances,) = with_points(random_proposals([3]))
        instances.gt_point_coords[:, 0] = instances.proposal_boxes.tensor[:, 2:] + 1
        instances.gt_point_labels[:, 0] = label
        losses.append(head(random_features(1), [instances])["loss_mask_point"])
    assert torch.equal(*losses)


def test_the_standard_head_trains_on_points_of_ones_own_and_offers_its_coarse_logits():
    seen = []

    class Custom(point_rend.PointRendMaskHead):
        def sample_training_points(self, instances, coarse_logits):
            seen.append(coarse_logits)
            coords, labels = super().sample_training_points(instances, coarse_logits)
            return coords[:, :5], torch.ones_like(labels[:, :5])

    head = Custom(small_head_config(), SHAPES)
    randomize(head)
    features, proposals = random_features(1), random_proposals([3])
    losses = head(features, proposals)
    losses["loss_mask_point"].backward()
    (coarse_logits,) = seen
    assert coarse_logits.shape == (3, 5, 7, 7)
    assert not coarse_logits.requires_grad
    assert head.point_head.predictor.bias.grad.max() <= 0  # more foreground everywhere


# Names that others read


@pytest.mark.parametrize("implicit", [False, True], ids=["standard", "implicit"])
def test_what_notebooks_read_from_a_mask_head_is_as_there(implicit):
    levels = ("MODEL.POINT_HEAD.IN_FEATURES", "('p3', 'p2')", "MODEL.POINT_HEAD.NUM_CLASSES", 5)
    cfg = small_head_config(*levels, implicit=implicit)
    ours = build_mask_head(cfg, SHAPES)
    with stock_heads():
        stock = build_mask_head(cfg, SHAPES)
    assert type(stock) is not type(ours)
    for name in ("mask_point_in_features", "roi_pooler_in_features", "roi_pooler_size"):
        expected = getattr(stock, name)
        assert type(getattr(ours, name)) is type(expected)
        assert getattr(ours, name) == expected
    assert ours._feature_scales == stock._feature_scales
    features, boxes = random_features(2), [x.proposal_boxes for x in random_proposals([3, 2])]
    pooled, expected = ours._roi_pooler(features, boxes), stock._roi_pooler(features, boxes)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5)  # the grid may differ by an ulp
    assert torch.equal(ours._roi_pooler(features=features, boxes=boxes), pooled)


def refined_by_hand(head, package, features, instances):
    """Refine coarse masks as the notebook of the stock project does, from what a head offers."""
    tools = importlib.import_module(f"{package}.point_features")
    uncertainty = importlib.import_module(f"{package}.mask_head").calculate_uncertainty
    boxes = [x.pred_boxes for x in instances]
    classes = torch.cat([x.pred_classes for x in instances])
    levels = [features[name] for name in head.mask_point_in_features]
    scales = [head._feature_scales[name] for name in head.mask_point_in_features]
    coarse = logits = head.coarse_head(head._roi_pooler(features, boxes))
    for _ in range(3):
        logits = torch.nn.functional.interpolate(logits, scale_factor=2, mode="bilinear")
        rated = uncertainty(logits, classes)
        cells, coords = tools.get_uncertain_point_coords_on_grid(rated, 100)
        fine, _ = tools.point_sample_fine_grained_features(levels, scales, boxes, coords)
        points = head.point_head(fine, tools.point_sample(coarse, coords, align_corners=False))
        cells = cells[:, None].expand(-1, points.shape[1], -1)
        logits = logits.flatten(2).scatter(2, cells, points).view_as(logits)
    return logits


def test_a_notebook_that_refines_masks_by_hand_gives_the_same_with_either_project():
    cfg = small_head_config("MODEL.POINT_HEAD.NUM_CLASSES", 5)
    ours = build_mask_head(cfg, SHAPES)
    with stock_heads():
        stock = build_mask_head(cfg, SHAPES)
    randomize(ours)
    stock.load_state_dict(ours.state_dict())
    features, instances = random_features(2), as_detections(random_proposals([3, 2]))
    with torch.no_grad():
        refined = refined_by_hand(ours, "point_rend", features, instances)
        expected = refined_by_hand(stock, "detectron2.projects.point_rend", features, instances)
    assert refined.shape == (5, 5, 56, 56)
    torch.testing.assert_close(refined, expected, rtol=0, atol=1e-4)


def test_a_head_without_a_point_head_has_no_levels_for_it():
    head = build_mask_head(small_head_config("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False), SHAPES)
    assert head._feature_scales == {"p2": 0.25}
    with pytest.raises(AttributeError, match="mask_point_in_features"):
        _ = head.mask_point_in_features


@pytest.mark.parametrize("implicit", [False, True], ids=["standard", "implicit"])
def test_a_subclass_that_pools_otherwise_is_honored_in_training_and_in_inference(implicit):
    base = point_rend.ImplicitPointRendMaskHead if implicit else point_rend.PointRendMaskHead
    calls = []

    class Custom(base):
        def __init__(self, cfg, input_shape):
            super().__init__(cfg, input_shape)
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def _roi_pooler(self, features, boxes):
            calls.append(self.training)
            return super()._roi_pooler(features, boxes) * self.scale

    head = Custom(small_head_config(implicit=implicit), SHAPES)
    randomize(head, scale=0.2)
    features = random_features(1)
    sum(head(features, random_proposals([2])).values()).backward()
    assert head.scale.grad
    head.eval()(features, as_detections(random_proposals([2])))
    assert calls == [True, False]
