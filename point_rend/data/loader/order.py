"""Order of the training images as a pure function of the seed and the number of batches taken.

After a resume, Detectron2's samplers start again from the beginning, and its grouping by aspect
ratio drops the images that wait for their batch. Here the stream of indices is replayed, which
takes a second per million images and reads no image.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from point_rend.utils.bands import image_size

Item = TypeVar("Item")


class StreamPosition(NamedTuple):
    """One image in the stream of a training.

    Attributes:
        number: Number of images before it, of all processes together.
        record: Its index in the data set.
    """

    number: int
    record: int


def stream_positions(
    indices: Iterable[int], *, rank: int = 0, world_size: int = 1
) -> Iterator[StreamPosition]:
    """Number the images of one process within the stream of all processes.

    Args:
        indices: Indices from a sampler of Detectron2: every `world_size`-th one of the stream,
            starting at number `rank`.
        rank: Rank of the process.
        world_size: Number of processes.
    """
    for number, index in enumerate(indices):
        yield StreamPosition(number * world_size + rank, int(index))


def batches_of_a_kind(
    items: Iterable[Item], kind: Callable[[Item], Hashable], batch_size: int
) -> Iterator[list[Item]]:
    """Collect batches of one kind each, in the order in which they become full.

    Args:
        items: A stream.
        kind: Returns what the items of a batch have in common.
        batch_size: Number of items per batch.
    """
    groups: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        group = groups[kind(item)]
        group.append(item)
        if len(group) == batch_size:
            full, group[:] = group[:], []
            yield full


def skip_batches(
    stream: Iterator[Item], kind: Callable[[Item], Hashable], batch_size: int, batches: int
) -> Iterator[Item]:
    """Remove the items of the first batches of :func:`batches_of_a_kind` from a stream.

    Convention: `batches_of_a_kind(skip_batches(stream, ..., n), ...)` yields the batches of
    `batches_of_a_kind(stream, ...)` after the first n.

    Args:
        stream: A stream; it is consumed.
        kind: As of :func:`batches_of_a_kind`.
        batch_size: As of :func:`batches_of_a_kind`.
        batches: Number of batches to skip.

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


class IsLandscape:
    """Returns by index whether an image is wider than high, Detectron2's criterion for grouping.

    Args:
        records: A data set in Detectron2's format. The size of an image that is not in its record
            is read from its file, once.
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
        """Return it for one image; an unreadable one counts as not wider."""
        file_name = self._file_names.pop(index, None)
        if file_name is not None:
            self._known[index] = _is_landscape(file_name)
        return bool(self._known[index])


def _is_landscape(file_name: str) -> bool:
    try:
        width, height = image_size(file_name)
        return width > height
    except (OSError, ValueError):
        return False  # the mapper reports the error
