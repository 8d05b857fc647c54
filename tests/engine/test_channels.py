"""Models of four channels with 16 bits and of gray: training, evaluation and prediction."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import torch
from detectron2.modeling import build_model
from PIL import Image

from point_rend import Predictor, SafeDetectionCheckpointer, load_config
from point_rend.cli import run_command, train
from point_rend.data.mapper import NamingDatasetMapper
from tests.runs import metrics, refusal
from tests.tiny_datasets import HEIGHT, POINTREND, TINY_MODEL, WIDTH, CocoSet, write_coco
from tests.tiny_semantic import write_sem_seg

pytestmark = pytest.mark.usefixtures("_restored")

FOUR = [
    *("INPUT.CHANNELS", "4", "INPUT.BITS", "16", "INPUT.FORMAT", "RGB"),
    *(
        "MODEL.PIXEL_MEAN",
        "[99.0, 98.0, 97.0, 96.0]",
        "MODEL.PIXEL_STD",
        "[50.0, 51.0, 52.0, 53.0]",
    ),
]
GRAY = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[99.0]", "MODEL.PIXEL_STD", "[50.0]"]


def four_channels(picture: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3) in BGR order with its mean as the fourth channel, 16 bits."""
    mean = picture.mean(axis=2, keepdims=True).astype(np.uint8)
    return np.concatenate([picture[:, :, ::-1], mean], axis=2).astype(np.uint16) * 257


def save(path: Path, values: np.ndarray) -> None:
    """Write values (H, W, B) as `.npy` or TIFF."""
    if path.suffix == ".npy":
        np.save(path, values)
        return
    height, width, count = values.shape
    place = rasterio.Affine(1, 0, 9, 0, -1, 9)
    sizes = {"height": height, "width": width, "count": count, "dtype": values.dtype}
    with rasterio.open(path, "w", "GTiff", transform=place, **sizes) as file:
        file.write(np.moveaxis(values, 2, 0))


def write_four(folder: Path, suffix: str) -> CocoSet:
    """Write the tiny data set with images of four channels."""
    written = write_coco(folder)
    content = written.read()
    for record in content["images"]:
        file = Path(written.image_root, record["file_name"])
        save(file.with_suffix(suffix), four_channels(cv2.imread(str(file))))
        file.unlink()
        record["file_name"] = file.with_suffix(suffix).name
    written.rewrite(content)
    return written


def command(written: CocoSet, output: Path, *more: str) -> list[str]:
    """Build a command line that trains and evaluates on a data set."""
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    flags = ["--config-file", POINTREND, "--register-coco", "tiny", *written]
    return [*flags, *TINY_MODEL, *names, "OUTPUT_DIR", str(output), *more]


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_four_channels_of_16_bits_are_trained_on_evaluated_and_predicted(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, output = write_four(tmp_path / "tiny", suffix), tmp_path / "out"
    train.main(command(written, output, *FOUR))
    training, evaluation = metrics(output)
    assert training["loss_mask_point"] > 0
    assert "segm/AP" in evaluation
    stem = torch.load(output / "model_final.pth")["model"]["backbone.bottom_up.stem.conv1.weight"]
    assert stem.shape[1] == 4
    monkeypatch.setattr("sys.argv", ["predict.py"])
    argv = ["--config-file", str(output / "config.yaml"), "--input", written.image_root]
    argv += ["--output", str(tmp_path / "found"), "--formats", "pictures", "coco"]
    argv += ["--confidence-threshold", "0", "--opts"]
    run_command("predict", [*argv, "MODEL.WEIGHTS", str(output / "model_final.pth")])
    found = json.loads((tmp_path / "found" / "instances.json").read_text())
    names = [f"{number:03d}{suffix}" for number in range(2)]
    assert [(x["file_name"], x["height"], x["width"]) for x in found["images"]] == [
        (name, HEIGHT, WIDTH) for name in names
    ]
    for name in names:
        result = name if suffix == ".tif" else f"{name}.png"
        assert np.asarray(Image.open(tmp_path / "found" / result)).shape == (HEIGHT, WIDTH, 3)


def gray_set(folder: Path) -> CocoSet:
    """Write the tiny data set in gray."""
    written = write_coco(folder)
    for file in Path(written.image_root).iterdir():
        Image.open(file).convert("L").save(file)
    return written


def test_a_gray_training_starts_from_the_weights_of_colors(tmp_path: Path) -> None:
    cfg = load_config(POINTREND, [*TINY_MODEL, "MODEL.ROI_HEADS.NUM_CLASSES", "3"])
    colors = build_model(cfg)
    torch.save({"model": colors.state_dict()}, tmp_path / "colors.pth")
    output = tmp_path / "out"
    more = [*GRAY, "MODEL.WEIGHTS", str(tmp_path / "colors.pth"), "SOLVER.BASE_LR", "0.0"]
    train.main(command(gray_set(tmp_path / "tiny"), output, *more))
    key = "backbone.bottom_up.stem.conv1.weight"
    gray = torch.load(output / "model_final.pth")["model"][key]
    torch.testing.assert_close(gray, colors.state_dict()[key].sum(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("five.npy", np.zeros((HEIGHT, WIDTH, 5), np.uint16), "has 5 channels, expected 4 (INPUT"),
        ("bytes.npy", np.zeros((HEIGHT, WIDTH, 4), np.uint8), "has 8 bits a channel, expected 16"),
        (
            "minus.npy",
            np.full((HEIGHT, WIDTH, 4), -1, np.int32),
            "values from -1 to -1: expected",
        ),
        ("objects.npy", np.array([[{}, {}]]), "holds Python objects"),
        ("small.npy", np.zeros((9, 7, 4), np.uint16), "is 7 x 9 pixels, expected 96 x 64"),
        ("five.tif", np.zeros((HEIGHT, WIDTH, 5), np.uint16), "has 5 channels, expected 4 (INPUT"),
    ],
)
def test_images_that_do_not_fit_stop_a_training_before_it_begins(
    name: str, values: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_four(tmp_path / "tiny", ".npy")
    content = written.read()
    content["images"][1]["file_name"] = name
    written.rewrite(content)
    if name == "objects.npy":
        np.save(Path(written.image_root, name), values, allow_pickle=True)
    else:
        save(Path(written.image_root, name), values)
    line = refusal(command(written, tmp_path / "out", *FOUR), capsys)
    assert name in line
    assert message in line


def tiny_predictor(*opts: str, path: Path) -> Predictor:
    """Return a predictor of the same weights for all options that leave the channels alone."""
    more = ["MODEL.ROI_HEADS.NUM_CLASSES", "3", *opts, "MODEL.WEIGHTS", str(path)]
    cfg = load_config(POINTREND, [*TINY_MODEL, *more])
    if not path.exists():
        torch.manual_seed(0)
        cfg.MODEL.WEIGHTS = ""
        SafeDetectionCheckpointer(build_model(cfg), str(path.parent)).save(path.stem)
        cfg.MODEL.WEIGHTS = str(path)
    return Predictor(cfg)


@pytest.mark.parametrize("order", ["RGB", "L"])
def test_16_bits_give_what_the_same_picture_gives_with_8(order: str, tmp_path: Path) -> None:
    written = write_coco(tmp_path / "tiny")
    file = Path(written.image_root, "000.png")
    picture = cv2.imread(str(file))
    if order == "L":  # of a color, Pillow rounds the gray value of 8 bits
        picture = picture[:, :, :1].repeat(3, axis=2)
        cv2.imwrite(str(file), picture)
    opts = ["INPUT.FORMAT", order, *(GRAY[2:] if order == "L" else [])]
    plain = tiny_predictor(*opts, path=tmp_path / "model.pth")
    deep = tiny_predictor(*opts, "INPUT.BITS", "16", path=tmp_path / "model.pth")
    cv2.imwrite(str(tmp_path / "deep.png"), picture.astype(np.uint16) * 257)
    expected = plain(str(file))["instances"]
    assert len(expected)
    for image in (tmp_path / "deep.png", picture.astype(np.uint16) * 257):
        found = deep(image)["instances"]
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.pred_masks, expected.pred_masks)


def test_a_picture_is_resized_the_same_with_16_bits_as_with_8(tmp_path: Path) -> None:
    written = write_coco(tmp_path / "tiny")
    picture = cv2.imread(str(Path(written.image_root, "000.png")))
    sizes = ["INPUT.MIN_SIZE_TEST", "23"]
    plain = tiny_predictor(*sizes, path=tmp_path / "model.pth").inputs(picture)["image"]
    deep = tiny_predictor(*sizes, "INPUT.BITS", "16", path=tmp_path / "model.pth")
    resized = deep.inputs(picture.astype(np.uint16) * 257)["image"]
    assert resized.dtype == torch.float32
    assert resized.shape == plain.shape
    assert (resized - plain).abs().max() < 1.1  # 8 bits are rounded twice


def test_a_mapper_gives_what_the_predictor_gives(tmp_path: Path) -> None:
    written = write_four(tmp_path / "tiny", ".npy")
    predictor = tiny_predictor(*FOUR, path=tmp_path / "model.pth")
    file = str(Path(written.image_root, "000.npy"))
    record = {"file_name": file, "height": HEIGHT, "width": WIDTH, "image_id": 1}
    mapped = NamingDatasetMapper(predictor.cfg, is_train=False)(record)["image"]
    assert mapped.shape == (4, 64, 96)
    assert torch.equal(mapped, predictor.inputs(file)["image"])
    assert torch.equal(mapped, predictor.inputs(np.load(file))["image"])


def test_tiles_of_four_channels_are_those_of_the_whole_image(tmp_path: Path) -> None:
    written = write_four(tmp_path / "tiny", ".tif")
    predictor = tiny_predictor(*FOUR, path=tmp_path / "model.pth")
    file = str(Path(written.image_root, "000.tif"))
    whole, tiled = predictor(file)["instances"], predictor(file, tile=96)["instances"]
    torch.testing.assert_close(tiled.scores, whole.scores)
    assert len(predictor(file, tile=64)["instances"])


def test_arrays_of_other_channels_are_refused(tmp_path: Path) -> None:
    predictor = tiny_predictor(*FOUR, path=tmp_path / "model.pth")
    message = re.escape("expected an array (H, W, 4) of type uint16, or float32 from 0 to 1")
    with pytest.raises(ValueError, match=message):
        predictor(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="has 8 bits a channel"):
        predictor(np.zeros((8, 8, 4), np.uint8))


def test_a_video_is_refused_by_name(tmp_path, monkeypatch, capsys) -> None:
    tiny_predictor(*FOUR, path=tmp_path / "model.pth")
    monkeypatch.setattr("sys.argv", ["predict.py"])
    argv = ["--config-file", POINTREND, "--video-input", "x.mp4", "--output", str(tmp_path / "o")]
    argv += ["--opts", *TINY_MODEL, *FOUR, "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    with pytest.raises(SystemExit):
        run_command("predict", [*argv, "MODEL.WEIGHTS", str(tmp_path / "model.pth")])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--video-input: a video has colors of 8 bits" in line
    assert "INPUT.CHANNELS 4, INPUT.BITS 16" in line


def test_label_maps_go_with_arrays(tmp_path: Path) -> None:
    images, labels, classes = write_sem_seg(tmp_path / "set", scales=(1, 1))
    for file in list(Path(images).iterdir()):
        np.save(file.with_suffix(".npy"), four_channels(cv2.imread(str(file))))
        file.unlink()
    flags = ["--config-file", "pointrend_semantic_R_50_FPN_1x_coco", "--register-sem-seg", "tiny"]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    small = ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "INPUT.COLOR_AUG_SSD", "False"]
    small += ["INPUT.CROP.ENABLED", "False", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"]
    small += ["MODEL.SEM_SEG_HEAD.POINT_HEAD.FC_DIM", "16"]
    output = tmp_path / "out"
    argv = [*flags, images, labels, classes, *TINY_MODEL, *names, *small, *FOUR]
    train.main([*argv, "OUTPUT_DIR", str(output)])
    assert "sem_seg/mIoU" in metrics(output)[-1]
