"""Masks as runs: the pixels of dense masks, cut, joined and compared."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Instances

from point_rend.rendering.box_masks import Crop
from point_rend.rendering.mask_runs import Box, MaskRuns, RunMasks, common_area, union_of

SIZE = (11, 9)


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """A mask (H, W) of random pixels in a random window: sparse, dense, full or empty."""
    mask = np.zeros(SIZE, dtype=bool)
    top, left = rng.integers(0, SIZE[0]), rng.integers(0, SIZE[1])
    window = mask[top : rng.integers(top, SIZE[0] + 1), left : rng.integers(left, SIZE[1] + 1)]
    if rng.random() < 0.2:
        window = mask[:, left:]
    window[:] = rng.random(window.shape) < rng.choice([0.1, 0.5, 0.9, 1.0])
    return mask


def runs_of(mask: np.ndarray) -> MaskRuns:
    return MaskRuns.of(Crop.of(mask))


def dense(runs: MaskRuns, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Fill the runs one by one."""
    mask = np.zeros(size, dtype=bool)
    for column, top, bottom in zip(*runs, strict=True):
        assert top < bottom
        assert not mask[max(0, top - 1) : bottom + 1, column].any(), "runs touch"
        mask[top:bottom, column] = True
    return mask


MASKS = [random_mask(rng) for rng in [np.random.default_rng(0)] for _ in range(60)]


def test_runs_crops_and_rles_have_the_pixels_of_the_mask():
    assert any(not mask.any() for mask in MASKS)
    assert any(mask.all(axis=0).any() for mask in MASKS)
    for mask in MASKS:
        runs = runs_of(mask)
        assert np.array_equal(dense(runs), mask)
        crop = np.zeros(SIZE, dtype=bool)
        crop[runs.crop().window] = runs.crop().mask
        assert np.array_equal(crop, mask)
        assert runs.area == mask.sum()
        assert runs.rle(SIZE) == mask_util.encode(np.asfortranarray(mask.view(np.uint8)))
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        expected = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if mask.any() else (0,) * 4
        assert runs.box == Box(*expected)


def test_a_window_of_a_crop_may_be_larger_than_the_mask():
    for mask in MASKS:
        whole, tight = MaskRuns.of(Crop(mask, 0, 0)), runs_of(mask)
        assert all(map(np.array_equal, whole, tight))


def test_cutting_and_moving_are_those_of_pixels():
    rng = np.random.default_rng(1)
    for mask in MASKS:
        top, left = (int(rng.integers(0, side)) for side in SIZE)
        height, width = int(rng.integers(0, 12 - top)), int(rng.integers(0, 10 - left))
        window = (slice(top, top + height), slice(left, left + width))
        expected = np.zeros(SIZE, dtype=bool)
        expected[window] = mask[window]
        clipped = runs_of(mask).clipped(top, left, height, width)
        assert np.array_equal(dense(clipped), expected)
        moved = clipped.moved(-top, -left)
        assert np.array_equal(dense(moved)[:height, :width], mask[window])


def test_union_and_common_area_are_those_of_pixels():
    rng = np.random.default_rng(2)
    for _ in range(300):
        chosen = [MASKS[i] for i in rng.integers(0, len(MASKS), rng.integers(1, 5))]
        union = union_of([runs_of(mask) for mask in chosen])
        assert np.array_equal(dense(union), np.any(chosen, axis=0))
        one, other = chosen[0], chosen[-1]
        common = common_area(runs_of(one), runs_of(other))
        assert common == (one & other).sum() == common_area(runs_of(other), runs_of(one))


def test_pixels_far_down_and_right_in_a_huge_image_are_counted_exactly():
    size = (60_000, 70_000)
    one = MaskRuns.of(Crop(np.ones((3, 4), dtype=bool), size[0] - 3, size[1] - 4))
    other = one.moved(-1, -2)
    assert common_area(one, other) == 4
    assert union_of([one, other]).area == 20
    assert other.moved(1 - size[0] + 3, 2 - size[1] + 4).box == Box(0, 0, 3, 4)
    (rle,) = RunMasks([one], size).rles()
    assert mask_util.toBbox(rle).tolist() == [size[1] - 4, size[0] - 3, 4, 3]
    assert mask_util.area(rle) == 12


def test_an_image_that_the_encoding_cannot_count_is_refused():
    masks = RunMasks([runs_of(MASKS[0])], (1 << 16, 1 << 16))
    with pytest.raises(ValueError, match="65536×65536: expected at most 4,294,967,295"):
        list(masks.rles())


@pytest.fixture
def pair() -> tuple[RunMasks, torch.Tensor]:
    tensor = torch.from_numpy(np.stack(MASKS[:5]))
    return RunMasks(list(map(runs_of, MASKS[:5])), SIZE), tensor


def test_masks_stand_in_for_the_tensor(pair):
    masks, tensor = pair
    assert torch.equal(masks.tensor(), tensor)
    assert masks.shape == tensor.shape
    assert masks.dtype == masks[0].dtype == tensor.dtype
    assert masks.device == tensor.device
    assert all(map(torch.equal, masks, tensor))
    np.testing.assert_array_equal(np.asarray(masks), tensor.numpy())
    some = torch.tensor([True, False, True, True, False])
    for index in (slice(1, 4), [3, 0], [], torch.tensor([4, 2]), some, some.numpy(), slice(0, 0)):
        assert torch.equal(masks[index].tensor(), tensor[index])
    assert torch.equal(RunMasks.cat([masks[:2], masks[2:]]).tensor(), tensor)


def test_instances_choose_join_and_move_them(pair):
    masks, tensor = pair
    found = Instances(SIZE, pred_masks=masks, scores=torch.arange(5.0))
    best = found[found.scores > 2].to("cpu")
    assert torch.equal(best.pred_masks.tensor(), tensor[3:])
    joined = Instances.cat([found[:2], found[2:]])
    assert torch.equal(joined.pred_masks.tensor(), tensor)


def test_the_masks_in_a_window_are_the_window_of_the_masks(pair):
    masks, tensor = pair
    part = masks.within(2, 3, 7, 5)
    assert part.image_size == (7, 5)
    assert torch.equal(part.tensor(), tensor[:, 2:9, 3:8])
