"""Point labels, against loops over pixels and edges, planted masks and COCO's rasterizer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances, PolygonMasks, polygons_to_bitmask

from point_rend.ground_truth import point_labels
from point_rend.ground_truth.point_labels import sample_point_labels, sample_semantic_labels
from point_rend.ground_truth.shared_masks import SharedMasks
from tests.memory import LargestTensor
from tests.rendering.test_sampling import slow_bilinear

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
            assert labels[region, point].item() == pytest.approx(expected.item(), abs=1e-6)


def test_pixel_centers_have_hard_labels():
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


def test_images_can_differ_in_size():
    large = Instances((50, 50), gt_masks=BitMasks(torch.ones(1, 50, 50)))
    coords = torch.tensor([[[30.0, 30.0]], [[30.0, 30.0]]])  # beyond the small image
    labels = sample_point_labels([regions(torch.ones(1, *SIZE)), large], coords)
    assert labels.flatten().tolist() == [0, 1]


def test_labels_carry_no_gradient():
    coords = random_coords(1).requires_grad_()
    assert not sample_point_labels([regions(random_masks(1))], coords).requires_grad


def test_labels_of_shared_masks_equal_those_of_a_mask_each():
    masks, index = random_masks(3), torch.tensor([2, 0, 0, 1])
    coords = random_coords(4)
    shared = Instances(SIZE, gt_masks=SharedMasks.of(BitMasks(masks), SIZE)[index])
    labels = sample_point_labels([shared], coords)
    assert torch.equal(labels, sample_point_labels([regions(masks[index])], coords))


def test_points_far_away_have_label_0():
    coords = torch.tensor([[[-1e9, 3.0], [5.0, 1e12], [-0.6, 5.0]]])
    labels = sample_point_labels([regions(torch.ones(1, *SIZE))], coords)
    assert labels.tolist() == [[0, 0, 0]]


def test_other_masks_are_refused():
    other = Instances(SIZE, gt_masks=torch.ones(1, *SIZE))
    with pytest.raises(TypeError, match=r"gt_masks: .*BitMasks or PolygonMasks, got Tensor"):
        sample_point_labels([other], torch.zeros(1, 3, 2))


def test_the_semantic_label_of_a_point_is_that_of_the_pixel_that_contains_it():
    labels = torch.randint(256, (2, *SIZE), generator=torch.Generator().manual_seed(3))
    coords = torch.rand(2, 300, 2, generator=torch.Generator().manual_seed(0))
    found = sample_semantic_labels(labels, coords)
    assert found.dtype == torch.int64
    for image in range(2):
        for (x, y), label in zip(coords[image].tolist(), found[image], strict=True):
            assert label == labels[image, int(y * SIZE[0]), int(x * SIZE[1])]


# --- polygons -----------------------------------------------------------------------------------

CONVEX = [3.0, 2.5, 17.25, 4.0, 12.0, 11.0, 2.0, 9.0]
CONCAVE = [1.0, 1.0, 19.0, 1.0, 19.0, 11.0, 14.0, 11.0, 10.0, 3.0, 6.0, 11.0, 1.0, 11.0]
OVERLAPPING = [[2.0, 2.0, 12.0, 2.0, 12.0, 9.0, 2.0, 9.0], [8.0, 5.0, 18.0, 5.0, 18.0, 11.0]]
PENTAGRAM = [10.0, 1.0, 13.0, 11.0, 4.0, 4.5, 16.0, 4.5, 7.0, 11.0]
TWICE_AROUND = [
    *(2.0, 1.0, 18.0, 1.0, 18.0, 11.0, 2.0, 11.0, 2.0, 1.0),
    *(5.0, 3.0, 15.0, 3.0, 15.0, 9.0, 5.0, 9.0, 5.0, 3.0),
]
SPIKY = (
    torch.stack(
        (
            10 + torch.arange(61).mul(2.3).cos() * (4 + torch.arange(61) % 5),
            6 + torch.arange(61).mul(2.3).sin() * (2 + torch.arange(61) % 4),
        ),
        dim=1,
    )
    .flatten()
    .tolist()
)
OBJECTS = {
    "convex": [CONVEX],
    "concave": [CONCAVE],
    "overlapping-parts": OVERLAPPING,
    "pentagram": [PENTAGRAM],
    "twice-around": [TWICE_AROUND],
    "spiky": [SPIKY],
    "several": [CONVEX, PENTAGRAM, TWICE_AROUND],
    "no-parts": [],
}


def polygon_labels(objects: list[list[list[float]]], coords: torch.Tensor) -> torch.Tensor:
    return sample_point_labels([Instances(SIZE, gt_masks=PolygonMasks(objects))], coords)


def slow_inside(parts: list[list[float]], x: float, y: float) -> bool:
    """Follow a ray to the right in plain Python numbers, part by part."""
    for part in parts:
        corners = list(zip(part[::2], part[1::2], strict=True))
        odd = False
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if min(y0, y1) <= y < max(y0, y1) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
                odd = not odd
        if odd:
            return True
    return False


@pytest.mark.parametrize("at_once", [1, 1000, 2**17])
def test_labels_of_polygons_equal_a_slow_loop_over_edges(at_once, monkeypatch):
    monkeypatch.setattr(point_labels, "PAIRS_AT_ONCE", at_once)
    coords = random_coords(len(OBJECTS), points=90)
    labels = polygon_labels(list(OBJECTS.values()), coords)
    assert labels.dtype == torch.float32
    assert labels.shape == (len(OBJECTS), 90)
    for row, points, parts in zip(labels, coords, OBJECTS.values(), strict=True):
        assert row.tolist() == [slow_inside(parts, x, y) for x, y in points.tolist()]
    assert (labels[:-1].mean(dim=1) > 0.05).all()
    assert not labels[-1].any()


def test_the_memory_for_polygons_does_not_grow_with_regions_times_edges():
    angle = torch.linspace(0, 6.28, 5001)[:-1]
    circle = torch.stack((10 + 5 * angle.cos(), 6 + 5 * angle.sin()), dim=1)
    masks = SharedMasks.of(PolygonMasks([[circle.flatten().tolist()]]), SIZE)
    index = torch.zeros(100, dtype=torch.long)
    coords = random_coords(100, points=20)
    with LargestTensor() as largest:
        labels = sample_point_labels([Instances(SIZE, gt_masks=masks[index])], coords)
    assert largest.bytes <= 8 * point_labels.PAIRS_AT_ONCE  # of 10 million pairs in all
    distance = (coords - torch.tensor([10.0, 6.0])).norm(dim=2)
    clear = (distance - 5).abs() > 0.01
    assert torch.equal(labels[clear], (distance < 5).float()[clear])


@pytest.mark.parametrize("name", OBJECTS)
def test_labels_of_polygons_are_those_of_cocos_rasterizer_on_a_fine_grid(name):
    """COCO draws 16 times as large; only points next to its outline may differ."""
    fine = 16
    enlarged = [np.array(part) * fine for part in OBJECTS[name]]
    drawn = torch.from_numpy(polygons_to_bitmask(enlarged, SIZE[0] * fine, SIZE[1] * fine))
    points = torch.rand(1, 4000, 2, generator=torch.Generator().manual_seed(2))
    coords = points * torch.tensor([20.0, 12.0])
    labels = polygon_labels([OBJECTS[name]], coords)[0] > 0.5
    columns, rows = (coords[0] * fine).long().unbind(1)
    expected = drawn[rows, columns]
    around = F.max_pool2d(torch.stack((drawn, ~drawn)).float(), 5, stride=1, padding=2).bool()
    at_outline = around.all(dim=0)[rows, columns]
    assert torch.equal(labels[~at_outline], expected[~at_outline])
    assert at_outline.float().mean() < 0.35
    assert (labels != expected).float().mean() <= 0.15 * at_outline.float().mean()


def test_labels_of_polygons_and_of_their_bitmaps_differ_next_to_the_outline_only():
    coords = random_coords(1, points=2000)
    drawn = BitMasks.from_polygon_masks([[np.array(CONVEX)]], *SIZE)
    soft = sample_point_labels([Instances(SIZE, gt_masks=drawn)], coords)
    hard = polygon_labels([[CONVEX]], coords)
    far = (soft - hard).abs() >= 1 - 1e-6
    assert not far.any()
    assert 0 < (soft - hard).abs().mean() < 0.05


def test_parts_are_united_and_a_part_that_overlaps_itself_follows_the_even_odd_rule():
    coords = torch.tensor([[[10.0, 6.0]], [[10.0, 6.0]], [[10.0, 6.0]]])
    objects = [[TWICE_AROUND[:8], TWICE_AROUND[10:18]], [TWICE_AROUND], [PENTAGRAM]]
    assert polygon_labels(objects, coords)[:, 0].tolist() == [1, 0, 0]


def test_two_polygons_with_a_common_side_leave_no_gap_and_no_overlap():
    left, right = [2.0, 2.0, 10.0, 2.0, 7.0, 9.0, 2.0, 9.0], [10.0, 2.0, 18.0, 9.0, 7.0, 9.0]
    along = torch.linspace(0.01, 0.99, 99)[:, None]
    side = torch.tensor([10.0, 2.0]) + along * torch.tensor([-3.0, 7.0])
    labels = polygon_labels([[left], [right]], side.expand(2, -1, -1))
    assert labels.sum(dim=0).tolist() == [1] * 99


def test_the_left_and_upper_sides_of_a_square_belong_to_it():
    square = [4.0, 3.0, 9.0, 3.0, 9.0, 8.0, 4.0, 8.0]
    points = [[4.0, 5.0], [6.0, 3.0], [4.0, 3.0], [9.0, 5.0], [6.0, 8.0], [9.0, 8.0]]
    assert polygon_labels([[square]], torch.tensor([points])).tolist() == [[1, 1, 1, 0, 0, 0]]


def test_the_direction_and_the_first_corner_of_an_outline_do_not_matter():
    coords = random_coords(1, points=300).expand(3, -1, -1)
    corners = torch.tensor(SPIKY).view(-1, 2)
    outlines = [corners, corners.flip(0), corners.roll(7, 0)]
    labels = polygon_labels([[x.flatten().tolist()] for x in outlines], coords)
    assert torch.equal(labels[0], labels[1])
    assert torch.equal(labels[0], labels[2])


def test_pixels_and_polygons_in_one_image_are_labeled_separately():
    masks, coords = random_masks(2), random_coords(4)
    polygons = PolygonMasks([[CONVEX], OVERLAPPING])
    pieces = [BitMasks(masks[:1]), SharedMasks.of(polygons, SIZE), BitMasks(masks[1:])]
    mixed = Instances(SIZE, gt_masks=SharedMasks.cat(pieces))
    labels = sample_point_labels([mixed], coords)
    assert torch.equal(labels[[0, 3]], sample_point_labels([regions(masks)], coords[[0, 3]]))
    assert torch.equal(labels[1:3], polygon_labels([[CONVEX], OVERLAPPING], coords[1:3]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_labels_on_a_gpu_equal_those_on_the_cpu():
    polygons = SharedMasks.of(PolygonMasks([[CONVEX], OVERLAPPING, [SPIKY]]), SIZE)
    masks = SharedMasks.cat([SharedMasks.of(BitMasks(random_masks(2)), SIZE), polygons])
    coords = random_coords(5)
    expected = sample_point_labels([Instances(SIZE, gt_masks=masks)], coords)
    labels = sample_point_labels([Instances(SIZE, gt_masks=masks.to("cuda"))], coords.cuda())
    assert labels.device.type == "cuda"
    on_cpu = Instances(SIZE, gt_masks=PolygonMasks([[CONVEX], OVERLAPPING, [SPIKY]]))
    of_polygons = sample_point_labels([on_cpu], coords[2:].cuda())  # Detectron2 never moves them
    assert torch.equal(of_polygons.cpu(), expected[2:])
    torch.testing.assert_close(labels.cpu(), expected, rtol=0, atol=1e-5)
