"""The mapper whose errors name the image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_train_loader
from PIL import Image

from point_rend import load_config
from point_rend.data.coco import register_coco
from point_rend.data.mapper import NamingDatasetMapper
from tests.tiny_datasets import POINTREND, process_state_restored, write_coco


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def cfg() -> CfgNode:
    small = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.RANDOM_FLIP", "none", "SOLVER.IMS_PER_BATCH"]
    return load_config(POINTREND, [*small, "1"])


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    register_coco("tiny", *write_coco(tmp_path))
    return DatasetCatalog.get("tiny")


def test_polygons_and_both_kinds_of_rle_in_one_set_give_bitmasks(
    cfg: CfgNode, records: list[dict[str, Any]]
) -> None:
    kinds = {type(a["segmentation"]) for record in records for a in record["annotations"]}
    assert kinds == {list, dict}
    for record in records:
        masks = NamingDatasetMapper(cfg, is_train=True)(record)["instances"].gt_masks.tensor
        assert masks.shape == (3, 64, 96)
        assert masks.dtype == torch.bool
        assert (masks.sum(dim=(1, 2)) > 100).all()


def test_nothing_but_the_errors_differs_from_detectron2(
    cfg: CfgNode, records: list[dict[str, Any]]
) -> None:
    ours = NamingDatasetMapper(cfg, is_train=True)(records[0])
    theirs = DatasetMapper(cfg, is_train=True)(records[0])
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    masks = [sample["instances"].gt_masks.tensor for sample in (ours, theirs)]
    assert torch.equal(*masks)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_images_of_other_modes_become_three_channels(
    cfg: CfgNode, records: list[dict[str, Any]], mode: str, tmp_path: Path
) -> None:
    path = tmp_path / "image.tiff"
    Image.open(records[0]["file_name"]).convert(mode).save(path)
    sample = NamingDatasetMapper(cfg, is_train=False)(records[0] | {"file_name": str(path)})
    assert sample["image"].shape[0] == 3
    assert sample["image"].dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_during_training_is_named(
    cfg: CfgNode, records: list[dict[str, Any]], workers: int
) -> None:
    path = Path(records[1]["file_name"])
    path.write_bytes(path.read_bytes()[:1000])
    mapper = NamingDatasetMapper(cfg, is_train=True)
    loader = build_detection_train_loader(
        records[1:], mapper=mapper, total_batch_size=1, num_workers=workers
    )
    with pytest.raises(ValueError, match=rf"image 2, file {path}, cannot be used"):
        next(iter(loader))


def test_a_missing_image_is_named(cfg: CfgNode, records: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="image 1, file nowhere"):
        NamingDatasetMapper(cfg, is_train=True)(records[0] | {"file_name": "nowhere.png"})
