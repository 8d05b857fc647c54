"""The proof of tiles, on small images: planted objects, a whole image, a model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from point_rend import load_config
from point_rend.cli import benchmark
from point_rend.experiments.benchmark import tiles
from point_rend.experiments.benchmark.planted_image import (
    NumberPredictor,
    Placed,
    Site,
    border_sites,
    paint_numbers,
    paint_textures,
    place_objects,
)
from point_rend.experiments.benchmark.settings import Settings, Sizes
from point_rend.experiments.benchmark.tiles import best_ious, format_results, run_tiles
from point_rend.rendering.box_masks import Crop
from point_rend.rendering.mask_runs import MaskRuns
from point_rend.tiling.grid import tiles_of
from tests.cli.test_predict import checkpoint_of
from tests.tiny_datasets import POINTREND, TINY_MODEL, process_state_restored

SIZE = (500, 420)
SMALL = Settings(
    sizes=Sizes(
        tiled_image=(700, 620), whole_image=(260, 300), model_image=(96, 80), tile=128, overlap=0.25
    )
)


@pytest.fixture(scope="module")
def placed() -> list[Placed]:
    rng = np.random.default_rng(0)
    return place_objects(rng, SIZE, border_sites(rng, tiles_of(SIZE, 128, 0.25), (6, 40)))


def canvas(x: Placed) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[x.mask.window] = x.mask.mask
    return mask


def test_planted_objects_do_not_overlap_and_some_of_a_class_touch(placed: list[Placed]) -> None:
    masks = np.stack([canvas(x) for x in placed])
    assert masks.sum(axis=0).max() == 1
    assert all(mask.any() for mask in masks)
    pairs = [
        (one, other)
        for one in range(len(placed))
        for other in range(one + 1, len(placed))
        if placed[one].category == placed[other].category
        and (masks[one][:, :-1] & masks[other][:, 1:]).any()
    ]
    assert pairs
    assert len({x.category for x in placed}) > 4


def test_rings_are_three_tiles_wide_where_there_is_room() -> None:
    rng = np.random.default_rng(0)
    grid = tiles_of(SIZE, 128, 0.25)
    rings = [x for x in border_sites(rng, grid, (6, 40)) if x.ring]
    assert [2 * x.radius > 3 * 128 for x in rings] == [True]
    (ring,) = place_objects(rng, SIZE, rings)
    height, width = ring.mask.mask.shape
    assert min(height, width) > 3 * 128


def test_a_numbered_image_gives_its_objects_back_to_the_pixel(placed: list[Placed]) -> None:
    image = paint_numbers(SIZE, placed)
    cfg = load_config(POINTREND)
    (output,) = NumberPredictor(cfg, [x.score for x in placed])([image], batch_size=1)
    found = output["instances"]
    assert found.pred_classes.tolist() == [x.category for x in placed]
    assert found.scores.tolist() == pytest.approx([x.score for x in placed])
    assert all(map(np.array_equal, found.pred_masks, map(canvas, placed)))


def test_more_objects_than_a_color_counts_have_different_numbers() -> None:
    many = [Placed(i % 8, Crop(np.ones((1, 1), bool), i // 400, i % 400)) for i in range(1000)]
    (output,) = NumberPredictor(load_config(POINTREND), [0.5] * 1000)([paint_numbers(SIZE, many)])
    assert len(output["instances"]) == 1000
    assert output["instances"].pred_classes.tolist() == [x.category for x in many]


def test_textures_show_each_object(placed: list[Placed]) -> None:
    image = paint_textures(np.random.default_rng(0), SIZE, placed)
    objects = np.any([canvas(x) for x in placed], axis=0)
    assert abs(image[objects].mean(axis=0) - image[~objects].mean(axis=0)).max() > 20


def test_objects_are_matched_with_instances_of_their_class() -> None:
    def runs(left: int, right: int) -> MaskRuns:
        return MaskRuns.of(Crop(np.ones((10, right - left), dtype=bool), 0, left))

    objects = [(0, runs(0, 10)), (0, runs(20, 30)), (1, runs(40, 50)), (1, runs(60, 70))]
    found = [(0, runs(0, 8)), (0, runs(0, 10)), (0, runs(25, 35)), (0, runs(40, 50))]
    ious, counts = best_ious(objects, found)
    assert ious == pytest.approx([1.0, 5 / 15, 0.0, 0.0])
    assert counts == [2, 0, 0, 0]
    assert best_ious(objects, []) == ([0.0] * 4, [0] * 4)


def test_every_planted_object_comes_out_once_and_exact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large, small = run_tiles(SMALL, None, tmp_path, "tiles")
    for result in (large, small):
        assert result.objects == result.results == result.found_once > 5
        assert set(result.ious) == {1.0}
        assert result.seconds > 0
    assert large.cut > large.in_none > 0
    assert large.whole_ious is None
    assert set(small.whole_ious or ()) == {1.0}
    table = capsys.readouterr().out
    assert f"{small.objects} of {small.objects}, IoU 1.0000, median 1.0000" in table
    assert format_results([large, small]) in (tmp_path / "tiles.md").read_text()
    content = json.loads((tmp_path / "tiles.json").read_text())
    assert [x["objects"] for x in content["images"]] == [large.objects, small.objects]
    height, width = SMALL.sizes.tiled_image
    labeled = [(x["size"], x["wrong"]) for x in content["label maps"]]
    assert labeled == [([height, width], 0), ([2 * height, width], 0)]
    assert f"| {height}×{width} | 19 | " in table


def test_a_checkpoint_adds_an_image_of_its_model(tmp_path: Path) -> None:
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "8"]
    with process_state_restored():
        checkpoint_of(tmp_path / "m.pth", opts=opts)
        opts += ["INPUT.MIN_SIZE_TEST", "32"]
        (tmp_path / "config.yaml").write_text(load_config(POINTREND, [*TINY_MODEL, *opts]).dump())
        sizes = replace(SMALL.sizes, tiled_image=(96, 80), whole_image=(96, 80))
        *_, result = run_tiles(replace(SMALL, sizes=sizes), str(tmp_path / "m.pth"), None, "tiles")
    assert result.name.startswith("96×80, ")
    assert result.objects > 0
    assert result.whole_ious is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiles", "masks"], "the case tiles has a table of its own, got tiles masks"),
        (["masks", "--checkpoint", "x.pth"], "--checkpoint is for tiles"),
        (["tiles", "--checkpoint", "missing.pth"], "there is no checkpoint missing.pth"),
    ],
)
def test_errors_are_one_line(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "_numbered", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(words)
    assert message in capsys.readouterr().err


def test_a_site_beyond_the_image_has_no_object() -> None:
    rng = np.random.default_rng(0)
    assert place_objects(rng, SIZE, [Site(-100, 50, 20), Site(5000, 50, 20)]) == []
