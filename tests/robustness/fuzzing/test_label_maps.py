"""Label maps and photographs, from damaged files of all formats and from any header."""

import io
import os
import struct
import tempfile
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from point_rend.data.checks.label_maps import blended_share
from point_rend.utils.pictures import (
    LIMIT_VARIABLE,
    ORDERS,
    PictureError,
    read_label_map,
    read_picture,
)

LABELS = np.random.default_rng(0).integers(0, 4, (9, 14)).astype(np.uint8)
FOLDER = tempfile.TemporaryDirectory()
FILE = Path(FOLDER.name) / "file"
MAX_PIXELS = "1000000"  # larger pictures would only take time


def encoded(form: str, mode: str, **options: object) -> bytes:
    image = Image.fromarray(LABELS)
    if mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    elif mode == "I;16":
        image = Image.fromarray(LABELS.astype(np.uint16))
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    if form in ("PNG", "JPEG", "WEBP"):
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


FILES = [
    *[encoded("PNG", mode) for mode in ("1", "L", "P", "I;16", "LA", "RGB")],
    *[encoded("TIFF", mode) for mode in ("1", "L", "P", "I;16", "F", "CMYK")],
    *[encoded("TIFF", "L", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_deflate")],
    *[encoded("JPEG", "L"), encoded("JPEG", "RGB", progressive=True), encoded("JPEG", "CMYK")],
    *[encoded(form, "P") for form in ("GIF", "BMP", "TGA", "PCX")],
    *[encoded(form, "RGB") for form in ("WEBP", "PPM", "ICO", "SGI", "JPEG2000", "DDS", "IM")],
    encoded("GIF", "P", save_all=True, append_images=[Image.fromarray(LABELS // 2)]),
]


def refused_or_read(content: bytes) -> None:
    """Read a file: there are pixels, or an error of one short line that names the file."""
    FILE.write_bytes(content)
    with mock.patch.dict(os.environ, {LIMIT_VARIABLE: MAX_PIXELS}):
        read(FILE)


def read(file: Path) -> None:
    try:
        labels = read_label_map(file)
        assert labels.ndim == 2
        assert labels.dtype in (np.uint8, np.uint16, np.int32)
        assert labels.size
        assert 0 <= blended_share(labels) <= 1
    except PictureError as error:
        check_message(str(error))
    for order in ORDERS[:4]:
        try:
            pixels = read_picture(file, order)
            assert pixels.ndim == 3
            assert pixels.shape[2] == (1 if order == "L" else 3)
            assert pixels.dtype == (np.float64 if order == "YUV-BT.601" else np.uint8)
        except PictureError as error:
            check_message(str(error))
            break


def check_message(message: str) -> None:
    assert message.startswith(str(FILE)), message
    assert "\n" not in message, message
    assert len(message) < 500, message


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "remove", "insert", "cut"]),
        st.integers(0, 400),
        st.binary(min_size=1, max_size=4),
    ),
    max_size=6,
)


@given(st.sampled_from(FILES), EDITS)
def test_any_damage(content: bytes, edits: list[tuple[str, int, bytes]]) -> None:
    data = bytearray(content)
    for kind, position, part in edits:
        position %= len(data) + 1
        if kind == "set":
            data[position : position + len(part)] = part
        elif kind == "remove":
            del data[position : position + len(part)]
        elif kind == "insert":
            data[position:position] = part
        elif position > 8:
            del data[position:]
    refused_or_read(bytes(data))


@example(b"")
@example(b"\x89PNG\r\n\x1a\n")
@example(b"II*\0\x08\0\0\0\0\0")
@example(b"P6 99999 99999 255 ")
@example(b"<svg" + 500 * b"<!-- -->")
@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    refused_or_read(content)


SIDES = st.integers(0, 40) | st.sampled_from([2**16, 2**31 - 1, 2**31, 2**32 - 1])
CHUNKS = st.tuples(
    st.sampled_from([b"PLTE", b"tRNS", b"eXIf", b"zTXt", b"iCCP", b"acTL", b"fcTL", b"fdAT"]),
    st.binary(max_size=40),
)


@example(14, 9, 4, 0, 0, [], LABELS.tobytes(), 9)
@example(14, 9, 8, 3, 0, [], LABELS.tobytes(), 9)
@example(14, 9, 8, 0, 0, [(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))], b"", 9)
@given(
    SIDES,
    SIDES,
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(0, 6),
    st.integers(0, 1),
    st.lists(CHUNKS, max_size=4),
    st.binary(max_size=400),
    st.integers(0, 9),
)
def test_any_png(
    width: int,
    height: int,
    bits: int,
    mode: int,
    interlace: int,
    chunks: list[tuple[bytes, bytes]],
    rows: bytes,
    level: int,
) -> None:
    header = struct.pack(">IIBBBBB", width, height, bits, mode, 0, 0, interlace)
    before, after = chunks[: len(chunks) // 2], chunks[len(chunks) // 2 :]
    content = b"\x89PNG\r\n\x1a\n"
    parts = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows, level)), *after]
    for kind, body in [*parts, (b"IEND", b"")]:
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    refused_or_read(content)


TAGS = st.sampled_from([254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 339])
ENTRIES = st.tuples(
    TAGS,
    st.integers(0, 14),
    st.integers(0, 4) | st.just(2**32 - 1),
    st.integers(0, 300) | st.sampled_from([5, 7, 8, 32773, 2**16 - 1, 2**32 - 1]),
)


@example([(256, 4, 1, 14), (257, 4, 1, 9), (273, 4, 1, 8), (279, 4, 1, 126)], LABELS.tobytes())
@given(st.lists(ENTRIES, max_size=12), st.binary(max_size=200))
def test_any_tiff(entries: list[tuple[int, int, int, int]], pixels: bytes) -> None:
    directory = 8 + len(pixels)
    content = b"II*\0" + struct.pack("<I", directory) + pixels + struct.pack("<H", len(entries))
    for entry in sorted(entries):
        content += struct.pack("<HHII", *entry)
    refused_or_read(content + bytes(4))
