"""The command that exports: a small model in a file, compared with the model."""

import contextlib
import dataclasses
import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from point_rend import Predictor, SafeDetectionCheckpointer, load_config
from point_rend.cli import evaluate, run_command
from point_rend.cli.export import parse
from point_rend.config.dumping import dump_config
from point_rend.config.loading import parse_config
from point_rend.engine import run, setup
from point_rend.export import run as export_run
from point_rend.export.accuracy import AccuracyOfFiles
from point_rend.runtime.files import read_description
from tests.runs import instance_predictions
from tests.runtime.planted import planted, redescribed
from tests.tiny_datasets import (
    KINDS,
    POINTREND,
    TINY_MODEL,
    CocoSet,
    process_state_restored,
    scene,
    write_coco,
)

CATEGORIES = (3, 7, 12)


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["pointrend"])
    with process_state_restored():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random model, its config, and a data set."""
    folder = tmp_path_factory.mktemp("model")
    norm = ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.CONV_DIM", "16"]
    norm += ["MODEL.ROI_BOX_HEAD.NORM", "BN", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    cfg = load_config(POINTREND, [*TINY_MODEL, *norm])
    torch.manual_seed(0)
    to_index = {identity: k for k, identity in enumerate(CATEGORIES)}
    metadata = {"thing_classes": list(KINDS), "thing_dataset_id_to_contiguous_id": to_index}
    SafeDetectionCheckpointer(build_model(cfg), str(folder), metadata=metadata).save("model")
    (folder / "config.yaml").write_text(dump_config(cfg))
    write_coco(folder / "data", categories=CATEGORIES)
    return folder


def export(folder: Path, output: Path, *words: str) -> str:
    """Export the model; return what is printed."""
    argv = ["--config-file", str(folder / "config.yaml"), "--output", str(output), *words]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_command("export", [*argv, "--opts", "MODEL.WEIGHTS", str(folder / "model.pth")])
    return printed.getvalue()


SLOW = pytest.param("onnx", marks=pytest.mark.slow)  # PyTorch's exporter takes most of a minute


@pytest.fixture(scope="module", params=["torchscript", SLOW])
def exported(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, str]:
    """The model in a file, and what the comparison with it prints."""
    path = folder / f"model{export_run.FORMATS[request.param].suffix}"
    words = ["--format", request.param, "--verify", str(folder / "data" / "images")]
    return path, export(folder, path, *words)


@pytest.fixture
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a planted graph in place of the model's."""

    def write(_graph: object, path: Path, _description: object) -> None:
        shutil.copy(planted(), path)

    monkeypatch.setitem(
        export_run.FORMATS, "onnx", export_run.FORMATS["onnx"]._replace(write=write)
    )


def test_the_file_equals_the_model_in_each_runtime(exported: tuple[Path, str]):
    path, printed = exported
    header, *rows, last = printed.splitlines()
    assert header.split("  ")[-1].strip() == "mask pixels changed"
    names = [row.split("  ")[0] for row in rows]
    runtimes = ["PyTorch"] if path.suffix == ".ts" else ["onnxruntime", "openvino"]
    assert names == ["the graph in eager mode", *runtimes]
    assert all(row.endswith(" equal") for row in rows)
    assert rows[0].split()[-5:] == ["0.0e+00", "0.0e+00", "0", "0.0e+00", "equal"]
    assert last.startswith(f"{path}: ")


def test_the_file_describes_its_model(exported: tuple[Path, str], folder: Path):
    described = read_description(exported[0])
    assert described.task == "instances"
    assert described.classes == KINDS
    assert described.class_ids == CATEGORIES
    weights = (folder / "model.pth").read_bytes()
    assert described.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert (described.min_size, described.image_format) == (64, "BGR")
    assert (described.detections_per_image, described.mask_side) == (5, 224)
    cfg = parse_config(described.config, "the file")
    expected = load_config(str(folder / "config.yaml"))
    assert cfg.MODEL.DEVICE == "cpu"
    assert (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR) == ("", "./output")  # of the machine that wrote it
    assert cfg.MODEL.RESNETS == expected.MODEL.RESNETS
    assert cfg.INPUT == expected.INPUT


def predictions(model: list[str], folder: Path, output: Path) -> list[dict[str, Any]]:
    """Evaluate a model; return its records."""
    data = CocoSet(str(folder / "data" / "instances.json"), str(folder / "data" / "images"))
    words = [*model, "--register-coco", "tiny", *data]
    opts = ["DATASETS.TEST", "('tiny',)", "OUTPUT_DIR", str(output)]
    if model[0] == "--config-file":
        opts += ["MODEL.WEIGHTS", str(folder / "model.pth")]
    args = evaluate.build_parser().parse_args([*words, *opts])
    run.run(*setup.setup(args))
    return instance_predictions(output, "tiny")


def test_the_evaluation_of_the_file_is_that_of_the_model(
    exported: tuple[Path, str], folder: Path, tmp_path: Path
):
    expected = predictions(["--config-file", str(folder / "config.yaml")], folder, tmp_path / "a")
    found = predictions(
        ["--allow-unsafe-checkpoint", "--model", str(exported[0])], folder, tmp_path / "b"
    )
    assert len(found) == len(expected) == 10
    for own, other in zip(found, expected, strict=True):
        assert own["category_id"] == other["category_id"]
        assert own["score"] == pytest.approx(other["score"], abs=1e-4)
        assert own["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
    same = [x["segmentation"] == y["segmentation"] for x, y in zip(found, expected, strict=True)]
    assert sum(same) >= 8  # a pixel at a probability of one half may differ


def test_the_predictor_returns_the_same_with_the_file(exported: tuple[Path, str], folder: Path):
    image = scene(1)[0]
    expected = Predictor.from_config_file(
        str(folder / "config.yaml"), weights=folder / "model.pth"
    )(image)["instances"]
    found = Predictor(exported[0], allow_unsafe=True)(image)["instances"]
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2, rtol=0
    )
    assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3


@pytest.mark.usefixtures("_planted")
def test_a_file_that_differs_from_the_model_is_not_written(folder: Path, tmp_path: Path):
    printed = io.StringIO()
    argv = ["--config-file", str(folder / "config.yaml"), "--output", str(tmp_path / "a.onnx")]
    argv += ["--verify", str(folder / "data" / "images" / "000.png")]
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
        run_command("export", [*argv, "--opts", "MODEL.WEIGHTS", str(folder / "model.pth")])
    assert end.value.code == 1
    rows = printed.getvalue().splitlines()
    assert [row.split()[-1] for row in rows[1:4]] == ["equal", "DIFFERS", "DIFFERS"]
    assert rows[4] == f"{tmp_path / 'a.onnx'} was not written"
    assert list(tmp_path.iterdir()) == []


def marked_as_half(path: Path, output: Path, *, precision: str, batches: object) -> None:
    """Convert nothing but the description."""
    assert list(batches) == []
    redescribed(output, path, dataclasses.replace(read_description(path), precision=precision))


@pytest.mark.usefixtures("_planted")
def test_half_precision_is_measured_and_refused_beyond_the_given_drop(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_run, "quantize", marked_as_half)
    images = str(folder / "data" / "images")
    words = ["--half", "--register-coco", "tiny", str(folder / "data" / "instances.json"), images]
    argv = ["--config-file", str(folder / "config.yaml"), *words]
    opts = ["--opts", "MODEL.WEIGHTS", str(folder / "model.pth"), "DATASETS.TEST", "('tiny',)"]
    path = tmp_path / "half.onnx"

    def run_it(*more: str) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), process_state_restored():
            run_command("export", [*argv, "--output", str(path), *more, *opts])
        return printed.getvalue()

    assert "mask AP on tiny: 0.00 in float32, 0.00 in float16" in run_it()  # of a real evaluation
    assert read_description(path).precision == "float16"
    path.unlink()
    found = iter([40.0, 38.9, 40.0, 38.9])
    monkeypatch.setattr(AccuracyOfFiles, "measure", lambda *_: next(found))
    with pytest.raises(SystemExit) as end:
        run_it("--max-ap-drop", "1")
    assert end.value.code == 1
    assert not path.exists()
    assert "40.00 in float32, 38.90 in float16" in run_it("--max-ap-drop", "1.2")
    assert path.exists()


def test_a_folder_holds_the_same_model(folder: Path, tmp_path: Path):
    output = tmp_path / "folder"
    printed = export(folder, output, "--format", "folder", "--license", "mit")
    assert "model.safetensors" in printed
    image = scene(0)[0]
    expected = Predictor.from_config_file(
        str(folder / "config.yaml"), weights=folder / "model.pth"
    )(image)["instances"]
    found = Predictor.from_pretrained(output)(image)["instances"]
    assert np.array_equal(found.pred_masks, expected.pred_masks)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize(
    ("words", "verify", "opts"),
    [
        ("MODEL.WEIGHTS w.pth", [], ["MODEL.WEIGHTS", "w.pth"]),
        ("--opts MODEL.WEIGHTS w.pth", [], ["MODEL.WEIGHTS", "w.pth"]),
        ("--verify a.jpg B MODEL.WEIGHTS w SEED 1", ["a.jpg", "B"], ["MODEL.WEIGHTS", "w", "SEED"]),
        ("--verify a.jpg --opts SEED 1", ["a.jpg"], ["SEED", "1"]),
        ("--verify a.jpg IMG.JPG", ["a.jpg", "IMG.JPG"], []),
        ("--verify a.jpg --half SEED 1", ["a.jpg"], ["SEED", "1"]),
    ],
)
def test_config_keys_follow_the_options_with_and_without_opts(words, verify, opts):
    args = parse(["--config-file", "c.yaml", "--output", "model.onnx", *words.split()])
    assert args.verify == verify
    assert args.opts[: len(opts)] == opts
