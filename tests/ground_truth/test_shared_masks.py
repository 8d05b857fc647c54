"""Shared masks, against Detectron2's masks of the same content."""

import copy
import pickle

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.visualizer import Visualizer
from torch.utils._python_dispatch import TorchDispatchMode

from point_rend.ground_truth import mask_cropping
from point_rend.ground_truth import shared_masks as masks_module
from point_rend.ground_truth.shared_masks import SharedMasks, share_masks
from tests.memory import LargestTensor

SIZE = (24, 40)
TRIANGLE = [4.0, 3.0, 30.5, 6.25, 11.0, 20.0]
SQUARE = [20.0, 2.0, 38.0, 2.0, 38.0, 18.5, 20.0, 18.5]

ITEMS = {
    "number": 3,
    "negative": -2,
    "slice": slice(1, 5, 2),
    "positions": torch.tensor([5, 0, 0, 3]),
    "list": [2, 2, 4],
    "bools": torch.tensor([True, False, False, True, True, False]),
    "none": torch.zeros(0, dtype=torch.long),
}


def bitmaps() -> torch.Tensor:
    """Blobs, single pixels at opposite corners, an empty mask, a full one."""
    masks = torch.zeros(6, *SIZE, dtype=torch.bool)
    masks[0, 5:15, 10:30] = torch.rand(10, 20, generator=torch.Generator().manual_seed(0)) > 0.4
    masks[1, 0, 0] = masks[2, -1, -1] = True
    masks[4] = True
    masks[5, 3:9, 35:] = True
    return masks


def shared_bitmaps() -> SharedMasks:
    return SharedMasks.of(BitMasks(bitmaps()), SIZE)


def some_polygons() -> PolygonMasks:
    return PolygonMasks([[TRIANGLE], [SQUARE, [1.0, 1.0, 5.0, 1.0, 5.0, 9.0]], []])


def boxes_for(count: int) -> torch.Tensor:
    """Boxes inside, partly inside and outside the image; every seventh is empty."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([44.0, 28.0]) - 4
    extent = torch.rand(count, 2, generator=generator) * 30
    extent[::7] = 0
    return torch.cat((corners, corners + extent), dim=1)


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS)
def test_an_indexed_view_has_the_masks_of_indexed_bitmasks_without_copies(item):
    shared = shared_bitmaps()
    view, expected = shared[item], BitMasks(bitmaps())[item]
    assert view.objects is shared.objects
    assert len(view) == len(expected)
    assert view.tensor.dtype == torch.bool
    assert view.tensor.shape == expected.tensor.shape
    assert torch.equal(view.tensor, expected.tensor)


def test_views_of_views_are_indexed_from_their_own_first_mask():
    view = shared_bitmaps()[torch.tensor([5, 4, 0])][1:][torch.tensor([False, True])]
    assert torch.equal(view.tensor, bitmaps()[:1])


@pytest.mark.parametrize("item", [7, -7, torch.tensor([6])], ids=["number", "negative", "tensor"])
def test_positions_beyond_the_masks_are_an_error(item):
    with pytest.raises(IndexError):
        shared_bitmaps()[item]


def test_they_behave_as_bitmasks():
    shared, plain = shared_bitmaps(), BitMasks(bitmaps())
    assert isinstance(shared, BitMasks)
    assert tuple(shared.image_size) == tuple(plain.image_size)
    assert shared.device == plain.device
    for one, other in zip(shared, plain, strict=True):
        assert torch.equal(one, other)
    assert repr(shared[:2]) == "SharedMasks(num_instances=2, num_objects=6)"


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS)
def test_boxes_and_emptiness_are_those_of_bitmasks(item):
    view, expected = shared_bitmaps()[item], BitMasks(bitmaps())[item]
    boxes = view.get_bounding_boxes().tensor
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, expected.get_bounding_boxes().tensor)
    assert torch.equal(view.nonempty(), expected.nonempty())


@pytest.mark.parametrize("canvas_pixels", [1, 2 * 24 * 40, 2**22])
@pytest.mark.parametrize("side", [1, 7, 28])
def test_crops_equal_detectron2s_however_few_masks_are_painted_at_once(
    canvas_pixels, side, monkeypatch
):
    monkeypatch.setattr(masks_module, "CANVAS_PIXELS", canvas_pixels)
    index = torch.arange(60) * 5 % 6
    boxes = boxes_for(60)
    crops = shared_bitmaps()[index].crop_and_resize(boxes, side)
    expected = BitMasks(bitmaps())[index].crop_and_resize(boxes, side)
    assert crops.dtype == torch.bool
    assert crops.shape == (60, side, side)
    assert torch.equal(crops, expected)
    assert crops.any()
    assert not crops.all()


def test_crops_decide_ties_as_detectron2_does():
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, :, 10:] = True  # cells of the boxes are covered by half, and by thirds
    boxes = torch.tensor([[9.0, 0, 11, 2], [8, 2, 12, 6], [0, 0, 20, 20], [7, 0, 13, 6]])
    index = torch.zeros(4, dtype=torch.long)
    for side in (1, 2, 3, 7):
        crops = SharedMasks.of(BitMasks(masks), SIZE)[index].crop_and_resize(boxes, side)
        assert torch.equal(crops, BitMasks(masks)[index].crop_and_resize(boxes, side))


@pytest.mark.parametrize("steps_per_pixel", [1, 2, 1000], ids=["whole", "halves", "any"])
def test_crops_of_rectangles_equal_detectron2s_at_whole_half_and_any_positions(steps_per_pixel):
    generator = torch.Generator().manual_seed(5)
    masks = torch.zeros(40, 90, 130, dtype=torch.bool)
    for mask in masks:
        (x0, x1), (y0, y1) = (torch.randint(side, (2,), generator=generator) for side in (130, 90))
        mask[min(y0, y1) : max(y0, y1) + 1, min(x0, x1) : max(x0, x1) + 1] = True
    extent = torch.rand(40, 2, generator=generator) * 90
    corners = torch.rand(40, 2, generator=generator) * 120 - 20
    boxes = torch.cat((corners, corners + extent), dim=1)
    boxes = (boxes * steps_per_pixel).round() / steps_per_pixel
    shared = SharedMasks.of(BitMasks(masks), (90, 130))
    for side in (1, 2, 7, 14):
        expected = BitMasks(masks).crop_and_resize(boxes, side)
        assert torch.equal(shared.crop_and_resize(boxes, side), expected)


def test_only_crops_with_a_cell_near_a_tie_use_roi_align(monkeypatch):
    asked = []

    def align(self, boxes, mask_size):
        asked.append(boxes)
        return whole_align(self, boxes, mask_size)

    whole_align = SharedMasks._align
    monkeypatch.setattr(SharedMasks, "_align", align)
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, :, 10:] = True
    tie, near, clear = [9.0, 0, 11, 2], [9.000002, 0, 11, 2], [9.001, 0, 11, 2]
    crops = SharedMasks.of(BitMasks(masks), SIZE)[[0, 0, 0]]
    crops = crops.crop_and_resize(torch.tensor([clear, tie, near]), 1)
    assert [boxes.tolist() for boxes in asked] == [torch.tensor([tie, near]).tolist()]
    assert crops.flatten().tolist() == [True, True, True]


def test_only_some_rows_of_a_large_mask_are_converted_at_a_time(monkeypatch):
    monkeypatch.setattr(masks_module, "CANVAS_PIXELS", 2**16)
    masks = SharedMasks.of(BitMasks(torch.ones(1, 2000, 3000, dtype=torch.bool)), (2000, 3000))
    with LargestTensor() as largest:
        crops = masks.crop_and_resize(torch.tensor([[10.0, 20, 2900, 1900]]), 7)
    assert crops.all()
    assert largest.bytes == masks.objects.pixels.nbytes  # the masks themselves, a byte a pixel


@pytest.mark.parametrize("box", [[-1.0, 0, 0, 2], [40.0, 0, 41, 2], [0, -1.0, 2, 0]])
def test_a_sample_on_the_limit_of_the_image_is_left_to_roi_align(box):
    shared = SharedMasks.of(BitMasks(bitmaps()), SIZE)[[4]]
    _, error_bounds = shared._cell_means(torch.tensor([box]), 1)
    assert error_bounds.tolist() == [torch.inf]
    _, error_bounds = shared._cell_means(torch.tensor([box]) + 0.001, 1)
    assert error_bounds.item() < 1e-3


def test_fusing_products_and_sums_moves_a_sample_by_less_than_the_bound():
    first, length = 1e4 * (2 * torch.rand(2, 100_000, generator=torch.Generator().manual_seed(0)))
    number = torch.randint(7, (100_000,), generator=torch.Generator().manual_seed(1))
    within = length / 2
    apart = (first + number * length) + within
    fused = (first.double() + number * length.double()).float() + within
    assert (apart != fused).any()
    farthest = first + 7 * length
    assert ((apart - fused).abs() <= mask_cropping.POSITION_ROUNDING * farthest).all()


class ReciprocalsOfNumbers(TorchDispatchMode):
    """Divides by a number as torch does on a GPU: multiplies by the rounded reciprocal."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.div.Tensor:
            divisor = torch.as_tensor(args[1])
            if divisor.dim() == 0:
                return args[0] * (1 / divisor.to(args[0])).item()
        return func(*args, **(kwargs or {}))


def test_crops_at_whole_positions_do_not_depend_on_divisions_as_products():
    sides = torch.arange(1, 7) * 7.0
    boxes = torch.stack((sides * 0 + 2, sides * 0 - 9, sides + 2, sides - 9), dim=1)[:5]
    shared = shared_bitmaps()[[0, 0, 0, 0, 0]]
    means, _ = shared._cell_means(boxes, 7)
    with ReciprocalsOfNumbers():
        assert (torch.tensor([21.0]) / 7).item() > 3
        assert torch.equal(shared._cell_means(boxes, 7)[0], means)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_crops_of_boxes_that_are_not_finite_are_empty(value):
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20]])
    boxes[1, 2] = boxes[2, :] = value
    crops = shared_bitmaps()[[4, 4, 4]].crop_and_resize(boxes, 7)
    assert crops.flatten(1).all(1).tolist() == [True, False, False]
    assert not crops[1:].any()


def test_polygons_have_the_boxes_crops_and_images_of_detectron2():
    plain = some_polygons()
    shared = SharedMasks.of(plain, SIZE)
    assert torch.equal(shared.nonempty(), plain.nonempty())
    boxes = shared[:2].get_bounding_boxes().tensor
    assert torch.equal(boxes, plain[:2].get_bounding_boxes().tensor)
    index = torch.tensor([1, 0, 2, 0, 1, 1])
    crops = shared[index].crop_and_resize(boxes_for(6), 14)
    assert torch.equal(crops, plain[index].crop_and_resize(boxes_for(6), 14))
    images = BitMasks.from_polygon_masks(plain, *SIZE).tensor
    assert torch.equal(shared[index].tensor, images[index])


@pytest.fixture
def mixed() -> SharedMasks:
    """Pixels, polygons, pixels."""
    pixels = BitMasks(bitmaps())
    parts = [SharedMasks.of(x, SIZE) for x in (pixels[:2], some_polygons(), pixels[4:])]
    return SharedMasks.cat(parts)


def test_pixels_and_polygons_can_be_mixed(mixed):
    polygons = some_polygons()
    drawn = BitMasks.from_polygon_masks(polygons, *SIZE).tensor
    assert torch.equal(mixed.tensor, torch.cat((bitmaps()[:2], drawn, bitmaps()[4:])))
    boxes = boxes_for(7)
    crops = mixed.crop_and_resize(boxes, 7)
    pixels = BitMasks(bitmaps()[[0, 1, 4, 5]])
    of_pixels = torch.tensor([0, 1, 5, 6])
    assert torch.equal(crops[of_pixels], pixels.crop_and_resize(boxes[of_pixels], 7))
    assert torch.equal(crops[2:5], polygons.crop_and_resize(boxes[2:5], 7))
    assert mixed.nonempty().tolist() == [True, True, True, True, False, True, True]


def test_views_that_are_joined_still_share_their_objects():
    shared = shared_bitmaps()
    joined = SharedMasks.cat([shared[4:], shared[[0, 0]]])
    assert joined.objects is shared.objects
    assert torch.equal(joined.tensor, bitmaps()[[4, 5, 0, 0]])


def test_masks_of_several_stores_are_joined_in_order():
    one, other = shared_bitmaps(), BitMasks(bitmaps().flip(2))
    joined = SharedMasks.cat([one[3:], other, one[:1]])
    assert torch.equal(joined.tensor, torch.cat((bitmaps()[3:], other.tensor, bitmaps()[:1])))
    assert len(joined.objects) == 12


def test_masks_of_different_image_sizes_are_not_joined():
    with pytest.raises(ValueError, match="image size"):
        SharedMasks.cat([shared_bitmaps(), BitMasks(torch.zeros(1, 9, 9))])


def test_instances_index_join_and_move_them():
    instances = Instances(SIZE, gt_masks=shared_bitmaps(), gt_classes=torch.arange(6))
    joined = Instances.cat([instances[torch.tensor([5, 1])], instances[4]]).to("cpu")
    assert joined.gt_classes.tolist() == [5, 1, 4]
    assert torch.equal(joined.gt_masks.tensor, bitmaps()[[5, 1, 4]])


def test_zero_masks_are_a_valid_size():
    none = SharedMasks.of(BitMasks(torch.zeros(0, *SIZE)), SIZE)
    assert len(none) == 0
    assert none.tensor.shape == (0, *SIZE)
    assert none.nonempty().shape == (0,)
    assert none.get_bounding_boxes().tensor.shape == (0, 4)
    assert none.crop_and_resize(torch.zeros(0, 4), 7).shape == (0, 7, 7)
    assert torch.equal(SharedMasks.cat([none, shared_bitmaps()]).tensor, bitmaps())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_and_a_pickle_have_the_same_masks(duplicate, mixed):
    view = mixed[torch.tensor([6, 2, 0])]
    again = duplicate(view)
    assert torch.equal(again.tensor, view.tensor)
    assert torch.equal(again.objects.pixels, view.objects.pixels)
    assert torch.equal(again.get_bounding_boxes().tensor, view.get_bounding_boxes().tensor)


def test_a_pickle_has_a_bit_for_each_pixel_of_the_objects_windows():
    masks = torch.zeros(20, 400, 600, dtype=torch.bool)
    masks[:, 100:200, 100:300] = True
    size = len(pickle.dumps(SharedMasks.of(BitMasks(masks), (400, 600))))
    assert 20 * 100 * 200 / 8 <= size <= 20 * 100 * 200 / 8 + 4000


def test_sharing_does_not_change_its_arguments_and_shares_once():
    plain = Instances(SIZE, gt_masks=BitMasks(bitmaps()), gt_classes=torch.arange(6))
    without = Instances(SIZE, gt_classes=torch.zeros(0, dtype=torch.long))
    shared = share_masks([plain, without])
    assert type(plain.gt_masks) is BitMasks
    assert shared[1] is without
    assert torch.equal(shared[0].gt_classes, plain.gt_classes)
    assert torch.equal(shared[0].gt_masks.tensor, bitmaps())
    assert share_masks(shared)[0].gt_masks is shared[0].gt_masks


def test_shared_polygons_are_on_the_device_of_the_boxes():
    boxes = Boxes(torch.zeros(2, 4, device="meta"))
    polygons = PolygonMasks([[[1.0, 1, 20, 1, 20, 20]], [[5.0, 5, 9, 5, 9, 9]]])
    for field in ("gt_boxes", "proposal_boxes"):
        (shared,) = share_masks([Instances(SIZE, gt_masks=polygons, **{field: boxes})])
        assert shared.gt_masks.device.type == "meta"
        assert share_masks([shared])[0].gt_masks is shared.gt_masks


def test_moving_masks_to_their_own_device_returns_them():
    shared = shared_bitmaps()
    assert shared.to("cpu") is shared


def test_other_kinds_of_masks_are_refused():
    with pytest.raises(TypeError, match=r"gt_masks: .*BitMasks or PolygonMasks, got Tensor"):
        share_masks([Instances(SIZE, gt_masks=bitmaps())])


def test_another_number_of_boxes_is_refused():
    with pytest.raises(ValueError, match="6 boxes, got 2"):
        shared_bitmaps().crop_and_resize(torch.zeros(2, 4), 7)


def test_detectron2_draws_them(mixed):
    image = torch.zeros(*SIZE, 3, dtype=torch.uint8).numpy()
    drawn = Visualizer(image).overlay_instances(
        masks=mixed[:4], boxes=Boxes(torch.zeros(4, 4)), alpha=1.0
    )
    assert drawn.get_image().any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_they_equal_those_on_the_cpu(mixed):
    on_gpu = mixed.to("cuda")
    boxes = boxes_for(7)
    assert on_gpu.device.type == "cuda"
    assert torch.equal(on_gpu.tensor.cpu(), mixed.tensor)
    assert torch.equal(on_gpu.nonempty().cpu(), mixed.nonempty())
    crops = on_gpu.crop_and_resize(boxes.cuda(), 7).cpu()
    assert (crops != mixed.crop_and_resize(boxes, 7)).float().mean() < 0.02  # ties
    whole = boxes_for(60).round().cuda()
    index = torch.arange(60) * 5 % 6
    expected = BitMasks(bitmaps()).to("cuda")[index.cuda()].crop_and_resize(whole, 7)
    shared = shared_bitmaps().to("cuda")[index.cuda()]
    assert torch.equal(shared.crop_and_resize(whole, 7), expected)
    assert torch.equal(pickle.loads(pickle.dumps(on_gpu)).tensor.cpu(), mixed.tensor)
