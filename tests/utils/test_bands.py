"""Files of n channels and of 16 bits: readers, sizes, orientations, hostile files."""

import struct
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image

from point_rend.utils import bands as bands_module
from point_rend.utils.bands import (
    bands_of,
    image_size,
    image_suffixes,
    read_bands,
    read_input,
    read_pixels,
    read_view,
)
from point_rend.utils.pictures import PictureError, read_picture
from point_rend.utils.pixel_format import PixelFormat

HEIGHT, WIDTH = 6, 9
RNG = np.random.default_rng(0)


def random_bands(count: int, dtype: Any = np.uint16) -> np.ndarray:
    """Return random values (H, W, count)."""
    if np.dtype(dtype).kind == "f":
        return RNG.random((HEIGHT, WIDTH, count)).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, count)).astype(dtype)


def saved_tiff(path: Path, values: np.ndarray, **options: Any) -> Path:
    """Write values (H, W, B) as a TIFF of rasterio."""
    height, width, count = values.shape
    options |= {"height": height, "width": width, "count": count, "dtype": values.dtype}
    options["transform"] = rasterio.Affine(1, 0, 10, 0, -1, 20)  # without one it warns
    with rasterio.open(path, "w", driver="GTiff", **options) as file:
        file.write(np.moveaxis(values, -1, 0))
    return path


def saved_array(path: Path, values: np.ndarray) -> Path:
    """Write values as `.npy`."""
    np.save(path, values)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("suffix", ["npy", "tif"])
def test_channels_are_read_as_they_were_written(suffix, count, dtype, tmp_path) -> None:
    values = random_bands(count, dtype)
    save = saved_array if suffix == "npy" else saved_tiff
    path = save(tmp_path / f"x.{suffix}", values)
    read = read_bands(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, values)
    assert image_size(path) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "options",
    [
        {"compress": "deflate"},
        {"compress": "lzw", "predictor": 2},
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "pixel"},
        {"BIGTIFF": "YES"},
        {"ENDIANNESS": "BIG"},
    ],
)
def test_variants_of_tiff_give_the_same_values(options: dict[str, Any], tmp_path: Path) -> None:
    values = random_bands(5)
    np.testing.assert_array_equal(
        read_bands(saved_tiff(tmp_path / "x.tif", values, **options)), values
    )


def test_fractions_of_64_bits_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((HEIGHT, WIDTH, 1))
    path = saved_tiff(tmp_path / "x.tif", values)
    np.testing.assert_array_equal(read_bands(path), values)
    assert image_size(path) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_png_of_16_bits_keeps_all_of_them(count: int, tmp_path: Path) -> None:
    values = random_bands(count)
    order = [2, 1, 0, 3][:count] if count > 1 else [0]  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "x.png"), values[:, :, order])
    np.testing.assert_array_equal(read_bands(tmp_path / "x.png"), values)


@pytest.mark.parametrize(
    "values",
    [
        np.asfortranarray(random_bands(4)),
        random_bands(4).astype(">u2"),
        random_bands(1)[:, :, 0],
    ],
    ids=["order", "endianness", "gray"],
)
def test_arrays_of_any_layout_are_read(values: np.ndarray, tmp_path: Path) -> None:
    read = read_bands(saved_array(tmp_path / "x.npy", values))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, np.atleast_3d(values))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_orientations_are_applied_as_to_8_bits(suffix, orientation, tmp_path) -> None:
    values = random_bands(3)
    exif = Image.Exif()
    exif[274] = orientation
    plain = tmp_path / f"plain.{suffix}"
    Image.fromarray((values // 256).astype(np.uint8)).save(plain, exif=exif)
    deep = tmp_path / f"deep.{suffix}"
    if suffix == "png":
        cv2.imwrite(str(deep), values[:, :, ::-1])
        header, rest = deep.read_bytes()[:33], deep.read_bytes()[33:]
        content = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = b"eXIf" + content
        crc = struct.pack(">I", __import__("zlib").crc32(chunk))
        deep.write_bytes(header + struct.pack(">I", len(content)) + chunk + crc + rest)
    else:
        saved_tiff(deep, values)
        _set_orientation(deep, orientation)
    expected = read_picture(plain, "RGB")
    np.testing.assert_array_equal(read_bands(deep) // 256, expected)
    assert image_size(deep) == expected.shape[1::-1]


def _set_orientation(path: Path, orientation: int) -> None:
    """Replace the tag for the units of the resolution or another one that is not needed."""
    content = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", content, 4)[0]
    for k in range(struct.unpack_from("<H", content, start)[0]):
        at = start + 2 + 12 * k
        if struct.unpack_from("<H", content, at)[0] in (339, 284):  # SampleFormat of integers
            struct.pack_into("<HHIHH", content, at, 274, 3, 1, orientation, 0)
            break
    path.write_bytes(content)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_pictures_of_pillow_have_the_channels_of_their_mode(mode: str) -> None:
    source = Image.fromarray(random_bands(3, np.uint8))
    image = source.convert(mode) if mode != "I;16" else Image.fromarray(random_bands(1)[:, :, 0])
    expected = np.atleast_3d(np.asarray(image))
    expected = expected * np.uint8(255) if mode == "1" else expected
    np.testing.assert_array_equal(bands_of(image), expected)


def test_palettes_become_colors() -> None:
    image = Image.fromarray(random_bands(3, np.uint8)).quantize(8)
    np.testing.assert_array_equal(bands_of(image), np.asarray(image.convert("RGB")))


def test_a_plain_model_reads_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(random_bands(3, np.uint8)).save(path)
    for order in ("BGR", "RGB", "L", "YUV-BT.601"):
        expected = read_picture(path, order)
        np.testing.assert_array_equal(read_input(path, PixelFormat(order)), expected)
    np.testing.assert_array_equal(read_pixels(path, PixelFormat("L")), read_picture(path))


def test_the_input_of_a_model_is_scaled(tmp_path: Path) -> None:
    values = random_bands(4) // 16
    path = saved_array(tmp_path / "x.npy", values)
    pixel_format = PixelFormat(channels=4, bits=12)
    np.testing.assert_array_equal(read_pixels(path, pixel_format), values)
    np.testing.assert_allclose(read_input(path, pixel_format), values * (255 / 4095), rtol=1e-6)


def test_values_beyond_the_range_are_refused_with_file_value_and_key(tmp_path: Path) -> None:
    path = saved_array(tmp_path / "x.npy", np.full((2, 2, 4), 4096, np.uint16))
    with pytest.raises(PictureError, match=r"x\.npy has values .* 4096.*4095 \(INPUT\.BITS 12\)"):
        read_pixels(path, PixelFormat(channels=4, bits=12))


def test_views_show_files_of_any_kind(tmp_path: Path) -> None:
    values = random_bands(5)
    for path in (
        saved_array(tmp_path / "x.npy", values),
        saved_tiff(tmp_path / "x.tif", values),
    ):
        colors = values[:, :, 2::-1]
        expected = np.rint(colors * (255.0 / colors.max()))
        view = read_view(path)
        assert view.dtype == np.uint8
        assert np.abs(view - expected).max() <= 1
    picture = tmp_path / "x.png"
    Image.fromarray(random_bands(3, np.uint8)).save(picture)
    np.testing.assert_array_equal(read_view(picture), read_picture(picture))


def test_arrays_are_images_only_for_models_that_need_them() -> None:
    assert ".npy" not in image_suffixes(PixelFormat())
    assert ".npy" in image_suffixes(PixelFormat(bits=16))


def npy(header: str, values: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """Return a `.npy` file."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + values


def described(shape: str, dtype: str = "'<u2'") -> str:
    """Return the text of a header."""
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


HOSTILE = {
    "objects": (npy(described("(2,)", "'|O'")), "holds Python objects"),
    "records": (npy(described("(2, 2)", "[('a', '<u2')]")), "values of type"),
    "complex": (npy(described("(2, 2)", "'<c8'")), "values of type complex64"),
    "huge": (npy(described("(1000000, 1000000, 4)")), "is too large: it has 1000000 x 1000000"),
    "deep": (npy(described("(2, 2, 1000000000)")), "has 1000000000 channels, expected 1024"),
    "negative": (npy(described("(-2, 2, 4)")), "has shape (-2, 2, 4)"),
    "empty": (npy(described("(0, 2, 4)")), "has shape (0, 2, 4)"),
    "truth": (npy(described("(True, True, 4)"), b"\0" * 8), "has shape (True, True, 4)"),
    "one axis": (npy(described("(4,)")), "has shape (4,)"),
    "truncated": (npy(described("(2, 2, 4)"), b"\0" * 31), "take 31 bytes, expected 32"),
    "too long": (npy(described("(2, 2, 4)"), b"\0" * 33), "take 33 bytes, expected 32"),
    "code": (npy("__import__('os').getcwd()"), "is a broken .npy file"),
    "long header": (npy(described("(2, 2)") + " " * 20_000), "is a broken .npy file"),
    "version": (npy(described("(2, 2)"), version=b"\7\0"), "is a .npy file of version (7, 0)"),
    "cut": (npy(described("(2, 2)"))[:20], "is a broken .npy file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_arrays_are_refused_by_name(case: str, tmp_path: Path) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(PictureError) as refusal:
        read_bands(path)
    assert str(refusal.value).startswith(f"{path} ")
    assert message in str(refusal.value)
    with pytest.raises(PictureError):
        read_view(path)


@pytest.mark.parametrize("option", ["GTIFF_IGNORE_READ_ERRORS", "GTIFF_DIRECT_IO"])
def test_a_truncated_tiff_is_refused_by_name(option, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(option, "YES")
    path = saved_tiff(tmp_path / "x.tif", random_bands(5))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(PictureError, match=r"x\.tif is truncated or broken"):
        read_bands(path)


def test_a_truncated_png_of_16_bits_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), random_bands(3))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(PictureError, match=r"x\.png is truncated or broken"):
        read_bands(path)


def test_the_limit_on_pixels_holds_for_tiff_and_arrays(tmp_path, monkeypatch) -> None:
    paths = [
        saved_tiff(tmp_path / "x.tif", random_bands(5)),
        saved_array(tmp_path / "x.npy", random_bands(5)),
    ]
    monkeypatch.setenv("POINT_REND_MAX_PIXELS", str(HEIGHT * WIDTH))
    for path in paths:
        with pytest.raises(PictureError, match=r"too large.*POINT_REND_MAX_PIXELS"):
            read_bands(path)


def test_a_missing_rasterio_is_named_with_its_extra(tmp_path, monkeypatch) -> None:
    path = saved_tiff(tmp_path / "x.tif", random_bands(5))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ValueError, match=r"rasterio.*pip install \"point_rend\[geotiff\]\""):
        read_bands(path)


def test_a_plain_model_names_the_key_for_a_tiff_of_many_channels(tmp_path: Path) -> None:
    path = saved_tiff(tmp_path / "x.tif", random_bands(6))
    with pytest.raises(PictureError, match=r"x\.tif has 6 channels: .*INPUT\.CHANNELS"):
        read_pixels(path, PixelFormat())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_bands, read_view, image_size):
        with pytest.raises(FileNotFoundError, match="there is no image"):
            read(tmp_path / "x.npy")
    assert bands_module.ARRAY_SUFFIX == ".npy"
