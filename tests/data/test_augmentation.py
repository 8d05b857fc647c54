"""The photometric distortion, against limits that leave the image alone and hand-made colours."""

import random

import cv2
import numpy as np
import pytest

from point_rend import ColorAugSSDTransform


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def nothing(**changes) -> ColorAugSSDTransform:
    """A distortion whose ranges are single points without effect, but for ``changes``."""
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
    """Let every step be applied."""
    monkeypatch.setattr(random, "randrange", lambda _stop: 1)


@pytest.mark.parametrize("img_format", ["BGR", "RGB"])
def test_images_keep_their_kind_and_the_input_stays(img_format):
    transform, image = ColorAugSSDTransform(img_format), picture()
    kept = image.copy()
    for seed in range(20):
        random.seed(seed)
        result = transform.apply_image(image)
        assert result.dtype == np.uint8
        assert result.shape == image.shape
        assert np.array_equal(image, kept)


def test_the_same_seed_gives_the_same_image_and_others_others():
    transform, results = ColorAugSSDTransform("BGR"), []
    for seed in (1, 1, 2):
        random.seed(seed)
        results.append(transform.apply_image(picture()))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("img_format", ["BGR", "RGB"])
def test_both_orders_of_channels_show_the_same_picture(img_format):
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
    # The turn through hue and saturation rounds colours, grey ones excepted.
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
def test_saturation_of_zero_leaves_grey():
    result = nothing(saturation_low=0, saturation_high=0).apply_image(picture())
    assert result.dtype == np.uint8
    assert (result == result[:, :, :1]).all()
    assert np.array_equal(result[:, :, 0], picture().max(axis=2))  # the value of HSV stays


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
    grey = np.full((2, 2, 3), 100, np.uint8)
    transform = nothing(contrast_low=0.5, contrast_high=0.5)
    changed = sum(int(transform.apply_image(grey).max() < 100) for _ in range(1000))
    assert 400 < changed < 600


def test_labels_and_coordinates_are_left_alone():
    transform = ColorAugSSDTransform("RGB")
    coords, labels = np.random.rand(5, 2), np.arange(6).reshape(2, 3)
    assert np.array_equal(transform.apply_coords(coords), coords)
    assert np.array_equal(transform.apply_segmentation(labels), labels)


def test_another_order_of_channels_is_refused_with_the_key():
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT.*BGR or RGB.*'L'"):
        ColorAugSSDTransform("L")
