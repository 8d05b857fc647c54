"""Grayscale PNG files that are written row by row, so that the picture need not fit into memory."""

import struct
import zlib
from typing import BinaryIO

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAYSCALE = 0
UNFILTERED = 0  # first byte of each row
LONGEST_SIDE = (1 << 31) - 1


class GrayPngWriter:
    """Writes a grayscale PNG of 8 or 16 bits.

    Args:
        file: Open for writing; it gets the whole file by the end of :meth:`close`.
        size: Height and width in pixels.
        dtype: uint8 or uint16.

    Raises:
        ValueError: If the format has no such picture.
    """

    def __init__(self, file: BinaryIO, size: tuple[int, int], dtype: np.dtype) -> None:
        if not all(1 <= side <= LONGEST_SIDE for side in size) or dtype not in (
            np.uint8,
            np.uint16,
        ):
            raise ValueError(f"a PNG cannot have {size[0]}×{size[1]} pixels of type {dtype}")
        self.file = file
        self.size = size
        self.dtype = np.dtype(dtype).newbyteorder(">")
        self.rows = 0
        self.compressor = zlib.compressobj()
        file.write(SIGNATURE)
        bits = 8 * self.dtype.itemsize
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], bits, GRAYSCALE, 0, 0, 0))

    def write(self, rows: np.ndarray) -> None:
        """Append rows (h, W)."""
        height = len(rows)
        values = np.ascontiguousarray(rows, self.dtype).view(np.uint8).reshape(height, -1)
        filtered = np.pad(values, ((0, 0), (1, 0)), constant_values=UNFILTERED)
        self._chunk(b"IDAT", self.compressor.compress(filtered.tobytes()))
        self.rows += height

    def close(self) -> None:
        """Complete the file.

        Raises:
            ValueError: If rows are missing, or there were too many.
        """
        if self.rows != self.size[0]:
            raise ValueError(f"expected {self.size[0]} rows of the picture, got {self.rows}")
        self._chunk(b"IDAT", self.compressor.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, content: bytes) -> None:
        if content or kind == b"IEND":
            self.file.write(struct.pack(">I", len(content)) + kind + content)
            self.file.write(struct.pack(">I", zlib.crc32(kind + content)))
