"""Large-scale jitter: the pipeline of Detectron2's new baselines, from config keys."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as coco_masks

from point_rend import load_config
from point_rend.config.checks import check_config
from point_rend.data.augmentation import build_augmentations
from point_rend.data.datasets.coco import register_coco
from point_rend.data.mapper import NamingDatasetMapper
from tests.data.test_mapper import assert_equal_samples
from tests.tiny_datasets import POINTREND, process_state_restored, write_coco
from tests.tiny_semantic import IGNORED, write_sem_seg

SIZE = (72, 96)
JITTER = ["INPUT.LSJ.ENABLED", "True", "INPUT.LSJ.SIZE", str(list(SIZE))]
PADDING = 128


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    """Images with objects as polygons."""
    register_coco("tiny", *write_coco(tmp_path))
    found = copy.deepcopy(DatasetCatalog.get("tiny"))
    for annotation in (a for record in found for a in record["annotations"]):
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width / 3, y + height]]
    return found


def jittered(*opts: str) -> CfgNode:
    return load_config(POINTREND, [*JITTER, *opts])


def stock_steps(cfg: CfgNode) -> list[T.Augmentation]:
    """The augmentations of new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py."""
    jitter = cfg.INPUT.LSJ
    height, width = jitter.SIZE
    return [
        T.ResizeScale(
            min_scale=jitter.MIN_SCALE,
            max_scale=jitter.MAX_SCALE,
            target_height=height,
            target_width=width,
        ),
        T.FixedSizeCrop(crop_size=(height, width)),
        T.RandomFlip(horizontal=True),
    ]


def mapped(cfg: CfgNode, record: dict[str, Any], seed: int) -> dict[str, Any]:
    np.random.seed(seed)
    return NamingDatasetMapper(cfg, is_train=True)(record)


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_samples_equal_those_of_the_steps_of_detectron2_under_a_seed(records, mask_format):
    cfg = jittered("INPUT.MASK_FORMAT", mask_format)
    stock = DatasetMapper(
        is_train=True,
        augmentations=stock_steps(cfg),
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format=mask_format,
        recompute_boxes=True,
    )
    for seed in range(12):
        np.random.seed(seed)
        expected = stock(records[seed % 2])
        sample = mapped(cfg, records[seed % 2], seed)
        assert sample["image"].shape == (3, *SIZE)
        assert_equal_samples(sample, expected)


def test_boxes_are_the_tight_ones_of_the_masks_that_remain(records):
    kept = 0
    for seed in range(12):
        instances = mapped(jittered(), records[seed % 2], seed)["instances"]
        for mask, box in zip(instances.gt_masks.tensor, instances.gt_boxes, strict=True):
            rows, columns = np.nonzero(mask.numpy())
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == tight
            kept += 1
    assert kept > 12


def resized(cfg: CfgNode, shape: tuple[int, int], seed: int) -> tuple[int, int]:
    np.random.seed(seed)
    drawn = build_augmentations(cfg, is_train=True)[0].get_transform(np.empty((*shape, 3)))
    return drawn.new_h, drawn.new_w


def test_scales_are_uniform_between_both_bounds():
    cfg = jittered("INPUT.LSJ.SIZE", "[1000, 2000]", "INPUT.LSJ.MIN_SCALE", "0.5")
    # An image of 10 x 30 fits into 2000 columns first, one of 10 x 10 into 1000 rows.
    for shape, fitting in (((10, 30), (667, 2000)), ((10, 10), (1000, 1000))):
        sizes = np.array([resized(cfg, shape, seed) for seed in range(400)])
        scales = np.sort(sizes[:, 1] / fitting[1])
        assert np.abs(sizes[:, 0] / fitting[0] - sizes[:, 1] / fitting[1]).max() < 2e-3
        quantiles = 0.5 + 1.5 * (np.arange(400) + 0.5) / 400
        assert np.abs(scales - quantiles).max() < 1.5 * 1.63 / 20  # Kolmogorov-Smirnov, 1%


def test_an_image_is_never_resized_to_nothing():
    cfg = jittered("INPUT.LSJ.MIN_SCALE", "0.1", "INPUT.LSJ.MAX_SCALE", "0.1")
    assert resized(cfg, (5000, 2), seed=0) == (7, 1)
    assert resized(cfg, (2, 5000), seed=0) == (1, 10)


def test_what_is_padded_is_gray_and_belongs_to_no_object_nor_class(records, tmp_path):
    written = write_sem_seg(tmp_path / "labels", scales=(1,))
    record = copy.deepcopy(records[0])
    record["file_name"], record["sem_seg_file_name"] = str(written.image(0)), str(written.label(0))
    height, width = np.asarray(Image.open(written.label(0))).shape
    everything = {"size": [height, width], "counts": [0, height * width]}
    record |= {"height": height, "width": width}
    box = {"bbox": [0, 0, width, height], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    rle = coco_masks.frPyObjects(everything, height, width)
    corners = [0.0, 0.0, width, 0.0, width, height, 0.0, height]
    record["annotations"] = [box | {"segmentation": rle}, box | {"segmentation": [corners]}]
    padded = 0
    for seed in range(8):
        sample = mapped(jittered("INPUT.LSJ.MAX_SCALE", "1.2"), record, seed)
        pixels, polygon = sample["instances"].gt_masks.tensor.numpy()
        np.random.seed(seed)
        ones = T.AugInput(np.ones((height, width, 3), np.uint8))
        T.AugmentationList(stock_steps(jittered("INPUT.LSJ.MAX_SCALE", "1.2")))(ones)
        is_padding = ones.image[:, :, 0] == PADDING
        padded += is_padding.sum()
        assert np.array_equal(pixels, ~is_padding)
        assert (polygon & is_padding).sum() == 0
        assert (sample["image"].numpy()[:, is_padding] == PADDING).all()
        labels = sample["sem_seg"].numpy()
        assert (labels[is_padding] == IGNORED).all()
        assert (labels[~is_padding] != IGNORED).any()
    assert padded > 8 * 100


def test_keypoints_follow_the_image_and_are_unlabeled_outside(tmp_path):
    image = np.zeros((60, 80, 3), np.uint8)
    centers = {(15, 20): 0, (65, 20): 1, (40, 50): 2}  # x, y: channel of a square of 9 pixels
    for (x, y), channel in centers.items():
        image[y - 4 : y + 5, x - 4 : x + 5, channel] = 255
    Image.fromarray(image[:, :, ::-1]).save(tmp_path / "image.png")
    MetadataCatalog.get("jitter_points").set(
        keypoint_names=["left_eye", "right_eye", "chin"],
        keypoint_flip_map=[("left_eye", "right_eye")],
    )
    record = {
        "file_name": str(tmp_path / "image.png"),
        "height": 60,
        "width": 80,
        "image_id": 1,
        "annotations": [
            {
                "bbox": [5, 5, 74, 55],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "segmentation": [[5.0, 5, 75, 5, 75, 55, 5, 55]],
                "keypoints": [v for x, y in centers for v in (x + 0.5, y + 0.5, 2)],
            }
        ],
    }
    off = ["MODEL.KEYPOINT_ON", "True", "DATASETS.TRAIN", "('jitter_points',)"]
    seen = {"inside": 0, "outside": 0, "flipped": 0}
    for seed in range(16):
        sample = mapped(jittered(*off, "INPUT.LSJ.MIN_SCALE", "0.8"), record, seed)
        (points,) = sample["instances"].gt_keypoints.tensor.numpy()
        picture = sample["image"].numpy()
        channels = [0, 1, 2]
        first_x, second_x = points[0, 0], points[1, 0]
        is_flipped = points[:2, 2].all() and first_x > second_x
        for (x, y, visibility), channel in zip(points, channels, strict=True):
            if not visibility:
                assert (x, y) == (0, 0)
                seen["outside"] += 1
                continue
            column, row = min(int(x), SIZE[1] - 1), min(int(y), SIZE[0] - 1)
            found = int(picture[:, row, column].argmax())
            assert picture[found, row, column] > 100
            seen["inside"] += 1
            seen["flipped"] += bool(found != channel)
            assert (found == 2) == (channel == 2)
        # A mirror image exchanges left and right, so that left is still left.
        assert not is_flipped
    assert min(seen.values()) > 0


def test_tests_are_not_jittered_and_color_comes_before_the_padding():
    def names(cfg: CfgNode, *, is_train: bool) -> list[str]:
        return [type(step).__name__ for step in build_augmentations(cfg, is_train=is_train)]

    cfg = jittered("INPUT.COLOR_AUG_SSD", "True")
    order = ["ResizeToPixels", "ColorAugSSD", "FixedSizeCrop", "RandomFlip"]
    assert names(cfg, is_train=True) == order
    semantic = jittered("MODEL.META_ARCHITECTURE", "PointRendSemanticSegmentor")
    order.remove("ColorAugSSD")
    assert names(semantic, is_train=True) == order
    assert names(cfg, is_train=False) == ["ResizeToPixels"]
    assert NamingDatasetMapper(cfg, is_train=False).recompute_boxes is False
    assert NamingDatasetMapper(jittered("MODEL.MASK_ON", "False")).recompute_boxes is False


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["INPUT.CROP.ENABLED", "True"], r"LSJ.ENABLED and INPUT.CROP.ENABLED are both True"),
        (["INPUT.LSJ.MIN_SCALE", "3.0"], r"MIN_SCALE must be at most .*MAX_SCALE, which is 2.0"),
        (["INPUT.LSJ.MIN_SCALE", "0.0"], r"INPUT.LSJ.MIN_SCALE must be above 0"),
        (["INPUT.LSJ.SIZE", "[1024]"], r"INPUT.LSJ.SIZE must be a list of 2 values"),
        (["INPUT.LSJ.SIZE", "[9000, 64]"], r"SIZE times INPUT.LSJ.MAX_SCALE must be 16384 pixels"),
        (
            [
                *("MODEL.META_ARCHITECTURE", "PointRendPanopticFPN"),
                *("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "-1"),
            ],
            r"IGNORE_VALUE must be from 0 to 255 for INPUT.LSJ.ENABLED, .* got -1",
        ),
    ],
)
def test_impossible_settings_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        check_config(jittered(*opts), training=True)
    check_config(jittered(*opts, "INPUT.LSJ.ENABLED", "False"), training=True)
