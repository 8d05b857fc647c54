"""The tiled predictor: planted colors, tiny real models, exported files, and the command."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from point_rend import Predictor, load_config
from point_rend.cli import run_command
from point_rend.inference import run as run_module
from point_rend.rendering.mask_runs import RunMasks
from point_rend.tiling.tiled import TiledPredictor
from point_rend.tiling.windows import open_windows
from tests.cli.test_predict import PANOPTIC, THREE_CLASSES, checkpoint_of
from tests.runtime.planted import planted
from tests.tiling.planted_tiles import Planted, assert_found, disc, instances
from tests.tiny_datasets import KINDS, POINTREND, TINY_MODEL, process_state_restored

SIZE = (150, 200)
OBJECTS = [
    Planted(disc(SIZE, 60, 50, 40), 1, 0.9),
    Planted(disc(SIZE, 150, 100, 45), 2, 0.8),
    Planted(disc(SIZE, 20, 130, 10), 1, 0.7),
]


def painted(objects: list[Planted] = OBJECTS, size: tuple[int, int] = SIZE) -> np.ndarray:
    """An image in whose pixels blue is the number of an object and green its class."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    for number, x in enumerate(objects, start=1):
        image[x.mask] = number, x.category, 100 * x.score
    return image


class ColorPredictor:
    """Finds the objects of a painted image, or a part of one."""

    def __init__(self, cfg: CfgNode | None = None, **_: Any) -> None:
        self.cfg = cfg or load_config(POINTREND, THREE_CLASSES)
        self.batches: list[list[tuple[int, ...]]] = []

    def unpasted(self) -> "ColorPredictor":
        return self

    def __call__(self, images: list[np.ndarray], *, batch_size: int) -> list[dict[str, Any]]:
        assert batch_size >= len(images)
        self.batches.append([image.shape for image in images])
        return [{"instances": self.one(image)} for image in images]

    @staticmethod
    def one(image: np.ndarray) -> Any:
        found = []
        for number in range(1, image[..., 0].max(initial=0) + 1):
            mask = image[..., 0] == number
            if mask.any():
                _, category, score = image[mask][0].tolist()
                found.append(Planted(mask, category, score / 100))
        return instances(found, image.shape[:2])


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["predict.py"])
    with process_state_restored():
        yield


# With planted colors


@pytest.mark.parametrize("kind", ["array", "memmap", "pil", "png", "tif", "windows"])
def test_each_object_of_an_image_is_found_once_and_to_the_pixel(kind: str, tmp_path: Path) -> None:
    image = painted()
    path = tmp_path / ("image.tif" if kind == "tif" else "image.png")
    cv2.imwrite(str(path), image)
    tiled = TiledPredictor(ColorPredictor(), 64, 0.25, batch_size=3)
    if kind == "windows":
        with open_windows(path) as windows:
            found = tiled(windows)["instances"]
    else:
        mapped = np.memmap(tmp_path / "image.raw", np.uint8, "w+", shape=image.shape)
        mapped[:] = image
        pil = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
        given = {"array": image, "memmap": mapped, "pil": pil}.get(kind, path)
        found = tiled(given)["instances"]
    assert_found(found, OBJECTS)
    assert isinstance(found.pred_masks, RunMasks)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_the_model_sees_tiles_of_one_size_in_batches_and_progress_is_reported() -> None:
    predictor, calls = ColorPredictor(), []
    tiled = TiledPredictor(predictor, 64, batch_size=5, on_tile=lambda *x: calls.append(x))
    tiled(painted())
    count = tiled.grid(SIZE).num_tiles
    assert [len(batch) for batch in predictor.batches] == [5] * (count // 5) + [count % 5]
    assert {shape for batch in predictor.batches for shape in batch} == {(64, 64, 3)}
    assert calls == [(number, count) for number in range(1, count + 1)]


def test_an_image_that_is_no_larger_than_a_tile_has_the_predictor_s_own_result() -> None:
    result: dict[str, Any] = {"anything": object()}

    class Fixed(ColorPredictor):
        def __call__(self, images: list[np.ndarray], *, batch_size: int) -> list[dict[str, Any]]:
            assert len(images) == batch_size == 1
            assert np.array_equal(images[0], painted())
            return [result]

    assert TiledPredictor(Fixed(), 200)(painted()) is result


def test_of_several_images_the_small_ones_share_batches_and_the_order_stays() -> None:
    predictor = ColorPredictor()
    small = [painted([x._replace(mask=x.mask[:60, 30:90])], (60, 60)) for x in OBJECTS]
    images = [small[0], painted(), small[1], small[2]]
    outputs = TiledPredictor(predictor, 64, batch_size=2).many(images)
    assert [len(x["instances"]) for x in outputs] == [1, 3, 0, 0]
    assert [x["instances"].image_size for x in outputs] == [(60, 60), SIZE, (60, 60), (60, 60)]
    assert [(60, 60, 3)] * 2 in predictor.batches
    with pytest.raises(ValueError, match="expected one image or more, got an empty list"):
        TiledPredictor(predictor, 64).many([])


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        (PANOPTIC, [], "PointRendPanopticFPN predicts panoptic segments, which are not merged"),
        (POINTREND, ["MODEL.MASK_ON", "False"], "MODEL.MASK_ON is False: expected True"),
        (POINTREND, ["MODEL.KEYPOINT_ON", "True"], "MODEL.KEYPOINT_ON is True: expected False"),
    ],
)
def test_models_of_other_results_are_refused_by_name(
    config: str, opts: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TiledPredictor(ColorPredictor(load_config(config, opts)))


def test_what_is_no_image_is_refused() -> None:
    tiled = TiledPredictor(ColorPredictor(), 64)
    with pytest.raises(TypeError, match="a PIL image or a path, got int"):
        tiled(7)
    with pytest.raises(FileNotFoundError):
        tiled("missing.png")


# With models


@pytest.fixture
def real(tmp_path: Path) -> Predictor:
    weights = checkpoint_of(tmp_path / "m.pth", thing_classes=list(KINDS))
    return Predictor(load_config(POINTREND, [*TINY_MODEL, *THREE_CLASSES, *weights]))


def test_a_real_model_finds_in_an_inner_tile_what_it_finds_in_that_part_of_the_image(
    real: Predictor,
) -> None:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8), (96, 48))
    one = real(image, tile=96)["instances"]
    expected = real(image)["instances"]
    assert torch.equal(one.pred_masks, expected.pred_masks)  # a tensor, as without tiles
    assert torch.equal(one.pred_boxes.tensor, expected.pred_boxes.tensor)

    merged = real(image, tile=64, overlap=0.1)["instances"]
    assert isinstance(merged.pred_masks, RunMasks)
    assert merged.image_size == (48, 96)
    tiles = [real(image[:, left : left + 64])["instances"] for left in (0, 32)]
    known = torch.cat([x.scores for x in tiles])
    assert len(merged) > 0
    assert all((score == known).any() for score in merged.scores)
    several = real([image[:, :64], image], tile=64, overlap=0.1)
    assert torch.equal(several[0]["instances"].scores, tiles[0].scores)
    assert torch.equal(several[1]["instances"].scores, merged.scores)
    with pytest.raises(ValueError, match="output_size: images in tiles keep their size"):
        real(image, tile=64, output_size=(10, 10))


def test_test_time_augmentation_runs_in_each_tile(tmp_path: Path) -> None:
    weights = checkpoint_of(tmp_path / "m.pth", thing_classes=list(KINDS))
    augmentation = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)"]
    cfg = load_config(POINTREND, [*TINY_MODEL, *THREE_CLASSES, *weights, *augmentation])
    image = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    predictor = Predictor(cfg)
    found = predictor(image, tile=48)["instances"]
    known = torch.cat(
        [predictor(image[:, left : left + 48])["instances"].scores for left in (0, 32)]
    )
    assert len(found) > 0
    assert all((score == known).any() for score in found.scores)


def test_exported_files_run_in_tiles() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 150, 3), dtype=np.uint8)
    found = Predictor.from_exported(planted())(image, tile=64, overlap=0.25)["instances"]
    # The file finds the left quarter of each image. That of a tile within the image is a fragment
    # by its place, of which the tile to the left sees all.
    assert [x.box for x in found.pred_masks[found.pred_classes == 2].masks] == [(0, 0, 64, 16)]
    labels = Predictor.from_exported(planted("labels.onnx"))
    expected = labels(image)["sem_seg"].argmax(dim=0)
    tiles = labels(image, tile=64, overlap=0.25)["labels"]
    assert tiles.dtype == torch.uint8
    assert torch.equal(tiles.long(), expected)  # each pixel stands for itself


# The command


def predict(*arguments: object, opts: list[str] | None = None) -> None:
    words = ["--config-file", POINTREND, "--classes", ",".join(KINDS), *map(str, arguments)]
    run_command("predict", [*words, "--opts", *TINY_MODEL, "MODEL.WEIGHTS", "x.pkl", *(opts or [])])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of which one fits in a tile."""
    monkeypatch.setattr(run_module, "Predictor", ColorPredictor)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "large.tif"), painted())
    cv2.imwrite(str(tmp_path / "in" / "small.png"), painted()[20:80, 30:90])
    return tmp_path / "in"


def test_results_in_tiles_are_those_of_the_whole_image(folder: Path, tmp_path: Path) -> None:
    formats = ["--formats", "pictures", "coco", "masks"]
    predict("--input", folder, "--output", tmp_path / "whole", *formats)
    tiles = ["--tile", 64, "--overlap", 0.3, "--batch-size", 4]
    predict("--input", folder, "--output", tmp_path / "tiles", *formats, *tiles)
    names = sorted(str(x.relative_to(tmp_path / "whole")) for x in (tmp_path / "whole").rglob("*"))
    assert len(names) > 8
    assert names == sorted(
        str(x.relative_to(tmp_path / "tiles")) for x in (tmp_path / "tiles").rglob("*")
    )
    for name in names:
        whole, tiled = tmp_path / "whole" / name, tmp_path / "tiles" / name
        if name.endswith(".json"):
            assert json.loads(tiled.read_bytes()) == json.loads(whole.read_bytes())
        elif whole.is_file() and not name.endswith("jsonl"):
            pixels = [cv2.imread(str(x), cv2.IMREAD_UNCHANGED) for x in (tiled, whole)]
            assert np.array_equal(*pixels), name
    content = json.loads((tmp_path / "tiles" / "instances.json").read_text())
    large = next(x["id"] for x in content["images"] if x["file_name"] == "large.tif")
    found = [x for x in content["annotations"] if x["image_id"] == large]
    assert len(found) == len(OBJECTS)
    for annotation, truth in zip(found, OBJECTS, strict=True):
        assert np.array_equal(mask_util.decode(annotation["segmentation"]), truth.mask)


def test_other_tiles_do_not_continue_a_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", folder, "--output", tmp_path / "out", "--formats", "coco"]
    predict(*arguments, "--tile", 64)
    before = (tmp_path / "out" / "instances.json").read_bytes()
    predict(*arguments, "--tile", 64, "--overlap", 0.2)  # the default
    assert "2 of 2 images are finished: nothing is left to do" in capsys.readouterr().err
    for other in (["--tile", 64, "--overlap", 0.5], ["--tile", 80], []):
        with pytest.raises(SystemExit, match="2"):
            predict(*arguments, *other)
        assert "holds the results of another run (different: tiles)" in capsys.readouterr().err
    assert (tmp_path / "out" / "instances.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--overlap", "0.3"], "--overlap needs --tile"),
        (["--tile", "8"], "--tile: expected a whole number of 16 or more, got 8"),
        (["--tile", "64", "--overlap", "1"], "--overlap: expected a number from 0 to 0.9, got 1.0"),
        (["--tile", "64", "--overlap", "nan"], "--overlap: expected a number from 0 to 0.9"),
    ],
)
def test_sizes_that_make_no_tiles_are_one_error(
    words: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict("--input", folder, "--output", tmp_path / "out", *words)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_image_that_breaks_off_is_named_and_does_not_stop_the_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (folder / "large.tif").read_bytes()
    (folder / "broken.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit, match="1"):
        predict("--input", folder, "--output", tmp_path / "out", "--tile", 64)
    assert "broken.tif" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(x.name for x in (tmp_path / "out").iterdir() if x.suffix != ".jsonl") == [
        "large.tif",
        "small.png",
    ]
