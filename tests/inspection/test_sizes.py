"""Sizes of images and objects after the resize, against the augmentation itself and plain loops."""

import math

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data.transforms import AugInput, AugmentationList, ResizeScale

from point_rend.config.loading import load_config
from point_rend.data.augmentation import build_augmentations
from point_rend.inspection.images import measure_shapes
from point_rend.inspection.resizing import resize_scales
from point_rend.inspection.settings import build_settings
from point_rend.inspection.sizes import EDGES, PERCENTILES, measure_sizes
from tests.tiny_datasets import POINTREND

IMAGES = [(640, 480), (333, 500), (2000, 150), (150, 2000), (37, 41)]  # width, height


def config(*opts: object) -> CfgNode:
    return load_config(POINTREND, ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", *map(str, opts)])


def drawn_widths(cfg: CfgNode, width: int, height: int, draws: int) -> list[int]:
    """Widths of a blank image after the true augmentation of a training, without flips."""
    cfg.INPUT.RANDOM_FLIP = "none"
    augmentations = AugmentationList(build_augmentations(cfg, is_train=True))
    widths = []
    for _ in range(draws):
        given = AugInput(np.zeros((height, width, 3), np.uint8))
        augmentations(given)
        widths.append(given.image.shape[1])
    return widths


@pytest.mark.parametrize("size", IMAGES)
def test_the_scales_are_those_that_the_training_draws(size: tuple[int, int]) -> None:
    cfg = config("INPUT.MIN_SIZE_TRAIN", "(64, 100, 0)", "INPUT.MAX_SIZE_TRAIN", 300)
    scales = resize_scales(build_settings(cfg).training, np.array([size]))
    assert scales.shape == (3, 1)
    drawn = {*drawn_widths(cfg, *size, draws=40)}
    expected = {max(1, math.floor(size[0] * scale + 0.5)) for scale in scales[:, 0].tolist()}
    assert drawn == expected


def test_a_range_and_a_crop_of_random_size_are_met_on_average() -> None:
    cfg = config(
        *("INPUT.MIN_SIZE_TRAIN", "(64, 128)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
        *("INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "relative_range"),
        *("INPUT.CROP.SIZE", "(0.5, 0.5)"),
    )
    # The image is 80 x 60, its crop 60 x 45 on average, whose short side becomes 96 on average.
    scales = resize_scales(build_settings(cfg).training, np.array([(80, 60)]))
    assert scales.mean() == pytest.approx(96 / 45)
    assert np.mean(drawn_widths(cfg, 80, 60, draws=300)) == pytest.approx(128, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "size", "short_side", "width"),
    [
        ("relative", "(0.5, 0.25)", 40, 40),  # of 160 x 160 pixels
        ("absolute", "(40, 1000)", 40, 160),
        ("absolute_range", "(40, 40)", 40, 40),
    ],
)
def test_a_crop_before_the_resize_enlarges(
    kind: str, size: str, short_side: int, width: int
) -> None:
    cfg = config(
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.CROP.ENABLED", "True"),
        *("INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE", size),
    )
    scales = resize_scales(build_settings(cfg).training, np.array([(160, 160)]))
    assert scales == pytest.approx(64 / short_side)
    assert drawn_widths(cfg, 160, 160, draws=1) == [round(width * 64 / short_side)]


@pytest.mark.parametrize("size", IMAGES)
def test_large_scale_jitter_replaces_the_short_side(size: tuple[int, int]) -> None:
    cfg = config(
        *("INPUT.LSJ.ENABLED", "True", "INPUT.LSJ.SIZE", "(64, 96)"),
        *("INPUT.LSJ.MIN_SCALE", "0.5", "INPUT.LSJ.MAX_SCALE", "1.5"),
    )
    scales = resize_scales(build_settings(cfg).training, np.array([size]))[:, 0]
    assert len(scales) > 2
    for scale, multiple in ((scales[0], 0.5), (scales[-1], 1.5), (scales.mean(), 1.0)):
        resize = ResizeScale(multiple, multiple, 64, 96)
        drawn = resize.get_transform(np.zeros((size[1], size[0], 3), np.uint8))
        assert abs(drawn.new_w - size[0] * scale) <= 1
        assert abs(drawn.new_h - size[1] * scale) <= 1


def test_an_unknown_size_stays_unknown_and_is_counted() -> None:
    cfg = config("INPUT.MIN_SIZE_TEST", 50, "INPUT.MAX_SIZE_TEST", 80)
    sizes = np.array([(100.0, 100.0), (np.nan, np.nan), (50.0, 100.0)])
    (scales,) = resize_scales(build_settings(cfg).testing, sizes)
    assert scales[[0, 2]].tolist() == [0.5, 0.8]
    assert math.isnan(scales[1])
    shapes = measure_shapes(sizes, scales)
    assert (shapes.unknown, shapes.width[0], shapes.height[-1]) == (1, 50, 100)
    assert shapes.aspect[0] == 0.5


def test_shares_are_those_of_a_plain_loop_over_objects_and_scales() -> None:
    rng = np.random.default_rng(0)
    sides = rng.uniform(1, 200, (300, 2))
    area = sides.prod(axis=1) * rng.uniform(0.3, 1, 300)
    scales = rng.uniform(0.01, 2, (4, 300))
    found = measure_sizes("train", area, sides, scales, stride=4, smallest_anchor=32)
    assert found is not None

    tallies = {"small": 0, "medium": 0, "large": 0, "one": 0, "two": 0, "stride": 0, "anchor": 0}
    histogram = [0] * (len(EDGES) - 1)
    for k in range(4):
        for n in range(300):
            size = math.sqrt(area[n]) * scales[k, n]
            side = min(sides[n]) * scales[k, n]
            kind = "small" if size < 32 else "medium" if size < 96 else "large"
            tallies[kind] += 1
            tallies["one"] += side < 1
            tallies["two"] += side < 2
            tallies["stride"] += side < 4
            tallies["anchor"] += size < 16
            histogram[max(b for b in range(len(histogram)) if size >= EDGES[b])] += 1
    assert [
        *(found.small, found.medium, found.large, found.below_one, found.below_two),
        *(found.below_stride, found.below_anchor),
    ] == pytest.approx([x / 1200 for x in tallies.values()])
    assert found.histogram == pytest.approx([x / 1200 for x in histogram])
    assert sum(found.histogram) == pytest.approx(1)
    assert found.percentiles == sorted(found.percentiles)
    assert len(found.percentiles) == len(PERCENTILES)


def test_without_objects_there_are_no_sizes() -> None:
    assert measure_sizes("test", np.zeros(0), np.zeros((0, 2)), np.zeros((3, 0))) is None
