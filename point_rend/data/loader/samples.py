"""Samples by their stream position, the same for every number of processes and workers."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from point_rend.data.loader.order import StreamPosition
from point_rend.utils.seeding import random_numbers_of

Record = dict[str, Any]


class UnusableDataError(ValueError):
    """The data of the user, or the workers that read them, end the run; one line names them."""


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
    """

    position: StreamPosition
    data: Record | None
    faults: tuple[str, ...] = ()


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
        size = len(self.records)  # type: ignore[arg-type]
        with random_numbers_of(self.seed, position.number):
            for attempt in range(self.attempts):
                try:
                    data = self.mapper(self.records[(position.record + attempt) % size])
                except ValueError as error:
                    faults.append(str(error))
                else:
                    return Sample(position, data, tuple(faults))
        return Sample(position, None, tuple(faults))


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
            return self.mapper(record)
        except ValueError as error:
            return Fault(str(error))
