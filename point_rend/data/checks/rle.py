"""COCO's run-length encoding, read and checked before any compiled code sees it.

An RLE has the "size" (height, width) of its image and "counts": the lengths of alternating runs of
background and foreground, column by column, as a list or compressed to text. In text each character
holds 5 bits of a number, lowest first, and a flag for a following character. From the fourth number
on, the difference to the run two before it is stored.

pycocotools trusts its input: a wrong sum reads or writes outside its memory, a large number takes
all of it. `check_rles` reads many masks at once with NumPy.

Shape letters: N masks, R runs of all masks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from point_rend.utils.json_files import shown
from point_rend.utils.pictures import LIMIT_VARIABLE, max_pixels

MAX_CHARACTERS = 7  # of a number: 35 bits, for the 32 of pycocotools with their sign
MAX_RUN = 2**31 - 1
MAX_LENGTH = 1 << 24  # characters or runs of one mask
CHUNK = 1 << 15  # characters and runs that are read at once: they fit in a cache
Record = dict[str, Any]
Size = tuple[int, int]
Decoded = tuple[np.ndarray, np.ndarray, dict[int, str]]  # runs (R,), their number (N,), faults


class Fault(NamedTuple):
    """A reason why an annotation cannot be used; fatal if evaluation tools fail on it."""

    text: str
    fatal: bool = True


class CheckedMask(NamedTuple):
    """Result of the check of one mask.

    Attributes:
        fault: Reason why it cannot be used, if there is one.
        box: x0, y0, x1, y1 of its foreground in pixels; zeros without a foreground.
        area: Number of pixels of its foreground.
        has_empty_runs: Whether it has a run of 0 pixels after the first, which pycocotools
            compares wrongly.
    """

    fault: Fault | None
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    area: int = 0
    has_empty_runs: bool = False


def rle_fault(rle: Any, height: int | None, width: int | None) -> Fault | None:
    """Return the fault of a mask in either of COCO's encodings, None if it has none.

    Args:
        rle: With "size" and "counts", text or a list of integers; any other value is a fault.
        height: Height of the image in pixels, if known.
        width: Width of the image in pixels, if known.
    """
    size = None if height is None or width is None else (height, width)
    return check_rles([rle], [size])[0].fault


def check_rles(rles: Sequence[Any], sizes: Sequence[Size | None]) -> list[CheckedMask]:
    """Check masks in either of COCO's encodings.

    Args:
        rles: The masks, as of :func:`rle_fault`.
        sizes: (height, width) of their images, None if unknown.

    Returns:
        One result per mask; a fault is fatal unless the mask is merely empty.
    """
    checked: list[CheckedMask] = []
    for part in _chunks(rles):
        checked += _check_chunk(rles[part], sizes[part])
    return checked


def decode_counts(counts: Any) -> np.ndarray:
    """Return the lengths (R,) of the runs of one mask.

    Args:
        counts: Text or bytes in the compressed encoding, or a list of integers.

    Raises:
        ValueError: If it is none of them, or if a run is negative or absurdly long.
    """
    fault = _counts_fault(counts)
    if fault is None:
        decode = _decode_lists if isinstance(counts, list) else _decode_texts
        runs, _, faults = decode([counts])
        fault = faults.get(0)
        if fault is None and ((runs < 0) | (runs > MAX_RUN)).any():
            fault = "RLE with a run of a negative or an absurd length"
    if fault is not None:
        raise ValueError(fault)
    return runs


def are_integers(values: Iterable[Any]) -> bool:
    """Return whether all values are integers, of Python or NumPy; truth values are not."""
    types = set(map(type, values))
    return types <= {int} or all(x is int or issubclass(x, np.integer) for x in types)


def size_fault(height: int, width: int) -> str | None:
    """Describe why no image can have a size, None if one can."""
    if height < 1 or width < 1:
        return f"has a size of {shown(width)} x {shown(height)} pixels"
    limit = min(max_pixels(), MAX_RUN)
    if height * width > limit:
        return (
            f"has a size of {shown(width)} x {shown(height)} pixels, expected at most {limit:,} "
            f"pixels: cut it into tiles, or raise {LIMIT_VARIABLE}"
        )
    return None


def without_empty_runs(rle: Mapping[str, Any]) -> Record:
    """Return the same mask, with a list of runs, none of which is empty after the first."""
    runs = decode_counts(rle["counts"])
    kept = np.flatnonzero(runs)
    starts = np.flatnonzero(np.diff(kept % 2, prepend=-1))  # where the color changes
    counts = np.add.reduceat(runs[kept], starts).tolist() if kept.size else [0]
    is_foreground = kept.size > 0 and kept[0] % 2 == 1
    return {**rle, "counts": [0, *counts] if is_foreground else counts}


def _chunks(rles: Sequence[Any]) -> Iterator[slice]:
    """Split masks into slices of bounded content."""
    start = content = 0
    for number, rle in enumerate(rles):
        counts = rle.get("counts") if isinstance(rle, dict) else None
        content += len(counts) if isinstance(counts, str | bytes | list) else 0
        if content >= CHUNK:
            yield slice(start, number + 1)
            start, content = number + 1, 0
    if start < len(rles):
        yield slice(start, len(rles))


def _check_chunk(rles: Sequence[Any], sizes: Sequence[Size | None]) -> list[CheckedMask]:
    checked: dict[int, CheckedMask] = {}
    of_text: list[int] = []
    of_list: list[int] = []
    for number, (rle, size) in enumerate(zip(rles, sizes, strict=True)):
        fault = form_fault(rle, size)
        if fault:
            checked[number] = CheckedMask(Fault(fault))
        else:
            (of_list if isinstance(rle["counts"], list) else of_text).append(number)
    for numbers, decode in ((of_text, _decode_texts), (of_list, _decode_lists)):
        if numbers:
            runs, lengths, faults = decode([rles[number]["counts"] for number in numbers])
            sides = np.array([rles[number]["size"] for number in numbers], dtype=np.int64)
            checked |= zip(numbers, _measure(runs, lengths, sides, faults), strict=True)
    return [checked[number] for number in range(len(rles))]


def form_fault(rle: Any, size: Size | None = None) -> str | None:
    """Describe why a value is not an RLE of an image of this size; the runs are not added up."""
    if not isinstance(rle, dict):
        return f"segmentation {shown(rle)}, expected polygons or an RLE"
    own = rle.get("size")
    if not isinstance(own, list | tuple) or len(own) != 2 or not are_integers(own):
        return f"RLE of size {shown(own)}, expected (height, width)"
    if size is not None and (own[0] != size[0] or own[1] != size[1]):
        both = shown(tuple(own)), shown(tuple(size))
        return f"RLE of size {both[0]}, the image has (height, width) = {both[1]}"
    fault = size_fault(own[0], own[1])
    return f"RLE that {fault}" if fault else _counts_fault(rle.get("counts"))


def _counts_fault(counts: Any) -> str | None:
    """Describe why a value holds no runs; the characters of a text are not read."""
    if not isinstance(counts, str | bytes | list):
        return f"RLE with the counts {shown(counts)}, expected text or a list of integers"
    if len(counts) > MAX_LENGTH:
        return f"RLE of {len(counts)} characters or runs, expected at most {MAX_LENGTH}"
    if isinstance(counts, str) and not counts.isascii():
        return f"RLE that does not decode: {shown(counts)} is not in ASCII"
    if isinstance(counts, list) and counts:
        if not are_integers(counts):
            wrong = next(count for count in counts if not are_integers([count]))
        elif min(counts) < 0:
            wrong = min(counts)
        elif max(counts) > MAX_RUN:
            wrong = max(counts)
        else:
            return None
        return f"RLE with the run length {shown(wrong)}, expected integers of 0 or more"
    return None


def _decode_lists(lists: Sequence[list[int]]) -> Decoded:
    lengths = np.array([len(runs) for runs in lists], dtype=np.int64)
    runs = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=int(lengths.sum()))
    return runs, lengths, {}


def _decode_texts(texts: Sequence[str | bytes]) -> Decoded:
    """Read the numbers of all texts, then add up their differences.

    A text with a fault has its other numbers too; their values mean nothing.
    """
    encoded = [text.encode("ascii") if isinstance(text, str) else text for text in texts]
    sizes = np.array([len(text) for text in encoded], dtype=np.int64)
    ends_of_texts = sizes.cumsum()
    digits = np.frombuffer(b"".join(encoded), dtype=np.uint8) - np.uint8(ord("0"))
    faults: dict[int, str] = {}
    foreign = np.flatnonzero(digits > 63)
    of_texts, firsts = np.unique(
        np.searchsorted(ends_of_texts, foreign, "right"), return_index=True
    )
    for text, place in zip(of_texts.tolist(), foreign[firsts].tolist(), strict=True):
        character = encoded[text][place - int(ends_of_texts[text] - sizes[text])]
        faults[text] = f"{chr(character)!r} does not occur in one"

    is_last = (digits & 32) == 0
    last_of_texts = ends_of_texts[sizes > 0] - 1
    for text in np.flatnonzero(sizes > 0)[~is_last[last_of_texts]].tolist():
        faults.setdefault(text, "it ends within a number")
    is_last[last_of_texts] = True

    last = np.flatnonzero(is_last)
    widths = np.diff(last, prepend=-1)  # characters of each number
    first = last - widths + 1
    lengths = np.diff(np.searchsorted(last, ends_of_texts), prepend=0)
    for text in np.unique(np.repeat(np.arange(len(texts)), lengths)[widths > MAX_CHARACTERS]):
        faults.setdefault(int(text), f"it has a number of more than {MAX_CHARACTERS} characters")
    widths = np.minimum(widths, MAX_CHARACTERS)

    values = (digits[first] & 31).astype(np.int64)
    for place in range(1, int(widths.max(initial=1))):
        longer = np.flatnonzero(widths > place)
        part = (digits[first[longer] + place] & 31).astype(np.int64)
        values[longer] += part << (5 * place)
    negative = np.flatnonzero(digits[first + widths - 1] & 16)
    values[negative] -= np.int64(1) << (5 * widths[negative])
    return _added_up(values, lengths), lengths, faults


def _added_up(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Turn differences to the number two before, from the fourth of a mask on, into numbers."""
    starts = lengths.cumsum() - lengths
    place = np.arange(values.size) - np.repeat(starts, lengths)
    runs = values.copy()
    for parity, begin in ((1, 1), (0, 2)):
        chosen = np.flatnonzero((place % 2 == parity) & (place >= begin))
        sums = values[chosen].cumsum()
        is_first = place[chosen] == begin
        before = (sums - values[chosen])[is_first]  # of the masks before
        chain_of = is_first.cumsum() - 1
        runs[chosen] = sums - before[chain_of] if chosen.size else sums
    return runs


def _measure(
    runs: np.ndarray, lengths: np.ndarray, sides: np.ndarray, faults: Mapping[int, str]
) -> Iterator[CheckedMask]:
    """Compare the runs (R,) of N masks with their sizes (N, 2), and measure their foreground.

    Args:
        runs: Of all masks, in a row.
        lengths: Number of runs of each mask (N,).
        sides: Height and width of each mask.
        faults: Masks that could not be decoded.
    """
    impossible = (runs < 0) | (runs > MAX_RUN)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    is_wrong = np.zeros(len(lengths), dtype=bool)
    is_wrong[owners[impossible]] = True
    runs = np.where(impossible, 0, runs)
    starts = lengths.cumsum() - lengths
    ends = np.concatenate([[0], runs.cumsum()])
    offsets, totals = ends[starts], ends[starts + lengths] - ends[starts]

    place = np.arange(runs.size) - starts[owners]
    inner_zero = (runs == 0) & (place > 0) & (place < lengths[owners] - 1)
    has_empty_runs = np.zeros(len(lengths), dtype=bool)
    has_empty_runs[owners[inner_zero]] = True

    chosen = np.flatnonzero((place % 2 == 1) & (runs > 0))
    of, heights = owners[chosen], sides[owners[chosen], 0]
    begin = ends[chosen] - offsets[of]
    final = begin + runs[chosen] - 1
    x0, x1 = begin // heights, final // heights
    y0, y1 = begin % heights, final % heights
    y0, y1 = np.where(x0 == x1, y0, 0), np.where(x0 == x1, y1, heights - 1)
    boxes = np.zeros((len(lengths), 4), dtype=np.int64)
    areas = np.zeros(len(lengths), dtype=np.int64)
    if chosen.size:
        groups = np.flatnonzero(np.diff(of, prepend=-1))
        masks = of[groups]
        boxes[masks, 0] = np.minimum.reduceat(x0, groups)
        boxes[masks, 1] = np.minimum.reduceat(y0, groups)
        boxes[masks, 2] = np.maximum.reduceat(x1, groups) + 1
        boxes[masks, 3] = np.maximum.reduceat(y1, groups) + 1
        areas[masks] = np.add.reduceat(runs[chosen], groups)

    pixels = sides.prod(axis=1)
    measured = zip(
        totals.tolist(),
        pixels.tolist(),
        is_wrong.tolist(),
        boxes.tolist(),
        areas.tolist(),
        has_empty_runs.tolist(),
        strict=True,
    )
    for mask, (total, expected, wrong, box, area, has_zeros) in enumerate(measured):
        if mask in faults:
            yield CheckedMask(Fault(f"RLE that does not decode: {faults[mask]}"))
        elif wrong:
            yield CheckedMask(Fault("RLE with a run of a negative or an absurd length"))
        elif total != expected:
            size = tuple(sides[mask].tolist())
            text = f"RLE of {total} pixels, its size {size} has {expected}"
            yield CheckedMask(Fault(text))
        elif not area:
            yield CheckedMask(Fault("RLE of area 0", fatal=False))
        else:
            yield CheckedMask(None, tuple(box), area, has_zeros)
