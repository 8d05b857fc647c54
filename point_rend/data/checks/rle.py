"""Checks of COCO's run-length encoding."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pycocotools.mask as mask_util


class Fault(NamedTuple):
    """A reason why an annotation cannot be used; fatal if evaluation tools fail on it."""

    text: str
    fatal: bool = True


def rle_fault(rle: Mapping[str, Any], height: int | None, width: int | None) -> Fault | None:
    """Return the fault of a mask in either of COCO's encodings, None if it has none.

    Args:
        rle: With "size" and "counts", text or a list of integers.
        height: Height of the image in pixels, if known.
        width: Width of the image in pixels, if known.
    """
    size = tuple(rle["size"])
    if height is not None and size != (height, width):
        return Fault(f"RLE of size {size}, the image has (height, width) = ({height}, {width})")
    counts = rle["counts"]
    try:
        runs = counts if isinstance(counts, list) else list(_runs(counts))
    except ValueError as error:
        return Fault(f"RLE that does not decode: {error}")
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        return Fault(f"RLE of {sum(runs)} pixels, its size {size} has {size[0] * size[1]}")
    if not sum(runs[1::2]):
        return Fault("RLE of area 0", fatal=False)
    return None


def _runs(counts: str | bytes) -> Iterator[int]:
    """Decode COCO's compressed run lengths without pycocotools, which does not check its input.

    Each character holds 5 bits, lowest first, and a flag for a following character. From the fourth
    run on, the difference to the run two before it is stored.
    """
    before: list[int] = []
    value = shift = 0
    for byte in counts.encode() if isinstance(counts, str) else counts:
        digit = byte - ord("0")
        if not 0 <= digit < 64:
            raise ValueError(f"{chr(byte)!r} does not occur in one")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        if len(before) > 2:
            value += before[-2]
        before.append(value)
        yield value
        value = shift = 0
    if shift:
        raise ValueError("it ends within a number")


Record = dict[str, Any]


def compressed_rle(segmentation: Any, height: int, width: int) -> Record:
    """Convert polygons or an RLE of either kind to COCO's compressed encoding."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation
