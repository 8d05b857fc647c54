"""From a turn in the stream to a sample, the same in every process and for every worker count."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from point_rend.data.loader.order import Turn
from point_rend.utils.seeding import random_numbers_of

Record = dict[str, Any]


class Sample(NamedTuple):
    """What has become of a turn.

    Attributes:
        turn: The turn.
        data: What the mapper made of its record or, if that could not be used, of a later one;
            None if no attempt succeeded.
        faults: Why records could not be used, one line each.
    """

    turn: Turn
    data: Record | None
    faults: tuple[str, ...] = ()


class Samples(Dataset[Sample]):
    """Maps turns to samples; every turn has random numbers of its own.

    Args:
        records: The data set, by index.
        mapper: Makes a sample of a record; it raises a ValueError that names the file if it cannot.
        seed: Seed of the training.
        attempts: How many records are tried for a turn: its own, and those that follow it in the
            data set.
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

    def __getitem__(self, turn: Turn) -> Sample:
        faults: list[str] = []
        size = len(self.records)  # type: ignore[arg-type]
        with random_numbers_of(self.seed, turn.position):
            for attempt in range(self.attempts):
                try:
                    data = self.mapper(self.records[(turn.record + attempt) % size])
                except ValueError as error:
                    faults.append(str(error))
                else:
                    return Sample(turn, data, tuple(faults))
        return Sample(turn, None, tuple(faults))
