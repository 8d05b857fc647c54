"""Color augmentation, compared with identities and hand-derived colors; recipes."""

import random

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import AugInput, AugmentationList
from fvcore.transforms.transform import CropTransform, HFlipTransform

from point_rend import ColorAugSSDTransform, load_config
from point_rend.color_augmentation import ColorAugSSD, DrawnColorTransform
from point_rend.data.augmentation import build_augmentations
from point_rend.data.mapper import NamingDatasetMapper
from tests.tiny_datasets import POINTREND
from tests.tiny_semantic import IGNORED, label_map, write_sem_seg


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def nothing(**changes) -> ColorAugSSDTransform:
    """A distortion whose ranges have no effect, except for ``changes``."""
    still = {
        "brightness_delta": 0,
        "contrast_low": 1,
        "contrast_high": 1,
        "saturation_low": 1,
        "saturation_high": 1,
        "hue_delta": 0,
    }
    return ColorAugSSDTransform("BGR", **still | changes)


@pytest.fixture
def always(monkeypatch):
    """Apply every step."""
    monkeypatch.setattr(random, "randrange", lambda _stop: 1)


@pytest.mark.parametrize("img_format", ["BGR", "RGB"])
def test_images_keep_their_dtype_and_the_input_is_unchanged(img_format):
    transform, image = ColorAugSSDTransform(img_format), picture()
    kept = image.copy()
    for seed in range(20):
        random.seed(seed)
        result = transform.apply_image(image)
        assert result.dtype == np.uint8
        assert result.shape == image.shape
        assert np.array_equal(image, kept)


def test_the_same_seed_gives_the_same_image_and_other_seeds_other_images():
    transform, results = ColorAugSSDTransform("BGR"), []
    for seed in (1, 1, 2):
        random.seed(seed)
        results.append(transform.apply_image(picture()))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("img_format", ["BGR", "RGB"])
def test_both_channel_orders_give_the_same_picture(img_format):
    order = [2, 1, 0] if img_format == "RGB" else [0, 1, 2]
    for seed in range(10):
        random.seed(seed)
        bgr = ColorAugSSDTransform("BGR").apply_image(picture())
        random.seed(seed)
        image = ColorAugSSDTransform(img_format).apply_image(picture()[:, :, order])
        assert np.array_equal(image[:, :, order], bgr)


@pytest.mark.usefixtures("always")
def test_brightness_shifts_and_clips():
    random.seed(3)
    shift = np.float32(random.uniform(-80, 80))
    random.seed(3)
    # The conversion to hue and saturation rounds colors other than gray.
    image = np.repeat(np.arange(0, 256, dtype=np.uint8)[None, :, None], 3, axis=2)
    result = nothing(brightness_delta=80).apply_image(image)
    expected = np.clip(image.astype(np.float32) + shift, 0, 255).astype(np.uint8)
    assert abs(shift) > 10
    assert np.array_equal(result, expected)


@pytest.mark.usefixtures("always")
def test_contrast_scales_and_clips():
    image = np.repeat(np.arange(0, 256, dtype=np.uint8)[None, :, None], 3, axis=2)
    result = nothing(contrast_low=1.5, contrast_high=1.5).apply_image(image)
    expected = np.clip(np.floor(image * 1.5), 0, 255).astype(np.uint8)
    assert np.array_equal(result, expected)


@pytest.mark.usefixtures("always")
def test_saturation_of_zero_leaves_gray():
    result = nothing(saturation_low=0, saturation_high=0).apply_image(picture())
    assert result.dtype == np.uint8
    assert (result == result[:, :, :1]).all()
    assert np.array_equal(result[:, :, 0], picture().max(axis=2))  # the value of HSV is unchanged


@pytest.mark.usefixtures("always")
def test_hue_turns_and_leaves_value_and_saturation(monkeypatch):
    monkeypatch.setattr(random, "randint", lambda _low, _high: 60)  # 120 degrees
    red, green = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    red[..., 2], green[..., 1] = 200, 200
    assert np.array_equal(nothing(hue_delta=60).apply_image(red), green)
    hsv = cv2.cvtColor(picture(), cv2.COLOR_BGR2HSV)
    turned = cv2.cvtColor(nothing(hue_delta=60).apply_image(picture()), cv2.COLOR_BGR2HSV)
    assert np.abs(hsv[..., 2].astype(int) - turned[..., 2]).max() <= 1


def test_each_step_is_applied_half_of_the_time():
    random.seed(0)
    gray = np.full((2, 2, 3), 100, np.uint8)
    transform = nothing(contrast_low=0.5, contrast_high=0.5)
    changed = sum(int(transform.apply_image(gray).max() < 100) for _ in range(1000))
    assert 400 < changed < 600


def test_labels_and_coordinates_are_unchanged():
    transform = ColorAugSSDTransform("RGB")
    coords, labels = np.random.rand(5, 2), np.arange(6).reshape(2, 3)
    assert np.array_equal(transform.apply_coords(coords), coords)
    assert np.array_equal(transform.apply_segmentation(labels), labels)


def test_another_order_of_channels_is_refused_with_the_key():
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT.*BGR or RGB.*'L'"):
        ColorAugSSDTransform("L")


# The distortion as an augmentation


def test_a_drawn_distortion_is_the_same_for_every_image():
    for seed in range(10):
        random.seed(seed)
        drawn = ColorAugSSD("BGR").get_transform(picture())
        first = drawn.apply_image(picture(1))
        random.seed(seed + 1)
        assert np.array_equal(drawn.apply_image(picture(1)), first)


@pytest.mark.parametrize("img_format", ["BGR", "RGB"])
def test_the_augmentation_draws_as_the_transform_does(img_format):
    for seed in range(20):
        random.seed(seed)
        expected = ColorAugSSDTransform(img_format).apply_image(picture())
        random.seed(seed)
        drawn = ColorAugSSD(img_format).get_transform(picture())
        assert np.array_equal(drawn.apply_image(picture()), expected)


def test_the_augmentation_can_be_printed_and_refuses_other_orders():
    assert repr(ColorAugSSD("RGB")) == "ColorAugSSD(img_format='RGB')"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT"):
        ColorAugSSD("L")


# The recipes


def recipe(*more, meta_arch: str = "SemanticSegmentor") -> CfgNode:
    """A small version of the semantic recipe."""
    return load_config(
        POINTREND,
        [
            *("MODEL.META_ARCHITECTURE", meta_arch, "MODEL.MASK_ON", "False"),
            *("INPUT.MIN_SIZE_TRAIN", "(64, 96, 128)", "INPUT.MAX_SIZE_TRAIN", "512"),
            *("INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute"),
            *("INPUT.CROP.SIZE", "(32, 48)", "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", "0.75"),
            *("INPUT.COLOR_AUG_SSD", "True", "INPUT.MIN_SIZE_TEST", "96"),
            *more,
        ],
    )


def names(cfg: CfgNode, *, is_train: bool = True) -> list[str]:
    return [type(step).__name__ for step in build_augmentations(cfg, is_train=is_train)]


@pytest.mark.parametrize("meta_arch", ["SemanticSegmentor", "PointRendSemanticSegmentor"])
def test_semantic_models_resize_crop_distort_and_flip(meta_arch):
    assert names(recipe(meta_arch=meta_arch)) == [
        "ResizeToPixels",
        "RandomCrop_CategoryAreaConstraint",
        "ColorAugSSD",
        "RandomFlip",
    ]
    assert names(recipe(meta_arch=meta_arch), is_train=False) == ["ResizeToPixels"]


def test_other_models_crop_first():
    order = ["RandomCrop", "ResizeToPixels", "ColorAugSSD", "RandomFlip"]
    assert names(recipe(meta_arch="GeneralizedRCNN")) == order


def test_other_models_may_resize_first():
    order = ["ResizeToPixels", "RandomCrop", "ColorAugSSD", "RandomFlip"]
    for meta_arch in ("GeneralizedRCNN", "PanopticFPN"):
        cfg = recipe("INPUT.CROP.AFTER_RESIZE", "True", meta_arch=meta_arch)
        assert names(cfg) == order
        sample = AugInput(np.zeros((30, 60, 3), np.uint8))
        AugmentationList(build_augmentations(cfg, is_train=True))(sample)
        assert sample.image.shape == (32, 48, 3)


def test_augmentations_that_are_off_are_not_built():
    off = ["INPUT.CROP.ENABLED", "False", "INPUT.COLOR_AUG_SSD", "False"]
    assert names(recipe(*off, "INPUT.RANDOM_FLIP", "none")) == ["ResizeToPixels"]


def test_test_time_variants_start_from_the_original_image():
    assert names(recipe("TEST.AUG.ENABLED", "True"), is_train=False) == []


def test_image_and_labels_are_transformed_together():
    """An image of its labels still shows them after every augmentation except color."""
    steps = AugmentationList(
        build_augmentations(recipe("INPUT.COLOR_AUG_SSD", "False"), is_train=True)
    )
    labels = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4), np.ones((32, 32), np.uint8))
    kinds = set()
    for seed in range(12):
        np.random.seed(seed)
        sample = AugInput(np.repeat(labels[..., None] * 20, 3, axis=2), sem_seg=labels)
        transforms = steps(sample)
        kinds |= {type(step) for step in transforms.transforms}
        assert sample.image.shape == (32, 48, 3)
        assert sample.sem_seg.shape == (32, 48)
        agree = np.abs(sample.image[..., 0] / 20 - sample.sem_seg) < 0.1
        assert agree.mean() > 0.7  # except at boundaries, which the image interpolates
    assert {CropTransform, HFlipTransform} <= kinds


def test_every_short_side_is_drawn_and_no_other():
    steps = AugmentationList(
        build_augmentations(recipe("INPUT.CROP.ENABLED", "False"), is_train=True)
    )
    sides = set()
    for seed in range(40):
        np.random.seed(seed)
        sample = AugInput(np.zeros((30, 60, 3), np.uint8), sem_seg=np.zeros((30, 60), np.uint8))
        steps(sample)
        sides.add(min(sample.image.shape[:2]))
    assert sides == {64, 96, 128}


@pytest.mark.parametrize(("size", "expected"), [((1, 9000), (1, 512)), ((9000, 1), (512, 1))])
def test_the_short_side_of_a_very_long_image_keeps_a_pixel(size, expected):
    for is_train in (True, False):
        cfg = recipe("INPUT.CROP.ENABLED", "False", "INPUT.MAX_SIZE_TEST", "512")
        sample = AugInput(np.full((*size, 3), 9, np.uint8), sem_seg=np.ones(size, np.uint8))
        AugmentationList(build_augmentations(cfg, is_train=is_train)[:1])(sample)
        assert sample.image.shape == (*expected, 3)
        assert sample.sem_seg.shape == expected
        assert (sample.image == 9).all()


def test_a_class_fills_at_most_the_allowed_share_of_a_crop_without_ignored_pixels():
    crop = build_augmentations(recipe(), is_train=True)[1]
    labels = np.zeros((32, 480), np.uint8)
    labels[:, 240:] = 1  # most crops contain one class
    labels[:16] = IGNORED
    image = np.zeros((32, 480, 3), np.uint8)
    shares = []
    for seed in range(60):
        np.random.seed(seed)
        seen = crop.get_transform(image, labels).apply_segmentation(labels)
        counts = np.bincount(seen.ravel(), minlength=256)[:2]
        shares.append(counts.max() / counts.sum())
    # One crop in ten contains the boundary; ten tries find one in two of three cases.
    assert np.mean(np.array(shares) < 0.75) > 0.3
    for seed in range(60):
        np.random.seed(seed)
        unbounded = crop.crop_aug.get_transform(image).apply_segmentation(labels)
        counts = np.bincount(unbounded.ravel(), minlength=256)[:2]
        shares[seed] = counts.max() / counts.sum()
    assert np.mean(np.array(shares) < 0.75) < 0.2


def test_a_crop_without_labeled_pixels_is_allowed():
    crop = build_augmentations(recipe(), is_train=True)[1]
    nothing = np.full((64, 96), IGNORED, np.uint8)
    seen = crop.get_transform(np.zeros((64, 96, 3), np.uint8), nothing)
    assert seen.apply_segmentation(nothing).shape == (32, 48)


def test_the_mapper_gives_image_and_labels_of_the_recipe(tmp_path):
    written = write_sem_seg(tmp_path, scales=(1,))
    mapper = NamingDatasetMapper(recipe(), is_train=True)
    assert [type(step).__name__ for step in mapper.augmentations.augs] == names(recipe())
    record = {"file_name": str(written.image(0)), "sem_seg_file_name": str(written.label(0))}
    sample = mapper(record)
    assert sample["image"].shape == (3, 32, 48)
    assert sample["image"].dtype == torch.uint8
    assert sample["sem_seg"].shape == (32, 48)
    assert sample["sem_seg"].dtype == torch.long
    assert set(sample["sem_seg"].unique().tolist()) <= {0, 1, 2, 3, IGNORED}
    assert (sample["height"], sample["width"]) == label_map(0).shape


def test_drawn_distortions_leave_labels_and_coordinates_unchanged():
    drawn = DrawnColorTransform([], is_rgb=True)
    coords, labels = np.random.rand(5, 2), np.arange(6).reshape(2, 3)
    assert np.array_equal(drawn.apply_coords(coords), coords)
    assert np.array_equal(drawn.apply_segmentation(labels), labels)
