"""The one reader of pictures and label maps; Detectron2's reader is the oracle for 8 bits."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image, ImageCms

from point_rend.utils import pictures
from point_rend.utils.pictures import (
    PictureError,
    from_bgr,
    is_stray_file,
    read_label_map,
    read_picture,
    to_array,
)

HEIGHT, WIDTH = 12, 20
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
ORDERS = ("BGR", "RGB", "L", "YUV-BT.601")


@pytest.fixture(autouse=True)
def _forget_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_noted", set())


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


# 8 bits

READS_YCBCR_TIFF = int(PIL.__version__.split(".")[0]) >= 13  # without compression
EIGHT_BITS = [
    *[("png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")],
    *[("jpg", mode) for mode in ("L", "RGB", "CMYK")],
    *[("tif", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")],
    *([("tif", "YCbCr")] if READS_YCBCR_TIFF else []),
    *[("bmp", "RGB"), ("gif", "P"), ("webp", "RGBA"), ("ppm", "RGB"), ("tga", "RGB")],
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("suffix", "mode"), EIGHT_BITS)
def test_pictures_of_8_bits_are_those_of_detectron2(
    suffix: str, mode: str, order: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / f"x.{suffix}", Image.fromarray(RGB).convert(mode))
    found, expected = read_picture(path, order), read_image(str(path), order)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(READS_YCBCR_TIFF, reason="this Pillow reads it")
def test_a_ycbcr_tiff_that_this_pillow_cannot_read_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.tif", Image.fromarray(RGB).convert("YCbCr"))
    with pytest.raises(PictureError, match=f"^{path} is truncated or broken"):
        read_picture(path)


@pytest.mark.parametrize("number", range(10))
def test_exif_turns_pictures_as_in_detectron2(number: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.jpg", Image.fromarray(RGB), exif=orientation(number))
    np.testing.assert_array_equal(read_picture(path), read_image(str(path), "BGR"))


@pytest.mark.parametrize(("number", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_tiff_is_turned_once(number: int, turns: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.tif", Image.fromarray(RGB), tiffinfo={274: number})
    np.testing.assert_array_equal(read_picture(path, "RGB"), np.rot90(RGB, turns))
    with pictures.open_picture(path) as image:
        assert pictures.stored_size(image) == (WIDTH, HEIGHT)
        assert pictures.shown_size(image) == np.rot90(RGB, turns).shape[1::-1]


def test_a_tiff_with_fewer_rows_than_it_declares_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.tif", Image.fromarray(RGB))
    height = struct.pack("<HHII", 257, 4, 1, HEIGHT)
    content = path.read_bytes()
    assert content.count(height) == 1
    path.write_bytes(content.replace(height, struct.pack("<HHII", 257, 4, 1, 9 * HEIGHT)))
    with pytest.raises(PictureError, match=r"broken \(it has 20 x 12 of its pixels\)"):
        read_picture(path)


@pytest.mark.parametrize("number", [1, 6])
def test_exif_after_the_pixels_of_a_png_counts(number: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.fromarray(RGB), exif=orientation(number))
    with pictures.open_picture(path) as image:
        assert pictures.shown_size(image) == ((WIDTH, HEIGHT) if number == 1 else (HEIGHT, WIDTH))
        image.load()
    np.testing.assert_array_equal(read_picture(path), read_image(str(path), "BGR"))


def test_the_size_of_a_png_without_exif_is_read_without_its_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.fromarray(RGB))
    with pictures.open_picture(path) as image:
        assert pictures.shown_size(image) == (WIDTH, HEIGHT)
        assert image.tile
        np.testing.assert_array_equal(to_array(image, "RGB"), RGB)


def test_a_picture_with_broken_exif_data_stays_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.jpg", Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0")
    np.testing.assert_array_equal(read_picture(path), read_image(str(path), "BGR"))


@pytest.mark.parametrize("transparency", [3, bytes(range(200))])
def test_transparency_of_a_palette_leaves_the_colors(transparency: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.fromarray(RGB).convert("P"), transparency=transparency)
    np.testing.assert_array_equal(read_picture(path), read_image(str(path), "BGR"))


def test_large_pictures_are_converted_in_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "STRIP", 5 * WIDTH)
    monkeypatch.setattr(pictures, "LARGE", 1)
    path = saved(tmp_path / "x.png", Image.fromarray(RGB))
    np.testing.assert_array_equal(read_picture(path), RGB[:, :, ::-1])


def test_lab_becomes_rgb(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    image = Image.fromarray(np.full((HEIGHT, WIDTH, 3), (200, 40, 90), np.uint8))
    path = saved(tmp_path / "x.tif", ImageCms.applyTransform(image, to_lab))
    with Image.open(path) as opened:
        assert opened.mode == "LAB"
    assert abs(read_picture(path, "RGB")[0, 0].astype(int) - (200, 40, 90)).max() <= 3
    assert read_picture(path, "L").shape == (HEIGHT, WIDTH, 1)


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa", "RGBX", "HSV"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_mode_of_pillow_gives_every_order(mode: str, order: str) -> None:
    steps = {"PA": ("P", "PA"), "La": ("LA", "La"), "RGBa": ("RGBA", "RGBa")}.get(mode, (mode,))
    image = Image.fromarray(RGB)
    for step in steps:
        image = image.convert(step)
    assert to_array(image, order).shape == (HEIGHT, WIDTH, 1 if order == "L" else 3)


@pytest.mark.parametrize("order", ORDERS)
def test_a_bgr_array_becomes_what_the_file_gives(order: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.fromarray(RGB))
    np.testing.assert_array_equal(from_bgr(read_picture(path), order), read_picture(path, order))


# More than 8 bits


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_the_high_byte_and_it_is_logged_once(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / f"x.{suffix}", Image.fromarray(GRAY16))
    expected = np.repeat((GRAY16 // 256)[:, :, None], 3, axis=2)
    for _ in range(2):
        np.testing.assert_array_equal(read_picture(path), expected)
        np.testing.assert_array_equal(read_picture(path, "L"), expected[:, :, :1])
    assert caplog.text.count("16 bits") == 1


def test_16_bits_of_color_follow_the_same_rule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import cv2

    pixels = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "x.png"), pixels)
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), pixels // 256)
    assert "16 bits" in caplog.text


def test_12_bits_in_16_are_almost_black_and_it_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_picture(saved(tmp_path / "x.png", Image.fromarray(GRAY16 // 16)))
    assert "almost black: its values end at" in caplog.text


def test_fractions_are_scaled_from_0_to_1_and_others_are_refused(tmp_path: Path) -> None:
    values = RNG.random((HEIGHT, WIDTH), dtype=np.float32)
    path = saved(tmp_path / "x.tif", Image.fromarray(values))
    expected = np.floor(values * np.float32(255) + np.float32(0.5))
    np.testing.assert_array_equal(read_picture(path, "L")[:, :, 0], expected)
    for wrong in (-0.1, 1.5, 255.0, np.nan, np.inf):
        values[3, 4] = wrong
        with pytest.raises(PictureError, match=r"x\.tif has floating-point values from .* 0 to 1"):
            read_picture(saved(path, Image.fromarray(values)))


@pytest.mark.parametrize(("top", "fits"), [(65535, True), (65536, False), (-1, False)])
def test_integers_of_32_bits_are_read_if_16_suffice(top: int, fits: bool, tmp_path: Path) -> None:
    values = GRAY16.astype(np.int32) // 2
    values[0, 0] = top
    path = saved(tmp_path / "x.tif", Image.fromarray(values))
    if fits:
        np.testing.assert_array_equal(read_picture(path, "L")[:, :, 0], values // 256)
    else:
        with pytest.raises(PictureError, match=r"has 32-bit values from .* expected 0 to 65535"):
            read_picture(path)


# Frames


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_the_first_of_several_frames_is_read_and_it_is_logged(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("white", "red", "blue")]
    path = tmp_path / f"x.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert (read_picture(path) == 255).all()
    assert "several frames" in caplog.text


def test_the_preview_of_an_mpo_is_not_worth_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("white", "red")]
    frames[0].save(tmp_path / "x.mpo", save_all=True, append_images=frames[1:])
    assert (read_picture(tmp_path / "x.mpo") == 255).all()
    assert not caplog.records


# Faults

HEADS = {
    "empty.jpg": (b"", r"is empty \(0 bytes\)"),
    "text.jpg": (b"not a picture\n" * 9, "is not an image, but a text"),
    "zeros.png": (bytes(1000), "begins with zeros"),
    "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "page.jpg": (b"\n<!DOCTYPE html><html><svg>", "a web page"),
    "drawing.png": (b'<?xml version="1.0"?>\n<!-- a -->\n<svg width="9">', "SVG.*convert it"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG.*convert it"),
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC.*convert it to JPEG"),
    "film.jpg": (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
    "canon.tif": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(100), "raw file of a camera|truncated"),
    "canon.cr3": (b"\0\0\0\x18ftypcrx ", "raw file of a camera"),
    "nikon.NEF": (b"anything", "raw file of a camera"),
    "paper.png": (b"%PDF-1.7", "PDF"),
    "plot.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "array.png": (b"\x93NUMPY\x01\0", "an array"),
    "scan.png": (bytes(128) + b"DICM" + bytes(99), "DICOM"),
    "noise.jpg": (b"\xff\xd8\xff" + bytes(range(256)), "is truncated or"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_file_of_another_kind_is_named_with_its_kind(name: str, tmp_path: Path) -> None:
    content, message = HEADS[name]
    (tmp_path / name).write_bytes(content)
    for read in (read_picture, read_label_map):
        with pytest.raises(PictureError, match=f"{name} .*({message})") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tag", [{254: 1}, {50706: b"\1\4\0\0"}])
def test_a_tiff_that_holds_a_thumbnail_of_a_raw_picture_is_refused(
    tag: dict[int, Any], tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.tif", Image.fromarray(RGB), tiffinfo=tag)
    with pytest.raises(PictureError, match="raw file of a camera"):
        read_picture(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "gif"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_named(suffix: str, share: float, tmp_path: Path) -> None:
    path = saved(tmp_path / f"x.{suffix}", Image.fromarray(RGB))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(PictureError, match=rf"{path} is (truncated|not an image)"):
        read_picture(path)


def test_a_missing_file_a_folder_a_pipe_and_a_url_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"there is no image {tmp_path / 'a.png'}"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(PictureError, match="cannot be read: a folder, expected a file"):
        read_picture(tmp_path)
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(PictureError, match="cannot be read: a pipe, expected a file"):
        read_picture(tmp_path / "b.png")
    with pytest.raises(PictureError, match="cannot be read: a device, expected a file"):
        read_picture("/dev/zero")
    for url in ("s3://bucket/a.png", "http://127.0.0.1/a.png", "detectron2://a.png"):
        with pytest.raises(PictureError, match=f"{url} is a URL"):
            read_picture(url)


def test_a_file_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path / "x.png", Image.fromarray(RGB))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PictureError, match=rf"{path} cannot be read: Permission denied"):
        read_picture(path)


def test_the_number_of_pixels_has_a_limit_that_a_variable_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "x.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("POINT_REND_MAX_PIXELS", str(HEIGHT * WIDTH))
    read_picture(path)
    monkeypatch.setenv("POINT_REND_MAX_PIXELS", str(HEIGHT * WIDTH - 1))
    with pytest.raises(PictureError, match=rf"{WIDTH} x {HEIGHT} pixels, the limit is 239; cut it"):
        read_picture(path)
    large = saved(tmp_path / "large.png", Image.new("1", (20_000, 10_000)))
    monkeypatch.delenv("POINT_REND_MAX_PIXELS")
    with pytest.raises(PictureError, match="200000000 pixels, the limit is 178956970"):
        read_picture(large)
    monkeypatch.setenv("POINT_REND_MAX_PIXELS", "200000000")
    with pictures.open_picture(large) as image:
        assert image.size == (20_000, 10_000)
    monkeypatch.setenv("POINT_REND_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="POINT_REND_MAX_PIXELS: expected a number, got 'many'"):
        read_picture(path)


# Label maps

LABELS = RNG.integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I"])
def test_a_label_map_has_the_same_values_in_every_mode(mode: str, tmp_path: Path) -> None:
    if mode == "P":
        image = Image.fromarray(LABELS)
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])  # as VOC's
    else:
        dtype = {"L": np.uint8, "I;16": np.uint16, "I": np.int32}[mode]
        image = Image.fromarray(LABELS.astype(dtype))
    path = saved(tmp_path / "x.tif", image)
    with Image.open(path) as opened:
        assert opened.mode == mode
    found = read_label_map(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, LABELS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_grayscale_png_of_fewer_bits_keeps_its_values(bits: int, tmp_path: Path) -> None:
    labels = LABELS % 2**bits
    shifts = np.arange(8 - bits, -1, -bits)
    packed = (
        (labels.reshape(HEIGHT, -1, 8 // bits) << shifts).sum(axis=2).astype(np.uint8)
        if (WIDTH * bits % 8 == 0)
        else np.packbits(labels, axis=1)
    )
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "x.png").write_bytes(content)
    np.testing.assert_array_equal(read_label_map(tmp_path / "x.png"), labels)


def test_larger_values_keep_their_type(tmp_path: Path) -> None:
    ids = saved(tmp_path / "ids.png", Image.fromarray(GRAY16))
    assert read_label_map(ids).dtype == np.uint16
    np.testing.assert_array_equal(read_label_map(ids), GRAY16)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(RGB), "mode RGB, which codes classes by colors: .*by an index"),
        (Image.fromarray(LABELS).convert("RGB"), "its colors are gray, so save it with one"),
        (Image.fromarray(LABELS).convert("LA"), "mode LA: .*save it with one channel"),
        (Image.fromarray(LABELS.astype(np.float32)), "mode F, with floating-point values"),
        (Image.fromarray(LABELS.astype(np.int32) - 1), "has negative values, down to -1"),
    ],
)
def test_a_label_map_without_indices_is_refused(
    image: Image.Image, message: str, tmp_path: Path
) -> None:
    with pytest.raises(PictureError, match=message):
        read_label_map(saved(tmp_path / "x.tif", image))


# Stray files


@pytest.mark.parametrize(
    ("name", "stray"),
    [
        *[(name, True) for name in ("._a.jpg", "Thumbs.db", "desktop.ini", ".DS_Store")],
        *[(".ipynb_checkpoints/a-checkpoint.jpg", True), ("__MACOSX/b/a.jpg", True)],
        *[(".0123456789abcdef.tmp.png", True), ("@eaDir/a.jpg/x.jpg", True)],
        *[(name, False) for name in ("a.jpg", "thumbs.jpg", "b/._/../a.png", "a._b.png", "_a.png")],
    ],
)
def test_stray_files_are_recognized(name: str, stray: bool) -> None:
    assert is_stray_file(Path(name)) is stray
