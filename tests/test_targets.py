"""Point labels, against a loop over pixels and planted masks."""

import pytest
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks

from point_rend.targets import sample_point_labels
from tests.test_sampling import slow_bilinear

SIZE = (12, 20)


def regions(masks: torch.Tensor) -> Instances:
    return Instances(SIZE, gt_masks=BitMasks(masks))


def random_masks(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(seed)) > 0.5


def random_coords(count: int, points: int = 30) -> torch.Tensor:
    coords = torch.rand(count, points, 2, generator=torch.Generator().manual_seed(1))
    return coords * torch.tensor([24.0, 16.0]) - 2  # in pixels, a little beyond the image, too


def test_labels_equal_a_slow_bilinear_loop():
    masks, coords = [random_masks(2), random_masks(3, seed=1)], random_coords(5)
    labels = sample_point_labels([regions(m) for m in masks], coords)
    assert labels.dtype == torch.float32
    assert labels.shape == (5, 30)
    assert labels.min() >= 0
    assert labels.max() <= 1
    for region, mask in enumerate(torch.cat(masks).float()):
        for point, (x, y) in enumerate(coords[region].tolist()):
            expected = slow_bilinear(mask[None], x / 20, y / 12)[0]
            assert labels[region, point].item() == pytest.approx(expected.item(), abs=1e-5)


def test_pixel_centres_have_hard_labels():
    masks = random_masks(1)
    ys, xs = torch.meshgrid(torch.arange(12.0), torch.arange(20.0), indexing="ij")
    coords = torch.stack((xs + 0.5, ys + 0.5), dim=-1).reshape(1, -1, 2)
    labels = sample_point_labels([regions(masks)], coords)
    assert labels.shape == (1, 240)
    torch.testing.assert_close(labels, masks.flatten(1).float(), rtol=0, atol=1e-5)


def test_images_without_regions_need_no_masks():
    filled, empty = regions(random_masks(2)), Instances(SIZE)
    empty.gt_classes = torch.zeros(0, dtype=torch.long)
    coords = random_coords(2)
    alone = sample_point_labels([filled], coords)
    assert torch.equal(sample_point_labels([empty, filled, empty], coords), alone)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_no_regions_have_no_labels(images):
    empty = Instances(SIZE)
    empty.gt_classes = torch.zeros(0, dtype=torch.long)
    labels = sample_point_labels([empty] * images, torch.zeros(0, 9, 2))
    assert labels.dtype == torch.float32
    assert labels.shape == (0, 9)


def test_no_points_have_no_labels():
    assert sample_point_labels([regions(random_masks(2))], torch.zeros(2, 0, 2)).shape == (2, 0)


def test_images_may_differ_in_size():
    large = Instances((50, 50), gt_masks=BitMasks(torch.ones(1, 50, 50)))
    coords = torch.tensor([[[30.0, 30.0]], [[30.0, 30.0]]])  # beyond the small image
    labels = sample_point_labels([regions(torch.ones(1, *SIZE)), large], coords)
    assert labels.flatten().tolist() == [0, 1]


def test_labels_carry_no_gradient():
    coords = random_coords(1).requires_grad_()
    assert not sample_point_labels([regions(random_masks(1))], coords).requires_grad


def test_polygons_are_a_clear_error():
    polygons = PolygonMasks([[[0.0, 0.0, 5.0, 0.0, 5.0, 5.0]]])
    with pytest.raises(TypeError, match=r"BitMasks.*PolygonMasks.*INPUT\.MASK_FORMAT"):
        sample_point_labels([Instances(SIZE, gt_masks=polygons)], torch.zeros(1, 3, 2))
