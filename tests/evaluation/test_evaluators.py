"""The instance evaluators, with the ground truth as predictions."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from point_rend import load_config
from point_rend.data.datasets.coco import register_coco
from point_rend.evaluation.build import build_evaluator, check_evaluators
from point_rend.evaluation.evaluators import InstanceEvaluator
from tests.tiny_datasets import (
    HEIGHT,
    POINTREND,
    WIDTH,
    process_state_restored,
    write_cityscapes,
    write_coco,
    write_lvis,
)


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    return load_config(POINTREND, ["OUTPUT_DIR", str(tmp_path / "output")])


def bitmask(segmentation: object) -> np.ndarray:
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, HEIGHT, WIDTH))
    return mask_util.decode(segmentation).astype(bool)


def as_prediction(annotations: list[dict]) -> Instances:
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    masks = np.stack([bitmask(a["segmentation"]) for a in annotations])
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.tensor(boxes))
    found.pred_classes = torch.tensor([a["category_id"] for a in annotations])
    found.scores = torch.linspace(0.9, 0.8, len(annotations))
    found.pred_masks = torch.from_numpy(masks)
    return found


def with_boundaries(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.TEST.BOUNDARY_METRICS = True
    return cfg


def evaluate(cfg: CfgNode, name: str, *, shifted: int = 0) -> dict[str, dict[str, float]]:
    """Evaluate the ground truth of a data set as predictions, optionally shifted."""
    records = DatasetCatalog.get(name)
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for record in records:
        found = as_prediction(record["annotations"])
        if shifted:
            found.pred_masks = found.pred_masks.roll(shifted, dims=2)
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()


def register(kind: str, folder: Path) -> str:
    if kind == "coco":
        register_coco("tiny_coco", *write_coco(folder))
        return "tiny_coco"
    if kind == "lvis":
        meta = get_lvis_instances_meta("lvis_v1")
        register_lvis_instances("tiny_lvis_v1", meta, *write_lvis(folder))
        return "tiny_lvis_v1"
    image_dir, gt_dir = write_cityscapes(folder)
    DatasetCatalog.register("tiny_city", lambda: load_cityscapes_instances(image_dir, gt_dir))
    MetadataCatalog.get("tiny_city").set(
        gt_dir=gt_dir, evaluator_type="cityscapes_instance", **_get_builtin_metadata("cityscapes")
    )
    return "tiny_city"


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_the_ground_truth_scores_100_and_a_shifted_one_less(
    kind: str, cfg: CfgNode, tmp_path: Path
) -> None:
    name = register(kind, tmp_path)
    assert evaluate(cfg, name)["segm"]["AP"] == pytest.approx(100)
    assert evaluate(cfg, name, shifted=8)["segm"]["AP"] < 30


# Detectron2's loader calls shapely in an old way and leaves its worker processes to the collector.
@pytest.mark.filterwarnings("ignore:The 'resolution' argument:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_cityscapes_polygons_score_high_and_shifted_ones_less(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    # Detectron2 reads polygons half a pixel larger than the label images, so not quite 100.
    name = register("cityscapes_instance", Path("../city"))
    assert evaluate(cfg, name)["segm"]["AP"] > 70
    assert evaluate(cfg, name)["segm"]["AP50"] == pytest.approx(100)
    assert evaluate(cfg, name, shifted=8)["segm"]["AP"] < 30
    assert not list(here.iterdir())


def test_keypoint_metrics_equal_those_of_detectron2(cfg: CfgNode, tmp_path: Path) -> None:
    written = write_coco(tmp_path / "set")
    content = written.read()
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        middle = y + height / 2
        points = [[x + width * share, middle, 2] for share in (0.25, 0.75)]
        annotation |= {"keypoints": [*points[0], *points[1]], "num_keypoints": 2}
    written.rewrite(content)
    register_coco("limbs", *written)
    MetadataCatalog.get("limbs").set(keypoint_names=["a", "b"], keypoint_flip_map=[("a", "b")])
    cfg.MODEL.KEYPOINT_ON = True
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.1]
    folder, tasks = str(tmp_path / "stock"), ["bbox", "segm", "keypoints"]
    stock = COCOEvaluator(
        "limbs", tasks, output_dir=folder, use_fast_impl=False, kpt_oks_sigmas=(0.1, 0.1)
    )
    found: list[dict[str, dict[str, float]]] = []
    for evaluator in (build_evaluator(cfg, "limbs"), stock):
        evaluator.reset()
        for record in DatasetCatalog.get("limbs"):
            instances = as_prediction(record["annotations"])
            points = [np.reshape(x["keypoints"], (-1, 3)) for x in record["annotations"]]
            instances.pred_keypoints = torch.tensor(np.array(points))
            instances.pred_keypoints[::2, 0, 0] += 3.0  # one point of every second object is off
            evaluator.process([record], [{"instances": instances}])
        found.append(evaluator.evaluate())
    assert found[0].keys() == found[1].keys()
    assert found[0]["keypoints"] == pytest.approx(found[1]["keypoints"], nan_ok=True)
    assert 10 < found[0]["keypoints"]["AP"] < 100


def test_keypoint_metrics_need_neither_areas_nor_counts(tmp_path: Path) -> None:
    written = write_coco(tmp_path)
    content = written.read()
    found = []
    for bare in (False, True):
        for annotation in content["annotations"]:
            x, y, *_ = annotation["bbox"]
            annotation |= {"keypoints": [x, y, 2, x + 9, y + 9, 0], "num_keypoints": 1}
            for key in ("area", "num_keypoints", "iscrowd") if bare else ():
                del annotation[key]
        written.rewrite(content)
        name = f"limbs {bare}"
        register_coco(name, *written)
        evaluator = InstanceEvaluator(
            name, ["keypoints"], output_dir=str(tmp_path / name), kpt_oks_sigmas=[0.1, 0.1]
        )
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            instances = as_prediction(record["annotations"])
            points = [np.reshape(x["keypoints"], (-1, 3)) for x in record["annotations"]]
            instances.pred_keypoints = torch.tensor(np.array(points, dtype=np.float64))
            evaluator.process([record], [{"instances": instances}])
        found.append(evaluator.evaluate()["keypoints"])
    assert found[0] == pytest.approx(found[1], nan_ok=True)
    assert found[0]["AP"] > 90


def test_without_results_keypoint_ap_is_nan(cfg: CfgNode, tmp_path: Path) -> None:
    name = register("coco", tmp_path)
    cfg.MODEL.KEYPOINT_ON = True
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    nothing = Instances((HEIGHT, WIDTH), scores=[])
    evaluator.process([DatasetCatalog.get(name)[0]], [{"instances": nothing}])
    assert np.isnan(evaluator.evaluate()["keypoints"]["AP"])


BY_SIZE = ("AP", "AP50", "AP75", "APs", "APm", "APl")
BY_FREQUENCY = ("APr", "APc", "APf")


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [
        ("coco", [*BY_SIZE, "AP-disc", "AP-box", "AP-triangle"]),
        ("lvis", [*BY_SIZE, *BY_FREQUENCY, *(f"AP-name_{number}" for number in range(1, 5))]),
    ],
)
def test_boundary_metrics_are_computed_if_the_config_asks_for_them(
    kind: str, metrics: list[str], cfg: CfgNode, tmp_path: Path
) -> None:
    name = register(kind, tmp_path)
    plain = evaluate(cfg, name, shifted=1)
    assert list(plain) == ["bbox", "segm"]
    results = evaluate(with_boundaries(cfg), name, shifted=1)
    assert list(results) == ["bbox", "segm", "boundary"]
    assert results["segm"] == pytest.approx(plain["segm"], nan_ok=True)
    assert list(results["boundary"]) == metrics
    assert 0 < results["boundary"]["AP"] < results["segm"]["AP"] < 100
    assert evaluate(with_boundaries(cfg), name)["boundary"]["AP"] == pytest.approx(100)


def test_coco_metrics_equal_those_of_detectron2(cfg: CfgNode, tmp_path: Path) -> None:
    name = register("coco", tmp_path)
    ours = evaluate(cfg, name, shifted=2)
    stock = COCOEvaluator(name, ("bbox", "segm"), use_fast_impl=False, output_dir=str(tmp_path))
    stock.reset()
    for record in DatasetCatalog.get(name):
        found = as_prediction(record["annotations"])
        found.pred_masks = found.pred_masks.roll(2, dims=2)
        stock.process([record], [{"instances": found}])
    theirs = stock.evaluate()
    assert list(theirs) == list(ours)
    for task, metrics in theirs.items():
        assert list(ours[task]) == list(metrics)
        assert ours[task] == pytest.approx(metrics, abs=1e-6, nan_ok=True)
    written = Path(cfg.OUTPUT_DIR) / "inference" / name / "coco_instances_results.json"
    assert written.read_text() == (tmp_path / "coco_instances_results.json").read_text()


@pytest.mark.filterwarnings("ignore:The 'resolution' argument:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_boundary_metrics_of_cityscapes_are_computed_if_the_config_asks_for_them(
    cfg: CfgNode, tmp_path: Path
) -> None:
    name = register("cityscapes_instance", tmp_path / "city")
    results = evaluate(with_boundaries(cfg), name)
    assert list(results) == ["segm", "boundary"]
    assert list(results["boundary"])[:3] == ["AP", "AP50", "AP-person"]
    assert 0 < results["boundary"]["AP"] <= results["segm"]["AP"]
    assert results["boundary"]["AP-car"] > 0


def test_a_data_set_without_annotations_gives_predictions_but_no_metrics(
    cfg: CfgNode, tmp_path: Path
) -> None:
    written = write_coco(tmp_path)
    records = written.read()
    register_coco("tiny_coco", *written)
    predicted = DatasetCatalog.get("tiny_coco")
    del records["annotations"]
    written.rewrite(records)
    evaluator = build_evaluator(cfg, "tiny_coco")
    evaluator.reset()
    for record in predicted:
        evaluator.process([record], [{"instances": as_prediction(record["annotations"])}])
    assert evaluator.evaluate() == {}
    file = Path(cfg.OUTPUT_DIR) / "inference" / "tiny_coco" / "coco_instances_results.json"
    assert len(json.loads(file.read_text())) == 6


def test_a_model_without_detections_has_results_for_boxes_and_masks(
    cfg: CfgNode, tmp_path: Path
) -> None:
    name = register("coco", tmp_path)
    evaluator = build_evaluator(with_boundaries(cfg), name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [{"instances": Instances((HEIGHT, WIDTH), scores=[])}])
    results = evaluator.evaluate()
    assert np.isnan([results[task]["AP"] for task in ("bbox", "segm", "boundary")]).all()


def test_a_class_without_annotations_has_no_ap(cfg: CfgNode, tmp_path: Path) -> None:
    written = write_coco(tmp_path)
    content = written.read()
    content["categories"].append({"id": 99, "name": "unicorn"})
    written.rewrite(content)
    register_coco("tiny_coco", *written)
    segm = evaluate(cfg, "tiny_coco")["segm"]
    assert np.isnan(segm["AP-unicorn"])
    assert segm["AP-disc"] == pytest.approx(100)
    assert segm["AP"] == pytest.approx(100)


def test_results_of_several_data_sets_go_to_separate_folders(cfg: CfgNode, tmp_path: Path) -> None:
    for name in ("first", "second"):
        register_coco(name, *write_coco(tmp_path / name))
        evaluate(cfg, name)
        assert (Path(cfg.OUTPUT_DIR) / "inference" / name / "coco_instances_results.json").is_file()


def test_an_unknown_evaluator_type_is_named(cfg: CfgNode) -> None:
    MetadataCatalog.get("odd").set(evaluator_type="odd_metric")
    with pytest.raises(ValueError, match=r"odd.*odd_metric"):
        build_evaluator(cfg, "odd")


def test_an_unknown_evaluator_type_is_refused_before_the_training() -> None:
    MetadataCatalog.get("odd").set(evaluator_type="odd_metric")
    check_evaluators(["odd"], [])
    with pytest.raises(ValueError, match=r"odd.*odd_metric"):
        check_evaluators([], ["odd"])


def test_a_missing_package_is_named_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    MetadataCatalog.get("city").set(evaluator_type="cityscapes_instance")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"city needs.*cityscapesscripts"):
        check_evaluators(["city"], [])
