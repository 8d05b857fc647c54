"""Files that `pointrend predict --tile` writes for images that are read in windows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import rasterio
from rasterio import Affine

from point_rend.cli import run_command
from point_rend.inference import large_outputs, outputs
from point_rend.inference import run as run_module
from point_rend.rendering.mask_runs import RunMasks
from point_rend.utils.pictures import read_label_map
from tests.runtime.planted import planted
from tests.tiling.planted_tiles import Planted, disc
from tests.tiling.test_tiled import ColorPredictor, painted
from tests.tiny_datasets import KINDS, POINTREND, TINY_MODEL, process_state_restored

SIZE = (150, 200)
OBJECTS = [Planted(disc(SIZE, 60, 50, 40), 1, 0.9), Planted(disc(SIZE, 150, 100, 45), 2, 0.8)]
PLACE = {"crs": "EPSG:32632", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6)}


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["predict.py"])
    with process_state_restored():
        yield


def write_map(path: Path, image: np.ndarray, **options: Any) -> Path:
    height, width = image.shape[:2]
    options |= {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(
        path, "w", "GTiff", width, height, 3, dtype="uint8", **PLACE, **options
    ) as file:
        file.write(np.moveaxis(image[:, :, ::-1], 2, 0))
    return path


def label(*words: object) -> None:
    model = ["--model", str(planted("labels.onnx")), "--formats", "pictures", "labels"]
    run_command("predict", [*model, *map(str, words)])


def test_labels_of_a_map_are_a_map_and_equal_those_of_the_whole_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large_outputs, "VIEW", 100)
    # As high as a tile, so that both are resized by the same factor.
    image = np.random.default_rng(0).integers(0, 255, (64, 200, 3), dtype=np.uint8)
    folder = tmp_path / "in"
    folder.mkdir()
    write_map(folder / "map.tif", image)
    write_map(folder / "chroma.tif", image, compress="jpeg", photometric="YCBCR")
    write_map(folder / "small.tif", image[:60, :60])
    cv2.imwrite(str(folder / "photo.png"), image)
    content = write_map(folder / "broken.tif", image).read_bytes()
    (folder / "broken.tif").write_bytes(content[: len(content) // 2])
    whole, tiles = tmp_path / "whole", tmp_path / "tiles"
    label("--input", *(folder / f"{x}.tif" for x in ("map", "chroma", "small")), "--output", whole)
    with pytest.raises(SystemExit, match="1"):
        label("--input", folder, "--output", tiles, "--tile", 64, "--overlap", 0.25)
    assert "broken.tif is truncated or broken" in capsys.readouterr().err.splitlines()[-1]

    names = {"map.tif": "map.png", "photo.png": "map.png"}
    names |= {"small.tif": "small.png", "chroma.tif": "chroma.png"}
    assert sorted(x.name for x in (tiles / "labels").iterdir()) == sorted(names)
    for name, of_whole in names.items():
        expected = read_label_map(whole / "labels" / of_whole)
        np.testing.assert_array_equal(read_label_map(tiles / "labels" / name), expected)
        if name.endswith(".tif"):
            with rasterio.open(tiles / "labels" / name) as file:
                assert file.crs.to_epsg() == 32632
                assert file.transform == PLACE["transform"]
    shapes = [cv2.imread(str(tiles / name)).shape for name in ("map.tif", "photo.png", "small.tif")]
    assert shapes == [(32, 100, 3), (32, 100, 3), (60, 60, 3)]


def test_results_of_a_huge_image_are_those_of_a_small_one_but_for_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "Predictor", ColorPredictor)
    cv2.imwrite(str(tmp_path / "image.png"), painted(OBJECTS, SIZE))
    words = ["--config-file", POINTREND, "--classes", ",".join(KINDS)]
    words += ["--input", str(tmp_path / "image.png"), "--formats", "pictures", "coco", "masks"]
    end = ["--tile", "64", "--opts", *TINY_MODEL, "MODEL.WEIGHTS", "x.pkl"]
    for view, out in ((1000, "full"), (50, "reduced")):
        monkeypatch.setattr(large_outputs, "VIEW", view)
        monkeypatch.setattr(outputs, "LARGE", view**2)
        run_command("predict", [*words, "--output", str(tmp_path / out), *end])
    full, reduced = tmp_path / "full", tmp_path / "reduced"
    found = json.loads((reduced / "instances.json").read_text())
    assert found == json.loads((full / "instances.json").read_text())
    assert (found["images"][0]["height"], found["images"][0]["width"]) == SIZE
    names = sorted(x.name for x in (reduced / "masks" / "image").iterdir())
    assert [name[:4] for name in names] == ["000_", "001_"]
    for name, annotation, truth in zip(names, found["annotations"], OBJECTS, strict=True):
        mask = cv2.imread(str(reduced / "masks" / "image" / name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, truth.mask * np.uint8(255))
        np.testing.assert_array_equal(mask_util.decode(annotation["segmentation"]), truth.mask)
    assert cv2.imread(str(full / "image.png")).shape == (*SIZE, 3)
    picture = cv2.imread(str(reduced / "image.png"))
    assert picture.shape == (37, 50, 3)
    background = ~(OBJECTS[0].mask | OBJECTS[1].mask)[2::4, 2::4][:37, :50]
    assert (picture[12, 15] > 0).any()
    assert (picture[background] == 0).all(axis=-1).mean() > 0.5


def test_no_result_of_a_huge_image_is_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "Predictor", ColorPredictor)
    read = RunMasks.__getitem__

    def part(masks: RunMasks, index: Any) -> Any:
        assert not isinstance(index, int), "a mask of the size of the image"
        return read(masks, index)

    monkeypatch.setattr(RunMasks, "__getitem__", part)
    monkeypatch.setattr(RunMasks, "tensor", None)
    write_map(tmp_path / "map.tif", painted(OBJECTS, SIZE))
    words = ["--config-file", POINTREND, "--classes", ",".join(KINDS)]
    words += ["--input", str(tmp_path / "map.tif"), "--formats", "pictures", "coco", "masks"]
    words += ["--output", str(tmp_path / "out"), "--tile", "64"]
    monkeypatch.setattr(large_outputs, "VIEW", 50)
    monkeypatch.setattr(outputs, "LARGE", 100)
    run_command("predict", [*words, "--opts", *TINY_MODEL, "MODEL.WEIGHTS", "x.pkl"])
    assert len(list((tmp_path / "out" / "masks" / "map").iterdir())) == 2
