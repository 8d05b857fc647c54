"""The order of a stream of images, its batches, and resuming in the middle."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.data.common import AspectRatioGroupedDataset
from PIL import ExifTags, Image

from point_rend.data.loader.order import (
    IsLandscape,
    StreamPosition,
    batches_of_a_kind,
    skip_batches,
    stream_positions,
)

WIDE = {"width": 3, "height": 2}
HIGH = {"width": 2, "height": 3}
SQUARE = {"width": 2, "height": 2}


def stream(length: int = 200) -> list[int]:
    return random.Random(0).choices(range(30), k=length)


def by_three(item: int) -> int:
    return item % 3


def one_kind(_item: int) -> None:
    return None


def test_groups_are_those_of_detectron2() -> None:
    records = [random.Random(n).choice([WIDE, HIGH, SQUARE]) | {"id": n} for n in range(100)]
    ours = list(batches_of_a_kind(records, lambda record: record["width"] > record["height"], 3))
    assert ours == list(AspectRatioGroupedDataset(records, 3))
    assert len(ours) >= 30


def test_a_single_kind_gives_batches_of_consecutive_items() -> None:
    assert list(batches_of_a_kind(range(7), one_kind, 2)) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("kind", [by_three, one_kind])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("batches", [0, 1, 7, 20])
def test_skipping_batches_gives_the_following_ones(
    kind: Callable[[int], object], batch_size: int, batches: int
) -> None:
    full = list(batches_of_a_kind(stream(), kind, batch_size))
    rest = skip_batches(iter(stream()), kind, batch_size, batches)
    assert len(full) > batches
    assert list(batches_of_a_kind(rest, kind, batch_size)) == full[batches:]


def test_positions_of_all_ranks_together_are_the_stream() -> None:
    full = list(stream_positions(stream()))
    assert full == [StreamPosition(position, record) for position, record in enumerate(stream())]
    shares = [
        list(stream_positions(itertools.islice(stream(), rank, None, 3), rank=rank, world_size=3))
        for rank in range(3)
    ]
    assert sorted(itertools.chain(*shares)) == full


@pytest.fixture
def image_file(tmp_path: Path) -> Iterator[Callable[..., str]]:
    def write(width: int, height: int, orientation: int = 1) -> str:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = tmp_path / f"{width}x{height}x{orientation}.jpg"
        Image.new("RGB", (width, height)).save(path, exif=exif)
        return str(path)

    return write


def test_the_orientation_is_read_from_the_record_if_it_has_a_size() -> None:
    records = [record | {"file_name": "nowhere.jpg"} for record in (WIDE, HIGH, SQUARE)]
    assert list(map(IsLandscape(records), range(3))) == [True, False, False]


def test_the_orientation_is_that_of_the_image_as_read_if_the_record_has_no_size(
    image_file: Callable[..., str],
) -> None:
    files = [image_file(30, 20), image_file(20, 30), image_file(30, 20, 6), image_file(20, 30, 8)]
    wider = IsLandscape([{"file_name": name} for name in [*files, "nowhere.jpg"]])
    expected = [True, False, False, True, False]
    assert list(map(wider, range(5))) == expected
    for name in files:
        Path(name).unlink()
    assert list(map(wider, range(5))) == expected
