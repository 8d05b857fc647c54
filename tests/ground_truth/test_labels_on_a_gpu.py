"""Labels on a pretended GPU, against those of the CPU; waits, operations and memory are counted."""

import pickle
from collections.abc import Callable

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from point_rend.ground_truth import point_labels
from point_rend.ground_truth import shared_masks as masks_module
from point_rend.ground_truth.point_labels import sample_point_labels, sample_semantic_labels
from point_rend.ground_truth.shared_masks import SharedMasks, crop_masks, share_masks
from tests.memory import LargestTensor
from tests.pretended_cuda import Record, pretended_cuda

SIZES = [(60, 90), (75, 50)]  # of two images
OBJECTS, POINTS, SIDE = 10, 49, 7


def random_boxes(count: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    limits = torch.tensor(size[::-1])
    corners = torch.rand(count, 2, generator=generator) * limits * 0.6
    extent = (0.1 + 0.4 * torch.rand(count, 2, generator=generator)) * limits
    return torch.cat((corners, torch.minimum(corners + extent, limits)), dim=1)


def ellipses(boxes: torch.Tensor, size: tuple[int, int]) -> BitMasks:
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    across = (2 * torch.arange(size[1]) + 1 - x0 - x1) / (x1 - x0)
    down = (2 * torch.arange(size[0])[:, None] + 1 - y0 - y1) / (y1 - y0)
    return BitMasks(across**2 + down**2 < 1)


def outlines(boxes: torch.Tensor) -> PolygonMasks:
    """Return a polygon of 5 to 14 corners for each box; every third object has two."""
    parts = []
    for number, box in enumerate(boxes):
        angles = torch.arange(5 + number % 10) * (6.28 / (5 + number % 10))
        circle = torch.stack((angles.cos(), angles.sin()), dim=1)
        outline = (box[:2] + box[2:]) / 2 + circle * (box[2:] - box[:2]) / 2
        parts.append([outline.flatten().numpy()] * (1 + (number % 3 == 0)))
    return PolygonMasks(parts)


def bitmaps(boxes: torch.Tensor, size: tuple[int, int]) -> SharedMasks:
    return SharedMasks.of(ellipses(boxes, size), size)


def polygons(boxes: torch.Tensor, size: tuple[int, int]) -> SharedMasks:
    return SharedMasks.of(outlines(boxes), size)


def mixed(boxes: torch.Tensor, size: tuple[int, int]) -> SharedMasks:
    """Return bitmaps, polygons, an empty bitmap and an object without parts."""
    pixels = ellipses(boxes[:3], size)
    pixels.tensor[1] = False
    parts = outlines(boxes[3:])
    parts.polygons[0] = []
    return SharedMasks.cat([SharedMasks.of(x, size) for x in (pixels, parts)])


KINDS = {"bitmaps": bitmaps, "polygons": polygons, "mixed": mixed}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def training_regions(make: Callable, regions: int = 30) -> list[Instances]:
    """Return regions of two images, each around an object."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for size in SIZES:
        boxes = random_boxes(OBJECTS, size, generator)
        index = torch.randint(OBJECTS, (regions // 2,), generator=generator)
        around = boxes[index] + 2 * torch.randn(len(index), 4, generator=generator)
        around[::7, 2:] = around[::7, :2] - 1  # empty
        masks = make(boxes, size)[index]
        images.append(Instances(size, proposal_boxes=Boxes(around), gt_masks=masks))
    return images


def points_of(regions: list[Instances], points: int = POINTS) -> torch.Tensor:
    """Return points in and around the boxes of regions."""
    boxes = torch.cat([x.proposal_boxes.tensor for x in regions])[:, None]
    draws = torch.rand(len(boxes), points, 2, generator=torch.Generator().manual_seed(1))
    return boxes[..., :2] + (1.4 * draws - 0.2) * (boxes[..., 2:] - boxes[..., :2])


def labels_of(regions: list[Instances], points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a training step reads from masks: labels of cells and of points."""
    boxes = [x.proposal_boxes.tensor for x in regions]
    crops = crop_masks([x.gt_masks for x in regions], boxes, SIDE)
    return crops, sample_point_labels(regions, points)


def on_gpu(regions: list[Instances]) -> list[Instances]:
    return [x.to("cuda") for x in regions]


@kinds
@pytest.mark.parametrize("pixels", [1, 20_000, 2**25])
@pytest.mark.parametrize("pairs", [3000, 2**22])
def test_labels_on_a_gpu_are_those_on_the_cpu_bit_for_bit(
    make, pixels, pairs, monkeypatch, cuda: Record
):
    monkeypatch.setattr(masks_module, "GPU_CANVAS_PIXELS", pixels)
    monkeypatch.setattr(point_labels, "GPU_PAIRS_AT_ONCE", pairs)
    regions = training_regions(make)
    points = points_of(regions)
    expected = labels_of(regions, points)
    found = labels_of(on_gpu(regions), points.to("cuda"))
    for on_the_gpu, on_the_cpu in zip(found, expected, strict=True):
        assert on_the_gpu.is_cuda
        assert on_the_gpu.dtype == on_the_cpu.dtype
        assert torch.equal(on_the_gpu.cpu(), on_the_cpu)
        assert 0.05 < on_the_cpu.float().mean() < 0.95
    assert cuda.num_operations > 0


@kinds
def test_masks_on_a_gpu_have_the_images_boxes_and_emptiness_of_those_on_the_cpu(make, cuda: Record):
    for masks in (x.gt_masks for x in training_regions(make)):
        there = masks.to("cuda")
        assert there.device == torch.device("cuda:0")
        assert torch.equal(there.tensor.cpu(), masks.tensor)
        cuda.clear()
        boxes, emptiness = there.get_bounding_boxes().tensor, there.nonempty()
        assert cuda.num_waits == 0, cuda
        assert torch.equal(boxes.cpu(), masks.get_bounding_boxes().tensor)
        assert torch.equal(emptiness.cpu(), masks.nonempty())


@pytest.mark.parametrize("count", [0, 1, 6])
def test_bitmaps_on_a_gpu_are_stored_with_one_wait_as_on_the_cpu(count, cuda: Record):
    boxes = random_boxes(count, SIZES[0], torch.Generator().manual_seed(2))
    plain = ellipses(boxes, SIZES[0])
    plain.tensor[1:2] = False
    expected = SharedMasks.of(plain, SIZES[0]).objects
    there = Instances(SIZES[0], gt_masks=plain.to("cuda"))
    cuda.clear()
    (shared,) = share_masks([there])
    assert cuda.num_waits == 1, cuda
    assert cuda.num_operations <= 40, cuda
    objects = shared.gt_masks.objects
    assert objects.pixels.is_cuda
    assert torch.equal(objects.pixels.cpu(), expected.pixels)
    assert torch.equal(objects.windows, expected.windows)


def test_a_pickle_of_masks_on_a_gpu_has_the_same_pixels(cuda: Record):  # noqa: ARG001
    masks = training_regions(mixed)[0].gt_masks
    again = pickle.loads(pickle.dumps(masks.to("cuda").objects))
    assert again.pixels.is_cuda
    assert torch.equal(again.pixels.cpu(), masks.objects.pixels)
    assert torch.equal(again.windows, masks.objects.windows)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_crops_of_boxes_that_are_not_finite_are_empty_on_a_gpu(value, cuda: Record):  # noqa: ARG001
    masks = SharedMasks.of(BitMasks(torch.ones(1, 20, 20)), (20, 20))[[0, 0, 0]].to("cuda")
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20]])
    boxes[1, 2] = boxes[2, :] = value
    crops = masks.crop_and_resize(boxes.to("cuda"), SIDE).cpu()
    assert crops.flatten(1).all(1).tolist() == [True, False, False]
    assert not crops[1:].any()


# Waits, and operations with as many regions as Detectron2 samples at most (a quarter of 512) in
# each of two images.
COSTS = {"bitmaps": (0, 95), "polygons": (2, 50), "mixed": (2, 130)}


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("regions", [128, 512])
def test_the_operations_for_labels_do_not_grow_with_regions(kind, regions, cuda: Record):
    waits, operations = COSTS[kind]
    here = training_regions(KINDS[kind], regions)
    there, points = on_gpu(here), points_of(here, 196).to("cuda")
    cuda.clear()
    labels_of(there, points)
    assert cuda.num_waits <= waits, cuda
    assert cuda.num_operations <= operations, cuda
    assert all(copy.non_blocking or not copy.to_device for copy in cuda.copies), cuda.copies


def test_labels_from_bitmaps_on_a_gpu_take_a_wait_an_image_and_few_operations(cuda: Record):
    generator = torch.Generator().manual_seed(0)
    targets = []
    for size in SIZES:
        boxes = random_boxes(OBJECTS, size, generator)
        masks = ellipses(boxes, size)
        targets.append(Instances(size, proposal_boxes=Boxes(boxes), gt_masks=masks).to("cuda"))
    index = torch.arange(128, device="cuda") % OBJECTS
    points = 60 * torch.rand(256, 196, 2, device="cuda")
    cuda.clear()
    labels_of([x[index] for x in share_masks(targets)], points)
    assert cuda.num_waits == len(SIZES), cuda
    assert cuda.num_operations <= 160, cuda


def test_the_waits_for_labels_do_not_grow_with_images(cuda: Record):
    for make in (bitmaps, mixed):
        waits = []
        for repeats in (1, 4):
            here = training_regions(make) * repeats
            there, points = on_gpu(here), points_of(here).to("cuda")
            cuda.clear()
            labels_of(there, points)
            waits.append(cuda.num_waits)
        assert waits[0] == waits[1], cuda


def test_a_region_on_a_gpu_takes_no_image_and_the_images_of_objects_a_bounded_part():
    pixels = SIZES[0][0] * SIZES[0][1]
    for at_once in (4, 100):
        with LargestTensor() as largest, pytest.MonkeyPatch.context() as patch, pretended_cuda():
            patch.setattr(masks_module, "GPU_CANVAS_PIXELS", at_once * pixels)
            here = training_regions(bitmaps, 200)[:1]
            there, points = on_gpu(here), points_of(here, 5).to("cuda")
            largest.bytes = 0
            labels_of(there, points)
        assert largest.bytes == min(at_once, OBJECTS) * pixels * 4  # float32


def test_points_of_another_number_of_regions_are_refused():
    with pytest.raises(ValueError, match="points of 30 regions, got those of 1"):
        sample_point_labels(training_regions(bitmaps), torch.zeros(1, 5, 2))


def test_semantic_labels_on_a_gpu_need_no_wait(cuda: Record):
    labels = torch.randint(256, (2, 20, 30))
    coords = torch.rand(2, 100, 2)
    expected = sample_semantic_labels(labels, coords)
    there = labels.to("cuda"), coords.to("cuda")
    cuda.clear()
    found = sample_semantic_labels(*there)
    assert cuda.num_waits == 0, cuda
    assert cuda.num_operations <= 5, cuda
    assert torch.equal(found.cpu(), expected)
