"""Bound point heads against the ``forward`` that training uses."""

import pytest
import torch
from torch import nn

from point_rend import ImplicitPointHead, ResidualPointHead, StandardPointHead
from point_rend.rendering.bound_head import BoundImplicitHead, BoundStandardHead, bind_point_head
from point_rend.rendering.coordinates import box_to_image_coords
from point_rend.rendering.features import FineGrainedFeatures
from point_rend.rendering.sampling import point_sample
from tests.pairwise import pairwise_rows
from tests.synthetic import randomize

FRAME = torch.tensor([48.0, 32.0])
CHANNELS = 6
REGIONS, POINTS = 3, 9
# Expected points per region: the layers are applied to the samples, to the smaller maps only, or to
# all maps.
FEW, SOME, MANY = ORDERS = 1, 20, 10**6


def some_levels(count: int) -> FineGrainedFeatures:
    generator = torch.Generator().manual_seed(0)
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2)][:count]
    levels = [torch.randn(1, CHANNELS, *size, generator=generator) for size in sizes]
    return FineGrainedFeatures(levels, [FRAME] * count)


def some_boxes(regions: int = REGIONS) -> torch.Tensor:
    boxes = torch.tensor(
        [[0.0, 0, 48, 32], [3, 2, 20, 30], [30, 8, 60, 40]]
    )  # the last one leaves the frame
    return boxes.repeat(-(-regions // 3), 1)[:regions]


def some_coords(regions: int = REGIONS, points: int = POINTS) -> torch.Tensor:
    return torch.rand(regions, points, 2, generator=torch.Generator().manual_seed(1))


def plain(head, fine, boxes, coarse, coords):
    """Return all channels (N, C, P) by sampling and the ``forward`` of the head."""
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


HEADS = [StandardPointHead, ResidualPointHead]


def standard(
    num_classes: int, levels: int = 1, head_class: type = StandardPointHead, **changes
) -> StandardPointHead:
    head = head_class(
        in_channels=CHANNELS * levels,
        **{"num_classes": num_classes, "coarse_channels": num_classes, "fc_dim": 4} | changes,
    )
    randomize(head)
    return head.requires_grad_(False)


def coarse_logits(channels: int, regions: int = REGIONS) -> torch.Tensor:
    return torch.randn(regions, channels, 7, 7, generator=torch.Generator().manual_seed(6))


IN_EACH_ORDER = pytest.mark.parametrize(
    "points_per_region", ORDERS, ids=["samples", "small-maps", "maps"]
)


@pytest.mark.parametrize(
    ("points_per_region", "levels", "num_fc", "each_layer", "head_class"),
    pairwise_rows(ORDERS, [1, 2, 3, 4], [0, 1, 2, 3, 5], [True, False], HEADS),
)
def test_a_bound_standard_head_equals_its_forward(
    points_per_region, levels, num_fc, each_layer, head_class
):
    head = standard(4, levels, head_class, num_fc=num_fc, coarse_pred_each_layer=each_layer)
    assert_equal_to_plain(head, levels, coarse_logits(4), 4, points_per_region)


@pytest.mark.parametrize(
    ("points_per_region", "num_classes", "agnostic"),
    pairwise_rows(ORDERS, [1, 2, 80, 1203], [False, True]),
)
def test_it_does_so_for_any_number_of_classes(points_per_region, num_classes, agnostic):
    head = standard(1 if agnostic else num_classes, coarse_channels=num_classes)
    coarse = coarse_logits(num_classes)
    assert_equal_to_plain(head, 1, coarse, num_classes, points_per_region)


@pytest.mark.parametrize(
    ("points_per_region", "num_classes", "each_layer"),
    pairwise_rows(ORDERS, [1, 2, 80], [True, False]),
)
def test_a_bound_residual_head_does_so(points_per_region, num_classes, each_layer):
    head = standard(num_classes, head_class=ResidualPointHead, coarse_pred_each_layer=each_layer)
    assert_equal_to_plain(head, 1, coarse_logits(num_classes), num_classes, points_per_region)


@IN_EACH_ORDER
@pytest.mark.parametrize("head_class", HEADS)
def test_it_does_so_over_a_class_agnostic_coarse_prediction(points_per_region, head_class):
    head = standard(5, head_class=head_class, coarse_channels=1)
    assert_equal_to_plain(head, 1, coarse_logits(1), 5, points_per_region)


@pytest.mark.parametrize(
    ("points_per_region", "inputs", "num_classes", "levels"),
    pairwise_rows(ORDERS, [(True, True), (True, False), (False, True)], [1, 4], [1, 3]),
)
def test_a_bound_implicit_head_equals_its_forward(points_per_region, inputs, num_classes, levels):
    torch.manual_seed(0)
    head = ImplicitPointHead(
        in_channels=CHANNELS * levels,
        num_classes=num_classes,
        fc_dim=4,
        image_feature_enabled=inputs[0],
        positional_encoding_enabled=inputs[1],
    )
    parameters = torch.randn(REGIONS, head.num_params) * 0.3
    assert_equal_to_plain(head, levels, parameters, num_classes, points_per_region)


@IN_EACH_ORDER
def test_zero_regions_are_a_valid_size(points_per_region):
    assert_equal_to_plain(standard(4), 1, coarse_logits(4, 0), 4, points_per_region)
    head = ImplicitPointHead(in_channels=CHANNELS, num_classes=4, fc_dim=4)
    assert_equal_to_plain(head, 1, torch.zeros(0, head.num_params), 4, points_per_region)


@pytest.mark.parametrize(
    ("points_per_region", "rows_per_tile", "each_layer"),
    pairwise_rows(ORDERS, [1, 5, 9, 20], [True, False]),
)
def test_the_tile_size_does_not_change_the_logits(
    monkeypatch, points_per_region, rows_per_tile, each_layer
):
    monkeypatch.setattr("point_rend.rendering.bound_head.ROWS_PER_TILE", rows_per_tile)
    head = standard(4, coarse_pred_each_layer=each_layer)
    assert_equal_to_plain(head, 1, coarse_logits(4), 4, points_per_region)


@IN_EACH_ORDER
def test_regions_that_are_whole_images_need_no_boxes(points_per_region):
    head = standard(4)
    maps = torch.randn(2, CHANNELS, 8, 12, generator=torch.Generator().manual_seed(7))
    fine, coarse, coords = FineGrainedFeatures([maps], [1.0]), coarse_logits(4, 2), some_coords(2)
    logits = bind_point_head(head, fine, 2, points_per_region).at(coarse)(coords)
    oracle = head(point_sample(maps, coords), point_sample(coarse, coords))
    assert logits.shape == oracle.shape == (2, 4, POINTS)
    torch.testing.assert_close(logits, oracle, rtol=0, atol=1e-5)


@IN_EACH_ORDER
@pytest.mark.parametrize("head_class", HEADS)
def test_mixed_precision_keeps_the_interpolation_exact(points_per_region, head_class):
    head = standard(4, head_class=head_class)
    fine, boxes, coords, coarse = some_levels(1), some_boxes(), some_coords(), coarse_logits(4)
    exact = plain(head, fine, boxes, coarse, coords)
    with torch.autocast("cpu", torch.bfloat16):
        bound = bind_point_head(head, fine, REGIONS, points_per_region)
        logits = bound.at(coarse, boxes)(coords)
    assert (logits.float() - exact).abs().max() < 0.03 * exact.abs().max()
    assert not torch.equal(logits.float(), exact)  # the matrix products use bfloat16


# --- which method rendering calls ---------------------------------------------------------------


class PlainHead(nn.Module):
    """A third-party head: ``forward`` only."""

    def forward(self, features, coarse):
        return coarse * 2 + features.mean(dim=1, keepdim=True)


class ImplicitPlainHead(nn.Module):
    num_params = 4

    def forward(self, features, coords, parameters):
        return parameters[:, :, None] * features.mean(dim=1, keepdim=True) + coords[:, None, :, 0]


class LayerNamedBind(PlainHead):
    def __init__(self):
        super().__init__()
        self.bind = nn.Identity()


class ForwardMixin:
    """Changes the logits, and knows nothing of ``bind``."""

    def forward(self, *inputs):
        return super().forward(*inputs) + 1


class BindMixin:
    def bind(self, *bound_to):
        return bound_to


class OtherForward(StandardPointHead):
    def forward(self, fine_grained_features, coarse_features):
        return super().forward(fine_grained_features, coarse_features) + 1


class OtherImplicitForward(ForwardMixin, ImplicitPointHead):
    pass


class OtherForwardAndBind(OtherForward):
    def forward(self, fine_grained_features, coarse_features):
        return super().forward(fine_grained_features, coarse_features) + 1

    bind = BindMixin.bind


class OtherBind(OtherForward):
    bind = BindMixin.bind


class OtherConstructor(StandardPointHead):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.note = "computes the same"


class MixedInForward(ForwardMixin, StandardPointHead):
    pass


class MixedInForwardAndConstructor(ForwardMixin, OtherConstructor):
    pass


class ForwardAndBindMixin(BindMixin, ForwardMixin):
    pass


class MixedInForwardAndBind(ForwardAndBindMixin, StandardPointHead):
    pass


class MixedInBind(BindMixin, StandardPointHead):
    pass


class OtherForwardBelow(OtherForward):
    """Inherits from a class that overrides ``forward`` alone."""


class OtherForwardAgain(OtherForwardAndBind):
    def forward(self, fine_grained_features, coarse_features):
        return super().forward(fine_grained_features, coarse_features) + 1


def of_class(head_class: type[StandardPointHead]) -> StandardPointHead:
    head = head_class(in_channels=CHANNELS, num_classes=4, coarse_channels=4, fc_dim=4)
    randomize(head)
    return head.requires_grad_(False)


def test_our_heads_use_their_bind():
    fine = some_levels(1)
    for head_class in HEADS:
        head = standard(4, head_class=head_class)
        assert isinstance(bind_point_head(head, fine, REGIONS, MANY), BoundStandardHead)
    head = ImplicitPointHead(in_channels=CHANNELS, num_classes=4, fc_dim=4)
    assert isinstance(bind_point_head(head, fine, REGIONS, MANY), BoundImplicitHead)


def test_a_head_without_bind_uses_its_forward():
    assert_equal_to_plain(PlainHead(), 2, coarse_logits(4), 4, MANY)
    assert_equal_to_plain(ImplicitPlainHead(), 2, torch.randn(REGIONS, 4), 4, MANY)


def test_a_layer_named_bind_is_not_taken_for_the_method():
    assert_equal_to_plain(LayerNamedBind(), 2, coarse_logits(4), 4, MANY)


@pytest.mark.parametrize(
    "head_class",
    [
        OtherForward,
        OtherForwardBelow,
        OtherForwardAgain,
        MixedInForward,
        MixedInForwardAndConstructor,
        MixedInBind,  # whether it fits the inherited forward is unknown
    ],
)
def test_bind_is_not_inherited_without_the_forward_of_the_same_class(head_class):
    head = of_class(head_class)
    assert_equal_to_plain(head, 1, coarse_logits(4), 4, MANY)
    assert not isinstance(bind_point_head(head, some_levels(1), REGIONS, MANY), BoundStandardHead)


def test_an_implicit_head_with_another_forward_uses_that():
    head = OtherImplicitForward(in_channels=CHANNELS, num_classes=4, fc_dim=4)
    assert_equal_to_plain(head, 1, torch.randn(REGIONS, head.num_params) * 0.3, 4, MANY)


@pytest.mark.parametrize("head_class", [OtherForwardAndBind, OtherBind, MixedInForwardAndBind])
def test_a_head_with_another_bind_uses_that(head_class):
    bound_to = (some_levels(1), REGIONS, MANY)
    assert bind_point_head(of_class(head_class), *bound_to) == bound_to


def test_a_subclass_that_changes_neither_method_inherits_bind():
    head = of_class(OtherConstructor)
    assert isinstance(bind_point_head(head, some_levels(1), REGIONS, MANY), BoundStandardHead)
    assert_equal_to_plain(head, 1, coarse_logits(4), 4, MANY)
