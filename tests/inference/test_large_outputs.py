"""Outputs of huge images are written and reduced part by part, with the same content."""

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from detectron2.structures import Boxes, Instances
from rasterio import Affine

from point_rend.inference import large_outputs
from point_rend.inference.large_outputs import (
    LabelView,
    instances_in_view,
    read_view,
    view_step,
    write_label_map,
)
from point_rend.rendering.box_masks import Crop
from point_rend.rendering.mask_runs import MaskRuns, RunMasks
from point_rend.tiling.windows import DecodedImage
from point_rend.utils.pictures import PictureError, read_label_map


def random_labels(size: tuple[int, int], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, size, dtype=dtype)


def in_bands(labels: np.ndarray, height: int) -> Iterator[np.ndarray]:
    return (labels[top : top + height] for top in range(0, len(labels), height))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["labels.png", "labels.tif"])
@pytest.mark.parametrize("height", [100, 512, 700])
def test_a_label_map_is_written_band_by_band(
    name: str, height: int, dtype: type, tmp_path: Path
) -> None:
    labels = random_labels((1100, 530), dtype)
    path = tmp_path / "new" / name
    write_label_map(path, in_bands(labels, height), labels.shape)
    np.testing.assert_array_equal(read_label_map(path), labels)
    assert [x.name for x in path.parent.iterdir()] == [name]


def test_a_label_map_lies_where_its_image_lies(tmp_path: Path) -> None:
    place = {"crs": rasterio.CRS.from_epsg(32632), "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6)}
    labels = random_labels((600, 500))
    write_label_map(tmp_path / "labels.tif", in_bands(labels, 100), labels.shape, place)
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert (file.crs, file.transform) == (place["crs"], place["transform"])
        np.testing.assert_array_equal(file.read(1), labels)


@pytest.mark.parametrize("name", ["labels.png", "labels.tif"])
@pytest.mark.parametrize("size", [(599, 500), (601, 500)])
def test_a_label_map_without_all_rows_is_not_written(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    bands = in_bands(random_labels((600, 500)), 100)
    with pytest.raises((ValueError, OSError)):
        write_label_map(tmp_path / name, bands, size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["labels.png", "labels.tif"])
def test_an_error_of_the_image_is_not_one_of_the_label_map(name: str, tmp_path: Path) -> None:
    def bands() -> Iterator[np.ndarray]:
        yield from in_bands(random_labels((600, 500)), 100)
        raise PictureError("image.tif", "is truncated")

    with pytest.raises(PictureError, match=r"image\.tif is truncated"):
        write_label_map(tmp_path / name, bands(), (900, 500))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["labels.png", "labels.tif"])
@pytest.mark.parametrize("missing", [1, 1000, 100_000])
def test_a_full_disk_is_noticed_up_to_the_last_byte(
    name: str, missing: int, tmp_path: Path
) -> None:
    labels = random_labels((1100, 530))
    write_label_map(tmp_path / name, [labels], labels.shape)
    size = (tmp_path / name).stat().st_size
    (tmp_path / name).unlink()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, most))
    try:
        with pytest.raises(OSError, match=rf"{name} could not be saved"):
            write_label_map(tmp_path / name, [labels], labels.shape)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "step"),
    [((4096, 100), 1), ((4097, 100), 2), ((10_000, 8192), 3), ((2, 40_960), 2), ((1, 9000), 1)],
)
def test_a_view_is_bounded_and_never_empty(size: tuple[int, int], step: int) -> None:
    assert view_step(size) == step


@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_pixel_of_a_view_is_the_mean_of_a_square(
    step: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_outputs, "CHUNK", 500)
    random = np.random.default_rng(0)
    pixels = (random.random((62, 87, 3)) * (1 if dtype is np.float32 else 255)).astype(dtype)
    view = read_view(DecodedImage(pixels), step)
    assert (view.dtype, view.shape) == (dtype, (62 // step, 87 // step, 3))
    rounding = 1e-6 if dtype is np.float32 else 0.5 + 1e-4
    for row in range(len(view)):
        for column in range(view.shape[1]):
            square = pixels[row * step :, column * step :][:step, :step]
            expected = square.mean((0, 1), dtype=np.float64)
            assert np.abs(view[row, column] - expected).max() <= rounding


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("height", [1, 3, 7, 62])
def test_labels_of_a_view_are_those_in_the_middle_of_squares(step: int, height: int) -> None:
    labels = random_labels((62, 87))
    view = LabelView(labels.shape, step)
    passed = np.concatenate(list(view.collect(in_bands(labels, height))))
    np.testing.assert_array_equal(passed, labels)
    middle = labels[step // 2 :: step, step // 2 :: step][: 62 // step, : 87 // step]
    np.testing.assert_array_equal(view.labels, middle)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_masks_of_a_view_are_those_in_the_middle_of_squares(step: int) -> None:
    size = (62, 87)
    random = np.random.default_rng(0)
    masks = random.random((6, *size)) < np.array([0.1, 0.5, 0.9, 1, 0, 0])[:, None, None]
    masks[5, 61, 86] = True  # in no middle
    found = Instances(
        size,
        pred_boxes=Boxes(torch.tensor([[10.0, 20.0, 30.0, 40.0]]).repeat(6, 1)),
        scores=torch.arange(6) / 10,
        pred_masks=RunMasks([MaskRuns.of(Crop.of(mask)) for mask in masks], size),
    )
    view = instances_in_view(found, step)
    expected = masks[:, step // 2 :: step, step // 2 :: step][:, : 62 // step, : 87 // step]
    kept = expected.any((1, 2))
    assert view.image_size == expected.shape[1:]
    np.testing.assert_array_equal(np.stack([x.numpy() for x in view.pred_masks]), expected[kept])
    np.testing.assert_array_equal(view.scores, found.scores[torch.from_numpy(kept)])
    np.testing.assert_array_equal(view.pred_boxes.tensor[0] * step, [10, 20, 30, 40])
