"""Instances across tiles: planted objects, noisy detections against a slow merging of pixels."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from point_rend.rendering.mask_runs import RunMasks
from point_rend.tiling.grid import TileGrid, Window, tiles_of
from point_rend.tiling.merging import AGREEMENT, COVERED, MIN_COMMON, InstanceMerger
from tests.tiling.planted_tiles import (
    Planted,
    assert_found,
    disc,
    instances,
    merge,
    polygon,
    seen_in,
)

SIZE = (150, 200)
GRID = tiles_of(SIZE, 64, 0.25)


def add(merger: InstanceMerger, tile: Window, *objects: Planted) -> None:
    """Add detections that are given in the frame of the image."""
    merger.add(tile, seen_in(tile, objects))


def corners_of(grid: TileGrid) -> list[tuple[int, int]]:
    """Left upper corners of the tiles within the image, where up to four tiles meet."""
    return list(itertools.product(grid.tops[1:], grid.lefts[1:]))


def test_the_grid_of_these_tests_has_inner_tiles():
    assert len(GRID.tops) >= 3
    assert len(GRID.lefts) >= 4


# Planted objects


@pytest.mark.parametrize("radius", [3, 8, 20, 45, 70])
def test_an_object_across_borders_and_corners_comes_out_as_one(radius):
    """Wherever it lies, smaller than the band or larger than a tile."""
    for y, x in corners_of(GRID):
        objects = [Planted(disc(SIZE, x + 3, y + 2, radius), 1)]
        assert_found(merge(GRID, objects), objects)


def test_an_object_that_covers_more_than_three_tiles_each_way_comes_out_as_one():
    whole = Planted(np.ones(SIZE, dtype=bool), 0)
    assert_found(merge(GRID, [whole]), [whole])
    zigzag = polygon(SIZE, [(2, 5), (190, 20), (30, 60), (195, 140), (5, 145), (120, 75)])
    ring = disc(SIZE, 100, 75, 70) & ~disc(SIZE, 100, 75, 62)
    for mask in (zigzag, ring):
        assert_found(merge(GRID, [Planted(mask, 3)]), [Planted(mask, 3)])


@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_scenes_of_many_objects_come_out_to_the_pixel(overlap, seed):
    """Also where objects of one class touch each other."""
    rng = np.random.default_rng(seed)
    owners = np.full(SIZE, -1)
    for number in range(14):
        y, x = (rng.uniform(0, side) for side in SIZE)
        owners[disc(SIZE, x, y, rng.uniform(4, 40))] = number
    objects = [
        Planted(owners == i, int(rng.integers(2)), float(rng.uniform(0.5, 1)))
        for i in np.unique(owners[owners >= 0])
        if (owners == i).sum() >= 60
    ]
    assert len(objects) > 5
    assert_found(merge(tiles_of(SIZE, 64, overlap), objects), objects)


def test_touching_objects_of_one_class_stay_apart():
    """Also where their common border runs through a band, or along the edge of a tile."""
    for middle in range(40, 70):
        left, right = np.zeros((2, *SIZE), dtype=bool)
        left[20:90, 10:middle], right[20:90, middle:120] = True, True
        objects = [Planted(left, 0, 0.8), Planted(right, 0, 0.9)]
        assert_found(merge(GRID, objects), objects)


def test_objects_of_different_classes_are_never_joined_nor_dropped():
    mask = disc(SIZE, 60, 60, 30)
    objects = [Planted(mask, 0, 0.8), Planted(mask, 1, 0.9)]
    assert_found(merge(GRID, objects), objects)


def test_an_object_in_one_tile_alone_is_untouched_bit_for_bit():
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), dtype=bool)
    mask[3:40, 5:41] = rng.random((37, 36)) < 0.5
    found = Instances(
        (64, 64),
        pred_boxes=Boxes(torch.tensor([[4.123456, 3.3333333, 41.25, 40.7654321]])),
        scores=torch.tensor([0.123456789]),
        pred_classes=torch.tensor([2]),
        pred_masks=torch.from_numpy(mask)[None],
    )
    for top, left in zip(GRID.tops, GRID.lefts, strict=False):
        merger = InstanceMerger(SIZE, 0.5)
        for other in GRID.windows():
            is_there = (other.top, other.left) == (top, left)
            merger.add(other, found if is_there else found[:0])
        merged = merger.merged()
        assert merged.image_size == SIZE
        expected = found.pred_boxes.tensor + torch.tensor([left, top, left, top])
        assert torch.equal(merged.pred_boxes.tensor, expected)
        assert torch.equal(merged.scores, found.scores)
        assert torch.equal(merged.pred_classes, found.pred_classes)
        assert isinstance(merged.pred_masks, RunMasks)
        whole = np.zeros(SIZE, dtype=bool)
        whole[top : top + 64, left : left + 64] = mask
        assert np.array_equal(merged.pred_masks[0].numpy(), whole)


def test_no_tile_and_no_object_give_no_instances():
    for tiles in ([], list(GRID.windows())):
        merger = InstanceMerger(SIZE, 0.5)
        for tile in tiles:
            add(merger, tile)
        found = merger.merged()
        assert len(found) == 0
        assert found.pred_masks.shape == (0, *SIZE)
        assert found.pred_boxes.tensor.shape == (0, 4)


# Rules, one by one

LEFT, RIGHT = Window(0, 0, 64, 64), Window(0, 44, 64, 64)  # the band has columns 44 to 63
PAIR = (64, 108)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(PAIR, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def merged(left: list[Planted], right: list[Planted], threshold: float = 0.5) -> Instances:
    merger = InstanceMerger(PAIR, threshold)
    add(merger, LEFT, *left)
    add(merger, RIGHT, *right)
    return merger.merged()


def test_the_union_has_the_highest_score_and_the_box_of_all_parts():
    left = Planted(rectangle(10, 5, 30, 64), 0, 0.7)
    right = Planted(rectangle(11, 44, 33, 100), 0, 0.8)
    found = merged([left], [right])
    assert_found(found, [Planted(left.mask | right.mask, 0)])
    assert found.scores.tolist() == pytest.approx([0.8])
    assert found.pred_boxes.tensor.tolist() == [[5, 10, 100, 33]]


def test_the_tile_that_sees_an_object_whole_wins_even_with_a_lower_score():
    cut = Planted(rectangle(10, 47, 32, 64), 0, 0.99)
    whole = Planted(rectangle(10, 47, 30, 80), 0, 0.6)
    found = merged([cut], [whole])
    assert_found(found, [whole])
    assert found.scores.tolist() == pytest.approx([0.6])


def test_of_two_tiles_that_see_an_object_whole_the_better_wins():
    one, other = (Planted(rectangle(10, 48, 28 + i, 60), 0, 0.6 + i / 10) for i in range(2))
    assert_found(merged([one], [other]), [other])
    assert_found(merged([other], [one]), [other])


def test_a_poor_mask_at_an_edge_is_dropped_where_the_neighbor_sees_the_object_whole():
    """Although the masks agree too little to be parts of one object."""
    poor = Planted(rectangle(10, 58, 20, 64), 0, 0.99)
    whole = Planted(rectangle(10, 50, 50, 90), 0, 0.6)
    assert_found(merged([poor], [whole]), [whole])


def test_a_fragment_of_any_class_is_dropped_where_another_tile_sees_all_of_it():
    """Whatever that tile finds there, if anything; but not where it cuts the object, too."""
    fragment = Planted(rectangle(10, 50, 20, 64), 1, 0.99)
    whole = Planted(rectangle(10, 50, 50, 90), 0, 0.6)
    assert_found(merged([fragment], [whole]), [whole])
    assert_found(merged([fragment], []), [])
    for left, right in ((44, 64), (30, 64), (50, 62)):  # cut by both, by itself alone, by none
        found = Planted(rectangle(10, left, 20, right), 1)
        assert_found(merged([found], []), [found])


def test_a_cut_object_is_dropped_where_a_better_one_of_its_class_covers_most_of_it():
    """Although no other tile sees all of it."""
    whole = Planted(rectangle(5, 46, 40, 90), 0, 0.6)
    for left, is_dropped in ((40, True), (24, False)):  # covered by 18/24, 18/40
        cut = Planted(rectangle(10, left, 20, 64), 0, 0.99)
        assert_found(merged([cut], [whole]), [whole] if is_dropped else [cut, whole])
        other = cut._replace(category=1)
        assert_found(merged([other], [whole]), [other, whole])


def test_parts_that_disagree_in_the_band_stay_apart():
    upper = Planted(rectangle(0, 5, 20, 64), 0)
    for top in (8, 12, 20):  # agreement of 12/28, 8/32, none
        lower = Planted(rectangle(top, 44, top + 20, 100), 0, 0.8)
        assert len(merged([upper], [lower])) == 2
    lower = Planted(rectangle(5, 44, 25, 100), 0, 0.8)  # 15/25
    assert len(merged([upper], [lower])) == 1


def test_a_detection_is_joined_with_the_best_of_several():
    left = [Planted(rectangle(0, 5, 16 + 4 * i, 64), 0, 0.9) for i in range(3)]
    right = Planted(rectangle(0, 44, 20, 100), 0, 0.5)
    for some in (left, left[::-1]):
        found = merged(some, [right])
        assert np.array_equal(found.pred_masks[0].numpy(), left[1].mask | right.mask)


def test_detections_of_one_tile_are_never_joined():
    """Even where another tile sees both as one."""
    for middle in (10, 15):
        left = [
            Planted(rectangle(0, 5, middle, 64), 0, 0.8),
            Planted(rectangle(middle, 5, 24, 64), 0, 0.7),
        ]
        right = Planted(rectangle(0, 44, 24, 100), 0, 0.9)
        found = merged(left, [right])
        larger = left[0] if middle > 12 else left[1]
        rest = left[1] if middle > 12 else left[0]
        assert_found(found, [Planted(larger.mask | right.mask, 0), rest])


def test_few_common_pixels_are_no_evidence():
    for end, objects in ((58, 2), (62, 1)):
        left = Planted(rectangle(10, 5, 11, end), 0)
        right = Planted(rectangle(10, 44, 11, 100), 0)
        assert (end - 44 >= MIN_COMMON) == (objects == 1)
        assert len(merged([left], [right])) == objects
    # A mask that lies in the band as a whole is no such end of another object.
    small = Planted(rectangle(10, 50, 11, 55), 0)
    assert_found(merged([small], [small]), [small])


def test_duplicates_from_different_tiles_are_suppressed_by_the_iou_of_their_masks():
    """Boxes of small agreement in the band, e.g. since one reaches far beyond it."""
    one = Planted(rectangle(10, 20, 40, 60), 0, 0.9)
    other = Planted(rectangle(10, 47, 40, 70), 0, 0.8)  # common 13 of 50 columns; band 13 of 17
    assert_found(merged([one], [other]), [Planted(one.mask | other.mask, 0)])
    narrow = Planted(rectangle(12, 46, 19, 60), 0, 0.8)
    wide = Planted(rectangle(10, 46, 24, 59), 0, 0.9)
    common, union = 7 * 13, 14 * 14
    assert common / union < AGREEMENT
    assert_found(merged([narrow], [wide], threshold=0.45), [wide])
    assert_found(merged([narrow], [wide], threshold=0.5), [narrow, wide])


def test_detections_of_one_tile_are_never_suppressed():
    """The model has done that in its own way, by boxes."""
    one, other = (Planted(rectangle(5, 5, 35 + i, 35), 0, 0.9 - i / 10) for i in range(2))
    assert_found(merged([one, other], []), [one, other])


def test_results_are_ordered_by_score_and_equal_ones_by_tile():
    left = [Planted(rectangle(4 * i, 4, 4 * i + 3, 30), i, 0.5) for i in range(3)]
    right = [Planted(rectangle(4 * i, 70, 4 * i + 3, 90), i, 0.5 + 0.1 * i) for i in range(3)]
    found = merged(left, right)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.pred_classes.tolist() == [2, 1, 0, 1, 2, 0]


@pytest.mark.parametrize("field", ["pred_masks", "pred_keypoints"])
def test_other_fields_than_those_of_masks_are_refused_by_name(field):
    found = instances([Planted(rectangle(0, 0, 9, 9)[:64, :64], 0)], (64, 64))
    if field == "pred_masks":
        found.remove(field)
    else:
        found.pred_keypoints = torch.zeros(1, 17, 3)
    with pytest.raises(ValueError, match=r"the model predicts none|pred_keypoints of instances"):
        InstanceMerger(PAIR, 0.5).add(LEFT, found)


# A slow merging of whole masks


def slow_merge(
    grid: TileGrid, detections: list[tuple[Window, Planted]], threshold: float
) -> list[Planted]:
    """Merge by the four rules, pixel by pixel."""

    def view(tile: Window) -> np.ndarray:
        canvas = np.zeros(grid.image_size, dtype=bool)
        canvas[tile.slices] = True
        return canvas

    def inner_edges(tile: Window) -> np.ndarray:
        """The pixels outside the tile, within the image, that touch it."""
        padded = np.pad(view(tile), 1)
        grown = padded.copy()
        for axis, step in itertools.product((0, 1), (-1, 1)):
            grown |= np.roll(padded, step, axis)
        return (grown & ~padded)[1:-1, 1:-1]

    def rim(tile: Window) -> np.ndarray:
        """The pixels of the tile that touch its inner edges."""
        outside, rim = inner_edges(tile), np.zeros(grid.image_size, dtype=bool)
        for axis, step in itertools.product((0, 1), (-1, 1)):
            rim |= np.roll(outside, step, axis) & view(tile)
        return rim

    def is_cut(part: tuple[Window, Planted], whole: np.ndarray) -> bool:
        """Whether a side of the tile is touched, and the whole is not beyond that side."""
        tile, found = part
        outside = inner_edges(tile)
        for axis, step in itertools.product((0, 1), (-1, 1)):
            if not (
                np.roll(found.mask, step, axis) & outside & np.roll(view(tile), step, axis)
            ).any():
                continue
            # Everything beyond that side: shadows of the outside pixels, away from the tile.
            index = np.nonzero(outside & np.roll(view(tile), step, axis))[axis]
            beyond = np.zeros(grid.image_size, dtype=bool)
            lines = [slice(None), slice(None)]
            lines[axis] = slice(index.min(), None) if step > 0 else slice(None, index.max() + 1)
            beyond[tuple(lines)] = True
            if not (whole & beyond).any():
                return True
        return False

    links = []
    for (i, (tile, one)), (j, (other_tile, other)) in itertools.combinations(
        enumerate(detections), 2
    ):
        if tile == other_tile or one.category != other.category:
            continue
        band = view(tile) & view(other_tile)
        both, either = (one.mask & other.mask & band).sum(), ((one.mask | other.mask) & band).sum()
        goes_on = (one.mask & ~band).any() and (other.mask & ~band).any()
        if both >= (MIN_COMMON if goes_on else 1) and both / either > AGREEMENT:
            links.append((-both / either, i, j))
    groups = [{i} for i in range(len(detections))]
    for _, i, j in sorted(links):
        one, other = (next(g for g in groups if k in g) for k in (i, j))
        tiles = [detections[k][0] for k in {*one, *other}]
        if one is not other and len(set(tiles)) == len(tiles):
            groups.remove(other)
            one |= other

    objects = []
    for group in groups:
        parts = [detections[i] for i in sorted(group)]
        tiles = {x[0] for x in parts}
        union = np.any([part[1].mask for part in parts], axis=0)
        whole = [x for x in parts if not is_cut(x, x[1].mask) and not (union & ~view(x[0])).any()]
        best = max(whole or parts, key=lambda x: x[1].score)
        mask = best[1].mask if whole else union
        cut = any(is_cut(x, mask) for x in parts) and not whole
        inside = ((view(tile) & ~rim(tile)) for tile in grid.windows() if tile not in tiles)
        if cut and any(not (mask & ~field).any() for field in inside):
            continue
        objects.append((cut, -best[1].score, tiles, best[1]._replace(mask=mask)))
    kept = []
    for cut, _, tiles, x in sorted(objects, key=lambda x: x[:2]):
        hidden = False
        for _, _, better_tiles, better in kept:
            if better.category != x.category or (tiles & better_tiles and not cut):
                continue
            common = (better.mask & x.mask).sum()
            hidden |= common > threshold * (better.mask | x.mask).sum()
            hidden |= cut and common > COVERED * x.mask.sum()
        if not hidden:
            kept.append((cut, 0, tiles, x))
    return [x for *_, x in kept]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
@pytest.mark.parametrize("seed", range(6))
def test_noisy_detections_are_merged_as_by_a_slow_merging_of_whole_masks(seed, overlap):
    rng = np.random.default_rng(seed)
    size = (50, 60)
    grid = tiles_of(size, 32, overlap)
    truth = [
        Planted(disc(size, *rng.uniform(0, 55, 2), rng.uniform(3, 22)), int(rng.integers(2)))
        for _ in range(6)
    ]
    detections = []
    for tile in grid.windows():
        view = np.zeros(size, dtype=bool)
        view[tile.slices] = True
        for x in truth:
            for _ in range(rng.integers(0, 3)):  # missed, seen, seen twice
                mask = np.roll(x.mask, rng.integers(-3, 4, 2), (0, 1)) & view
                mask &= rng.random(size) < rng.choice([0.7, 1.0])
                if mask.any():
                    detections.append((tile, Planted(mask, x.category, float(rng.uniform(0.3, 1)))))
    merger = InstanceMerger(size, 0.5)
    ordered = []
    for tile in grid.windows():
        found = [x for other, x in detections if other == tile]
        add(merger, tile, *found)
        ordered += [(tile, x) for x in sorted(found, key=lambda x: -x.score)]
    expected = slow_merge(grid, ordered, 0.5)
    found = merger.merged()
    assert len(detections) > len(expected) > 2
    assert_found(found, expected)
    assert sorted(found.scores.tolist()) == pytest.approx(sorted(x.score for x in expected))
