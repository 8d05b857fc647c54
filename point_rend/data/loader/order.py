"""The order of training images as a pure function of a seed and of the batches already seen.

Detectron2's samplers start from the beginning after every resume, and its grouping by aspect ratio
forgets the images that wait for their batch. Here a stream is replayed by its indices alone, which
takes a second per million images and reads none.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from point_rend.data.checks.image_files import lies_on_its_side

Item = TypeVar("Item")


class Turn(NamedTuple):
    """One image in the stream of a training.

    Attributes:
        position: How many images, of all processes together, come before it.
        record: Its index in the data set.
    """

    position: int
    record: int


def turns(indices: Iterable[int], *, rank: int = 0, world_size: int = 1) -> Iterator[Turn]:
    """Say where in the stream of all processes the share of one of them lies.

    Args:
        indices: What a sampler of Detectron2 yields: every `world_size`-th index of the stream,
            from number `rank` on.
        rank: Number of the process.
        world_size: Number of processes.
    """
    for number, index in enumerate(indices):
        yield Turn(number * world_size + rank, int(index))


def grouped(
    items: Iterable[Item], kind: Callable[[Item], Hashable], batch_size: int
) -> Iterator[list[Item]]:
    """Collect batches of one kind each, in the order in which they become full.

    Args:
        items: A stream.
        kind: What the items of a batch have in common.
        batch_size: Items per batch.
    """
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        group = groups[kind(item)]
        group.append(item)
        if len(group) == batch_size:
            full, group[:] = group[:], []
            yield full


def behind(
    stream: Iterator[Item], kind: Callable[[Item], Hashable], batch_size: int, batches: int
) -> Iterator[Item]:
    """Leave out of a stream what :func:`grouped` has made its first batches of.

    Convention: `grouped(behind(stream, ..., n), ...)` yields what `grouped(stream, ...)` yields
    after its first n batches.

    Args:
        stream: A stream; it is consumed.
        kind: As of :func:`grouped`.
        batch_size: As of :func:`grouped`.
        batches: How many batches to leave out.

    Returns:
        The items that still wait for their batch, and the rest of the stream.
    """
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    while batches:
        item = next(stream)
        group = groups[kind(item)]
        group.append(item)
        if len(group) == batch_size:
            group.clear()
            batches -= 1
    return itertools.chain(*groups.values(), stream)


class WiderThanHigh:
    """Tells by index whether an image is wider than high, as Detectron2 groups them.

    Args:
        records: A data set in Detectron2's format. Images whose record says no size are asked for
            it themselves, once each.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self._file_names: dict[int, str] = {}
        self._known = bytearray(len(records))
        for index, record in enumerate(records):
            if "width" in record and "height" in record:
                self._known[index] = record["width"] > record["height"]
            else:
                self._file_names[index] = record["file_name"]

    def __call__(self, index: int) -> bool:
        """Tell it of one image; one that cannot be read counts as not wider."""
        file_name = self._file_names.pop(index, None)
        if file_name is not None:
            self._known[index] = _is_wider_than_high(file_name)
        return bool(self._known[index])


def _is_wider_than_high(file_name: str) -> bool:
    try:
        with Image.open(file_name) as image:
            width, height = image.size
            return height > width if lies_on_its_side(image) else width > height
    except (OSError, ValueError, SyntaxError):
        return False  # whoever loads it will say what is wrong
