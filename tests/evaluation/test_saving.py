"""An evaluation whose files cannot be saved: its metrics are logged before the error."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from point_rend import load_config
from point_rend.evaluation.build import build_evaluator
from point_rend.evaluation.evaluators import AllEvaluators, LabelMapEvaluator
from point_rend.evaluation.saving import FileSaver, evaluate_all
from point_rend.evaluation.shared_inference import SharedEvaluator
from point_rend.utils.files import NotSavedError
from tests.evaluation.test_evaluators import as_prediction, register
from tests.tiny_datasets import POINTREND, process_state_restored


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


def config(folder: Path) -> CfgNode:
    return load_config(POINTREND, ["OUTPUT_DIR", str(folder)])


def fed(evaluator: DatasetEvaluator, name: str) -> DatasetEvaluator:
    """Give an evaluator the ground truth."""
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [{"instances": as_prediction(record["annotations"])}])
    return evaluator


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_metrics_of_instances_are_logged_if_the_folder_is_not_one(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = register(kind, tmp_path)
    (tmp_path / "output").write_text("a file")
    evaluator = fed(build_evaluator(config(tmp_path / "output"), name), name)
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(NotSavedError, match=r"instances_predictions\.pth could not be saved"),
    ):
        evaluator.evaluate()
    assert "100.000" in caplog.text
    assert (tmp_path / "output").read_text() == "a file"


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_predictions_are_those_of_detectron2(kind: str, tmp_path: Path) -> None:
    name = register(kind, tmp_path)
    evaluator = fed(build_evaluator(config(tmp_path / "output"), name), name)
    before = {
        x["image_id"]: [y["category_id"] for y in x["instances"]] for x in evaluator._predictions
    }
    evaluator.evaluate()
    folder = tmp_path / "output" / "inference" / name
    saved = torch.load(folder / "instances_predictions.pth", weights_only=True)
    assert {x["image_id"]: [y["category_id"] for y in x["instances"]] for x in saved} == before
    records = json.loads((folder / f"{kind}_instances_results.json").read_text())
    to_contiguous = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
    own = {k: v for v, k in to_contiguous.items()} if to_contiguous else {}
    for record, image in zip(records, [k for k, v in before.items() for _ in v], strict=True):
        assert record["image_id"] == image
    flat = [own.get(k, k + 1) for ids in before.values() for k in ids]
    assert [record["category_id"] for record in records] == flat


def test_metrics_of_label_maps_are_logged_if_the_folder_is_not_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DatasetCatalog.register("none_yet", list)
    MetadataCatalog.get("none_yet").set(stuff_classes=["sky", "road"], ignore_label=255)
    (tmp_path / "output").write_text("a file")
    evaluator = LabelMapEvaluator("none_yet", output_dir=str(tmp_path / "output"))
    evaluator.reset()
    evaluator._conf_matrix[0, 0] = evaluator._conf_matrix[1, 1] = 5
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(NotSavedError, match=r"sem_seg_predictions\.json could not be saved"),
    ):
        evaluator.evaluate()
    assert "'mIoU': np.float64(100.0)" in caplog.text or "'mIoU': 100.0" in caplog.text


class Failing(DatasetEvaluator):
    """Cannot save its file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def evaluate(self) -> Any:
        raise NotSavedError(Path(self.path), OSError(28, "No space left on device"))


class Counting(DatasetEvaluator):
    """Counts its evaluations."""

    def __init__(self) -> None:
        self.count = 0

    def evaluate(self) -> dict[str, int]:
        self.count += 1
        return {"count": self.count}


def test_all_evaluators_evaluate_before_the_first_error_is_raised() -> None:
    counting = Counting()
    evaluators = [Failing("a"), counting, Failing("b")]
    named = dict(zip("abc", evaluators, strict=True))
    for evaluate in (
        lambda: evaluate_all(evaluators),
        AllEvaluators(evaluators).evaluate,
        SharedEvaluator(named, {}).evaluate,
    ):
        with pytest.raises(NotSavedError, match=r"^a could not be saved"):
            evaluate()
    assert counting.count == 3


def test_results_of_all_evaluators_are_merged() -> None:
    assert AllEvaluators([Counting()]).evaluate() == {"count": 1}


def test_an_error_is_raised_once_and_names_the_first_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files = FileSaver(str(tmp_path / "file"))
    files.save_json("a.json", [])
    files.save_tensors("b.pth", [])
    with pytest.raises(NotSavedError, match=r"a\.json could not be saved"):
        files.finish()
    files.finish()
