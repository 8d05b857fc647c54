"""PNG files written row by row are those that other programs read."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from point_rend.utils.png import GrayPngWriter


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("cuts", [(), (1,), (3, 50, 51), tuple(range(1, 97))])
def test_rows_read_back_as_they_were_written(dtype: type, cuts: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (97, 61), dtype=dtype)
    buffer = io.BytesIO()
    writer = GrayPngWriter(buffer, values.shape, values.dtype)
    for rows in np.split(values, cuts):
        writer.write(rows)
    writer.close()
    content = np.frombuffer(buffer.getvalue(), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(content, cv2.IMREAD_UNCHANGED), values)
    np.testing.assert_array_equal(np.asarray(Image.open(buffer)), values)


@pytest.mark.parametrize("rows", [1, 9, 11])
def test_missing_rows_are_noticed(rows: int) -> None:
    writer = GrayPngWriter(io.BytesIO(), (10, 5), np.dtype(np.uint8))
    writer.write(np.zeros((rows, 5), np.uint8))
    with pytest.raises(ValueError, match=f"expected 10 rows of the picture, got {rows}"):
        writer.close()


@pytest.mark.parametrize(
    ("size", "dtype"), [((0, 5), np.uint8), ((5, 1 << 31), np.uint8), ((5, 5), np.int32)]
)
def test_what_the_format_lacks_is_refused(size: tuple[int, int], dtype: type) -> None:
    with pytest.raises(ValueError, match="a PNG cannot have"):
        GrayPngWriter(io.BytesIO(), size, np.dtype(dtype))
