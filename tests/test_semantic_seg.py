"""The semantic head: coarse heads, independence of padding, refused settings."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_sem_seg_head
from torch import nn

from point_rend import PointRendSemSegHead, PointSampler
from point_rend.semantic_seg import CoarseSemSegHead, coarse_logits
from tests.synthetic import CHANNELS, IMAGE_SIZE, SHAPES, random_features, randomize
from tests.synthetic_semantic import (
    IGNORE,
    PointwiseCoarseHead,
    pointwise_head,
    random_labels,
    small_deeplab_config,
    small_semantic_config,
)


def build(*opts: object) -> PointRendSemSegHead:
    head = build_sem_seg_head(small_semantic_config(*opts), SHAPES)
    randomize(head)
    return head


def losses_of(head, features, labels, image_sizes=None, seed=0):
    torch.manual_seed(seed)
    return head.train()(features, labels, image_sizes)[1]


@torch.no_grad()
def logits_of(head, features, image_sizes=None):
    return head.eval()(features, None, image_sizes)[0]


# --- inputs and settings ------------------------------------------------------------------------


def test_fine_grained_features_come_from_several_levels():  # defect 1
    head = build("MODEL.POINT_HEAD.IN_FEATURES", "('p2', 'p3')")
    features = random_features(2)
    assert head.point_head.fc1.in_channels == 2 * CHANNELS + 6
    assert losses_of(head, features, random_labels(2, 6))["loss_sem_seg_point"] > 0
    assert logits_of(head, features).shape == (2, 6, *IMAGE_SIZE)


@pytest.mark.parametrize(("stride", "steps"), [(4, 2), (8, 3), (16, 4)])
def test_the_steps_follow_from_the_coarse_stride(stride, steps):
    head = build(
        *("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", stride, "MODEL.POINT_HEAD.SUBDIVISION_STEPS", -1)
    )
    assert head.steps == steps


def test_one_class_is_trained_and_rendered():  # defect 10
    head = build("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1)
    labels = random_labels(1, 1)
    assert set(losses_of(head, random_features(1), labels)) == {
        "loss_sem_seg",
        "loss_sem_seg_point",
    }
    assert logits_of(head, random_features(1)).shape == (1, 1, *IMAGE_SIZE)


@pytest.mark.parametrize("name", ["DeepLabV3Head", "DeepLabV3PlusHead"])
def test_deeplab_heads_are_coarse_heads(name):  # defect 11
    cfg = small_deeplab_config(name)
    head = build_sem_seg_head(cfg, SHAPES)
    randomize(head)
    features = random_features(2)
    assert head.coarse_sem_seg_head.loss_type == "hard_pixel_mining"
    losses = losses_of(head, features, random_labels(2, 6))
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert logits_of(head, features).shape == (2, 6, *IMAGE_SIZE)
    # Upsampled, the coarse logits equal the predictions of the head alone.
    alone = head.coarse_sem_seg_head.eval()
    with torch.no_grad():
        expected = alone(features)[0]
        coarse = coarse_logits(alone, features)
    stride = cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE
    upsampled = nn.functional.interpolate(coarse, scale_factor=stride, mode="bilinear")
    torch.testing.assert_close(upsampled, expected)


@pytest.mark.parametrize("name", ["DeepLabV3Head", "DeepLabV3PlusHead"])
def test_images_over_which_deeplab_cannot_average_are_refused_by_the_keys(name):
    cfg = small_deeplab_config(name)
    height, width = IMAGE_SIZE
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute"
    cfg.INPUT.CROP.SIZE = [height, width]
    features = random_features(1)
    logits_of(build_sem_seg_head(cfg, SHAPES), features)
    cfg.INPUT.CROP.SIZE = [2 * height, width]
    head = build_sem_seg_head(cfg, SHAPES)
    message = rf"{name} averages over windows of \({height // 4}, {width // 8}\) .*INPUT.CROP.SIZE"
    with pytest.raises(ValueError, match=message):
        logits_of(head, features)
    with pytest.raises(ValueError, match=message):
        losses_of(head, features, random_labels(1, 6))


class NoHead(nn.Module):
    """Lacks what a coarse head needs."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:  # noqa: ARG002
        super().__init__()


@pytest.fixture(params=[PointwiseCoarseHead, NoHead])
def registered(request):
    SEM_SEG_HEADS_REGISTRY.register(request.param)
    yield request.param.__name__
    del SEM_SEG_HEADS_REGISTRY._obj_map[request.param.__name__]


def test_a_users_coarse_head_needs_the_members_of_the_protocol(registered):
    opts = ("MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME", registered)
    if registered == "NoHead":
        with pytest.raises(ValueError, match="common_stride and no losses and no layers"):
            build(*opts)
        return
    head = build(*opts)
    assert isinstance(head.coarse_sem_seg_head, CoarseSemSegHead)
    assert len(losses_of(head, random_features(1), random_labels(1, 6))) == 2
    assert logits_of(head, random_features(1)).shape == (1, 6, *IMAGE_SIZE)


def test_a_head_is_built_without_a_config():
    assert logits_of(pointwise_head(), random_features(2)).shape == (2, 6, *IMAGE_SIZE)


def test_a_second_node_describes_the_semantic_point_head_of_a_panoptic_model():
    cfg = small_semantic_config()
    own = cfg.MODEL.POINT_HEAD.clone()
    own.FC_DIM = 24
    cfg.MODEL.SEM_SEG_HEAD.POINT_HEAD = own
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = 80  # of the instances
    head = build_sem_seg_head(cfg, SHAPES)
    assert head.point_head.fc1.out_channels == 24
    assert head.point_head.predictor.out_channels == 6
    assert cfg.MODEL.POINT_HEAD.FC_DIM == 16


# --- ignored labels -----------------------------------------------------------------------------


def test_labels_that_are_all_ignored_give_losses_of_0_with_a_graph():
    head = build()
    losses = losses_of(head, random_features(2), torch.full((2, *IMAGE_SIZE), IGNORE))
    assert {name: loss.item() for name, loss in losses.items()} == {
        "loss_sem_seg": 0,
        "loss_sem_seg_point": 0,
    }
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


# --- padding ------------------------------------------------------------------------------------


def padded(features: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Append rows and columns of noise to every map, like a larger image in the batch."""
    generator = torch.Generator().manual_seed(seed)
    larger = {}
    for name, level in features.items():
        rows, columns = (32 // SHAPES[name].stride * k for k in (1, 3))
        images, channels, height, width = level.shape
        shape = (images, channels, height + rows, width + columns)
        larger[name] = 3 * torch.randn(shape, generator=generator)
        larger[name][..., :height, :width] = level
    return larger


@pytest.mark.parametrize("size", [IMAGE_SIZE, (57, 90), (64, 93)])
def test_logits_in_the_image_do_not_depend_on_padding(size):  # defect 12
    head = pointwise_head()
    features = random_features(2)
    alone = logits_of(head, features, [size, size])
    for seed in (1, 2):
        among_others = logits_of(head, padded(features, seed), [size, size])
        for expected, logits in zip(alone, among_others, strict=True):
            assert logits.shape == expected.shape == (6, *size)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_without_image_sizes_padding_takes_points_away():  # so the test above is not vacuous
    head = pointwise_head()
    features = random_features(1)
    height, width = IMAGE_SIZE
    among_others = logits_of(head, padded(features, 1))[..., :height, :width]
    assert (among_others - logits_of(head, features)).abs().max() > 0.01


def test_training_points_lie_in_the_image(monkeypatch):
    head = pointwise_head()
    drawn = []
    sample = PointSampler.sample

    def recording(*args, **kwargs):
        drawn.append(sample(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(PointSampler, "sample", recording)
    losses_of(head, random_features(2), random_labels(2, 6), [(32, 96), (64, 24)])
    (coords,) = drawn
    assert coords.shape == (2, 40, 2)
    assert coords[0, :, 1].max() < 0.5 < coords[0, :, 0].max()
    assert coords[1, :, 0].max() < 0.25 < coords[1, :, 1].max()


def test_the_output_has_the_size_of_each_image():
    sizes = [(64, 96), (1, 1), (33, 70)]
    logits = logits_of(build(), random_features(3), sizes)
    assert [tuple(x.shape) for x in logits] == [(6, *size) for size in sizes]


# --- settings that cannot work ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 3), "is 3.*stride 4.*expected 2 steps"),  # defect 9
        (("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 6), "COMMON_STRIDE is 6.*power of two"),
        (("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 0), "SUBDIVISION_NUM_POINTS"),
        (("MODEL.POINT_HEAD.IN_FEATURES", "('p9',)"), "MODEL.POINT_HEAD.IN_FEATURES.*p9"),
        (("MODEL.POINT_HEAD.NUM_CLASSES", 5), "POINT_HEAD.NUM_CLASSES is 5.*NUM_CLASSES is 6"),
        (("MODEL.POINT_HEAD.NAME", "ImplicitPointHead"), "ImplicitPointHead"),
        (("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True), "CLS_AGNOSTIC_MASK"),
    ],
)
def test_settings_that_cannot_work_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        build(*opts)
