"""Readers for the workers of a decoder, which import little."""

import os
import signal
import time

from point_rend.batch_inference.decoding import Decoded, decode
from point_rend.utils.pixel_format import PixelFormat


def crash_on_two(uri: str, pixel_format: PixelFormat) -> Decoded:
    """Kill the process that reads the picture 2."""
    if uri.endswith("2.png"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode(uri, pixel_format)


def hang_on_two(uri: str, pixel_format: PixelFormat) -> Decoded:
    """Never read the picture 2."""
    if uri.endswith("2.png"):
        time.sleep(1000)
    return decode(uri, pixel_format)


def lack_a_package(uri: str, pixel_format: PixelFormat) -> Decoded:
    """Fail for a reason that all images have in common."""
    raise ValueError(f"rasterio is not installed: {uri} of {pixel_format.order}")
