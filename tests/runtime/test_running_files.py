"""Commands and the predictor with a file in place of config and checkpoint."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from point_rend import Predictor
from point_rend.cli import evaluate, run_command
from point_rend.engine import run, setup
from tests.runs import instance_predictions
from tests.runtime.planted import description, planted, redescribed
from tests.tiny_datasets import KINDS, CocoSet, process_state_restored, write_coco
from tests.tiny_semantic import write_sem_seg

NO_WORKERS = ["DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["pointrend"])
    with process_state_restored():
        yield


def evaluated(path: Path, dataset: CocoSet, output: Path, *words: str) -> dict[str, Any]:
    argv = ["--model", str(path), "--register-coco", "tiny", *dataset, *words]
    args = evaluate.build_parser().parse_args(
        [*argv, "DATASETS.TEST", "('tiny',)", *NO_WORKERS, "OUTPUT_DIR", str(output)]
    )
    return run.run(*setup.setup(args))


def test_the_predictor_runs_a_file_like_a_model():
    predictor = Predictor(planted())
    assert predictor.metadata.thing_classes == list(KINDS)
    white = np.full((100, 140, 3), 255, dtype=np.uint8)
    instances = predictor(white)["instances"]
    assert instances.image_size == (100, 140)
    assert instances.scores.tolist() == [0.75, 0.5]
    assert instances.pred_masks.shape == (2, 100, 140)
    images = [white, white[:60], white[:, :30] // 2]
    scores = [x["instances"].scores[1].item() for x in predictor(images, batch_size=3)]
    assert scores == pytest.approx([0.5, 0.5, 127 / 255 / 2])


def test_a_file_renders_no_masks_for_given_boxes():
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"planted\.onnx is an exported model, which detects its"):
        Predictor(planted()).masks_for(image, [[0, 0, 9, 9]], [0])


def test_the_predictor_resizes_as_the_config_in_the_file_asks():
    path = planted("labels.onnx")
    image = np.zeros((96, 192, 3), dtype=np.uint8)
    assert Predictor(str(path)).inputs(image)["image"].shape == (3, 64, 128)
    options = ["INPUT.MIN_SIZE_TEST", "48"]
    predictor = Predictor.from_exported(path, options, backend="openvino", threads=1)
    assert predictor.inputs(image)["image"].shape == (3, 48, 96)
    assert predictor(image)["sem_seg"].argmax(0).eq(3).all()  # 128 is more than black


def test_the_predictor_loads_what_pytorch_executes_with_permission_only():
    with pytest.raises(ValueError, match="is refused: PyTorch executes"):
        Predictor(planted("planted.ts"))
    Predictor(planted("planted.ts"), allow_unsafe=True)
    with pytest.raises(ValueError, match=r"model\.pth is no exported model"):
        Predictor("model.pth")


def test_predict_writes_the_instances_of_a_file_above_the_threshold(tmp_path: Path):
    ids = dataclasses.replace(description(), class_ids=(3, 5, 90))
    path = redescribed(tmp_path / "model.onnx", planted(), ids)
    Image.new("RGB", (70, 50), "white").save(tmp_path / "white.png")
    words = ["--model", str(path), "--input", str(tmp_path / "white.png"), "--formats", "coco"]

    def found(*more: str) -> list[tuple[int, float]]:
        output = tmp_path / f"output {len(more)}"
        run_command("predict", [*words, "--output", str(output), *more])
        records = json.loads((output / "instances.json").read_text())
        records = records["annotations"] if isinstance(records, dict) else records
        return [(x["category_id"], x["score"]) for x in records]

    assert found("--confidence-threshold", "0.4") == [(90, 0.75), (3, 0.5)]
    assert found("--confidence-threshold", "0.6", "--backend", "openvino") == [(90, 0.75)]


def test_evaluate_scores_a_file_in_the_class_order_of_the_data_set(tmp_path: Path):
    dataset = write_coco(tmp_path / "data")
    other = dataclasses.replace(description(), classes=("triangle", "box", "disc"))
    renamed = redescribed(tmp_path / "model.onnx", planted(), other)
    assert set(evaluated(planted(), dataset, tmp_path / "a")) == {
        *("bbox", "segm"),
    }
    evaluated(renamed, dataset, tmp_path / "b")
    own, matched = (instance_predictions(tmp_path / x, "tiny") for x in "ab")
    disc, box, triangle = (x["id"] for x in dataset.read()["categories"])
    by_name = {disc: triangle, box: box, triangle: disc}
    assert [by_name[x["category_id"]] for x in own] == [x["category_id"] for x in matched]
    assert [x["segmentation"] for x in own] == [x["segmentation"] for x in matched]


def test_evaluate_reads_the_pictures_as_they_are_trained_on(tmp_path: Path):
    """The labels of the planted graph are where a picture is bluest, greenest or reddest."""
    data = write_sem_seg(tmp_path / "data")
    for number in range(2):
        size = cv2.imread(str(data.image(number))).shape[:2]
        pixels = np.zeros((*size, 3), dtype=np.uint8)
        pixels[:, : size[1] // 2, 2] = 255  # red on the left, black on the right
        cv2.imwrite(str(data.image(number).with_suffix(".png")), pixels)
        data.image(number).unlink()
        labels = np.full(size, 3, dtype=np.uint8)
        labels[:, : size[1] // 2] = 2
        Image.fromarray(labels).save(data.label(number))
    words = ["--model", str(planted("labels.onnx")), "--register-sem-seg", "tiny", *data]
    args = evaluate.build_parser().parse_args(
        [*words, "DATASETS.TEST", "('tiny',)", *NO_WORKERS, "OUTPUT_DIR", str(tmp_path / "out")]
    )
    results = run.run(*setup.setup(args))["sem_seg"]
    assert results["IoU-box"] > 99
    assert results["IoU-triangle"] > 99


def test_evaluate_refuses_other_classes(tmp_path: Path):
    dataset = write_coco(tmp_path / "data")
    other = dataclasses.replace(description(), classes=("tree", "box", "disc"))
    path = redescribed(tmp_path / "model.onnx", planted(), other)
    with pytest.raises(SystemExit):
        evaluated(path, dataset, tmp_path / "output")
    evaluated(path, dataset, tmp_path / "output", "--ignore-class-names")


def test_evaluate_refuses_another_number_of_classes(tmp_path: Path):
    dataset = write_coco(tmp_path / "data")
    content = dataset.read()
    content["categories"].append({"id": 90, "name": "star"})
    dataset.rewrite(content)
    with pytest.raises(ValueError, match="has 3 classes, but the number of classes is 4 in tiny"):
        evaluated(planted(), dataset, tmp_path / "output")
