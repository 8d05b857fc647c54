"""The semantic demo: three ways to label, pictures, and a small run from nothing to them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from point_rend import load_config
from point_rend.cli import demo_semantic
from point_rend.experiments.demo import semantic
from point_rend.visualization.drawing import paint_labels
from tests.tiny_datasets import REPOSITORY


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    cfg = load_config(
        demo_semantic.CONFIG, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19", "MODEL.DEVICE", "cpu"]
    )
    return build_model(cfg).eval()


@pytest.mark.parametrize("size", [(64, 96), (70, 101)])
def test_each_way_labels_every_pixel(model, size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    maps = semantic.predict(model, image)
    assert len(maps) == len(semantic.METHODS)
    for labels in maps:
        assert labels.dtype == np.uint8
        assert labels.shape == size
        assert labels.max() < semantic.NUM_CLASSES


def test_the_nearest_coarse_labels_are_blocks_of_one_stride(model):
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    coarse = semantic.predict(model, image)[0]
    blocks = coarse[::8, ::8]
    np.testing.assert_array_equal(coarse, np.kron(blocks, np.ones((8, 8), dtype=np.uint8)))


def test_classes_have_the_colors_of_cityscapes_and_void_is_black():
    painted = paint_labels(np.array([[0, 13, 255]], dtype=np.uint8), semantic.COLORS)
    np.testing.assert_array_equal(painted, [[[128, 64, 128], [142, 0, 0], [0, 0, 0]]])


def test_the_largest_object_of_a_class_is_found_with_its_box():
    ids = np.full((8, 10), 7, dtype=np.uint16)
    ids[1:3, 1:3], ids[4:8, 2:5], ids[0, 9] = 26000, 26001, 24000
    found = semantic.largest_boxes(ids)
    assert {label: area for label, (area, _) in found.items()} == {24: 1, 26: 12}
    assert found[26][1].tolist() == [2, 4, 5, 8]
    assert found[24][1].tolist() == [9, 0, 10, 1]


def test_the_quick_demo_runs_from_nothing_to_pictures(tmp_path: Path, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    demo_semantic.main(["--quick", "--output", str(tmp_path)])
    out, _ = capfd.readouterr()
    assert out.count("\n$ ") == 2
    assert out.count("\n--- ") == out.count("\n=== ") == 3
    assert f"\n$ DETECTRON2_DATASETS={tmp_path} pointrend train --resume --config-file " in out
    assert "Score Average" in out  # of the scripts of Cityscapes
    table = out.split("=== Compare")[1]
    assert "boundary mIoU" in table
    assert all(name in table for name in semantic.METHODS)
    picture = cv2.imread(str(tmp_path / "pictures" / "images.png"))
    height, width = (side * semantic.MAGNIFICATION for side in demo_semantic.IMAGE_SIZE)
    assert picture.shape[0] > 2 * height
    assert picture.shape[1] > 5 * width
    assert cv2.imread(str(tmp_path / "pictures" / "closeups.png")) is not None
