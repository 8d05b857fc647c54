"""Points, labels, features and point heads against those of the stock project."""

import random

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

import point_rend
from point_rend import point_features as ours
from point_rend import point_head as our_heads
from point_rend.coarse_mask_head import CoarseMaskHead
from point_rend.ground_truth import point_labels
from point_rend.rendering import sampling
from point_rend.rendering.uncertainty import foreground_uncertainty
from tests.synthetic import (
    IMAGE_SIZE,
    STRIDES,
    random_boxes,
    random_features,
    random_proposals,
    randomize,
    small_head_config,
)

pytest.importorskip("detectron2.projects.point_rend")
from detectron2.layers import ShapeSpec
from detectron2.projects import point_rend as stock_project
from detectron2.projects.point_rend import mask_head as stock_mask_head
from detectron2.projects.point_rend import point_features as stock
from detectron2.projects.point_rend import point_head as stock_heads


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SAMPLING = {  # (points, k, β), side and channels of the logits, as the recipes use them
    "coco": ((196, 3, 0.75), 7, 80),
    "cityscapes": ((196, 3, 0.75), 7, 8),
    "class-agnostic": ((196, 3, 0.75), 7, 1),
    "uniform": ((196, 1, 0.0), 7, 8),
    "heavily-biased": ((196, 10, 1.0), 7, 8),
    "only-important": ((100, 2, 1.0), 7, 8),
    "rounded": ((99, 2.5, 0.7), 14, 8),
    "semantic": ((2048, 3, 0.75), 64, 1),
}


@pytest.mark.parametrize("setting", SAMPLING)
@pytest.mark.parametrize("regions", [1, 5, 0])
def test_the_same_seed_gives_the_same_training_points(setting, regions):
    arguments, side, channels = SAMPLING[setting]
    logits = torch.randn(regions, channels, side, side, generator=seeded()) * 3
    classes = torch.randint(channels, (regions,), generator=seeded(1))
    points = []
    for draw in (
        stock.get_uncertain_point_coords_with_randomness,
        ours.get_uncertain_point_coords_with_randomness,
    ):
        torch.manual_seed(7)
        points.append(
            draw(logits, lambda x: stock_mask_head.calculate_uncertainty(x, classes), *arguments)
        )
    torch.manual_seed(7)
    sampler = point_rend.PointSampler(*arguments)
    points.append(sampler.sample(logits, lambda x: foreground_uncertainty(x, classes)))
    for other in points[1:]:
        assert other.dtype == points[0].dtype == torch.float32
        assert other.shape == points[0].shape == (regions, arguments[0], 2)
        assert torch.equal(other, points[0])


def test_sampling_leaves_the_generator_where_the_stock_project_leaves_it():
    states = []
    for module in (stock, ours):
        torch.manual_seed(3)
        module.get_uncertain_point_coords_with_randomness(
            torch.zeros(2, 1, 7, 7), lambda x: -x.abs(), 50, 3, 0.75
        )
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 80, 7, 7), (0, 4, 3, 3)])
@pytest.mark.parametrize("inner", [(40,), (6, 5)])
def test_point_sample_is_bit_equal(shape, inner):
    maps = torch.randn(shape, generator=seeded())
    coords = torch.rand(shape[0], *inner, 2, generator=seeded(1)) * 1.2 - 0.1
    expected = stock.point_sample(maps, coords, align_corners=False)
    sampled = sampling.point_sample(maps, coords, align_corners=False)
    assert sampled.dtype == expected.dtype
    assert sampled.shape == expected.shape == (*shape[:2], *inner)
    assert torch.equal(sampled, expected)


@pytest.mark.parametrize("side", [1, 2, 7, 14, 28])
@pytest.mark.parametrize("regions", [0, 3])
def test_the_regular_grid_is_equal(side, regions):
    expected = stock.generate_regular_grid_point_coords(regions, side, "cpu")
    grid = ours.generate_regular_grid_point_coords(regions, side, "cpu")
    assert grid.dtype == expected.dtype
    assert grid.shape == expected.shape
    torch.testing.assert_close(grid, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "count"), [(56, 56, 784), (6, 9, 10), (4, 4, 99)])
def test_the_most_uncertain_cells_are_equal(height, width, count):
    scores = torch.randn(3, 1, height, width, generator=seeded())
    by_uncertainty, expected = stock.get_uncertain_point_coords_on_grid(scores, count)
    indices, coords = ours.get_uncertain_point_coords_on_grid(scores, count)
    expected_indices, order = by_uncertainty.sort(dim=1)
    assert indices.dtype == expected_indices.dtype
    assert torch.equal(indices, expected_indices)
    assert coords.dtype == expected.dtype
    expected = expected.gather(1, order[..., None].expand(-1, -1, 2))
    torch.testing.assert_close(coords, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("counts", [[4], [0, 5], [2, 0, 6]])
@pytest.mark.parametrize("names", [("p2",), ("p2", "p3")])
def test_fine_grained_features_are_equal(counts, names):
    features = random_features(len(counts))
    boxes = [random_boxes(count, seeded(2)) for count in counts]
    coords = torch.rand(sum(counts), 30, 2, generator=seeded(3))
    kept = coords.clone()
    results = [
        module.point_sample_fine_grained_features(
            [features[n] for n in names], [1 / STRIDES[n] for n in names], boxes, coords
        )
        for module in (stock, ours)
    ]
    for expected, result in zip(*results, strict=True):
        assert result.dtype == expected.dtype
        assert result.shape == expected.shape
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert torch.equal(coords, kept)


def test_image_coordinates_are_equal():
    boxes, coords = random_boxes(5, seeded()).tensor, torch.rand(5, 20, 2, generator=seeded(1))
    expected = stock.get_point_coords_wrt_image(boxes, coords)
    torch.testing.assert_close(
        ours.get_point_coords_wrt_image(boxes, coords), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("counts", [[4], [3, 0, 2]])
def test_point_labels_are_equal(counts):
    instances = random_proposals(counts)
    coords = torch.rand(sum(counts), 50, 2, generator=seeded()) * torch.tensor(IMAGE_SIZE[::-1])
    expected = stock.sample_point_labels(instances, coords)
    labels = point_labels.sample_point_labels(instances, coords)
    assert labels.dtype == expected.dtype
    assert labels.shape == expected.shape
    assert torch.equal(labels, expected)
    assert ((labels > 0) & (labels < 1)).any()  # soft at boundaries, in both


# --- heads --------------------------------------------------------------------------------------

HEADS = {
    "standard": ("StandardPointHead", ()),
    "coarse-first-layer-only": (
        "StandardPointHead",
        ("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", False),
    ),
    "one-layer": ("StandardPointHead", ("MODEL.POINT_HEAD.NUM_FC", 1)),
    "class-agnostic": ("StandardPointHead", ("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True)),
    "implicit": ("ImplicitPointHead", ()),
    "implicit-deep": ("ImplicitPointHead", ("MODEL.POINT_HEAD.NUM_FC", 4)),
    "implicit-class-agnostic": ("ImplicitPointHead", ("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True)),
    "implicit-positions-only": (
        "ImplicitPointHead",
        ("MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED", False),
    ),
    "implicit-features-only": (
        "ImplicitPointHead",
        ("MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED", False),
    ),
}


@pytest.mark.parametrize("variant", HEADS)
@pytest.mark.parametrize("channels", [6, 17])
def test_point_heads_give_the_same_logits_and_gradients_at_the_same_points(variant, channels):
    name, opts = HEADS[variant]
    keys = ("MODEL.POINT_HEAD.NAME", name, "MODEL.POINT_HEAD.NUM_CLASSES", 5)
    cfg = small_head_config(*keys, *opts)
    shape = ShapeSpec(channels=channels, width=1, height=1)
    stock_head = stock_heads.POINT_HEAD_REGISTRY.get(name)(cfg, shape)
    head = point_rend.build_point_head(cfg, shape)
    randomize(head)
    stock_head.load_state_dict(head.state_dict(), strict=True)
    features = torch.randn(4, channels, 30, generator=seeded())
    if name == "StandardPointHead":
        inputs = (features, torch.randn(4, 5, 30, generator=seeded(1)))
    else:
        assert head.num_params == stock_head.num_params
        parameters = torch.randn(4, head.num_params, generator=seeded(2)) * 0.3
        inputs = (features, torch.rand(4, 30, 2, generator=seeded(1)), parameters)
    results = []
    for module in (stock_head, head):
        leaves = [x.clone().requires_grad_() for x in inputs]
        logits = module(*leaves)
        logits.square().sum().backward()
        used = [x.grad for x in (*leaves, *module.parameters()) if x.grad is not None]
        results.append((logits, used))
    (expected, expected_gradients), (logits, gradients) = results
    assert logits.dtype == expected.dtype
    assert logits.shape == expected.shape
    if name == "StandardPointHead":
        assert torch.equal(logits, expected)  # the same layers in the same order
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        error = (gradient - expected_gradient).norm() / expected_gradient.norm()
        assert error < 1e-4


@pytest.mark.parametrize("channels", [16, 8])  # the stock head cannot read fewer than conv_dim
def test_coarse_heads_give_the_same_logits_from_the_same_weights(channels):
    shape = ShapeSpec(channels=channels, height=14, width=14)
    arguments = {"conv_dim": 8, "fc_dims": [32, 16], "output_shape": (5, 7, 7)}
    head = CoarseMaskHead(input_shape=shape, **arguments)
    randomize(head)
    stock_head = stock_mask_head.ConvFCHead(input_shape=shape, **arguments)
    stock_head.load_state_dict(head.state_dict(), strict=True)
    assert list(head.state_dict()) == list(stock_head.state_dict())
    pooled = torch.randn(3, channels, 14, 14, generator=seeded())
    assert torch.equal(head(pooled), stock_head(pooled))


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("counts", [[3], [2, 0, 4]])
def test_the_point_loss_and_its_gradient_are_equal(channels, counts):
    instances = random_proposals(counts)
    logits = torch.randn(sum(counts), channels, 40, generator=seeded())
    labels = (torch.rand(sum(counts), 40, generator=seeded(1)) > 0.5).float()
    results = []
    for module in (stock_heads, our_heads):
        leaf = logits.clone().requires_grad_()
        with EventStorage() as storage:
            loss = module.roi_mask_point_loss(leaf, instances, labels)
            loss.backward()
            accuracy = storage.latest()["point/accuracy"][0]
        results.append((loss, leaf.grad, accuracy))
    (expected, expected_gradient, expected_accuracy), (loss, gradient, accuracy) = results
    assert loss.dtype == expected.dtype
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-8)
    assert accuracy == pytest.approx(expected_accuracy)  # of hard labels


def test_the_point_loss_takes_empty_images_without_classes_as_the_stock_one_does():
    empty = Instances(IMAGE_SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))
    instances = [*random_proposals([2]), empty]
    logits, labels = torch.randn(2, 5, 7, generator=seeded()), torch.ones(2, 7)
    with EventStorage():
        expected = stock_heads.roi_mask_point_loss(logits, instances, labels)
        torch.testing.assert_close(
            our_heads.roi_mask_point_loss(logits, instances, labels), expected
        )


# --- augmentation -----------------------------------------------------------------------------


@pytest.mark.parametrize("img_format", ["BGR", "RGB"])
def test_the_distortion_of_colors_is_bit_equal_for_the_same_seed(img_format):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    results = []
    for project in (stock_project, point_rend):
        transform = project.ColorAugSSDTransform(img_format=img_format)
        random.seed(5)
        results.append([transform.apply_image(image.copy()) for _ in range(40)])
    for expected, result in zip(*results, strict=True):
        assert result.dtype == expected.dtype
        assert np.array_equal(result, expected)


def test_labels_of_masks_as_floats_are_equal():
    masks = torch.rand(2, *IMAGE_SIZE, generator=seeded()) > 0.5
    instances = [Instances(IMAGE_SIZE, gt_masks=BitMasks(masks))]
    coords = torch.rand(2, 9, 2, generator=seeded(1)) * 60
    assert torch.equal(
        point_labels.sample_point_labels(instances, coords),
        stock.sample_point_labels(instances, coords),
    )
