"""Pixels of n channels and of up to 16 bits: arrangement, scaling and refusals."""

import numpy as np
import pytest
from PIL import Image

from point_rend.utils.pictures import PictureError, read_picture
from point_rend.utils.pixel_format import PixelFormat, arrange, to_model, to_view

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (5, 7, 4)).astype(np.uint8)
WORDS = BYTES.astype(np.uint16) * 257  # the same pictures with 16 bits


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_the_largest_integer_becomes_255_and_the_others_are_proportional(bits: int) -> None:
    top = 2**bits - 1
    bands = np.array([[[0, 1, top // 2, top]]], np.uint16)
    pixel_format = PixelFormat(channels=4, bits=bits)
    values = to_model(arrange(bands, pixel_format), pixel_format)
    assert values.dtype == np.float32
    assert values[0, 0, 0] == 0
    assert values[0, 0, 3] == 255
    np.testing.assert_allclose(values, bands * (255 / top), rtol=1e-6)


@pytest.mark.parametrize("order", ["BGR", "RGB", "L"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_16_bits_give_the_values_of_the_same_picture_with_8(order: str, count: int) -> None:
    plain, deep = PixelFormat(order), PixelFormat(order, bits=16)
    bands = slice(None), slice(None), slice(count)
    expected = to_model(arrange(BYTES[bands], plain), plain)
    found = to_model(arrange(WORDS[bands], deep), deep)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    tolerance = 0.51 if order == "L" and count > 2 else 1e-4  # Pillow rounds the luma
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("order", ["BGR", "RGB", "L"])
def test_bands_of_8_bits_are_arranged_as_pillow_reads_the_file(mode, order, tmp_path) -> None:
    image = Image.fromarray(BYTES, "RGBA").convert(mode)
    image.save(tmp_path / "x.png")
    pixel_format = PixelFormat(order)
    pixels = arrange(np.asarray(image), pixel_format)
    np.testing.assert_array_equal(
        to_model(pixels, pixel_format), read_picture(tmp_path / "x.png", order)
    )


def test_16_bits_of_an_8_bit_model_keep_the_high_byte() -> None:
    words = RNG.integers(0, 65536, (3, 4, 3)).astype(np.uint16)
    pixels = arrange(words, PixelFormat())
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, words[:, :, ::-1] // 256)


def test_n_channels_keep_their_order_and_8_bits_their_values() -> None:
    pixel_format = PixelFormat(channels=4)
    np.testing.assert_array_equal(to_model(arrange(BYTES, pixel_format), pixel_format), BYTES)
    assert to_model(BYTES, pixel_format).dtype == np.float32


def test_fractions_are_multiplied_by_255() -> None:
    fractions = RNG.random((5, 7, 6)).astype(np.float64)
    pixel_format = PixelFormat(channels=6, bits=12)
    values = to_model(arrange(fractions, pixel_format), pixel_format)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, fractions * 255, rtol=1e-6)


REFUSALS = {
    "channels": (
        BYTES,
        PixelFormat(channels=5),
        "x.tif has 4 channels, expected 5 (INPUT.CHANNELS",
    ),
    "colors": (
        np.zeros((2, 2, 5), np.uint8),
        PixelFormat(),
        "x.tif has 5 channels, expected gray or colors (INPUT.FORMAT BGR): set INPUT.CHANNELS",
    ),
    "8 bits": (BYTES, PixelFormat(channels=4, bits=16), "has 8 bits a channel, expected 16 (INPUT"),
    "too large": (
        WORDS,
        PixelFormat(channels=4, bits=12),
        f"has values from {WORDS.min()} to {WORDS.max()}: expected 0 to 4095 (INPUT.BITS 12)",
    ),
    "16 bits": (WORDS, PixelFormat(channels=4), "expected 0 to 255 (INPUT.BITS 8)"),
    "negative": (-WORDS.astype(np.int32), PixelFormat("L", bits=16), "expected 0 to 65535"),
    "fractions": (BYTES * 1.5, PixelFormat(channels=4), "floating-point values from"),
    "not a number": (BYTES * np.nan, PixelFormat(channels=4), "floating-point values from nan"),
    "texts": (BYTES.astype(str), PixelFormat(channels=4), "of type <U3: expected numbers"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_other_bands_are_refused_with_file_value_and_key(case: str) -> None:
    bands, pixel_format, message = REFUSALS[case]
    with pytest.raises(PictureError) as refusal:
        arrange(bands, pixel_format, name="x.tif")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("pixels", "pixel_format", "message"),
    [
        (BYTES, PixelFormat(), "expected an array (H, W, 3) of type uint8 in BGR order, got"),
        (WORDS[:, :, :3], PixelFormat(), "got shape (5, 7, 3) of type uint16"),
        (BYTES[:, :, 0], PixelFormat(), "got shape (5, 7) of type uint8"),
        (BYTES, PixelFormat(channels=5), "an array (H, W, 5) of type uint8, or float32 from 0"),
        (WORDS[:0], PixelFormat(channels=4, bits=16), "got shape (0, 7, 4)"),
        (WORDS, PixelFormat("L", bits=16), "(H, W), or (H, W, 3) in BGR order, of type uint16"),
    ],
)
def test_other_arrays_are_refused_with_shape_and_type(pixels, pixel_format, message) -> None:
    with pytest.raises(ValueError, match="expected an array") as refusal:
        to_model(pixels, pixel_format)
    assert message in str(refusal.value)


def test_views_show_the_first_three_channels_in_the_order_of_the_format() -> None:
    first = BYTES[:, :, :3]
    np.testing.assert_array_equal(to_view(BYTES, PixelFormat("BGR", 4)), first)
    np.testing.assert_array_equal(to_view(BYTES, PixelFormat("RGB", 4)), first[:, :, ::-1])
    two = to_view(BYTES[:, :, :2], PixelFormat(channels=2))
    np.testing.assert_array_equal(two, np.repeat(BYTES[:, :, :1], 3, axis=2))


def test_the_largest_value_of_a_deep_view_is_white() -> None:
    pixels = np.array([[0, 500, 1000]], np.uint16)
    view = to_view(pixels, PixelFormat("L", bits=16))
    np.testing.assert_array_equal(view[0], [[0] * 3, [128] * 3, [255] * 3])
    darker = to_view(pixels, PixelFormat("L", bits=16), white=2000)
    np.testing.assert_array_equal(darker[0, :, 0], [0, 64, 128])
    assert not to_view(pixels * 0, PixelFormat("L", bits=16)).any()


def test_an_empty_choice_of_keys_is_the_plain_format() -> None:
    assert PixelFormat().is_plain
    assert PixelFormat("L").is_plain
    assert PixelFormat("RGB", 3).is_plain
    assert not PixelFormat("BGR", 4).is_plain
    assert not PixelFormat("BGR", bits=16).is_plain
