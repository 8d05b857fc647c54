"""Predictions, figures and the pictures of the demos on a pretended GPU: those of the CPU."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from point_rend import load_config
from point_rend.cli import demo, demo_semantic, predict, visualize
from point_rend.experiments.demo import instances, semantic, steps
from point_rend.inference import predictor as predictor_module
from point_rend.inference.predictor import Predictor
from tests.cli.test_predict import PANOPTIC, SEMANTIC, THREE_CLASSES, TINY_SEMANTIC, checkpoint_of
from tests.pretended_cuda import Record
from tests.tiny_datasets import POINTREND, TINY_MODEL, process_state_restored, scene

MODELS = {
    "instances": (POINTREND, THREE_CLASSES),
    "semantic": (SEMANTIC, TINY_SEMANTIC),
    "panoptic": (PANOPTIC, [*THREE_CLASSES, *TINY_SEMANTIC]),
}


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["pointrend"])
    with process_state_restored():
        yield


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    file = tmp_path / "scene.png"
    cv2.imwrite(str(file), scene(0)[0])
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {str(x.relative_to(folder)): x.read_bytes() for x in folder.rglob("*") if x.is_file()}


@pytest.mark.parametrize("kind", MODELS)
def test_predictions_and_figures_are_those_of_the_cpu(
    kind: str, image_file: Path, cuda: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU, sums are computed in another order.
    monkeypatch.setattr(predictor_module, "prepare_for_inference", lambda model: model)
    # The pretended device counts all tensors without storage, those of the trial as well.
    monkeypatch.setattr(predictor_module, "check_model", lambda *_, **__: None)
    config, opts = MODELS[kind]
    weights = checkpoint_of(image_file.parent / "model.pth", config=config, opts=opts)
    opts = [*TINY_MODEL, *opts, *weights]
    folders = []
    for device in ("cpu", "cuda"):
        cuda.clear()
        folder = image_file.parent / device
        more = ["--config-file", config, "--confidence-threshold", "0", "--opts", *opts]
        more += ["MODEL.DEVICE", device]
        predict.main(["--input", str(image_file), "--output", str(folder / "predict"), *more])
        figures = ["--output", str(folder / "figures"), "--formats", "png"]
        visualize.main(["--input", str(image_file), *figures, *more])
        assert (cuda.num_operations > 0) == (device == "cuda")
        folders.append(contents(folder))
    assert len(folders[0]) > 2
    assert folders[0] == folders[1]


@pytest.mark.usefixtures("cuda")
def test_the_device_of_a_predictor_is_an_argument_or_that_of_the_config(image_file: Path) -> None:
    path = image_file.parent / "model.pth"
    checkpoint_of(path)
    image = scene(0)[0]
    results = []
    for device in ("cpu", "cuda", "cuda:0"):
        opts = [*TINY_MODEL, *THREE_CLASSES, "TEST.AUG.ENABLED", "False"]
        predictor = Predictor.from_config_file(POINTREND, opts, weights=path, device=device)
        assert predictor.model.device.type == device[:4].rstrip(":")
        results.append(predictor([image, image], batch_size=2)[1]["instances"].to("cpu"))
    for found in results[1:]:
        assert torch.equal(found.pred_masks, results[0].pred_masks)
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is cuda:1, but this machine has 1 CUDA"):
        Predictor.from_config_file(POINTREND, opts, weights=path, device="cuda:1")


def test_a_prediction_without_enough_memory_ends_with_what_to_lower(
    image_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    weights = checkpoint_of(image_file.parent / "model.pth")
    monkeypatch.setattr(Predictor, "__call__", run_out_of_memory)
    words = ["--input", str(image_file), "--output", str(image_file.parent / "output")]
    with pytest.raises(SystemExit) as ended:
        predict.main(
            [*words, "--config-file", POINTREND, "--opts", *TINY_MODEL, *THREE_CLASSES, *weights]
        )
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "MODEL.DEVICE cpu ran out of memory: lower --batch-size or INPUT.MIN_SIZE_TEST" in error


# Demos


class Enough(Exception):  # noqa: N818
    """Ends a demo that is only to print its commands."""


@pytest.mark.parametrize(("command", "num_steps"), [(demo, 3), (demo_semantic, 2)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_demos_use_the_gpu_where_there_is_one(
    device: str,
    command: ModuleType,
    num_steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_step(title: str, words: Sequence[object], **_: object) -> None:
        shown.append([str(word) for word in words])
        if len(shown) == num_steps:
            raise Enough(title)

    shown: list[list[str]] = []
    monkeypatch.setattr(steps, "run_step", run_step)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    with pytest.raises(Enough):
        command.main(["--output", str(tmp_path)])
    _, *models = shown
    for words in models:
        chosen = " ".join(words).partition("MODEL.DEVICE ")[2].split()[:1]
        assert chosen == (["cuda"] if device == "cuda" else [])


def test_the_pictures_of_the_demos_are_those_of_the_cpu(cuda: Record) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    small = ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.WEIGHTS", ""]
    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19"]
    shown: dict[str, list] = {"cpu": [], "cuda": []}
    for device, results in shown.items():
        for config in (demo.CONFIG, demo_semantic.CONFIG):
            torch.manual_seed(0)
            opts = [*small, *classes, "MODEL.DEVICE", device]
            predictor = Predictor(load_config(config, opts))
            if config == demo.CONFIG:
                results += instances.predict(predictor, image)
            else:
                results += semantic.predict(predictor.model, image)
    assert cuda.num_operations > 0
    assert all(isinstance(x, np.ndarray) for x in shown["cuda"])
    for found, expected in zip(shown["cuda"], shown["cpu"], strict=True):
        np.testing.assert_array_equal(found, expected)
