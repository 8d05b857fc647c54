"""Batches of several processes: a signal interrupts the wait for one, and all end together."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm

from point_rend.data.loader.samples import UnusableDataError
from point_rend.utils import progress
from point_rend.utils.errors import USER_ERROR, TrainingStop

Batch = TypeVar("Batch")


class BatchStream:
    """Progress in the batches of a training; base of the loaders that the trainer accepts.

    Args:
        seed: Seed of the training, 0 or more.

    Attributes:
        batches: Number of batches taken.
        interruptible: Returns a context in which a signal may raise: no batch is lost by it.
    """

    interruptible: Callable[[], contextlib.AbstractContextManager[None]]

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.batches = 0
        self.interruptible = contextlib.nullcontext
        # Like the signals, without NCCL.
        self._group: Any = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the progress, as a checkpoint holds it."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a training was interrupted."""
        raise NotImplementedError

    def next_together(self, batches: Iterator[Batch]) -> Batch:
        """Take the next batch; if that ends the training of one process, all end together.

        Raises:
            TrainingStop: If a signal arrives, or the data of any process cannot be used.
        """
        stop: TrainingStop | None = None
        batch: Any = None
        try:
            with progress.during(progress.READING), self.interruptible():
                batch = next(batches)
        except TrainingStop as own:
            stop = own
        except UnusableDataError as error:
            stop = TrainingStop(str(error), exit_code=USER_ERROR)
        if self._group is not None:
            with progress.during(progress.WAITING):
                one_ends = torch.tensor(stop is not None, dtype=torch.int32)
                dist.all_reduce(one_ends, dist.ReduceOp.MAX, group=self._group)
            if one_ends:
                ends = comm.all_gather((stop.reason, stop.exit_code) if stop else None)
                reason, exit_code = next(filter(None, ends))
                stop = TrainingStop(reason, exit_code=exit_code, together=True)
        if stop is not None:
            raise stop
        return batch
