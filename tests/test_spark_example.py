"""The example for Spark, called as Spark calls it: an iterator of data frames in a worker."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
import pytest
from pycocotools import mask as mask_util
from ray import cloudpickle

from examples import spark_predict
from point_rend import Predictor
from tests.conftest import REPOSITORY
from tests.inference.test_pickling import predictor_of
from tests.inference.test_predictor import scene
from tests.tiny_datasets import process_state_restored


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{k}.png") for k in range(3)]
    for k, path in enumerate(paths):
        cv2.imwrite(path, scene(k))
    Path(paths[1]).write_bytes(b"no picture")
    return [*paths, str(tmp_path / "missing.png")]


class Spark:
    """Does what the example asks of Spark: broadcasts by pickle, and maps two partitions."""

    def __init__(self) -> None:
        self.sparkContext = self.builder = self.read = self.write = self

    def getOrCreate(self) -> "Spark":  # noqa: N802
        return self

    def broadcast(self, value: Any) -> Any:
        return types.SimpleNamespace(value=cloudpickle.loads(cloudpickle.dumps(value)))

    def parquet(self, path: str) -> Any:
        if not hasattr(self, "rows"):
            self.rows = pd.read_parquet(path)
            return self
        self.rows.to_parquet(path)
        return None

    def mapInPandas(self, function: Any, schema: str) -> "Spark":  # noqa: N802
        parts = [self.rows[:3], self.rows[3:]]
        mapped = [frame for part in parts for frame in function(iter([part[:2], part[2:]]))]
        for frame in mapped:
            assert [f"{x} string" for x in frame.columns] == schema.split(", ")
        self.rows = pd.concat(mapped)
        return self


def test_the_example_is_short():
    code = (REPOSITORY / "examples" / "spark_predict.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) < 60


def test_each_image_has_a_row_with_its_instances_or_the_reason_of_its_failure(
    images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spark = Spark()
    module: Any = types.ModuleType("pyspark.sql")
    module.SparkSession = spark
    monkeypatch.setitem(sys.modules, "pyspark.sql", module)
    monkeypatch.setitem(sys.modules, "pyspark", types.ModuleType("pyspark"))
    with process_state_restored():
        predictor = predictor_of(tmp_path)
        monkeypatch.setattr(Predictor, "from_checkpoint", lambda _: predictor)
        pd.DataFrame({"uri": images}).to_parquet(tmp_path / "images.parquet")
        spark_predict.main("m.pth", tmp_path / "images.parquet", tmp_path / "found.parquet")
        rows = pd.read_parquet(tmp_path / "found.parquet")
        assert rows["uri"].tolist() == images
        assert rows["error"].notna().tolist() == [False, True, False, True]
        assert rows["instances"].notna().tolist() == [True, False, True, False]
        assert "1.png" in rows["error"].iloc[1]
        for row in (0, 2):
            expected = predictor(images[row])["instances"]
            found = json.loads(rows["instances"].iloc[row])
            assert [x["score"] for x in found] == expected.scores.tolist()
            for record, mask in zip(found, expected.pred_masks, strict=True):
                assert (mask_util.decode(record["segmentation"]) == mask.numpy()).all()
