"""The mapper: masks, errors that name the image."""

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.structures import Instances, PolygonMasks
from PIL import Image

from point_rend import load_config
from point_rend.data.datasets.coco import register_coco
from point_rend.data.mapper import NamingDatasetMapper
from point_rend.ground_truth.point_labels import sample_point_labels
from point_rend.ground_truth.shared_masks import SharedMasks
from tests.tiny_datasets import HEIGHT, POINTREND, WIDTH, process_state_restored, write_coco


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


AUGMENTED = ["INPUT.RANDOM_FLIP", "horizontal", "INPUT.MIN_SIZE_TRAIN", "(50, 60, 70)"]
CROPPED = [*AUGMENTED, "INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[0.6, 0.6]"]


def assert_equal_samples(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    found, expected = ours["instances"], theirs["instances"]
    assert found.get_fields().keys() == expected.get_fields().keys()
    assert torch.equal(found.gt_boxes.tensor, expected.gt_boxes.tensor)
    assert torch.equal(found.gt_classes, expected.gt_classes)
    assert isinstance(found.gt_masks, SharedMasks)
    if isinstance(expected.gt_masks, PolygonMasks):
        stored = found.gt_masks.objects.polygons.polygons
        ours = [stored[number] for number in found.gt_masks.index.tolist()]
        for one, other in zip(ours, expected.gt_masks, strict=True):
            assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))
    else:
        assert torch.equal(found.gt_masks.tensor, expected.gt_masks.tensor)


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("opts", [[], AUGMENTED, CROPPED], ids=["plain", "augmented", "cropped"])
def test_only_the_storage_of_masks_differs_from_detectron2(
    cfg: CfgNode, records: list[dict[str, Any]], opts: list[str], mask_format: str
) -> None:
    cfg.merge_from_list([*opts, "INPUT.MASK_FORMAT", mask_format])
    if mask_format == "polygon":  # Detectron2 accepts only polygons
        for annotation in (a for record in records for a in record["annotations"]):
            x, y, width, height = annotation["bbox"]
            corners = [x, y, x + width, y, x + width / 3, y + height]
            annotation["segmentation"] = [corners, [x, y, x + 3, y, x, y + 3]]
    for seed in range(6):
        samples = []
        for mapper in (NamingDatasetMapper, DatasetMapper):
            np.random.seed(seed)
            samples.append(mapper(cfg, is_train=True)(records[seed % 2]))
        assert_equal_samples(*samples)


def test_rle_in_a_set_of_polygons_remains_a_bitmask(
    cfg: CfgNode, records: list[dict[str, Any]]
) -> None:
    as_pixels = [NamingDatasetMapper(cfg, is_train=True)(record) for record in records]
    cfg.INPUT.MASK_FORMAT = "polygon"
    for record, pixels in zip(records, as_pixels, strict=True):
        masks = NamingDatasetMapper(cfg, is_train=True)(record)["instances"].gt_masks
        is_rle = [isinstance(a["segmentation"], dict) for a in record["annotations"]]
        assert {True, False} == set(is_rle)
        assert (masks.objects.areas() > 0).tolist() == is_rle
        assert [not parts for parts in masks.objects.polygons] == is_rle
        assert torch.equal(masks.tensor, pixels["instances"].gt_masks.tensor)


def test_resized_masks_cause_no_warning_of_torch(
    cfg: CfgNode, records: list[dict[str, Any]]
) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN = (50,)
    once = not torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            masks = NamingDatasetMapper(cfg, is_train=True)(records[0])["instances"].gt_masks
    finally:
        torch.set_warn_always(not once)
    assert masks.tensor.shape == (3, 50, 75)


TRANSFORMS = {
    "flip": [T.HFlipTransform(WIDTH), T.VFlipTransform(HEIGHT)],
    "resize": [T.ResizeTransform(HEIGHT, WIDTH, 100, 231)],
    "crop": [T.CropTransform(11, 7, 70, 40)],
    "rotation": [T.RotationTransform(HEIGHT, WIDTH, 33.0)],
    "all": [
        T.ResizeTransform(HEIGHT, WIDTH, 2 * HEIGHT, WIDTH),
        T.RotationTransform(2 * HEIGHT, WIDTH, -12.0, expand=False),
        T.HFlipTransform(WIDTH),
        T.CropTransform(5, 9, 80, 100),
    ],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_polygons_follow_the_augmentation(
    cfg: CfgNode, records: list[dict[str, Any]], name: str
) -> None:
    """A point and its transformed position have the same label."""
    cfg.INPUT.MASK_FORMAT = "polygon"
    transforms = TRANSFORMS[name]
    record = records[0] | {"annotations": records[0]["annotations"][:1]}
    (annotation,) = record["annotations"]
    x, y, width, height = annotation["bbox"]
    outline = [x, y, x + width, y + height / 3, x + width / 2, y + height]
    annotation["segmentation"] = [outline]

    arguments = NamingDatasetMapper.from_config(cfg) | {"augmentations": transforms}
    sample = NamingDatasetMapper(**arguments)(record)
    before = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0))
    before = before * torch.tensor([WIDTH, HEIGHT])
    after = torch.from_numpy(T.TransformList(transforms).apply_coords(before.double().numpy()))
    new_height, new_width = sample["image"].shape[1:]
    seen = ((after >= 0) & (after <= torch.tensor([new_width, new_height]))).all(dim=1)
    plain = Instances((HEIGHT, WIDTH), gt_masks=PolygonMasks([[outline]]))
    expected = sample_point_labels([plain], before[None])[0, seen]
    labels = sample_point_labels([sample["instances"]], after[None])[0, seen]
    assert 0.01 < labels.mean() < 0.6
    assert (labels != expected).float().mean() < 0.001  # rounding near the outline


def test_workers_send_masks_as_packed_bits_of_their_windows(
    cfg: CfgNode, records: list[dict[str, Any]]
) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN = (640,)
    mapper = NamingDatasetMapper(cfg, is_train=True)
    masks = mapper(records[0])["instances"].gt_masks
    images = masks.tensor.numel()
    assert images == 3 * 640 * 960
    assert len(pickle.dumps(masks)) < images / 8 / 3  # each object is a third of the image wide
    loaded = [
        next(
            iter(
                build_detection_train_loader(
                    records[:1], mapper=mapper, total_batch_size=1, num_workers=workers
                )
            )
        )
        for workers in (0, 1)
    ]
    for (sample,) in loaded:
        assert isinstance(sample["instances"].gt_masks, SharedMasks)
        assert torch.equal(sample["instances"].gt_masks.tensor, masks.tensor)


def test_an_object_without_a_mask_among_others_is_named_with_its_image(
    cfg: CfgNode, records: list[dict[str, Any]]
) -> None:
    del records[0]["annotations"][1]["segmentation"]
    with pytest.raises(ValueError, match=r"image 1, file .*: 3 objects, but 2 masks"):
        NamingDatasetMapper(cfg, is_train=True)(records[0])


@pytest.mark.parametrize("opts", [[], CROPPED], ids=["plain", "cropped"])
def test_an_image_without_objects_has_no_masks(
    cfg: CfgNode, records: list[dict[str, Any]], opts: list[str]
) -> None:
    cfg.merge_from_list(opts)
    sample = NamingDatasetMapper(cfg, is_train=True)(records[0] | {"annotations": []})
    assert len(sample["instances"]) == 0
    assert not sample["instances"].has("gt_masks")


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_images_of_other_modes_become_three_channels(
    cfg: CfgNode, records: list[dict[str, Any]], mode: str, tmp_path: Path
) -> None:
    path = tmp_path / "image.tiff"
    Image.open(records[0]["file_name"]).convert(mode).save(path)
    sample = NamingDatasetMapper(cfg, is_train=False)(records[0] | {"file_name": str(path)})
    assert sample["image"].shape[0] == 3
    assert sample["image"].dtype == torch.uint8


def test_an_image_that_breaks_during_training_is_named(
    cfg: CfgNode, records: list[dict[str, Any]]
) -> None:
    path = Path(records[1]["file_name"])
    path.write_bytes(path.read_bytes()[:1000])
    mapper = NamingDatasetMapper(cfg, is_train=True)
    loader = build_detection_train_loader(records[1:], mapper=mapper, total_batch_size=1)
    with pytest.raises(ValueError, match=rf"image 2, file {path}, cannot be used"):
        next(iter(loader))


def test_an_image_of_more_pixels_than_pillow_reads_is_named(
    cfg: CfgNode, records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(ValueError, match=r"image 1, file .* cannot be used: is too large"):
        NamingDatasetMapper(cfg, is_train=True)(records[0])


def test_a_missing_image_is_named(cfg: CfgNode, records: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="image 1, file nowhere"):
        NamingDatasetMapper(cfg, is_train=True)(records[0] | {"file_name": "nowhere.png"})


def test_a_keypoint_model_is_evaluated_without_a_training_set(
    cfg: CfgNode, records: list[dict[str, Any]]
) -> None:
    cfg.MODEL.KEYPOINT_ON = True
    for names in ((), ("a_set_of_another_machine",)):
        cfg.DATASETS.TRAIN = names
        found = NamingDatasetMapper(cfg, is_train=False)(records[0])
        assert "annotations" not in found
        assert found["image"].shape[0] == 3
    assert cfg.MODEL.KEYPOINT_ON


@pytest.mark.parametrize("is_train", [True, False])
def test_images_in_yuv_reach_the_model_in_its_precision(
    cfg: CfgNode, records: list[dict[str, Any]], is_train: bool
) -> None:
    cfg.INPUT.FORMAT = "YUV-BT.601"
    found = NamingDatasetMapper(cfg, is_train=is_train)(records[0])["image"]
    assert found.dtype == torch.float32
    assert found.shape[0] == 3
