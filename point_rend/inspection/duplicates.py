"""Unusable and duplicate image files.

Two files are exact copies if their bytes are equal. They are near copies if a hash of their
brightness gradients differs in at most `MAX_BITS` of 64 bits, and small gray pictures of them
agree: the same photograph in another size, format, quality or brightness. Mirrored, rotated and
cropped copies are not found.

Shape letters: F files.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from point_rend.data.checks.image_files import FILE_THREADS, ImageRecord, examine_file
from point_rend.utils.bands import read_pixels
from point_rend.utils.pictures import PictureError, read_gray_thumbnail
from point_rend.utils.pixel_format import PixelFormat
from point_rend.utils.reading import open_regular_file

SIDE = 16  # of the small gray pictures
MAX_BITS = 4
BANDS = (13, 13, 13, 13, 12)  # bits; of two hashes with MAX_BITS different bits, one band is equal
MAX_BUCKET = 4096  # hashes that are compared with each other
MAX_RESIDUAL = 0.2  # difference of two small pictures, in standard deviations
FLAT = 2.0  # gray levels
POPCOUNT = np.array([n.bit_count() for n in range(1 << 16)], dtype=np.uint8)
EXAMPLES = 8  # of copies


class ImageFile(NamedTuple):
    """Content of an image file.

    Attributes:
        fault: The reason why it cannot be used; empty if it can.
        digest: SHA-256 of its bytes; empty if it cannot be read.
        gradients: 64 bits: whether the brightness grows from each of 9 × 8 cells to the next.
        small: (SIDE, SIDE) uint8: its brightness.
    """

    fault: str
    digest: bytes = b""
    gradients: int = 0
    small: np.ndarray | None = None


class Copies(NamedTuple):
    """Copies among the images of training and evaluation.

    Attributes:
        exact_between: Images of evaluation with an exact copy in training.
        near_between: Others of them with a near copy in training.
        exact_train: Images of training that repeat the bytes of an earlier one.
        near_train: Others of them that nearly repeat an earlier one.
        exact_test: As `exact_train`, in evaluation.
        near_test: As `near_train`, in evaluation.
        between: Files of training and evaluation, and the kind of copy; the first few.
        within: Two files of one set and the kind of copy; the first few.
    """

    exact_between: int
    near_between: int
    exact_train: int
    near_train: int
    exact_test: int
    near_test: int
    between: list[tuple[str, str, str]]
    within: list[tuple[str, str, str]]


def read_files(records: Sequence[ImageRecord], pixel_format: PixelFormat) -> list[ImageFile]:
    """Read image files; a bar on the terminal shows the progress.

    Args:
        records: The images.
        pixel_format: Pixels that the model expects.
    """
    with ThreadPoolExecutor(FILE_THREADS) as threads:
        found = threads.map(partial(_read_file, pixel_format=pixel_format), records)
        return list(tqdm(found, total=len(records), unit="image", disable=None))


def _read_file(record: ImageRecord, pixel_format: PixelFormat) -> ImageFile:
    if not os.path.exists(record.file_name):
        return ImageFile("does not exist")
    fault, _ = examine_file(record, pixel_format=pixel_format)
    if fault:
        return ImageFile(fault)
    try:
        with open_regular_file(record.file_name, what="image") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        gray = _thumbnail(record.file_name, pixel_format)
    except PictureError as error:
        return ImageFile(error.fault)
    except OSError as error:
        return ImageFile(f"cannot be read ({error})")
    cells = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.packbits(cells[:, 1:] > cells[:, :-1])
    small = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return ImageFile("", digest, int.from_bytes(bits.tobytes(), "big"), small)


def _thumbnail(path: str, pixel_format: PixelFormat) -> np.ndarray:
    """Return the brightness (H, W) uint8 of a file, reduced."""
    if pixel_format.is_plain:
        return read_gray_thumbnail(path, 9 * SIDE)
    gray = read_pixels(path, pixel_format).mean(axis=2, dtype=np.float32)
    reduced = cv2.resize(gray, (9 * SIDE, 9 * SIDE), interpolation=cv2.INTER_AREA)
    return reduced.clip(0, 255).astype(np.uint8)


def find_copies(
    train: Sequence[tuple[str, ImageFile]], test: Sequence[tuple[str, ImageFile]]
) -> Copies:
    """Find copies.

    Args:
        train: Names and contents of the files of training.
        test: Those of evaluation; a file that is one of training, too, is no copy.
    """
    names = {name for name, _ in train}
    files = [(name, file, 0) for name, file in train] + [(name, file, 1) for name, file in test]
    usable = [x for x in files if x[1].digest]
    first: dict[bytes, int] = {}
    exact = [first.setdefault(file.digest, k) for k, (_, file, _) in enumerate(usable)]
    unique = sorted(first.values())
    near = {k: k for k in unique}  # the earliest near copy
    for later, earlier in _near_pairs([usable[k][1] for k in unique]):
        near[unique[later]] = min(near[unique[later]], unique[earlier])
    of_train = {file.digest for _, file, kind in usable if kind == 0}
    counts = dict.fromkeys(
        ((kind, place) for kind in ("exact", "near") for place in ("between", 0, 1)), 0
    )
    between: list[tuple[str, str, str]] = []
    within: tuple[list[tuple[str, str, str]], ...] = ([], [])
    seen: set[tuple[int, bytes]] = set()
    for k, (name, file, kind) in enumerate(usable):
        other = exact[k]
        again = (kind, file.digest) in seen
        seen.add((kind, file.digest))
        if kind == 1 and name in names:  # no copy, but the file itself
            continue
        if kind == 1 and file.digest in of_train:
            counts["exact", "between"] += 1
            between.append((usable[other][0], name, "exact"))
        if again:
            counts["exact", kind] += 1
            within[kind].append((usable[other][0], name, "exact"))
            continue
        similar = near.get(k, k) if other == k else k
        if similar == k:
            continue
        if usable[similar][2] == kind:
            counts["near", kind] += 1
            within[kind].append((usable[similar][0], name, "near"))
        else:
            counts["near", "between"] += 1
            between.append((usable[similar][0], name, "near"))
    return Copies(
        counts["exact", "between"],
        counts["near", "between"],
        counts["exact", 0],
        counts["near", 0],
        counts["exact", 1],
        counts["near", 1],
        sorted(between, key=lambda pair: pair[2])[:EXAMPLES],
        [
            *sorted(within[0], key=lambda pair: pair[2])[: EXAMPLES // 2],
            *sorted(within[1], key=lambda pair: pair[2])[: EXAMPLES // 2],
        ],
    )


def _near_pairs(files: Sequence[ImageFile]) -> Iterator[tuple[int, int]]:
    """Find near copies among different files, each as (later, earlier)."""
    if not files:
        return
    hashes = np.array([file.gradients for file in files], dtype=np.uint64)
    small = np.stack([np.asarray(file.small) for file in files]).reshape(len(files), -1)
    position = 0
    for bits in BANDS:
        mask = np.uint64((1 << bits) - 1)
        keys = (hashes >> np.uint64(position)) & mask
        position += bits
        order = np.lexsort((hashes, keys))
        starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] ^ np.uint64(1)))
        for bucket in np.split(order, starts[1:]):
            for begin in range(0, len(bucket), MAX_BUCKET):
                yield from _similar(np.sort(bucket[begin : begin + MAX_BUCKET]), hashes, small)


def _similar(
    members: np.ndarray, hashes: np.ndarray, small: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Compare the files of a bucket with each other."""
    own = hashes[members]
    for k in range(1, len(members)):
        different = _count_bits(own[:k] ^ own[k])
        for earlier in members[:k][different <= MAX_BITS]:
            if _agree(small[earlier], small[members[k]]):
                yield int(members[k]), int(earlier)
                break


def _count_bits(values: np.ndarray) -> np.ndarray:
    """Count the set bits of 64-bit integers (N,)."""
    return POPCOUNT[np.ascontiguousarray(values).view(np.uint16)].reshape(-1, 4).sum(axis=1)


def _agree(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two small pictures are equal but for noise and brightness."""
    one, other = (x.astype(np.float32) - x.mean(dtype=np.float32) for x in (first, second))
    contrasts = float(one.std()), float(other.std())
    if max(contrasts) <= FLAT and abs(float(first.mean()) - float(second.mean())) > FLAT:
        return False  # of empty pictures, brightness is all there is
    residual = float(np.sqrt(np.mean((one - other) ** 2)))
    return residual <= max(FLAT, MAX_RESIDUAL * min(contrasts))
