"""Features at points of boxes, against planted fields and RoIAlign."""

import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.structures import Boxes

from point_rend.point_features import point_sample_fine_grained_features, pool_regular_grid
from point_rend.rendering.features import concatenate_levels
from tests.synthetic import IMAGE_SIZE, STRIDES, random_boxes, random_features

SCALES = {name: 1 / stride for name, stride in STRIDES.items()}


def boxes_of(counts: list[int], seed: int = 3) -> list[Boxes]:
    generator = torch.Generator().manual_seed(seed)
    return [random_boxes(count, generator) for count in counts]


def affine_features(num_images: int) -> dict[str, torch.Tensor]:
    """Three channels per level: x and y in pixels of the image, and the number of the image."""
    height, width = IMAGE_SIZE
    levels = {}
    for name, stride in STRIDES.items():
        xs = (torch.arange(width // stride) + 0.5) * stride
        ys = (torch.arange(height // stride) + 0.5) * stride
        maps = [
            xs.expand(len(ys), -1),
            ys[:, None].expand(-1, len(xs)),
            torch.zeros(len(ys), len(xs)),
        ]
        levels[name] = torch.stack(maps).repeat(num_images, 1, 1, 1)
        levels[name][:, 2] += torch.arange(num_images)[:, None, None]
    return levels


@pytest.mark.parametrize("names", [("p2",), ("p3",), ("p2", "p3"), ("p3", "p2")], ids=str)
@pytest.mark.parametrize("side", [1, 7, 14])
def test_grid_pooling_equals_roi_align_with_one_sample_for_boxes_inside(names, side):
    counts = [3, 0, 4]
    features, boxes = random_features(3), boxes_of(counts)
    pooled = pool_regular_grid(
        [features[n] for n in names], [SCALES[n] for n in names], boxes, side
    )
    owners = torch.tensor([0] * 3 + [2] * 4)[:, None]
    rois = torch.cat((owners, Boxes.cat(boxes).tensor), dim=1)
    expected = torch.cat(
        [ROIAlign((side, side), SCALES[n], 1, aligned=True)(features[n], rois) for n in names],
        dim=1,
    )
    # RoIAlign continues the outermost half cell of the map, sampling fades: compare inside of it.
    margin = max(STRIDES[n] for n in names) / 2
    height, width = IMAGE_SIZE
    x0, y0, x1, y1 = Boxes.cat(boxes).tensor.T
    centers = (torch.arange(side) + 0.5) / side
    xs, ys = x0[:, None] + (x1 - x0)[:, None] * centers, y0[:, None] + (y1 - y0)[:, None] * centers
    inner_x = (xs >= margin) & (xs <= width - margin)
    inner_y = (ys >= margin) & (ys <= height - margin)
    inner = (inner_y[:, :, None] & inner_x[:, None, :])[:, None].expand_as(pooled)
    assert pooled.dtype == torch.float32
    assert pooled.shape == expected.shape == (7, 16 * len(names), side, side)
    assert inner.float().mean() > 0.6
    torch.testing.assert_close(pooled[inner], expected[inner], rtol=1e-4, atol=1e-5)


def test_a_field_affine_in_image_pixels_is_read_exactly():
    features = affine_features(2)
    boxes = [
        Boxes(torch.tensor([[8.0, 8.0, 40.5, 30.25]])),
        Boxes(torch.tensor([[10.0, 5.0, 90.0, 59.0], [20.0, 20.0, 21.0, 50.0]])),
    ]
    coords = torch.rand(3, 20, 2, generator=torch.Generator().manual_seed(0))
    sampled, coords_img = point_sample_fine_grained_features(
        list(features.values()), list(SCALES.values()), boxes, coords
    )
    assert sampled.dtype == coords_img.dtype == torch.float32
    assert sampled.shape == (3, 6, 20)
    assert coords_img.shape == (3, 20, 2)
    x0, y0, x1, y1 = (v[:, None] for v in Boxes.cat(boxes).tensor.T)
    expected = torch.stack(
        (x0 + (x1 - x0) * coords[..., 0], y0 + (y1 - y0) * coords[..., 1]), dim=-1
    )
    torch.testing.assert_close(coords_img, expected)
    for level in (0, 3):
        torch.testing.assert_close(sampled[:, level], expected[..., 0], rtol=0, atol=1e-3)
        torch.testing.assert_close(sampled[:, level + 1], expected[..., 1], rtol=0, atol=1e-3)


def test_each_box_reads_its_own_image():
    features = affine_features(4)
    boxes = [
        Boxes(torch.tensor([[20.0, 20.0, 40.0, 40.0]]).repeat(count, 1)) for count in (2, 0, 1, 3)
    ]
    pooled = pool_regular_grid([features["p3"]], [SCALES["p3"]], boxes, 2)
    assert pooled.shape == (6, 3, 2, 2)
    owners = torch.tensor([0.0, 0, 2, 3, 3, 3])
    torch.testing.assert_close(pooled[:, 2], owners[:, None, None].expand(-1, 2, 2))


def test_levels_are_concatenated_in_order():
    first, second = torch.randn(2, 3, 5), torch.randn(2, 1, 5)
    joined = concatenate_levels([first, second])
    assert joined.shape == (2, 4, 5)
    assert torch.equal(joined[:, :3], first)
    assert torch.equal(joined[:, 3:], second)


def test_features_outside_the_image_are_zero():
    ones = torch.ones(1, 2, 16, 24)
    outside = [Boxes(torch.tensor([[200.0, 200.0, 220.0, 230.0], [-50.0, 0.0, -20.0, 9.0]]))]
    pooled = pool_regular_grid([ones], [0.25], outside, 3)
    assert pooled.shape == (2, 2, 3, 3)
    assert (pooled == 0).all()


def test_half_precision_features_are_read_as_float32():
    features = random_features(1)["p2"].half()
    pooled = pool_regular_grid([features], [0.25], boxes_of([3]), 7)
    assert pooled.dtype == torch.float32
    expected = pool_regular_grid([features.float()], [0.25], boxes_of([3]), 7)
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize(("counts", "points"), [([0], 5), ([0, 0, 0], 5), ([2, 1], 0)])
def test_zero_boxes_and_zero_points_are_valid_sizes(counts, points):
    features = random_features(len(counts))["p2"].requires_grad_()
    coords = torch.zeros(sum(counts), points, 2)
    sampled, coords_img = point_sample_fine_grained_features(
        [features], [0.25], boxes_of(counts), coords
    )
    assert sampled.dtype == torch.float32
    assert sampled.shape == (sum(counts), 16, points)
    assert coords_img.shape == (sum(counts), points, 2)
    sampled.sum().backward()
    assert (features.grad == 0).all()


def test_no_images_have_no_features():
    pooled = pool_regular_grid([torch.zeros(0, 3, 8, 8)], [0.25], [], 7)
    assert pooled.shape == (0, 3, 7, 7)


def test_gradients_to_every_level_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    levels = [
        torch.randn(2, 2, size, size, dtype=torch.float64, generator=generator).requires_grad_()
        for size in (4, 2)
    ]
    boxes = [
        Boxes(torch.tensor([[1.0, 1.0, 7.0, 6.0]])),
        Boxes(torch.tensor([[0.0, 2.0, 8.0, 8.0]])),
    ]
    coords = torch.rand(2, 5, 2, dtype=torch.float64, generator=generator)

    def read(*maps):
        return point_sample_fine_grained_features(maps, [0.5, 0.25], boxes, coords)[0]

    assert torch.autograd.gradcheck(read, levels)


def test_another_number_of_scales_is_refused():
    features = random_features(1)
    with pytest.raises(ValueError, match="shorter"):
        pool_regular_grid([features["p2"], features["p3"]], [0.25], boxes_of([1]), 2)
