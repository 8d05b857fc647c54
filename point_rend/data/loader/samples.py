"""Samples by their stream position, the same for every number of processes and workers."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from detectron2.structures import Instances
from torch.utils.data import Dataset

from point_rend.data.loader.order import StreamPosition
from point_rend.utils.seeding import random_numbers_of

Record = dict[str, Any]

MOST_SKIPPED = 10  # records in a row that a mapper may leave out


class UnusableDataError(ValueError):
    """The data of the user, or the workers that read them, end the run; one line names them."""


class WrongSampleError(ValueError):
    """A mapper returned something that no model takes: the mapper is at fault, not the data."""


class Fault(NamedTuple):
    """The reason why a record could not be used, in one line."""

    reason: str


class Sample(NamedTuple):
    """The sample at a stream position.

    Attributes:
        position: The position.
        data: The mapped record or, if it could not be used, a later one; None if no attempt
            succeeded.
        faults: Reasons why records could not be used, one line each.
        of_mapper: Whether the last fault is that of the mapper, not of a record.
    """

    position: StreamPosition
    data: Record | None
    faults: tuple[str, ...] = ()
    of_mapper: bool = False


class Samples(Dataset[Sample]):
    """Maps stream positions to samples; every position has its own random numbers.

    Args:
        records: The data set, by index.
        mapper: Makes a sample of a record; raises a ValueError that names an unusable file.
        seed: Seed of the training.
        attempts: Number of records tried for a position: its own and the following ones.
    """

    def __init__(
        self,
        records: Dataset[Record],
        mapper: Callable[[Record], Record],
        *,
        seed: int,
        attempts: int = 1,
    ) -> None:
        self.records = records
        self.mapper = mapper
        self.seed = seed
        self.attempts = attempts

    def __getitem__(self, position: StreamPosition) -> Sample:
        faults: list[str] = []
        skipped = 0
        size = len(self.records)  # type: ignore[arg-type]
        with random_numbers_of(self.seed, position.number):
            for attempt in itertools.count():
                try:
                    data = map_record(self.mapper, self.records[(position.record + attempt) % size])
                    if data is not None:
                        return Sample(position, data, tuple(faults))
                    skipped += 1
                    if skipped == MOST_SKIPPED:
                        raise WrongSampleError(
                            f"{name_of_mapper(self.mapper)} returned None for {skipped} records in "
                            "a row: expected a dict for most of them; a record with None is left "
                            "out"
                        )
                except WrongSampleError as error:
                    return Sample(position, None, (*faults, str(error)), of_mapper=True)
                except ValueError as error:
                    faults.append(str(error))
                    if len(faults) == self.attempts:
                        break
        return Sample(position, None, tuple(faults))


def map_record(mapper: Callable[[Record], Record | None], record: Record) -> Record | None:
    """Call a mapper, make its errors name the image, and check its result.

    Args:
        mapper: Makes a sample of a record.
        record: A record of a data set.

    Returns:
        The sample; None if the mapper leaves this record out.

    Raises:
        WrongSampleError: If the result is not what Detectron2's models take.
        ValueError: As the mapper raises it.
    """
    named = record if isinstance(record, Mapping) else {}
    file_name, image_id = str(named.get("file_name")), named.get("image_id")
    try:
        sample = mapper(record)
    except ValueError as error:
        if "file_name" not in named or file_name in str(error):
            raise
        raise ValueError(
            f"image {image_id!r}, file {file_name}, cannot be used by {name_of_mapper(mapper)}: "
            f"{error}"
        ) from error
    if sample is not None and (fault := _fault_of(sample)):
        raise WrongSampleError(
            f"{name_of_mapper(mapper)} returned {fault} for image {image_id!r}, file {file_name}"
        )
    return sample


def _fault_of(sample: Any) -> str:
    """Describe what is wrong with a sample, and what was expected; nothing if it can be used."""
    if not isinstance(sample, Mapping):
        return f"{_type_of(sample)}: expected a dict, or None to leave the record out"
    if "image" in sample:
        image = sample["image"]
        if not isinstance(image, torch.Tensor):
            return f'{_type_of(image)} as "image": expected a torch.Tensor of (C, H, W)'
        if image.dim() != 3:
            return f'a tensor of {tuple(image.shape)} as "image": expected (C, H, W)'
        height, _, channels = image.shape
        if channels in (1, 3, 4) and height > 4:
            return (
                f'a tensor of {tuple(image.shape)} as "image", which looks like (H, W, C): '
                "expected (C, H, W)"
            )
    for name, kind in (("instances", Instances), ("sem_seg", torch.Tensor)):
        if not isinstance(sample.get(name), kind | None):
            return f'{_type_of(sample[name])} as "{name}": expected {_name(kind)}'
    return ""


def name_of_mapper(mapper: Any) -> str:
    """Return the name of a mapper as a message shows it: that of its function or class."""
    inner = getattr(mapper, "_obj", mapper)  # of Detectron2's PicklableWrapper
    inner = getattr(inner, "func", inner)  # of functools.partial
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"mapper {name.split('<locals>.')[-1]}"


def _type_of(value: Any) -> str:
    return f"a value of type {_name(type(value))}"


def _name(kind: type) -> str:
    module = kind.__module__.split(".")[0]
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


class MappedRecord:
    """A mapper that returns a :class:`Fault` for a record that cannot be used.

    An error in a worker would reach the main process with the traceback in its message.

    Args:
        mapper: Makes a sample of a record; raises a ValueError that names an unusable file.
    """

    def __init__(self, mapper: Callable[[Record], Record]) -> None:
        self.mapper = mapper

    def __call__(self, record: Record) -> Record | Fault:
        """Map a record."""
        try:
            sample = map_record(self.mapper, record)
        except ValueError as error:
            return Fault(str(error))
        if sample is None:
            return Fault(
                f"{name_of_mapper(self.mapper)} returned None for image "
                f"{record.get('image_id')!r}: an evaluation leaves no image out"
            )
        return sample
