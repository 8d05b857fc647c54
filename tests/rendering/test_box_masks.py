"""Masks that are pasted box by box: the bits of Detectron2 and pycocotools."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from torch import Tensor

from point_rend.rendering import box_masks
from point_rend.rendering.box_masks import BoxMasks, Crop, rle_of_crop
from tests.memory import LargestTensor

SIZE = (90, 130)


def random_masks(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Probabilities of all kinds: smooth, of a few values with many ties at 0.5, and constant."""
    masks = torch.rand(count, side, side, generator=generator)
    masks[::4] = (masks[::4] * 4).round() / 4
    masks[1::4] = masks[1::4].round()
    masks[2::8] = 0.5
    masks[3::16] = 1.0
    return masks


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Boxes that touch the image, from 1e-3 pixels to many times the image, with all kinds of ties.

    A quarter has whole coordinates, a quarter ends in .5, so that pixel centers lie on cell
    centers, on cell borders or on the edge of a box.
    """
    height, width = SIZE
    extent = 10 ** (torch.rand(count, 2, generator=generator) * 6 - 3)
    low = torch.rand(count, 2, generator=generator) * (extent + torch.tensor([width, height]))
    boxes = torch.cat((low - extent, low), dim=1)
    boxes[::4] = boxes[::4].round()
    boxes[1::4] = boxes[1::4].round() + 0.5
    boxes[2::16, 2:] = boxes[2::16, :2]  # no width, no height
    boxes[3::16] = boxes[3::16][:, [2, 3, 0, 1]]  # right and left, bottom and top exchanged
    boxes[4::16] = torch.tensor([0.0, 0.0, width, height])
    return boxes


def encode(mask: Tensor) -> dict:
    return mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))


@pytest.mark.parametrize("side", [1, 2, 7, 28, 224])
@pytest.mark.parametrize("seed", range(3))
def test_pixels_and_rles_are_those_of_detectron2_and_pycocotools(side: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(128, generator)
    masks = random_masks(128, side, generator)
    kept, expected = [], []
    for i in range(len(boxes)):
        try:
            expected.append(paste_masks_in_image(masks[i : i + 1], boxes[i : i + 1], SIZE)[0])
        except RuntimeError:  # Detectron2 fails where a window is beyond the image
            continue
        kept.append(i)
    assert len(kept) > 100
    found = BoxMasks(masks, boxes, SIZE)[kept]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert list(found.rles()) == list(map(encode, expected))
    assert any(mask.any() and not mask.all() for mask in expected)


def test_blocks_of_columns_give_the_same_pixels(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    masks = BoxMasks(random_masks(16, 14, generator), random_boxes(16, generator), SIZE)
    expected = list(masks.rles())
    for pixels in (1, 500):
        monkeypatch.setattr(box_masks, "PIXELS_AT_ONCE", pixels)
        assert list(masks.rles()) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pixels_of_half_precision_are_those_under_autocast(dtype):
    generator = torch.Generator().manual_seed(0)
    masks = random_masks(16, 28, generator).to(dtype)
    boxes = torch.tensor([[3.3, 5.1, 100.7, 70.9]]).expand(16, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = paste_masks_in_image(masks, boxes, SIZE)
    assert torch.equal(torch.stack(list(BoxMasks(masks, boxes, SIZE))), expected)


@pytest.mark.parametrize("box", [[-9, 5, -3, 9], [200, 5, 230, 9], [5, -9, 9, -3], [5, 95, 9, 99]])
def test_a_box_beyond_the_image_has_an_empty_mask(box):
    masks = BoxMasks(torch.ones(1, 7, 7), torch.tensor([box], dtype=torch.float32), SIZE)
    assert not masks[0].any()
    assert list(masks.rles()) == [encode(torch.zeros(SIZE))]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_coordinates_that_are_not_finite_are_refused(value: float):
    with pytest.raises(ValueError, match="finite"):
        BoxMasks(torch.ones(1, 7, 7), torch.tensor([[0, 0, value, 9.0]]), SIZE)


@pytest.mark.parametrize("shape", [(2, 1, 7, 7), (2, 7, 8), (3, 7, 7)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected probabilities \(N, S, S\)"):
        BoxMasks(torch.ones(shape), torch.ones(2, 4), SIZE)


def test_rles_of_crops_are_those_of_whole_masks_wherever_the_window_is():
    """Also of windows as high as the image, in which a run goes on in the next column."""
    rng = np.random.default_rng(0)
    for number in range(300):
        height, width = rng.integers(1, 9, 2).tolist()
        top, left = rng.integers(0, height), rng.integers(0, width)
        if number % 3 == 0:
            top = 0
        rows = height if number % 3 == 0 else rng.integers(0, height - top + 1)
        window = rng.random((rows, rng.integers(0, width - left + 1))) < rng.choice([0.2, 0.8, 1])
        mask = np.zeros((height, width), dtype=np.uint8, order="F")
        crop = Crop(window, int(top), int(left))
        mask[crop.window] = window
        assert rle_of_crop(crop, (height, width)) == mask_util.encode(mask)


@pytest.fixture
def pair() -> tuple[BoxMasks, Tensor]:
    """Masks of five boxes, and the tensor that they stand for."""
    generator = torch.Generator().manual_seed(0)
    probabilities = random_masks(5, 28, generator)
    boxes = torch.tensor([[3.0, 4.0, 60.0, 50.0]]) + torch.arange(5)[:, None]
    return BoxMasks(probabilities, boxes, SIZE), paste_masks_in_image(probabilities, boxes, SIZE)


def test_masks_stand_in_for_the_tensor(pair):
    masks, tensor = pair
    assert torch.equal(masks.tensor(), tensor)
    assert masks.shape == tensor.shape
    assert masks.dtype == masks[0].dtype == tensor.dtype
    assert masks.device == tensor.device
    assert len(masks) == len(tensor)
    assert all(map(torch.equal, masks, tensor))
    assert torch.equal(masks[-1], tensor[-1])
    assert torch.equal(masks[torch.tensor(2)], tensor[2])
    assert torch.equal(masks[np.int64(2)], tensor[2])
    np.testing.assert_array_equal(np.asarray(masks), tensor.numpy())
    with pytest.raises(IndexError):
        masks[5]
    assert torch.equal(masks.to(device="cpu", dtype=torch.bool).tensor(), tensor)
    with pytest.raises(TypeError, match=r"torch\.float32"):
        masks.to(dtype=torch.float32)


def test_parts_and_unions_are_those_of_the_tensor(pair):
    masks, tensor = pair
    some = torch.tensor([True, False, True, True, False])
    for index in (slice(1, 4), [3, 0], [], torch.tensor([4, 2]), some, slice(0, 0)):
        assert torch.equal(torch.stack([*masks[index], tensor[0]])[:-1], tensor[index])
    for pixels in ((0, 1), (slice(None), 0), None, ...):
        with pytest.raises(TypeError, match=r"pixels have no index here: use `\.tensor\(\)`"):
            masks[pixels]
    joined = BoxMasks.cat([masks[:2], masks[2:]])
    assert torch.equal(joined.tensor(), tensor)


def test_without_boxes_there_are_no_masks():
    empty = BoxMasks(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE)
    assert empty.tensor().shape == empty.shape == (0, *SIZE)
    assert empty.tensor().dtype == torch.bool
    assert list(empty.rles()) == list(empty) == []


def test_memory_does_not_grow_with_the_image():
    masks = BoxMasks(torch.ones(3, 28, 28), torch.tensor([[5.0, 5, 45, 35]] * 3), (4000, 6000))
    with LargestTensor() as largest:
        assert len(list(masks.rles())) == 3
    assert largest.bytes < 100_000
