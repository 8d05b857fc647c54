"""Annotated points follow the augmentation of their image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import Augmentation, CropTransform, HFlipTransform, PadTransform

from point_rend import load_config
from point_rend.data.datasets.coco import register_coco
from point_rend.data.loader.transport import pack, unpack
from point_rend.data.mapper import NamingDatasetMapper
from tests.tiny_datasets import HEIGHT, POINTREND, WIDTH, process_state_restored, write_coco


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


def config(*opts: str) -> CfgNode:
    small = ["INPUT.MIN_SIZE_TRAIN", f"({HEIGHT},)", "INPUT.RANDOM_FLIP", "none"]
    return load_config(POINTREND, [*small, "INPUT.POINT_SUP", "True", *opts])


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """The first image, whose objects have 2, 3 and 1 points, and their masks."""
    written = write_coco(tmp_path)
    content = written.read()
    for number, annotation in enumerate(content["annotations"]):
        x, y, width, height = annotation["bbox"]
        center = [int(x + width / 2), int(y + height / 2)]
        points = [center, [int(x + width - 1), int(y + 1)], [int(x), int(y)]]
        annotation["point_coords"] = points[: (2, 3, 1)[number % 3]]
        annotation["point_labels"] = [1, 0, 0][: len(annotation["point_coords"])]
    written.rewrite(content)
    register_coco("tiny", *written)
    return DatasetCatalog.get("tiny")[0]


class Fixed(Augmentation):
    """Always the same transform."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def get_transform(self, image: np.ndarray) -> Any:  # noqa: ARG002 (the interface)
        return self.transform


def mapped(record: dict[str, Any], cfg: CfgNode, transforms: list[Any] | None = None) -> Any:
    mapper = NamingDatasetMapper(cfg, is_train=True)
    if transforms is not None:
        mapper.augmentations.augs = [Fixed(x) for x in transforms]
    return mapper(record)["instances"]


def centers(record: dict[str, Any]) -> list[np.ndarray]:
    return [np.array(x["point_coords"]) + 0.5 for x in record["annotations"]]


def test_objects_have_points_in_place_of_masks(record: dict[str, Any]) -> None:
    instances = mapped(record, config())
    assert not instances.has("gt_masks")
    assert instances.gt_point_coords.dtype == instances.gt_point_labels.dtype == torch.float32
    assert instances.gt_point_coords.shape == (3, 3, 2)
    assert instances.gt_point_labels.tolist() == [[1, 0, -2], [1, 0, 0], [1, -2, -2]]
    for found, expected in zip(instances.gt_point_coords, centers(record), strict=True):
        assert found[: len(expected)].tolist() == expected.tolist()


def test_without_point_supervision_objects_have_masks_and_no_points(record: dict[str, Any]) -> None:
    instances = mapped(record, config("INPUT.POINT_SUP", "False"))
    assert instances.has("gt_masks")
    assert not instances.has("gt_point_coords")


def test_objects_without_points_keep_their_masks(record: dict[str, Any]) -> None:
    """As those of a validation set, whose losses are computed with the same config."""
    for annotation in record["annotations"]:
        del annotation["point_coords"], annotation["point_labels"]
    assert mapped(record, config()).has("gt_masks")


def test_an_image_of_which_some_objects_lack_points_is_refused(record: dict[str, Any]) -> None:
    del record["annotations"][1]["point_coords"]
    with pytest.raises(
        ValueError, match=r"000\.png, cannot be used: some of its 3 objects have no"
    ):
        mapped(record, config())


def test_points_move_as_their_pixels_do(record: dict[str, Any]) -> None:
    flip, crop = HFlipTransform(WIDTH), CropTransform(4, 2, WIDTH - 6, HEIGHT - 8)
    pad = PadTransform(0, 0, 7, 5)
    instances = mapped(record, config(), [flip, crop, pad])
    for found, labels, before in zip(
        instances.gt_point_coords, instances.gt_point_labels, centers(record), strict=True
    ):
        for (x, y), label, (x0, y0) in zip(found.tolist(), labels.tolist(), before, strict=False):
            expected = (WIDTH - x0 - 4, y0 - 2)
            assert (x, y) == expected
            inside = 0 <= expected[0] <= WIDTH + 1 and 0 <= expected[1] <= HEIGHT - 3
            assert (label >= 0) == inside


def test_resizing_scales_points(record: dict[str, Any]) -> None:
    instances = mapped(record, config("INPUT.MIN_SIZE_TRAIN", f"({2 * HEIGHT},)"))
    assert instances.gt_point_coords[1].tolist() == (2 * centers(record)[1]).tolist()


def test_points_out_of_a_crop_are_ignored_and_the_box_is_that_of_the_crop(
    record: dict[str, Any],
) -> None:
    x, y, width, height = record["annotations"][0]["bbox"]
    right = int(x + width / 2) + 1
    instances = mapped(record, config(), [CropTransform(0, 0, right, HEIGHT)])
    assert len(instances) == 1
    assert instances.gt_boxes.tensor[0].tolist() == pytest.approx([x, y, right, y + height])
    assert instances.gt_point_labels.tolist() == [[1, -1, -2]]


def test_points_are_drawn_anew_each_time_with_the_numbers_of_the_sample(
    record: dict[str, Any],
) -> None:
    cfg = config("INPUT.SAMPLE_POINTS", "2")
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        one = mapped(record, cfg)
        np.random.seed(seed)
        other = mapped(record, cfg)
        assert torch.equal(one.gt_point_coords, other.gt_point_coords)
        assert one.gt_point_labels.shape == (3, 2)
        assert (one.gt_point_labels >= 0).all()
        of_three, known = one.gt_point_coords[1].tolist(), centers(record)[1].tolist()
        assert all(point in known for point in of_three)
        assert of_three[0] != of_three[1]  # without repetition where there are enough
        assert torch.equal(*one.gt_point_coords[2])
        seen.add(str(sorted(of_three)))
    assert len(seen) == 3


def test_points_reach_the_trainer_from_a_worker(record: dict[str, Any]) -> None:
    instances = mapped(record, config())
    arrived = unpack(pack(instances))
    assert torch.equal(arrived.gt_point_coords, instances.gt_point_coords)
    assert torch.equal(arrived.gt_point_labels, instances.gt_point_labels)
