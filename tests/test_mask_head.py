"""The registered mask heads: absence of the stock project's defects, and laws of whole heads."""

import logging

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from point_rend import (
    POINT_HEAD_REGISTRY,
    ImplicitPointHead,
    ImplicitPointRendMaskHead,
    PointRendMaskHead,
    PointSampler,
    StandardPointHead,
    SubdivisionPlan,
    mask_head,
)
from point_rend.coarse_mask_head import CoarseMaskHead
from point_rend.mask_head import PointRefinement
from point_rend.point_features import BoxFeatureReader
from point_rend.rendering.mask_renderer import MaskRenderer
from tests.synthetic import (
    CHANNELS,
    IMAGE_SIZE,
    SHAPES,
    as_detections,
    random_features,
    random_mask_head,
    random_proposals,
    small_head_config,
)

BOTH = pytest.mark.parametrize("implicit", [False, True], ids=["standard", "implicit"])


def train(head, boxes_per_image: list[int], proposals=None) -> tuple[dict, dict]:
    """Run a training step and its backward; return the losses and what was logged."""
    head.train()
    proposals = proposals or random_proposals(boxes_per_image)
    with EventStorage() as storage:
        losses = head(random_features(len(proposals)), proposals)
        sum(losses.values()).backward()
        logged = {name: value for name, (value, _) in storage.latest().items()}
    return losses, logged


def infer(head, boxes_per_image: list[int], num_classes: int = 5) -> list[torch.Tensor]:
    proposals = random_proposals(boxes_per_image, num_classes)
    with torch.no_grad():
        detections = head.eval()(random_features(len(proposals)), as_detections(proposals))
    return [x.pred_masks for x in detections]


def assert_probabilities(masks, boxes_per_image, side):
    for image_masks, count in zip(masks, boxes_per_image, strict=True):
        assert image_masks.dtype == torch.float32
        assert image_masks.shape == (count, 1, side, side)
        assert ((image_masks >= 0) & (image_masks <= 1)).all()


# --- the defects of the stock project, by number ------------------------------------------------


@BOTH
@pytest.mark.parametrize("images", [1, 2])
def test_defect_2_a_batch_without_foreground_has_zero_losses_with_a_graph(implicit, images):
    head = random_mask_head(implicit=implicit)
    losses, logged = train(head, [0] * images)
    expected = {"loss_mask_point", "loss_l2" if implicit else "loss_mask"}
    assert losses.keys() == expected
    assert all(loss.shape == () and loss.item() == 0 for loss in losses.values())
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name
    assert "point/accuracy" not in logged


@BOTH
def test_defect_2_images_without_foreground_change_nothing_for_the_others(implicit):
    """The same boxes with the same points, alone and between empty images."""
    head = random_mask_head(implicit=implicit).train()
    features, proposals, (empty,) = random_features(1), random_proposals([4]), random_proposals([0])
    torch.manual_seed(0)
    with EventStorage():
        alone = head(features, proposals)
    features = {name: torch.cat((f + 5, f, f - 5)) for name, f in features.items()}
    torch.manual_seed(0)
    with EventStorage():
        between = head(features, [empty, *proposals, empty])
    for name, loss in alone.items():
        assert loss > 0
        torch.testing.assert_close(between[name], loss)


@BOTH
def test_defect_2_empty_images_need_no_ground_truth_masks(implicit):
    proposals = random_proposals([0, 2])
    proposals[0].remove("gt_masks")
    losses, _ = train(random_mask_head(implicit=implicit), [], proposals)
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())


def test_defect_3_without_point_head_the_coarse_head_trains_and_infers(caplog):
    with caplog.at_level(logging.WARNING):
        head = random_mask_head("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False)
    assert "POINT_HEAD_ON" in caplog.text
    assert not any(name.startswith("point_head") for name in head.state_dict())
    losses, _ = train(head, [3, 0, 2])
    assert losses.keys() == {"loss_mask"}
    assert losses["loss_mask"] > 0
    assert all(p.grad is not None for p in head.parameters())
    masks = infer(head, [3, 0, 2])
    assert_probabilities(masks, [3, 0, 2], 7)
    # They are the coarse head's own masks of the predicted classes.
    features, proposals = random_features(3), random_proposals([3, 0, 2])
    pooled = head.coarse_reader.grid(features, [x.proposal_boxes for x in proposals], 14)
    classes = torch.cat([x.gt_classes for x in proposals])
    expected = torch.stack([m[c] for m, c in zip(head.coarse_head(pooled), classes, strict=True)])
    torch.testing.assert_close(torch.cat(masks)[:, 0], expected.sigmoid().detach())


def test_with_the_point_head_there_is_no_warning(caplog):
    with caplog.at_level(logging.WARNING):
        random_mask_head()
    assert "POINT_HEAD_ON" not in caplog.text


@pytest.mark.parametrize(
    ("steps", "side", "points"), [(0, 7, 784), (1, 14, 784), (2, 28, 784), (3, 56, 10_000)]
)
def test_defect_4_few_steps_with_many_points_render_the_side_of_the_steps(steps, side, points):
    head = random_mask_head(
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", steps),
        *("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", points),
    )
    assert_probabilities(infer(head, [2, 1]), [2, 1], side)


@BOTH
@pytest.mark.parametrize("images", [1, 3])
def test_defect_5_without_detections_masks_have_their_full_side(implicit, images):
    assert_probabilities(
        infer(random_mask_head(implicit=implicit), [0] * images), [0] * images, 224
    )


def test_defect_5_without_detections_the_coarse_head_alone_has_its_side():
    head = random_mask_head("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False)
    assert_probabilities(infer(head, [0, 0]), [0, 0], 7)


def labels_with_ignored(monkeypatch, ignored):
    """Give the head the label -1 at every point for which ``ignored`` (P,) is True."""
    original = mask_head._label_points

    def label(instances, coords_box):
        return torch.where(ignored, -1.0, original(instances, coords_box))

    monkeypatch.setattr(mask_head, "_label_points", label)


@BOTH
def test_defect_6_ignored_points_do_not_count(implicit, monkeypatch):
    seen, labels = [], []
    original = mask_head.roi_mask_point_loss

    def spy(logits, instances, point_labels):
        seen.append(logits)
        labels.append(point_labels)
        return original(logits, instances, point_labels)

    monkeypatch.setattr(mask_head, "roi_mask_point_loss", spy)
    labels_with_ignored(monkeypatch, torch.arange(196) >= 50)
    proposals = random_proposals([3])
    with EventStorage():
        losses = random_mask_head(implicit=implicit).train()(random_features(1), proposals)
    chosen = torch.stack([x[c] for x, c in zip(seen[0], proposals[0].gt_classes, strict=True)])
    assert chosen.shape == labels[0].shape == (3, 196)
    expected = F.binary_cross_entropy_with_logits(chosen[:, :50], labels[0][:, :50])
    torch.testing.assert_close(losses["loss_mask_point"], expected)
    (gradient,) = torch.autograd.grad(losses["loss_mask_point"], seen[0])
    assert (gradient[:, :, 50:] == 0).all()
    assert gradient[:, :, :50].abs().sum() > 0


@BOTH
def test_defect_6_where_all_points_are_ignored_the_loss_is_zero_with_a_graph(implicit, monkeypatch):
    labels_with_ignored(monkeypatch, torch.ones(196, dtype=torch.bool))
    head = random_mask_head(implicit=implicit)
    losses, _ = train(head, [3])
    assert losses["loss_mask_point"].item() == 0
    for name, parameter in head.point_head.named_parameters():
        assert (parameter.grad == 0).all(), name


class FixedHead(nn.Module):
    """Predicts foreground everywhere."""

    def forward(self, features, coarse):
        return torch.ones_like(coarse) + 0 * features.sum()


def test_defect_7_the_logged_accuracy_thresholds_soft_labels(monkeypatch):
    soft = torch.tensor([0.9, 0.6, 0.4, 0.1])
    monkeypatch.setattr(
        mask_head,
        "_label_points",
        lambda _instances, coords: soft.repeat(coords.shape[0], coords.shape[1] // 4),
    )
    head = random_mask_head()
    head.point_head = FixedHead()
    _, logged = train(head, [3])
    assert logged["point/accuracy"] == 0.5  # 0.9 and 0.6 are foreground


class ShapeRecorder(TorchDispatchMode):
    """Records the shape of every tensor that is computed."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
        return result


@BOTH
def test_defect_13_inference_carries_one_channel_however_many_classes_there_are(implicit):
    num_classes, regions = 80, 3
    head = random_mask_head(implicit=implicit, num_classes=num_classes).eval()
    detections = as_detections(random_proposals([2, 1], num_classes))
    with ShapeRecorder() as recorder, torch.no_grad():
        head(random_features(2), detections)
    assert {(2, 1, 224, 224), (1, 1, 224, 224)} <= set(recorder.shapes)  # it sees the masks
    for shape in recorder.shapes:
        if len(shape) > 2 and shape[0] <= regions and num_classes in shape[1:]:
            # The coarse logits and a ring around them, or the last layer of the implicit head.
            assert torch.Size(shape).numel() <= regions * num_classes * 9 * 9, shape


# --- class counts -------------------------------------------------------------------------------


@BOTH
def test_the_class_count_is_inherited(implicit):
    cfg = small_head_config(implicit=implicit, num_classes=7)
    assert cfg.MODEL.POINT_HEAD.NUM_CLASSES == -1
    cfg.freeze()
    before = cfg.clone()
    head = build_mask_head(cfg, SHAPES)
    assert cfg == before
    assert_probabilities(infer(head, [2], num_classes=7), [2], 224)


@BOTH
def test_an_equal_explicit_class_count_builds_the_same_head(implicit):
    explicit = random_mask_head("MODEL.POINT_HEAD.NUM_CLASSES", 5, implicit=implicit).state_dict()
    inherited = random_mask_head(implicit=implicit).state_dict()
    assert {k: v.shape for k, v in explicit.items()} == {k: v.shape for k, v in inherited.items()}


@BOTH
def test_contradicting_class_counts_are_refused_with_both_keys_and_values(implicit):
    with pytest.raises(ValueError, match="NUM_CLASSES") as error:
        random_mask_head("MODEL.POINT_HEAD.NUM_CLASSES", 80, implicit=implicit)
    for part in ("MODEL.POINT_HEAD.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES", "80", "5"):
        assert part in str(error.value)


# --- class-agnostic masks -----------------------------------------------------------------------


@torch.no_grad()
def masks_of_class(head, class_id: int) -> torch.Tensor:
    (detections,) = as_detections(random_proposals([3]))
    detections.pred_classes = torch.full((3,), class_id)
    return head.eval()(random_features(1), [detections])[0].pred_masks


COARSE_AGNOSTIC = ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
POINT_AGNOSTIC = ("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True)


@pytest.mark.parametrize(
    ("opts", "coarse_channels", "point_channels"),
    [
        (COARSE_AGNOSTIC, 1, 5),
        (POINT_AGNOSTIC, 5, 1),
        ((*COARSE_AGNOSTIC, *POINT_AGNOSTIC), 1, 1),
    ],
    ids=["coarse", "point", "both"],
)
def test_class_agnostic_heads_train_and_infer(opts, coarse_channels, point_channels):
    head = random_mask_head(*opts)
    assert head.coarse_head.output_shape == (coarse_channels, 7, 7)
    assert head.point_head.predictor.out_channels == point_channels
    losses, logged = train(head, [3, 0, 2])
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())
    assert 0 < logged["point/accuracy"] < 1
    assert_probabilities(infer(head, [3, 0, 2]), [3, 0, 2], 224)


@pytest.mark.parametrize(
    ("opts", "implicit"),
    [((*COARSE_AGNOSTIC, *POINT_AGNOSTIC), False), (POINT_AGNOSTIC, True)],
    ids=["standard", "implicit"],
)
def test_class_agnostic_masks_do_not_depend_on_the_class(opts, implicit):
    head = random_mask_head(*opts, implicit=implicit)
    assert torch.equal(masks_of_class(head, 0), masks_of_class(head, 4))


def test_class_agnostic_implicit_heads_train():
    losses, _ = train(random_mask_head(*POINT_AGNOSTIC, implicit=True), [3, 0])
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())


@BOTH
def test_masks_depend_on_the_class_otherwise(implicit):
    head = random_mask_head(implicit=implicit)
    assert not torch.allclose(masks_of_class(head, 0), masks_of_class(head, 4))


# --- third-party point heads --------------------------------------------------------------------


class AllChannelsHead(nn.Module):
    """A third-party point head, without ``bind``."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.num_classes = cfg.MODEL.POINT_HEAD.NUM_CLASSES
        self.layer = nn.Conv1d(input_shape.channels, self.num_classes, 1)

    def forward(self, features, coarse):
        return self.layer(features) + coarse.sum(dim=1, keepdim=True)


@pytest.fixture
def third_party():
    POINT_HEAD_REGISTRY.register(AllChannelsHead)
    yield "AllChannelsHead"
    POINT_HEAD_REGISTRY._obj_map.pop("AllChannelsHead")


def test_a_third_party_point_head_trains_and_renders_the_requested_class(third_party):
    head = random_mask_head("MODEL.POINT_HEAD.NAME", third_party)
    losses, _ = train(head, [2, 1])
    assert losses["loss_mask_point"] > 0
    masks = torch.cat(infer(head, [2, 1]))
    assert_probabilities([masks], [3], 224)


def test_a_third_party_point_head_with_unexpected_coarse_channels_is_refused(third_party):
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_MASK"):
        random_mask_head("MODEL.POINT_HEAD.NAME", third_party, *COARSE_AGNOSTIC)


# --- settings that cannot work ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("implicit", "opts", "keys"),
    [
        (False, ("MODEL.POINT_HEAD.SUBDIVISION_STEPS", -1), "SUBDIVISION_STEPS"),
        (False, ("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 0), "SUBDIVISION_NUM_POINTS"),
        (False, ("MODEL.POINT_HEAD.TRAIN_NUM_POINTS", 0), "TRAIN_NUM_POINTS"),
        (False, ("MODEL.POINT_HEAD.OVERSAMPLE_RATIO", 0), "OVERSAMPLE_RATIO"),
        (False, ("MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO", 2.0), "IMPORTANCE_SAMPLE_RATIO"),
        (False, ("MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 0), "OUTPUT_SIDE_RESOLUTION"),
        (False, ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7), "POOLER_RESOLUTION"),
        (False, ("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 0), "POOLER_RESOLUTION"),
        (False, ("MODEL.ROI_MASK_HEAD.NUM_FC", 0), "MODEL.ROI_MASK_HEAD.NUM_FC"),
        (False, ("MODEL.ROI_MASK_HEAD.IN_FEATURES", "('p9',)"), "MODEL.ROI_MASK_HEAD.IN_FEATURES"),
        (False, ("MODEL.POINT_HEAD.IN_FEATURES", "('p9',)"), "MODEL.POINT_HEAD.IN_FEATURES"),
        (False, ("MODEL.POINT_HEAD.IN_FEATURES", "()"), "MODEL.POINT_HEAD.IN_FEATURES"),
        (False, ("MODEL.POINT_HEAD.NUM_FC", -1), "MODEL.POINT_HEAD.NUM_FC"),
        (False, ("MODEL.POINT_HEAD.NAME", "ImplicitPointHead"), "MODEL.POINT_HEAD.NAME"),
        (True, ("MODEL.POINT_HEAD.NAME", "StandardPointHead"), "MODEL.POINT_HEAD.NAME"),
        (True, ("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 783), "SUBDIVISION_NUM_POINTS"),
        (True, ("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 0), "SUBDIVISION_NUM_POINTS"),
        (True, ("MODEL.POINT_HEAD.TRAIN_NUM_POINTS", 0), "TRAIN_NUM_POINTS"),
        (True, ("MODEL.POINT_HEAD.NUM_FC", 0), "MODEL.POINT_HEAD.NUM_FC"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_work_are_refused_with_their_key(implicit, opts, keys):
    with pytest.raises(ValueError, match=keys):
        random_mask_head(*opts, implicit=implicit)


@BOTH
def test_a_pooler_is_refused_because_the_heads_read_the_maps_themselves(implicit):
    pooled = ShapeSpec(channels=CHANNELS, height=14, width=14)
    with pytest.raises(ValueError, match="POOLER_TYPE"):
        build_mask_head(small_head_config(implicit=implicit), pooled)


# --- a config of the stock project --------------------------------------------------------------


@BOTH
def test_heads_are_built_from_a_config_of_the_stock_project(implicit):
    stock = pytest.importorskip("detectron2.projects.point_rend")
    cfg = get_cfg()
    stock.add_pointrend_config(cfg)
    name = "ImplicitPointRendMaskHead" if implicit else "PointRendMaskHead"
    point_head = "ImplicitPointHead" if implicit else "StandardPointHead"
    cfg.merge_from_list(
        [
            *("MODEL.ROI_MASK_HEAD.NAME", name, "MODEL.POINT_HEAD.NAME", point_head),
            *("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.ROI_MASK_HEAD.FC_DIM", 8),
            *("MODEL.POINT_HEAD.FC_DIM", 4, "MODEL.DEVICE", "cpu"),
            *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 3 if implicit else 5),
        ]
    )
    assert "TRAIN_ON_REGULAR_GRID" not in cfg.MODEL.POINT_HEAD  # a key of ours
    cfg.freeze()
    head = build_mask_head(cfg, SHAPES)
    assert isinstance(head, (PointRendMaskHead, ImplicitPointRendMaskHead))
    losses, _ = train(head, [2])
    assert all(torch.isfinite(loss) for loss in losses.values())
    side = 28 * 2**3 if implicit else 7 * 2**5
    assert_probabilities(infer(head, [1]), [1], side)


# --- laws of the whole head ---------------------------------------------------------------------


@BOTH
def test_masks_of_an_image_do_not_depend_on_its_batch(implicit):
    head = random_mask_head(implicit=implicit).eval()
    features, proposals = random_features(3), random_proposals([2, 3, 1])
    with torch.no_grad():
        together = head(features, as_detections(proposals))
        for image, expected in enumerate(together):
            alone = {name: f[image : image + 1] for name, f in features.items()}
            (detections,) = head(alone, as_detections(proposals[image : image + 1]))
            masks = detections.pred_masks
            assert masks.shape == expected.pred_masks.shape
            assert ((masks > 0.5) != (expected.pred_masks > 0.5)).float().mean() < 1e-5
            assert ((masks - expected.pred_masks).abs() > 1e-5).float().mean() < 1e-3


@BOTH
def test_training_leaves_nothing_behind_and_inference_draws_nothing(implicit):
    head = random_mask_head(implicit=implicit)
    state = {name: value.clone() for name, value in head.state_dict().items()}
    before = infer(head, [2, 1])
    train(head, [2, 1])
    global_state = torch.get_rng_state()
    after = infer(head, [2, 1])
    assert torch.equal(torch.get_rng_state(), global_state)
    for name, value in head.state_dict().items():
        assert torch.equal(value, state[name]), name
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first, second)


@BOTH
def test_the_same_seed_gives_the_same_losses(implicit):
    losses = []
    for _ in range(2):
        torch.manual_seed(11)
        losses.append(train(random_mask_head(implicit=implicit), [3, 1])[0])
    for name in losses[0]:
        assert torch.equal(losses[0][name], losses[1][name])


@BOTH
def test_every_parameter_and_every_level_that_is_read_learns(implicit):
    levels = "('p2', 'p3')"
    keys = ("MODEL.POINT_HEAD.IN_FEATURES", levels, "MODEL.ROI_MASK_HEAD.IN_FEATURES", levels)
    head = random_mask_head(*keys, implicit=implicit).train()
    features = {name: f.requires_grad_() for name, f in random_features(2).items()}
    with EventStorage():
        losses = head(features, random_proposals([3, 2]))
        sum(losses.values()).backward()
    for name, tensor in [*head.named_parameters(), *features.items()]:
        assert tensor.grad is not None, name
        assert tensor.grad.abs().sum() > 0, name


@BOTH
def test_mixed_precision_gives_nearly_the_same_losses_and_masks_in_float32(implicit):
    head = random_mask_head(implicit=implicit)
    exact = torch.cat(infer(head, [2, 1]))
    torch.manual_seed(0)
    exact_losses, _ = train(head, [2, 1])
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        masks = infer(head, [2, 1])
        losses, _ = train(head, [2, 1])
    assert_probabilities(masks, [2, 1], 224)
    assert ((torch.cat(masks) > 0.5) != (exact > 0.5)).float().mean() < 0.03
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, exact_losses[name], rtol=0.05, atol=1e-3)


def test_the_regular_grid_is_a_setting_of_training():
    head = random_mask_head("MODEL.POINT_HEAD.TRAIN_ON_REGULAR_GRID", True)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(train(head, [3])[0])
    assert torch.equal(losses[0]["loss_mask_point"], losses[1]["loss_mask_point"])


class PlantedDisc(nn.Module):
    """Predicts a disc in the image: the features are the pixel coordinates themselves."""

    def forward(self, features, coarse):
        distance = ((features[:, :1] - 40) ** 2 + (features[:, 1:] - 30) ** 2).sqrt()
        return (14 - distance).expand(-1, coarse.shape[1], -1)


def coordinate_features() -> dict[str, torch.Tensor]:
    height, width = IMAGE_SIZE
    xs, ys = (torch.arange(n // 4) * 4 + 2.0 for n in (width, height))
    return {"p2": torch.stack((xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))))[None]}


def planted_head(train_points: int = 16) -> PointRendMaskHead:
    """Return a head built from keyword arguments, without a config."""
    reader = BoxFeatureReader(names=("p2",), scales=(0.25,), channels=2)
    coarse_head = CoarseMaskHead(
        input_shape=ShapeSpec(channels=2, height=4, width=4),
        conv_dim=4,
        fc_dims=[4],
        output_shape=(3, 7, 7),
    )
    return PointRendMaskHead(
        coarse_head=coarse_head,
        coarse_reader=reader,
        coarse_pooler_side=4,
        point_head=PlantedDisc(),
        refinement=PointRefinement(
            reader, PointSampler(train_points, 1, 0.0), MaskRenderer(SubdivisionPlan(28, 3, 784))
        ),
    )


def planted_detections() -> list[Instances]:
    boxes = Boxes(torch.tensor([[20.0, 10.0, 60.0, 50.0], [35.0, 25.0, 75.0, 61.0]]))
    return [Instances(IMAGE_SIZE, pred_boxes=boxes, pred_classes=torch.tensor([0, 2]))]


def test_a_disc_in_the_image_is_rendered_exactly_in_every_box():
    with torch.no_grad():
        (result,) = planted_head().eval()(coordinate_features(), planted_detections())
    masks = result.pred_masks
    assert masks.dtype == torch.float32
    assert masks.shape == (2, 1, 224, 224)
    centers = (torch.arange(224) + 0.5) / 224
    for mask, (x0, y0, x1, y1) in zip(masks[:, 0], result.pred_boxes.tensor.tolist(), strict=True):
        xs, ys = x0 + (x1 - x0) * centers, y0 + (y1 - y0) * centers
        margin = 14 - ((xs[None] - 40) ** 2 + (ys[:, None] - 30) ** 2).sqrt()
        clear = margin.abs() > 0.1  # the field is read bilinearly from a map of stride 4
        assert clear.float().mean() > 0.95
        assert torch.equal((mask > 0.5)[clear], (margin > 0)[clear])


# --- heads and models without a config ----------------------------------------------------------


def test_heads_are_built_from_keyword_arguments_alone():
    head = planted_head()
    proposals = random_proposals([2], num_classes=3)
    with EventStorage():
        losses = head.train()(coordinate_features(), proposals)
    assert losses.keys() == {"loss_mask", "loss_mask_point"}
    reader = BoxFeatureReader.from_shapes(("p3", "p2"), SHAPES, "IN_FEATURES")
    assert reader == BoxFeatureReader(("p3", "p2"), (1 / 8, 1 / 4), 2 * CHANNELS)
    point_head = ImplicitPointHead(in_channels=reader.channels, num_classes=5, fc_dim=4)
    implicit = ImplicitPointRendMaskHead(
        parameter_head=CoarseMaskHead(
            input_shape=ShapeSpec(channels=reader.channels, height=4, width=4),
            conv_dim=4,
            fc_dims=[4],
            output_shape=(point_head.num_params,),
        ),
        coarse_reader=reader,
        coarse_pooler_side=4,
        point_head=point_head,
        point_reader=reader,
        num_train_points=9,
        renderer=MaskRenderer(SubdivisionPlan(4, 2, 16)),
        l2_regularizer=1e-5,
    )
    assert train(implicit, [2, 1])[0].keys() == {"loss_l2", "loss_mask_point"}
    assert_probabilities(infer(implicit, [2, 1]), [2, 1], 16)


def test_a_point_head_without_its_companions_is_refused():
    head = planted_head()
    with pytest.raises(ValueError, match="belong together"):
        PointRendMaskHead(
            coarse_head=head.coarse_head,
            coarse_reader=head.coarse_reader,
            coarse_pooler_side=4,
            point_head=StandardPointHead(in_channels=2, coarse_channels=3, num_classes=3),
        )


def test_the_implicit_regularizer_is_the_weighted_mean_square_of_the_parameters():
    head = random_mask_head("MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER", 0.5, implicit=True)
    seen = []
    head.parameter_head.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    losses, _ = train(head, [3])
    (parameters,) = seen
    expected = 0.5 * (parameters.double() ** 2).mean()
    torch.testing.assert_close(losses["loss_l2"].double(), expected, rtol=1e-5, atol=0)


def test_the_point_loss_compares_with_the_mask_under_the_points():
    """A head that copies the ground truth has no loss, one that inverts it has a large one."""
    height, width = IMAGE_SIZE
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = ((xs - 40) ** 2 + (ys - 30) ** 2).sqrt() < 14
    boxes = planted_detections()[0].pred_boxes
    proposals = Instances(
        IMAGE_SIZE,
        proposal_boxes=boxes,
        gt_classes=torch.tensor([0, 2]),
        gt_masks=BitMasks(mask.repeat(2, 1, 1)),
    )
    values = []
    for sign in (1, -1):
        head = planted_head(train_points=400)
        head.point_head.register_forward_hook(
            lambda _module, _inputs, out, sign=sign: sign * 10 * out
        )
        torch.manual_seed(0)
        with EventStorage():
            values.append(head.train()(coordinate_features(), [proposals])["loss_mask_point"])
    assert values[0] < 0.1
    assert values[1] > 20
