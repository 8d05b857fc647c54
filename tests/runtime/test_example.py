"""The example that runs a file without PyTorch, in a process that has none."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pycocotools.mask
import pytest
import torch
from detectron2.data.transforms import AugInput, AugmentationList
from PIL import Image

from examples import run_onnx, serve_onnx
from point_rend import Predictor, load_config
from point_rend.data.augmentation import build_augmentations
from point_rend.runtime.description import KEY, Description
from tests.commands import ENVIRONMENT
from tests.conftest import REPOSITORY
from tests.runtime.planted import INSTANCE_CONFIG, description, planted, redescribed
from tests.tiny_datasets import KINDS

EXAMPLE = REPOSITORY / "examples" / "run_onnx.py"
# Every import of them raises, as where they are not installed.
WITHOUT_PYTORCH = """
import runpy, sys
for name in ("torch", "torchvision", "detectron2", "point_rend", "cv2", "pycocotools"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_example(model: Path, picture: Path) -> list[dict]:
    command = [sys.executable, "-c", WITHOUT_PYTORCH, str(EXAMPLE), str(model), str(picture)]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def photograph(path: Path, size: tuple[int, int], orientation: int = 1) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(size[1] // 8, size[0] // 8, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels.astype(np.uint8)).resize(size).save(path, exif=exif)
    return path


def rle(mask: np.ndarray) -> dict[str, object]:
    """Encode a mask with pycocotools."""
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


@pytest.mark.parametrize(("size", "orientation"), [((212, 148), 6), ((76, 92), 1)])
def test_it_finds_the_instances_and_masks_of_the_predictor(
    tmp_path: Path, size: tuple[int, int], orientation: int
):
    picture = photograph(tmp_path / "photo.jpg", size, orientation)
    instances = Predictor(planted())(picture)["instances"]
    found = run_example(planted(), picture)
    assert [x["name"] for x in found] == [KINDS[k] for k in instances.pred_classes]
    assert [x["score"] for x in found] == pytest.approx(instances.scores.tolist(), abs=1e-6)
    boxes = torch.tensor([x["box"] for x in found])
    torch.testing.assert_close(boxes, instances.pred_boxes.tensor, atol=0.01, rtol=0)
    assert [x["mask"] for x in found] == [rle(mask) for mask in instances.pred_masks.numpy()]


def test_it_finds_the_labels_of_the_predictor(tmp_path: Path):
    model = planted("labels.onnx")
    picture = photograph(tmp_path / "photo.jpg", (212, 148))
    labels = Predictor(model)(picture)["sem_seg"].argmax(0).numpy()
    found = run_example(model, picture)
    names = ["ground", *KINDS]
    assert [x["name"] for x in found] == [names[k] for k in np.unique(labels)]
    for x in found:
        own = pycocotools.mask.decode(x["mask"])
        assert (own != (labels == names.index(x["name"]))).mean() < 1e-4  # ties of rounded logits


def test_it_is_short_and_needs_three_packages():
    code = EXAMPLE.read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 60
    imported = {
        line.split()[1] for line in code.splitlines() if line.startswith(("import", "from"))
    }
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}


class Recorder:
    """A session that finds nothing, and keeps its inputs."""

    def __init__(self, described: Description) -> None:
        self.custom_metadata_map = {KEY: described.to_json()}

    def get_modelmeta(self) -> "Recorder":
        return self

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.inputs = inputs
        return [np.zeros((0, 4)), *(np.zeros(0) for _ in range(3)), np.zeros((0, 1, 8, 8))]


@pytest.mark.parametrize(
    ("min_size", "max_size"), [(64, 1333), (64, 70), (100, 120), (0, 0), (800, 1333)]
)
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_it_prepares_pictures_as_the_models_do(tmp_path, min_size, max_size, order):
    described = dataclasses.replace(
        description(), image_format=order, min_size=min_size, max_size=max_size
    )
    cfg = load_config(INSTANCE_CONFIG)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = min_size, max_size
    augmentations = AugmentationList(build_augmentations(cfg, is_train=False))
    session = Recorder(described)
    for size in ((64, 64), (211, 150), (33, 200), (97, 64)):
        picture = Image.open(photograph(tmp_path / "photo.png", size))
        augmented = AugInput(np.asarray(picture)[..., :: -1 if order == "BGR" else 1])
        augmentations(augmented)
        assert run_onnx.segment(session, picture) == []
        images, ((height, width),) = session.inputs["images"], session.inputs["sizes"]
        assert augmented.image.shape == (height, width, 3)
        assert images.dtype == np.float32
        assert images.shape == (1, 3, *(-(-side // 32) * 32 for side in (height, width)))
        padded = np.zeros((*images.shape[2:], 3), np.float32)
        padded[:height, :width] = augmented.image
        np.testing.assert_array_equal(images[0].transpose(1, 2, 0), padded)


@pytest.mark.parametrize("fields", [{"channels": 4}, {"bits": 12}, {"channels": 1}])
def test_models_of_other_images_end_it_with_a_line(fields, tmp_path, monkeypatch):
    model = redescribed(tmp_path / "model.onnx", planted(), description(**fields))
    session = onnxruntime.InferenceSession(model)
    with pytest.raises(SystemExit, match="not an 8-bit RGB model"):
        run_onnx.segment(session, Image.new("RGB", (9, 9)))
    monkeypatch.setenv("POINT_REND_MODEL", str(model))
    with pytest.raises(SystemExit, match="not an 8-bit RGB model"):
        serve_onnx.build_app()


def test_it_takes_the_upper_half_of_16_bits_and_numbers_classes_without_names(tmp_path):
    model, picture = tmp_path / "model.onnx", tmp_path / "photo.png"
    redescribed(model, planted(), description(classes=()))
    pixels = np.random.default_rng(0).integers(65536, size=(64, 96), dtype=np.uint16)
    Image.fromarray(pixels).save(picture)
    instances = Predictor(model)(picture)["instances"]
    session = onnxruntime.InferenceSession(model)
    found = run_onnx.segment(session, Image.open(picture))
    assert [x["name"] for x in found] == instances.pred_classes.tolist()
    assert [x["score"] for x in found] == pytest.approx(instances.scores.tolist(), abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 300), (3, 2000)])
def test_it_encodes_masks_as_pycocotools_does(size, share):
    mask = np.random.default_rng(1).random(size) < share
    assert run_onnx.encode(mask) == rle(mask)
