"""Windows have the pixels that the whole picture has, whatever a file holds or pretends to hold."""

import socket
import struct
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC

from point_rend.inference.large_outputs import write_label_map
from point_rend.tiling import windows
from point_rend.tiling.grid import Window
from point_rend.tiling.windows import DecodedImage, TiffImage, is_georeferenced, open_windows
from point_rend.utils.bands import read_pixels
from point_rend.utils.pictures import LIMIT_VARIABLE, PictureError, read_picture
from point_rend.utils.pixel_format import PixelFormat

SIZE = (150, 171)
# Options of GDAL: by name of the file.
KINDS: dict[str, dict[str, Any]] = {
    "strips": {"count": 3, "photometric": "RGB"},
    "tiles": {"count": 3, "photometric": "RGB", "tiled": True, "compress": "deflate"},
    "bands in turn": {"count": 3, "photometric": "RGB", "interleave": "band"},
    "compressed bands": {"count": 3, "interleave": "band", "compress": "lzw", "tiled": True},
    "big": {"count": 3, "bigtiff": "YES", "compress": "zstd", "predictor": 2},
    "big-endian": {"count": 3, "endianness": "BIG", "compress": "lzw"},
    "jpeg": {"count": 3, "compress": "jpeg", "tiled": True, "photometric": "RGB"},
    "gray": {"count": 1, "compress": "packbits"},
    "gray and alpha": {"count": 2, "alpha": "yes"},
    "alpha": {"count": 4, "photometric": "RGB", "alpha": "yes"},
    "infrared": {"count": 4, "photometric": "RGB", "alpha": "no"},
    "without data": {"count": 3, "nodata": 7},
    "16 bits": {"count": 1, "dtype": "uint16", "compress": "deflate", "predictor": 2},
    "16 bits, big-endian": {"count": 1, "dtype": "uint16", "endianness": "BIG"},
    "16 bits of color": {"count": 3, "dtype": "uint16", "photometric": "RGB", "tiled": True},
    "fractions": {"count": 1, "dtype": "float32", "compress": "deflate", "predictor": 3},
}
# Those that are decoded as a whole.
OTHERS: dict[str, dict[str, Any]] = {
    "chroma": {"count": 3, "compress": "jpeg", "tiled": True, "photometric": "YCBCR"},
    "premultiplied": {"count": 4, "photometric": "RGB", "alpha": "premultiplied"},
    "white": {"count": 1, "photometric": "MINISWHITE"},
    "print": {"count": 4, "photometric": "CMYK"},
    "bits": {"count": 1, "nbits": 1},
}
CORNERS = (Window(0, 0, *SIZE), Window(10, 20, 100, 50), Window(140, 130, 10, 41))


def write_tiff(path: Path, size: tuple[int, int] = SIZE, **options: Any) -> Path:
    """Write random values, and return the path."""
    dtype = options.setdefault("dtype", "uint8")
    random = np.random.default_rng(0)
    shape = (options["count"], *size)
    top = 2 if "nbits" in options else 255 if dtype == "uint8" else 65535
    values = random.random(shape) if dtype == "float32" else random.integers(0, top, shape)
    if options.get("tiled"):
        options |= {"blockxsize": 64, "blockysize": 64}
    height, width = size
    with warnings.catch_warnings():  # about the missing georeference, and of package affine
        warnings.simplefilter("ignore")
        file = rasterio.open(path, "w", driver="GTiff", height=height, width=width, **options)
    with file:
        file.write(values.astype(dtype))
    return path


def check_windows(path: Path, kind: type) -> None:
    whole = read_picture(path)
    with open_windows(path) as image:
        assert isinstance(image, kind)
        assert image.size == whole.shape[:2]
        for window in CORNERS:
            pixels = image.read(window)
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(pixels, whole[window.slices])


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_a_window_of_a_tiff_equals_that_of_the_whole_picture(kind: str, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "picture.tif", **(KINDS | OTHERS)[kind])
    check_windows(path, TiffImage if kind in KINDS else DecodedImage)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_window_of_a_palette_has_its_colors(compression: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    path = tmp_path / "palette.tiff"
    Image.fromarray(values).quantize(256).save(path, compression=compression)
    check_windows(path, TiffImage)


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.tif"])
def test_windows_lie_in_the_picture_as_it_is_shown(name: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (*SIZE[::-1], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.fromarray(values).save(tmp_path / name, exif=exif)
    check_windows(tmp_path / name, DecodedImage)


def test_a_mapped_array_is_read_window_by_window(tmp_path: Path) -> None:
    pixels = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (*SIZE, 3))
    pixels[:] = np.random.default_rng(0).integers(0, 255, pixels.shape)
    with open_windows(pixels) as image:
        window = image.read(CORNERS[1])
    assert type(window) is np.ndarray
    np.testing.assert_array_equal(window, pixels[CORNERS[1].slices])


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 2), (0, 5, 3)])
def test_an_array_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an array \(H, W, 3\)"):
        open_windows(np.zeros(shape, np.uint8)).__enter__()


def test_a_place_on_the_map_is_known(tmp_path: Path) -> None:
    place = {"crs": "EPSG:32632", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6)}
    path = write_tiff(tmp_path / "map.tif", count=3, **place)
    with open_windows(path) as image:
        assert image.georeference["crs"].to_epsg() == 32632
        assert image.georeference["transform"] == place["transform"]
    assert is_georeferenced(path)
    path = write_tiff(tmp_path / "none.tif", count=3)
    with open_windows(path) as image:
        assert image.georeference == {}
    assert not is_georeferenced(path)


@pytest.mark.parametrize("crs", ["EPSG:4326", None])
def test_control_points_and_rational_coefficients_are_a_place_on_the_map(
    crs: str | None, tmp_path: Path
) -> None:
    points = [GroundControlPoint(*x) for x in ((0, 0, 10, 50), (0, 9, 11, 50), (9, 0, 10, 49))]
    numbers = dict.fromkeys(("height", "lat", "line", "long", "samp"), 1.0)
    ends = {f"{name}_{end}": 1.0 for name in numbers for end in ("off", "scale")}
    polynomials = {
        f"{side}_{part}_coeff": [1.0] * 20 for side in ("line", "samp") for part in ("num", "den")
    }
    system = CRS.from_user_input(crs) if crs else CRS()
    places: list[dict[str, Any]] = [{"gcps": points, "crs": system}]
    places.append({"rpcs": RPC(**ends, **polynomials, err_bias=1.0, err_rand=1.0)})
    for number, place in enumerate(places):
        path = write_tiff(tmp_path / f"{number}.tif", count=3, **place)
        assert is_georeferenced(path)
        with open_windows(path) as image:
            write_label_map(
                tmp_path / "map.tif",
                [np.zeros(image.size, np.uint8)],
                image.size,
                image.georeference,
            )
        with rasterio.open(path) as one, rasterio.open(tmp_path / "map.tif") as other:
            assert one.gcps[1] == other.gcps[1]
            assert [(x.row, x.col, x.x, x.y) for x in one.gcps[0]] == [
                (x.row, x.col, x.x, x.y) for x in other.gcps[0]
            ]
            assert one.rpcs == other.rpcs


def test_more_channels_than_any_model_has_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "picture.tif", count=1)
    content = path.read_bytes()
    header = struct.pack("<HHI", 277, 3, 1)  # the number of channels
    assert content.count(header) == 1
    start = content.index(header) + len(header)
    path.write_bytes(content[:start] + struct.pack("<H", 60_000) + content[start + 2 :])
    with pytest.raises(PictureError, match="has 60000 channels, expected 1024 at most"):
        open_windows(path, PixelFormat("RGB", 4, 16)).__enter__()


def test_windows_of_a_tiff_beyond_the_limit_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiff(tmp_path / "large.tif", **KINDS["tiles"])
    whole = read_picture(path)
    monkeypatch.setenv(LIMIT_VARIABLE, "1000")
    with pytest.raises(PictureError, match="the limit is 1000"):
        read_picture(path)
    with open_windows(path) as image:
        np.testing.assert_array_equal(image.read(CORNERS[0]), whole)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(PictureError, match=r'pip install "point_rend\[geotiff\]"'):
        open_windows(path).__enter__()


def test_without_rasterio_a_tiff_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    check_windows(write_tiff(tmp_path / "picture.tif", **KINDS["tiles"]), DecodedImage)


def sparse_tiff(path: Path, side: int, block: int) -> Path:
    """Write a TIFF that declares many pixels and has none."""
    options: dict[str, Any] = {
        "blockxsize": block,
        "blockysize": block,
        "sparse_ok": True,
        "bigtiff": "YES",
    }
    options |= {"dtype": "uint8", "tiled": True, "compress": "lzw"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rasterio.open(path, "w", "GTiff", side, side, 1, **options).close()
    return path


@pytest.mark.parametrize(
    ("side", "block", "fault"),
    [
        (300_000, 8192, "is too large: it has 300000 x 300000 pixels, the limit is 68719476736"),
        (200_000, 16384, "declares 200000 x 200000 pixels, but has"),
        (32_768, 32_768, "is stored in blocks of 32768×32768 pixels"),
    ],
)
def test_more_pixels_than_anybody_has_are_refused(
    side: int, block: int, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "MAX_RATIO", windows.MAX_RATIO if "declares" in fault else 1e9)
    path = sparse_tiff(tmp_path / "bomb.tif", side, block)
    assert path.stat().st_size < 100_000
    with pytest.raises(PictureError, match=fault):
        open_windows(path).__enter__()


def test_a_truncated_tiff_is_named(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "cut.tif", **KINDS["tiles"])
    path.write_bytes(path.read_bytes()[:-20_000])
    with (
        pytest.raises(PictureError, match=r"cut\.tif is truncated or broken"),
        open_windows(path) as image,
    ):
        image.read(CORNERS[0])


VRT = """<VRTDataset rasterXSize="171" rasterYSize="150"><VRTRasterBand dataType="Byte" band="1">
<SimpleSource><SourceFilename>{}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""
PROXY = """<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{}</MDI></Metadata>
</PAMDataset>"""


def test_no_file_leads_to_another_file_or_the_network(tmp_path: Path) -> None:
    secret = write_tiff(tmp_path / "secret.tif", **KINDS["gray"])
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def answer() -> None:
            with suppress(OSError):  # at the end
                while connection := server.accept()[0]:
                    asked.append(connection.recv(100))
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        url = f"/vsicurl/http://127.0.0.1:{server.getsockname()[1]}/x.tif"
        for target in (str(secret), url):
            path = tmp_path / "pointer.tif"
            path.write_text(VRT.format(target))
            with pytest.raises(PictureError, match="is not an image, but a text"):
                open_windows(path).__enter__()
        for name in (url, url.removeprefix("/vsicurl/"), f"GTIFF_DIR:1:{secret}"):
            with pytest.raises((FileNotFoundError, PictureError)):
                open_windows(name).__enter__()
        path = write_tiff(tmp_path / "beside.tif", **KINDS["gray"])
        Path(f"{path}.aux.xml").write_text(PROXY.format(url))
        with open_windows(path) as image:
            assert image.dataset.overviews(1) == []
            assert image.dataset.tags(ns="OVERVIEWS") == {}
            image.read(CORNERS[0])
    assert not asked


# --- models of other pixels than 8-bit colors ---


@pytest.mark.parametrize(
    ("suffix", "count"), [(x, n) for x in ("tif", "npy") for n in (1, 3, 5)] + [("png", 3)]
)
def test_windows_of_deep_pictures_are_parts_of_the_whole(suffix, count, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (60, 90, count)).astype(np.uint16)
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    elif suffix == "png":
        cv2.imwrite(str(path), values[:, :, ::-1])
    else:
        options = {"height": 60, "width": 90, "count": count, "dtype": "uint16"}
        options |= {"tiled": True, "blockxsize": 32, "blockysize": 16}
        with rasterio.open(path, "w", "GTiff", transform=Affine(1, 0, 9, 0, -1, 9), **options) as f:
            f.write(np.moveaxis(values, 2, 0))
    order = "L" if count == 1 else "RGB"
    channels = count if count == 5 else -1
    pixel_format = PixelFormat(order, channels, bits=16)
    whole = read_pixels(path, pixel_format)
    assert whole.dtype == np.uint16
    with open_windows(path, pixel_format) as image:
        assert image.size == (60, 90)
        for window in (Window(0, 0, 60, 90), Window(7, 31, 20, 40), Window(59, 89, 1, 1)):
            np.testing.assert_array_equal(image.read(window), whole[window.slices])


def test_a_window_with_values_beyond_the_range_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    values = np.zeros((8, 8, 4), np.uint16)
    values[6, 6] = 4096
    np.save(path, values)
    with open_windows(path, PixelFormat(channels=4, bits=12)) as image:
        image.read(Window(0, 0, 4, 4))
        with pytest.raises(PictureError, match=r"x\.npy has values from 0 to 4096"):
            image.read(Window(4, 4, 4, 4))
