"""Pixels of other kinds than 8-bit color: n channels, and integers of up to 16 bits.

A picture takes three forms. Shapes: H × W pixels, B bands of a file, C channels of a model.

1. Bands (H, W, B), as they are stored in a file: gray, or red, green, blue, or anything.
2. An array as `Predictor` takes it: (H, W, 3) in BGR order, (H, W, 1) gray, or (H, W, C) in the
   order of the file, for a model whose channels are not those of INPUT.FORMAT.
3. Values from 0 to 255 in the order of the model.

The rule for 8-bit models of gray or color is that of :mod:`point_rend.utils.pictures`. For others,
the largest integer of INPUT.BITS becomes 255.0, and 0 stays 0; floating-point numbers from 0 to 1
are multiplied by 255. Nothing is clipped: a value beyond the range is an error, and so are integers
of 8 bits where more are expected.
"""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from point_rend.utils.pictures import PictureError, from_bgr, to_eight_bits

AS_FORMAT = -1  # number of channels that follows the order of colors
EIGHT_BITS = 8
DEPTHS = (8, 10, 12, 14, 16)  # bits of an integer
MOST_BANDS = 1024
COLORS = 3
DEEP_ORDERS = ("BGR", "RGB", "L")  # those that are defined for more than 8 bits
LUMA = (0.114, 0.587, 0.299)  # of BT.601, as Pillow's, for blue, green, red


class PixelFormat(NamedTuple):
    """Pixels that a model expects.

    Attributes:
        order: Order of the colors, as INPUT.FORMAT.
        channels: Number of channels, as INPUT.CHANNELS; `AS_FORMAT` is that of the order.
        bits: Bits of an integer, as INPUT.BITS.
    """

    order: str = "BGR"
    channels: int = AS_FORMAT
    bits: int = EIGHT_BITS

    @property
    def num_channels(self) -> int:
        """Number of channels C."""
        return channels_of(self.order) if self.channels == AS_FORMAT else self.channels

    @property
    def has_colors(self) -> bool:
        """Whether the channels are those of the order: gray or colors, which can be converted."""
        return self.num_channels == channels_of(self.order)

    @property
    def is_plain(self) -> bool:
        """Whether the rule of `point_rend.utils.pictures` applies: gray or colors of 8 bits."""
        return self.has_colors and self.bits == EIGHT_BITS

    @property
    def largest(self) -> int:
        """Largest integer, which becomes 255."""
        return (1 << self.bits) - 1


PLAIN = PixelFormat()


def channels_of(order: str) -> int:
    """Return the number of channels of an order of colors."""
    return Image.getmodebands(order) if order in Image.MODES else COLORS


def arrange(bands: np.ndarray, pixel_format: PixelFormat, *, name: str = "the image") -> np.ndarray:
    """Turn the bands of a file, or of a part of it, into an array as `Predictor` takes it.

    Args:
        bands: (H, W, B) or (H, W), of integers or floating-point numbers.
        pixel_format: Pixels that the model expects.
        name: The file, for messages.

    Returns:
        (H, W, 3) uint8, BGR, for gray or colors of 8 bits. Otherwise (H, W, C), of type uint8,
        uint16 or float32: BGR or gray, or in the order of the file.

    Raises:
        PictureError: If the number of bands or the values do not fit.
    """
    bands = bands[:, :, None] if bands.ndim == 2 else bands
    count = bands.shape[2]
    if not pixel_format.has_colors:
        if count != pixel_format.channels:
            raise PictureError(
                name,
                f"has {_channels(count)}, expected {pixel_format.channels} (INPUT.CHANNELS)",
            )
        return _checked(bands, pixel_format, name)
    if not 1 <= count <= 4:
        raise PictureError(
            name,
            f"has {_channels(count)}, expected gray or colors (INPUT.FORMAT {pixel_format.order}): "
            "set INPUT.CHANNELS for a model of all channels",
        )
    bands = bands[:, :, :1] if count < COLORS else bands[:, :, COLORS - 1 :: -1]  # without alpha
    if pixel_format.is_plain:
        bands = to_eight_bits(bands, name)
        return np.repeat(bands, COLORS, axis=2) if count < COLORS else bands
    bands = _checked(bands, pixel_format, name)
    is_gray = pixel_format.num_channels == 1
    return bands if is_gray or count >= COLORS else np.repeat(bands, COLORS, axis=2)


def to_model(
    pixels: np.ndarray, pixel_format: PixelFormat, *, name: str = "the image"
) -> np.ndarray:
    """Turn an array as `Predictor` takes it into the values that the model reads.

    Args:
        pixels: As of :func:`arrange`; gray may be (H, W).
        pixel_format: Pixels that the model expects.
        name: The file, for messages.

    Returns:
        (H, W, C), from 0 to 255: uint8 for gray or colors of 8 bits, otherwise float32.

    Raises:
        PictureError: If the values do not fit.
        ValueError: If the shape or the type does not.
    """
    check_shape(pixels, pixel_format)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    gray = pixels.shape[2] == 1
    if pixel_format.is_plain:
        return pixels if gray else from_bgr(pixels, pixel_format.order)
    values = _scaled(_checked(pixels, pixel_format, name), pixel_format)
    if not pixel_format.has_colors or gray:
        return values
    if pixel_format.order == "L":
        return (values @ np.array(LUMA, np.float32))[:, :, None]
    return values if pixel_format.order == "BGR" else values[:, :, ::-1]


def check_shape(pixels: np.ndarray, pixel_format: PixelFormat) -> None:
    """Refuse an array of another shape, or of another type, than `Predictor` takes.

    Raises:
        ValueError: If it is one.
    """
    count = 1 if pixels.ndim == 2 else pixels.shape[-1] if pixels.ndim == 3 else 0
    fits = pixels.size and count in _numbers(pixel_format)
    if not fits or (pixel_format.is_plain and pixels.dtype != np.uint8):
        raise ValueError(
            f"expected {_text(pixel_format)}, got shape {pixels.shape} of type {pixels.dtype}"
        )


def to_view(
    pixels: np.ndarray, pixel_format: PixelFormat, *, white: float | None = None
) -> np.ndarray:
    """Turn an array as `Predictor` takes it into a picture to look at.

    Of n channels, the first three are its colors, in the order of INPUT.FORMAT; of two, the first
    is gray. Values of 8 bits stay as they are.

    Args:
        pixels: As of :func:`to_model`.
        pixel_format: Pixels that the model expects.
        white: The value that becomes white, of other than 8 bits; by default the largest one that
            is shown.

    Returns:
        (H, W, 3) uint8, BGR.
    """
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    shown = pixels[:, :, : COLORS if pixels.shape[2] >= COLORS else 1]
    if not pixel_format.has_colors and pixel_format.order == "RGB":
        shown = shown[:, :, ::-1]
    if shown.dtype != np.uint8:
        white = float(shown.max(initial=0)) if white is None else white
        factor = np.float32(255 / white if white > 0 else 0)
        shown = np.minimum(shown * factor + np.float32(0.5), 255).astype(np.uint8)
    shown = np.repeat(shown, COLORS, axis=2) if shown.shape[2] == 1 else shown
    return np.ascontiguousarray(shown)


def _checked(values: np.ndarray, pixel_format: PixelFormat, name: str) -> np.ndarray:
    """Refuse values out of range; return them as uint8, uint16 or float32."""
    kind, bits, largest = values.dtype.kind, pixel_format.bits, pixel_format.largest
    low: Any
    high: Any
    if kind == "f":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # so that NaN is refused
            raise PictureError(
                name, f"has floating-point values from {low:g} to {high:g}: expected 0 to 1"
            )
        return values.astype(np.float32, copy=False)
    if kind not in "ui":
        raise PictureError(name, f"has values of type {values.dtype}: expected numbers")
    if values.dtype.itemsize == 1 and bits > EIGHT_BITS:
        raise PictureError(
            name, f"has 8 bits a channel, expected {bits} (INPUT.BITS) in integers of 16 bits"
        )
    low, high = values.min(), values.max()
    if low < 0 or high > largest:
        raise PictureError(
            name,
            f"has values from {low} to {high}: expected 0 to {largest} (INPUT.BITS {bits})",
        )
    return values.astype(np.uint8 if bits == EIGHT_BITS else np.uint16, copy=False)


def _scaled(values: np.ndarray, pixel_format: PixelFormat) -> np.ndarray:
    """Bring checked values to the range from 0 to 255."""
    scaled = values.astype(np.float32)
    if values.dtype != np.uint8:
        scaled *= 255  # exact for integers of 16 bits, so that the largest one becomes 255.0
    if values.dtype == np.uint16:
        scaled /= pixel_format.largest
    return scaled


def _numbers(pixel_format: PixelFormat) -> tuple[int, ...]:
    """Return the numbers of channels that an array may have."""
    if not pixel_format.has_colors:
        return (pixel_format.channels,)
    return (1, COLORS) if pixel_format.num_channels == 1 else (COLORS,)


def _text(pixel_format: PixelFormat) -> str:
    """Describe the arrays for a model."""
    if pixel_format.is_plain:
        also = " or gray (H, W)" if pixel_format.num_channels == 1 else ""
        return f"an array (H, W, 3) of type uint8 in BGR order{also}"
    deep = pixel_format.bits > EIGHT_BITS
    kinds = f"{'uint16' if deep else 'uint8'}, or float32 from 0 to 1"
    if not pixel_format.has_colors:
        return f"an array (H, W, {pixel_format.channels}) of type {kinds} (INPUT.CHANNELS)"
    gray = pixel_format.num_channels == 1
    shape = "(H, W), or (H, W, 3) in BGR order," if gray else "(H, W, 3) in BGR order"
    return f"an array {shape} of type {kinds}"


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count != 1 else ''}"
