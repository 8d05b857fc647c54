"""The example that runs a file without PyTorch, in a process that has none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image

from point_rend import Predictor
from tests.commands import ENVIRONMENT
from tests.conftest import REPOSITORY
from tests.runtime.planted import planted
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
