"""The evaluators of label maps, with the ground truth as predictions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor

from point_rend import load_config
from point_rend.config.tasks import INSTANCES, SEM_SEG
from point_rend.data.datasets.coco import register_coco
from point_rend.data.datasets.label_maps import register_sem_seg
from point_rend.evaluation.build import build_evaluator, check_evaluators
from point_rend.evaluation.evaluators import BoundaryIoUEvaluator
from point_rend.evaluation.semantic_iou import SemanticIoU
from tests.tiny_datasets import (
    HEIGHT,
    POINTREND,
    WIDTH,
    process_state_restored,
    write_cityscapes,
    write_coco,
)
from tests.tiny_semantic import CLASSES, IGNORED, label_map, write_sem_seg, write_train_ids


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    return load_config(POINTREND, ["OUTPUT_DIR", str(tmp_path / "output")])


def scores_of(labels: np.ndarray, num_classes: int) -> Tensor:
    """Return logits (K, H, W) whose maxima are the labels; class 0 at ignored pixels."""
    hard = torch.from_numpy(np.where(labels == IGNORED, 0, labels).astype(np.int64))
    return torch.nn.functional.one_hot(hard, num_classes).permute(2, 0, 1).float()


def evaluate(cfg: CfgNode, name: str, *, shift: int = 0, task: str = "sem_seg") -> dict[str, float]:
    """Evaluate the label maps of a data set as predictions, optionally shifted."""
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        with Image.open(record["sem_seg_file_name"]) as image:
            labels = np.roll(np.array(image), shift, axis=1)
        scores = scores_of(labels, len(MetadataCatalog.get(name).stuff_classes))
        evaluator.process([record], [{"sem_seg": scores}])
    return evaluator.evaluate()[task]


def test_the_ground_truth_scores_100_in_every_class(cfg: CfgNode, tmp_path: Path) -> None:
    register_sem_seg("tiny", *write_sem_seg(tmp_path))
    results = evaluate(cfg, "tiny")
    for figure in ("mIoU", "fwIoU", "mACC", "pACC", *(f"IoU-{name}" for name in CLASSES)):
        assert results[figure] == pytest.approx(100)
    assert not [figure for figure in results if "boundary" in figure.lower() or "B-Iou" in figure]
    assert (Path(cfg.OUTPUT_DIR) / "inference" / "tiny" / "sem_seg_predictions.json").is_file()


def test_the_mean_iou_equals_a_slow_count(cfg: CfgNode, tmp_path: Path) -> None:
    register_sem_seg("tiny", *write_sem_seg(tmp_path))
    overlap, union = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))
    for number in (0, 1):
        gt = label_map(number)
        found = np.roll(gt, 5, axis=1)
        found[found == IGNORED] = 0
        for value in range(len(CLASSES)):
            a, b = gt == value, (found == value) & (gt != IGNORED)
            overlap[value] += (a & b).sum()
            union[value] += (a | b).sum()
    results = evaluate(cfg, "tiny", shift=5)
    assert results["mIoU"] == pytest.approx(100 * (overlap / union).mean())
    assert results["mIoU"] < 80


def test_boundary_metrics_are_computed_if_the_config_asks_for_them(
    cfg: CfgNode, tmp_path: Path
) -> None:
    register_sem_seg("tiny", *write_sem_seg(tmp_path))
    cfg.TEST.BOUNDARY_METRICS = True
    evaluator = build_evaluator(cfg, "tiny")
    evaluator.reset()
    expected = SemanticIoU(len(CLASSES), ignore_value=IGNORED)
    for number, record in enumerate(DatasetCatalog.get("tiny")):
        found = np.roll(label_map(number), 3, axis=1)
        expected.add(np.where(found == IGNORED, 0, found), label_map(number))
        evaluator.process([record], [{"sem_seg": scores_of(found, len(CLASSES))}])
    results = evaluator.evaluate()
    assert list(results) == ["sem_seg", "boundary_sem_seg"]
    assert results["sem_seg"]["mIoU"] == pytest.approx(expected.means()["mIoU"])
    boundary = results["boundary_sem_seg"]
    assert list(boundary) == ["mIoU", *(f"IoU-{name}" for name in CLASSES)]
    assert boundary["mIoU"] == pytest.approx(expected.means()["boundary mIoU"])
    assert boundary["mIoU"] < results["sem_seg"]["mIoU"]
    by_class = [boundary[f"IoU-{name}"] for name in CLASSES]
    np.testing.assert_allclose(by_class, 100 * expected.boundary_iou)


def test_boundary_metrics_cover_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_sem_seg("tiny", *write_sem_seg(tmp_path))
    records = DatasetCatalog.get("tiny")
    whole, *parts = (BoundaryIoUEvaluator("tiny") for _ in range(3))
    for number, record in enumerate(records):
        found = scores_of(np.roll(label_map(number), 4, axis=1), len(CLASSES))
        for evaluator in (whole, parts[number % 2]):
            evaluator.process([record], [{"sem_seg": found}])
    expected = whole.evaluate()
    counted = [part._iou for part in parts]
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda _: counted)
    assert parts[0].evaluate() == expected
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda _: [])
    assert parts[1].evaluate() is None


def test_the_scripts_of_cityscapes_give_100_and_leave_no_files(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    image_dir, gt_dir = write_cityscapes(Path("../city"))
    write_train_ids(Path(gt_dir))
    DatasetCatalog.register("city", lambda: load_cityscapes_semantic(image_dir, gt_dir))
    MetadataCatalog.get("city").set(
        gt_dir=gt_dir, evaluator_type="cityscapes_sem_seg", **_get_builtin_metadata("cityscapes")
    )
    results = evaluate(cfg, "city")
    assert results["IoU"] == pytest.approx(100)
    assert results["IoU_sup"] == pytest.approx(100)
    assert evaluate(cfg, "city", shift=6)["IoU"] < 80
    cfg.TEST.BOUNDARY_METRICS = True
    assert evaluate(cfg, "city", task="boundary_sem_seg")["mIoU"] == pytest.approx(100)
    assert not list(here.iterdir())


def test_panoptic_data_sets_without_panoptic_labels_give_miou_and_ap_and_name_what_is_missing(
    cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = write_coco(tmp_path / "coco")
    labels = write_sem_seg(tmp_path / "maps")
    register_coco("things", *written)
    things = DatasetCatalog.get("things")
    for number, record in enumerate(things):
        record["sem_seg_file_name"] = str(labels.label(number))
    DatasetCatalog.register("both", lambda: things)
    known = MetadataCatalog.get("things").as_dict() | {"name": "both"}
    known |= {"evaluator_type": "coco_panoptic_seg", "ignore_label": IGNORED}
    MetadataCatalog.get("both").set(**known, stuff_classes=list(CLASSES))
    check_evaluators([], ["both"])
    evaluator = build_evaluator(cfg, "both")
    assert "panoptic quality is not; it needs panoptic_json" in caplog.text
    evaluator.reset()
    for number, record in enumerate(things):
        nothing = Instances((HEIGHT, WIDTH), scores=[])
        sem_seg = scores_of(label_map(number), len(CLASSES))
        evaluator.process([record], [{"sem_seg": sem_seg, "instances": nothing}])
    results = evaluator.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    assert {"bbox", "segm"} <= results.keys()


def test_the_ignored_label_defaults_to_that_of_the_config(cfg: CfgNode, tmp_path: Path) -> None:
    labels = write_sem_seg(tmp_path / "maps")
    records = [
        {"file_name": str(labels.label(n)), "sem_seg_file_name": str(labels.label(n))}
        for n in range(2)
    ]
    DatasetCatalog.register("plain", lambda: records)
    MetadataCatalog.get("plain").set(evaluator_type="sem_seg", stuff_classes=list(CLASSES))
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = IGNORED
    evaluator = build_evaluator(cfg, "plain")
    assert MetadataCatalog.get("plain").ignore_label == IGNORED
    evaluator.reset()
    for number, record in enumerate(records):
        sem_seg = scores_of(label_map(number), len(CLASSES))
        evaluator.process([record], [{"sem_seg": sem_seg}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)


def test_a_data_set_that_needs_other_outputs_is_refused() -> None:
    for kind in ("coco", "sem_seg", "coco_panoptic_seg"):
        MetadataCatalog.get(f"set_{kind}").set(evaluator_type=kind)
    check_evaluators([], ["set_coco"], outputs=INSTANCES)
    check_evaluators([], ["set_sem_seg"], outputs=SEM_SEG)
    for kind, outputs, lacking in (
        ("coco", SEM_SEG, "instances"),
        ("sem_seg", INSTANCES, "sem_seg"),
        ("coco_panoptic_seg", SEM_SEG, "instances, panoptic_seg"),
    ):
        with pytest.raises(ValueError, match=rf"cannot evaluate on set_{kind}.*needs {lacking}"):
            check_evaluators([], [f"set_{kind}"], outputs=outputs)


def test_a_missing_package_is_named_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    MetadataCatalog.get("city").set(evaluator_type="cityscapes_sem_seg")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"city needs.*cityscapesscripts"):
        check_evaluators([], ["city"])
