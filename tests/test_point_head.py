"""Point heads: layers against explicit loops, errors, the loss, building from a config."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import nn

from point_rend import (
    POINT_HEAD_REGISTRY,
    ImplicitPointHead,
    ResidualPointHead,
    StandardPointHead,
    build_point_head,
)
from point_rend.point_head import roi_mask_point_loss
from tests.synthetic import (
    as_detections,
    random_features,
    random_mask_head,
    random_proposals,
    randomize,
    small_head_config,
)
from tests.synthetic_semantic import pointwise_head

FEATURES, POINTS = 6, 5


def standard(num_classes: int, **changes) -> StandardPointHead:
    head = StandardPointHead(
        in_channels=FEATURES,
        num_classes=num_classes,
        **{"coarse_channels": num_classes, "fc_dim": 4} | changes,
    )
    randomize(head)
    return head


def implicit(num_classes: int, **changes) -> ImplicitPointHead:
    torch.manual_seed(0)
    return ImplicitPointHead(
        in_channels=FEATURES, num_classes=num_classes, **{"fc_dim": 4} | changes
    )


def standard_inputs(head, regions: int = 3, points: int = POINTS, coarse: int | None = None):
    generator = torch.Generator().manual_seed(1)
    coarse = head.predictor.out_channels if coarse is None else coarse
    return (
        torch.randn(regions, FEATURES, points, generator=generator),
        torch.randn(regions, coarse, points, generator=generator),
    )


def implicit_inputs(head, regions: int = 3, points: int = POINTS):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(regions, FEATURES, points, generator=generator),
        torch.rand(regions, points, 2, generator=generator),
        torch.randn(regions, head.num_params, generator=generator) * 0.3,
    )


@pytest.mark.parametrize("each_layer", [True, False])
def test_the_standard_head_is_the_same_small_mlp_at_every_point(each_layer):
    head = standard(4, num_fc=2, coarse_pred_each_layer=each_layer)
    features, coarse = standard_inputs(head)
    logits = head(features, coarse)
    assert logits.shape == (3, 4, POINTS)
    state = head.state_dict()
    for region in range(3):
        for point in range(POINTS):
            coarse_here = coarse[region, :, point]
            x = torch.cat((features[region, :, point], coarse_here))
            for name in ("fc1", "fc2"):
                x = (state[f"{name}.weight"][:, :, 0] @ x + state[f"{name}.bias"]).clamp(min=0)
                x = torch.cat((x, coarse_here)) if each_layer else x
            expected = state["predictor.weight"][:, :, 0] @ x + state["predictor.bias"]
            torch.testing.assert_close(logits[region, :, point], expected, rtol=1e-4, atol=1e-5)


def test_the_names_of_the_weights_are_those_of_published_checkpoints():
    names = [
        f"{n}.{kind}" for n in ("fc1", "fc2", "fc3", "predictor") for kind in ("weight", "bias")
    ]
    assert list(standard(3).state_dict()) == names
    state = implicit(3).state_dict()
    assert list(state) == ["positional_encoding_gaussian_matrix"]
    assert state["positional_encoding_gaussian_matrix"].shape == (2, 128)
    assert not implicit(3, positional_encoding_enabled=False).state_dict()


def test_a_class_agnostic_head_has_one_channel():
    head = standard(1, coarse_channels=7)
    assert head(*standard_inputs(head, coarse=7)).shape == (3, 1, POINTS)
    head = implicit(1)
    assert head(*implicit_inputs(head)).shape == (3, 1, POINTS)


@pytest.mark.parametrize("num_classes", [1, 4])
def test_zero_regions_are_a_valid_size(num_classes):
    for head, make in (
        (standard(num_classes), standard_inputs),
        (implicit(num_classes), implicit_inputs),
    ):
        logits = head(*make(head, regions=0))
        assert logits.dtype == torch.float32
        assert logits.shape == (0, num_classes, POINTS)


def test_an_implicit_head_without_input_raises():
    with pytest.raises(ValueError, match=r"IMAGE_FEATURE_ENABLED.*POS_ENC_ENABLED"):
        implicit(3, image_feature_enabled=False, positional_encoding_enabled=False)


def test_disabled_inputs_do_not_change_the_logits():
    head = implicit(2, image_feature_enabled=False)
    features, coords, parameters = implicit_inputs(head)
    assert torch.equal(head(features, coords, parameters), head(features + 1, coords, parameters))
    head = implicit(2, positional_encoding_enabled=False)
    features, coords, parameters = implicit_inputs(head)
    assert torch.equal(head(features, coords, parameters), head(features, 1 - coords, parameters))


# --- the residual head --------------------------------------------------------------------------


class CoarseAlone(nn.Module):
    """A point head that returns the coarse logits at the points."""

    def forward(self, _, coarse_features):
        return coarse_features


def residual(num_classes: int, **changes) -> ResidualPointHead:
    return ResidualPointHead(
        in_channels=FEATURES,
        num_classes=num_classes,
        **{"coarse_channels": num_classes, "fc_dim": 4} | changes,
    ).requires_grad_(False)


@pytest.mark.parametrize("each_layer", [True, False])
@pytest.mark.parametrize("num_fc", [0, 2])
def test_an_untrained_residual_head_returns_the_coarse_logits(each_layer, num_fc):
    head = residual(4, num_fc=num_fc, coarse_pred_each_layer=each_layer)
    features, coarse = standard_inputs(head)
    assert torch.equal(head(features, coarse), coarse)


def test_a_residual_head_adds_the_logits_of_the_standard_head_to_the_coarse_ones():
    head, correction = residual(4), standard(4)
    head.load_state_dict(correction.state_dict())
    features, coarse = standard_inputs(head)
    assert torch.equal(head(features, coarse), coarse + correction(features, coarse))


def test_a_class_agnostic_coarse_logit_is_added_to_the_correction_of_every_class():
    head = residual(4, coarse_channels=1)
    coarse = torch.randn(3, 1, POINTS)
    logits = head(torch.randn(3, FEATURES, POINTS), coarse)
    assert torch.equal(logits, coarse.expand(3, 4, POINTS))


def test_a_class_agnostic_correction_of_the_logits_of_several_classes_is_refused():
    keys = r"MODEL\.POINT_HEAD\.CLS_AGNOSTIC_MASK.*MODEL\.ROI_MASK_HEAD\.CLS_AGNOSTIC_MASK"
    with pytest.raises(ValueError, match=rf"1 channel.* with 7.*{keys}"):
        residual(1, coarse_channels=7)


def test_the_sum_of_a_residual_head_is_as_precise_as_the_coarse_logits():
    head = residual(4)
    features, coarse = standard_inputs(head)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features, coarse)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, coarse)


def test_a_residual_head_draws_the_random_weights_of_the_standard_head():
    states, following = [], []
    for head_class in (StandardPointHead, ResidualPointHead):
        torch.manual_seed(0)
        head = head_class(in_channels=FEATURES, num_classes=4, coarse_channels=4, fc_dim=4)
        states.append(head.state_dict())
        following.append(torch.rand(1))
    ours, residuals = states
    assert following[0] == following[1]
    assert list(ours) == list(residuals)
    for name, value in residuals.items():
        expected = torch.zeros_like(value) if name.startswith("predictor") else ours[name]
        assert torch.equal(value, expected)


@pytest.fixture
def at_points_only(monkeypatch):
    """Sample the coarse logits, where rendering would sample products with them."""
    sampling = "point_rend.rendering.projected_sampling"
    for threshold in ("POINTS_PER_PROJECTED_POSITION", "POINTS_PER_COPIED_POSITION"):
        monkeypatch.setattr(f"{sampling}.{threshold}", float("inf"))


@pytest.mark.usefixtures("at_points_only")
@pytest.mark.parametrize("each_layer", [True, False])
def test_an_untrained_residual_head_renders_the_interpolated_coarse_masks(each_layer):
    name = ("MODEL.POINT_HEAD.NAME", "ResidualPointHead")
    head = random_mask_head(*name, "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", each_layer).eval()
    nn.init.zeros_(head.point_head.predictor.weight)
    nn.init.zeros_(head.point_head.predictor.bias)
    masks = []
    with torch.no_grad():
        for point_head in (head.point_head, CoarseAlone()):
            head.point_head = point_head
            detected = head(random_features(2), as_detections(random_proposals([3, 2])))
            masks.append(torch.cat([x.pred_masks for x in detected]))
    assert masks[0].shape == (5, 1, 224, 224)
    assert masks[0].std() > 0.01
    assert torch.equal(*masks)


def test_an_untrained_residual_head_renders_the_interpolated_coarse_labels():
    head = pointwise_head().eval()
    features = random_features(2)
    logits = []
    with torch.no_grad():
        for point_head in (
            ResidualPointHead(in_channels=16, coarse_channels=6, num_classes=6),
            CoarseAlone(),
        ):
            head.point_head = point_head
            logits.append(head(features)[0])
    assert logits[0].shape == (2, 6, 64, 96)
    assert torch.equal(*logits)


# --- the loss under its historical name ---------------------------------------------------------


def with_classes(*classes_per_image: list[int]) -> list[Instances]:
    return [
        Instances((4, 4), gt_classes=torch.tensor(classes, dtype=torch.long))
        for classes in classes_per_image
    ]


def test_the_loss_reads_only_the_channel_of_the_true_class():
    logits = torch.zeros(3, 4, 5)
    instances = with_classes([2], [], [0, 3])
    for region, class_id in enumerate([2, 0, 3]):
        logits[region, class_id] = 30.0
    logits.requires_grad_()
    with EventStorage() as storage:
        loss = roi_mask_point_loss(logits, instances, torch.ones(3, 5))
        assert storage.latest()["point/accuracy"][0] == 1
    assert loss.item() == pytest.approx(0, abs=1e-6)
    with EventStorage() as storage:
        loss = roi_mask_point_loss(logits, instances, torch.zeros(3, 5))
        assert storage.latest()["point/accuracy"][0] == 0
    assert loss.item() == pytest.approx(30)
    loss.backward()
    with_gradient = {(i, c) for i, c, _ in logits.grad.nonzero().tolist()}
    assert with_gradient == {(0, 2), (1, 0), (2, 3)}


def test_the_loss_of_a_class_agnostic_head_ignores_classes():
    logits = torch.full((2, 1, 3), 30.0)
    assert roi_mask_point_loss(logits, with_classes([5, 6]), torch.ones(2, 3)) < 1e-6


def test_the_loss_works_without_event_storage():
    loss = roi_mask_point_loss(torch.zeros(1, 2, 3), with_classes([1]), torch.ones(1, 3))
    assert loss.item() == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8], ids=str)
def test_the_loss_accepts_classes_of_any_integer_type(dtype):
    logits = torch.randn(2, 4, 3)
    instances = with_classes([1, 3])
    expected = roi_mask_point_loss(logits, instances, torch.ones(2, 3))
    instances[0].gt_classes = instances[0].gt_classes.to(dtype)
    assert torch.equal(roi_mask_point_loss(logits, instances, torch.ones(2, 3)), expected)


def test_the_loss_without_regions_is_a_differentiable_zero_and_logs_nothing():  # defect 2
    logits = torch.zeros(0, 4, 3, requires_grad=True)
    with EventStorage() as storage:
        loss = roi_mask_point_loss(logits, with_classes([], []), torch.zeros(0, 3))
        assert "point/accuracy" not in storage.latest()
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None


# --- building from a config ---------------------------------------------------------------------


def test_a_head_is_built_by_its_registered_name_without_changing_the_config():
    cfg = small_head_config("MODEL.POINT_HEAD.NUM_FC", 2)
    before = cfg.clone()
    cfg.freeze()
    head = build_point_head(cfg, ShapeSpec(channels=9), num_classes=5)
    assert cfg == before
    assert isinstance(head, StandardPointHead)
    assert head.num_fc == 2
    assert head(torch.zeros(1, 9, 4), torch.zeros(1, 5, 4)).shape == (1, 5, 4)


def test_a_head_built_by_itself_cannot_inherit_its_class_count():
    cfg = small_head_config()
    for name in ("StandardPointHead", "ResidualPointHead", "ImplicitPointHead"):
        head_class = POINT_HEAD_REGISTRY.get(name)
        with pytest.raises(ValueError, match=r"MODEL\.POINT_HEAD\.NUM_CLASSES is -1"):
            head_class(cfg, ShapeSpec(channels=9))


def test_a_class_agnostic_head_predicts_one_channel():
    cfg = small_head_config("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True)
    head = build_point_head(cfg, ShapeSpec(channels=9), num_classes=5)
    assert head(torch.zeros(1, 9, 4), torch.zeros(1, 5, 4)).shape == (1, 1, 4)


def test_third_party_heads_are_built_with_the_resolved_class_count():
    class ThirdPartyHead(nn.Module):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.seen = (cfg.MODEL.POINT_HEAD.NUM_CLASSES, input_shape.channels)

    POINT_HEAD_REGISTRY.register(ThirdPartyHead)
    try:
        cfg = small_head_config("MODEL.POINT_HEAD.NAME", "ThirdPartyHead")
        head = build_point_head(cfg, ShapeSpec(channels=9), num_classes=5)
    finally:
        POINT_HEAD_REGISTRY._obj_map.pop("ThirdPartyHead")
    assert head.seen == (5, 9)
