"""Bound point heads against the plain forward that training uses."""

import pytest
import torch
from torch import nn

from point_rend import ImplicitPointHead, StandardPointHead
from point_rend.bound_head import bind_point_head
from point_rend.coordinates import box_to_image_coords
from point_rend.point_features import FineGrainedFeatures
from point_rend.sampling import point_sample
from tests.synthetic import randomize

FRAME = torch.tensor([48.0, 32.0])
CHANNELS = 6
REGIONS, POINTS = 3, 9
FEW, SOME, MANY = 1, 20, 10**6  # points per region that the head is told of


def some_levels(count: int) -> FineGrainedFeatures:
    generator = torch.Generator().manual_seed(0)
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2)][:count]
    levels = [torch.randn(1, CHANNELS, *size, generator=generator) for size in sizes]
    return FineGrainedFeatures(levels, [FRAME] * count)


def some_boxes(regions: int = REGIONS) -> torch.Tensor:
    boxes = torch.tensor([[0.0, 0, 48, 32], [3, 2, 20, 30], [30, 8, 60, 40]])  # the last leaves it
    return boxes.repeat(-(-regions // 3), 1)[:regions]


def some_coords(regions: int = REGIONS, points: int = POINTS) -> torch.Tensor:
    return torch.rand(regions, points, 2, generator=torch.Generator().manual_seed(1))


def plain(head, fine, boxes, coarse, coords):
    """All channels (N, C, P), by sampling and the head's ``forward``."""
    coords_img = box_to_image_coords(coords, boxes)
    features = [
        torch.cat([point_sample(level, c[None] / FRAME)[0] for level in fine.levels])
        for c in coords_img
    ]
    features = torch.stack(features or [torch.zeros(CHANNELS * len(fine.levels), POINTS)])
    features = features[: len(boxes)]
    if coarse.dim() == 2:
        return head(features, coords, coarse)
    return head(features, point_sample(coarse, coords))


def assert_equal_to_plain(head, levels, coarse, num_classes, points_per_region):
    fine, regions = some_levels(levels), len(coarse)
    boxes, coords = some_boxes(regions), some_coords(regions)
    classes = torch.randint(num_classes, (regions,), generator=torch.Generator().manual_seed(2))
    bound = bind_point_head(head, fine, regions, points_per_region)
    everything = plain(head, fine, boxes, coarse, coords)
    tolerance = {
        "rtol": 0,
        "atol": 2e-6 * max(1.0, everything.abs().max().item() if regions else 0),
    }
    logits = bound.at(coarse, boxes)(coords)
    assert logits.dtype == torch.float32
    assert logits.shape == everything.shape
    torch.testing.assert_close(logits, everything, **tolerance)
    one = bound.at(coarse, boxes, classes)(coords)
    assert one.dtype == torch.float32
    assert one.shape == (regions, 1, POINTS)
    if everything.shape[1] == 1:
        classes = torch.zeros_like(classes)
    oracle = [of_region[c] for of_region, c in zip(everything, classes, strict=True)]
    oracle = torch.stack(oracle)[:, None] if regions else one.new_zeros(0, 1, POINTS)
    torch.testing.assert_close(one, oracle, **tolerance)


def standard(num_classes: int, levels: int = 1, **changes) -> StandardPointHead:
    head = StandardPointHead(
        in_channels=CHANNELS * levels,
        **{"num_classes": num_classes, "coarse_channels": num_classes, "fc_dim": 4} | changes,
    )
    randomize(head)
    return head.requires_grad_(False)


def coarse_logits(channels: int, regions: int = REGIONS) -> torch.Tensor:
    return torch.randn(regions, channels, 7, 7, generator=torch.Generator().manual_seed(6))


ORDERS = pytest.mark.parametrize(
    "points_per_region", [FEW, SOME, MANY], ids=["sample-maps", "sample-rows", "project"]
)


@ORDERS
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("num_fc", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("each_layer", [True, False])
def test_a_bound_standard_head_is_the_head(points_per_region, levels, num_fc, each_layer):
    head = standard(4, levels, num_fc=num_fc, coarse_pred_each_layer=each_layer)
    assert_equal_to_plain(head, levels, coarse_logits(4), 4, points_per_region)


@ORDERS
@pytest.mark.parametrize("num_classes", [1, 2, 80, 1203])
@pytest.mark.parametrize("agnostic", [False, True])
def test_it_is_for_any_number_of_classes(points_per_region, num_classes, agnostic):
    head = standard(1 if agnostic else num_classes, coarse_channels=num_classes)
    coarse = coarse_logits(num_classes)
    assert_equal_to_plain(head, 1, coarse, num_classes, points_per_region)


@ORDERS
def test_it_is_over_a_class_agnostic_coarse_prediction(points_per_region):
    head = standard(5, coarse_channels=1)
    assert_equal_to_plain(head, 1, coarse_logits(1), 5, points_per_region)


@ORDERS
@pytest.mark.parametrize("switches", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("levels", [1, 3])
def test_a_bound_implicit_head_is_the_head(points_per_region, switches, num_classes, levels):
    torch.manual_seed(0)
    head = ImplicitPointHead(
        in_channels=CHANNELS * levels,
        num_classes=num_classes,
        fc_dim=4,
        image_feature_enabled=switches[0],
        positional_encoding_enabled=switches[1],
    )
    parameters = torch.randn(REGIONS, head.num_params) * 0.3
    assert_equal_to_plain(head, levels, parameters, num_classes, points_per_region)


@ORDERS
def test_no_regions_are_a_size(points_per_region):
    assert_equal_to_plain(standard(4), 1, coarse_logits(4, 0), 4, points_per_region)
    head = ImplicitPointHead(in_channels=CHANNELS, num_classes=4, fc_dim=4)
    assert_equal_to_plain(head, 1, torch.zeros(0, head.num_params), 4, points_per_region)


@ORDERS
@pytest.mark.parametrize("rows_per_tile", [1, 5, 9, 20])
def test_tiles_do_not_show(monkeypatch, points_per_region, rows_per_tile):
    monkeypatch.setattr("point_rend.bound_head.ROWS_PER_TILE", rows_per_tile)
    assert_equal_to_plain(standard(4), 1, coarse_logits(4), 4, points_per_region)


@ORDERS
def test_regions_that_are_the_images_need_no_boxes(points_per_region):
    head = standard(4)
    maps = torch.randn(2, CHANNELS, 8, 12, generator=torch.Generator().manual_seed(7))
    fine, coarse, coords = FineGrainedFeatures([maps], [1.0]), coarse_logits(4, 2), some_coords(2)
    logits = bind_point_head(head, fine, 2, points_per_region).at(coarse)(coords)
    oracle = head(point_sample(maps, coords), point_sample(coarse, coords))
    assert logits.shape == oracle.shape == (2, 4, POINTS)
    torch.testing.assert_close(logits, oracle, rtol=0, atol=1e-5)


@ORDERS
def test_mixed_precision_keeps_the_interpolation_exact(points_per_region):
    head = standard(4)
    fine, boxes, coords, coarse = some_levels(1), some_boxes(), some_coords(), coarse_logits(4)
    exact = plain(head, fine, boxes, coarse, coords)
    with torch.autocast("cpu", torch.bfloat16):
        bound = bind_point_head(head, fine, REGIONS, points_per_region)
        logits = bound.at(coarse, boxes)(coords)
    assert (logits.float() - exact).abs().max() < 0.03 * exact.abs().max()
    assert not torch.equal(logits.float(), exact)  # the products are in bfloat16


# --- heads of others ----------------------------------------------------------------------------


class PlainHead(nn.Module):
    """A head as third parties write it: ``forward`` only."""

    def forward(self, features, coarse):
        return coarse * 2 + features.mean(dim=1, keepdim=True)


class ImplicitPlainHead(nn.Module):
    num_params = 4

    def forward(self, features, coords, parameters):
        return parameters[:, :, None] * features.mean(dim=1, keepdim=True) + coords[:, None, :, 0]


class NewerForward(StandardPointHead):
    """A subclass that changes what the head computes, and knows nothing of ``bind``."""

    def forward(self, fine_grained_features, coarse_features):
        return super().forward(fine_grained_features, coarse_features) + 1


class NewerBind(NewerForward):
    def bind(self, *bound_to):
        return bound_to


def test_a_head_that_knows_forward_only_is_asked_by_it():
    assert_equal_to_plain(PlainHead(), 2, coarse_logits(4), 4, MANY)
    assert_equal_to_plain(ImplicitPlainHead(), 2, torch.randn(REGIONS, 4), 4, MANY)


def test_a_subclass_with_a_forward_of_its_own_is_asked_by_that():
    head = NewerForward(in_channels=CHANNELS, num_classes=4, coarse_channels=4, fc_dim=4)
    randomize(head)
    assert_equal_to_plain(head.requires_grad_(False), 1, coarse_logits(4), 4, MANY)


def test_a_subclass_with_a_newer_bind_is_asked_by_that():
    head = NewerBind(in_channels=CHANNELS, num_classes=4, coarse_channels=4)
    bound_to = (some_levels(1), REGIONS, MANY)
    assert bind_point_head(head, *bound_to) == bound_to
