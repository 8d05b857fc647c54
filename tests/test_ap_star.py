"""AP and AP* of COCO's val2017 with shared inference, from the command line to the results."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

from point_rend.cli import prepare_cocofied_lvis
from point_rend.data.datasets.cocofied_lvis import COCO_CLASSES
from point_rend.engine.trainer import Trainer
from tests import runs
from tests.tiny_datasets import POINTREND, TINY_MODEL, process_state_restored
from tests.tiny_lvis import HEIGHT, WIDTH, write_lvis_v1

COCO, LVIS = "coco_2017_val", "lvis_v1_val_cocofied"


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Register a val2017 of 3 images under COCO's name; LVIS annotates 2 of them."""
    monkeypatch.setattr("sys.argv", ["train_net.py"])
    root = tmp_path / "datasets"
    images, annotations = root / "coco" / "val2017", root / "coco" / "instances.json"
    images.mkdir(parents=True)
    records = []
    for number in (7, 9, 11):
        name = f"{number:012d}.jpg"
        picture = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.imwrite(str(images / name), picture)
        records.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
    mask = {"segmentation": [[4, 5, 24, 5, 24, 17, 4, 17]], "bbox": [4, 5, 20, 12], "area": 240}
    cow = {"id": 1, "image_id": 11, "category_id": 21, "iscrowd": 0} | mask
    categories = [{"id": k, "name": name} for k, name in COCO_CLASSES.items()]
    content = {"images": records, "annotations": [cow], "categories": categories}
    annotations.write_text(json.dumps(content))

    (root / "lvis").mkdir()
    write_lvis_v1(root / "lvis")
    prepare_cocofied_lvis.main([str(root / "lvis")])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    with process_state_restored():
        for name in (COCO, LVIS):
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
        meta = _get_builtin_metadata("coco")
        register_coco_instances(COCO, meta, str(annotations), str(images))
        yield root


def evaluate(output: Path, names: str) -> dict[str, Any]:
    options = [*TINY_MODEL, "DATASETS.TRAIN", f"('{COCO}',)", "DATASETS.TEST", names]
    options += ["TEST.BOUNDARY_METRICS", "True", "OUTPUT_DIR", str(output)]
    command = ["--config-file", POINTREND, "--eval-only", *options]
    return runs.evaluate(command)


def predictions(output: Path, name: str, file: str) -> list[dict[str, Any]]:
    return json.loads((output / "inference" / name / file).read_text())


def test_shared_inference_gives_the_ap_and_ap_star_of_separate_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {name: evaluate(tmp_path / "alone", f"('{name}',)") for name in (COCO, LVIS)}
    loaded = []
    build = Trainer.build_test_loader
    monkeypatch.setattr(
        Trainer, "build_test_loader", lambda cfg, name: loaded.append(name) or build(cfg, name)
    )
    together = evaluate(tmp_path / "together", f"('{COCO}', '{LVIS}')")
    assert loaded == [COCO]
    assert list(together) == [COCO, LVIS]
    for name, results in alone.items():
        assert list(together[name]) == list(results) == ["bbox", "segm", "boundary"]
        for task, metrics in results.items():
            assert together[name][task] == pytest.approx(metrics, nan_ok=True)
    files = {COCO: "coco_instances_results.json", LVIS: "lvis_instances_results.json"}
    for name, file in files.items():
        written = predictions(tmp_path / "together", name, file)
        assert written == predictions(tmp_path / "alone", name, file)
        assert {x["image_id"] for x in written} == ({7, 9, 11} if name == COCO else {7, 9})
