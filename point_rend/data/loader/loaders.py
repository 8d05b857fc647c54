"""Data loaders: resumable, independent of the number of workers, safe with little shared memory."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import active_children, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from point_rend.data.datasets.packed import loading_lazily
from point_rend.data.datasets.proposals import proposals_as_data
from point_rend.data.loader.order import (
    IsLandscape,
    StreamPosition,
    batches_of_a_kind,
    skip_batches,
    stream_positions,
)
from point_rend.data.loader.records import PackedRecords
from point_rend.data.loader.samples import (
    Fault,
    MappedRecord,
    Record,
    Sample,
    Samples,
    UnusableDataError,
)
from point_rend.data.loader.together import BatchStream
from point_rend.data.loader.transport import PackedSample, pack, unpack
from point_rend.utils.errors import USER_ERROR, TrainingStop
from point_rend.utils.garbage import cycles_uncollected
from point_rend.utils.seeding import random_numbers_of
from point_rend.utils.signals import SIGNALS, end_with_parent, signals_wait

# By default a spawned process also spawns its workers. They import everything for seconds, during
# which a signal kills them.
START_METHOD = "fork" if sys.platform == "linux" else None
DYING_SECONDS = 5.0  # between the end of a worker's connections and its own
ATTEMPTS = 10  # records tried for a stream position if unusable ones are skipped

logger = logging.getLogger(__name__)


class TrainLoader(BatchStream):
    """Endless batches of training samples, in an order that follows from the seed alone.

    The number of workers and interruptions change neither the order nor the samples. The loader can
    be iterated once; `state_dict` returns the progress.

    Args:
        records: The data set, by index.
        mapper: Makes a sample of a record; raises a ValueError that names an unusable file.
        build_sampler: Builds a sampler of Detectron2 from a seed.
        kind: Returns by index what the images of a batch have in common.
        seed: Seed of the training, 0 or more.
        batch_size: Number of images per batch of this process.
        num_workers: Number of worker processes.
        skip: Whether unusable records are replaced by later ones, with a warning; otherwise they
            end the training, in all processes together.
    """

    def __init__(
        self,
        records: Dataset[Record],
        mapper: Callable[[Record], Record],
        build_sampler: Callable[[int], Sampler[int]],
        kind: Callable[[int], Any],
        *,
        seed: int,
        batch_size: int,
        num_workers: int = 0,
        skip: bool = False,
    ) -> None:
        super().__init__(seed)
        self.records = records
        self.mapper = mapper
        self.build_sampler = build_sampler
        self.kind = kind
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.skip = skip
        self.faults = 0
        self._without_shared_memory = False

    def __iter__(self) -> Iterator[list[Record]]:
        samples = Samples(
            self.records, self.mapper, seed=self.seed, attempts=ATTEMPTS if self.skip else 1
        )
        loader = DataLoader(
            samples,
            sampler=self._remaining_positions(),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=pack if self.num_workers else unpack,
            worker_init_fn=begin_worker,
            multiprocessing_context=START_METHOD if self.num_workers else None,
        )
        with random_numbers_of(self.seed):  # torch draws one for its workers
            arriving = from_workers(loader)
        batches = batches_of_a_kind(map(self._receive, arriving), self._kind_of, self.batch_size)
        while True:
            batch = self.next_together(batches)
            self.batches += 1
            yield [sample.data for sample in batch if sample.data is not None]

    def _remaining_positions(self) -> Iterator[StreamPosition]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        stream = stream_positions(self.build_sampler(self.seed), rank=rank, world_size=world_size)
        return skip_batches(
            stream, lambda position: self.kind(position.record), self.batch_size, self.batches
        )

    def _kind_of(self, sample: Sample) -> Any:
        return self.kind(sample.position.record)

    def _receive(self, content: Sample | PackedSample | bytes) -> Sample:
        """Unpack a sample from a worker; report its faults and end the training if required."""
        if isinstance(content, bytes) and not self._without_shared_memory:
            self._without_shared_memory = True
            logger.warning(
                "The shared memory of the workers is exhausted: samples go through pipes, which is "
                "slower. Give it more (docker run --shm-size=8g) or lower DATALOADER.NUM_WORKERS"
            )
        sample: Sample = unpack(content)
        for fault in sample.faults if self.skip else ():
            self.faults += 1
            logger.warning("Skipped, number %d of this run: %s", self.faults, fault)
        if sample.data is None:
            last = sample.faults[-1]
            if sample.of_mapper:
                raise TrainingStop(last, exit_code=USER_ERROR)
            advice = (
                f"{ATTEMPTS} in a row cannot be used"
                if self.skip
                else "repair it, or pass DATALOADER.ON_CORRUPT_IMAGE skip"
            )
            raise TrainingStop(f"{last}; {advice}", exit_code=USER_ERROR)
        return sample

    def state_dict(self) -> dict[str, int]:
        """Return the order and the progress in it."""
        world_size = comm.get_world_size()
        return {
            "seed": self.seed,
            "batches": self.batches,
            "total_batch_size": self.batch_size * world_size,
            "world_size": world_size,
            "records": len(self.records),  # type: ignore[arg-type]
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue an order where it was interrupted.

        With another number of processes or another batch size it continues at the same image, with
        other batches and a warning.

        Raises:
            ValueError: If it is anything but numbers from 0.
        """
        here = self.state_dict()
        state = here | state  # that of another loader has fewer numbers
        for name in here:
            if not isinstance(state[name], int) or state[name] < 0:
                raise ValueError(f"{name} of its data is {state[name]!r:.50}, expected 0 or more")
        images = state["batches"] * state["total_batch_size"]
        if state["seed"] != self.seed:
            logger.info(
                "The data continue in the order of seed %d, with which they began", state["seed"]
            )
        self.seed = state["seed"]
        self.batches = images // here["total_batch_size"]
        changed = [
            f"{name.replace('_', ' ')} {state[name]} -> {here[name]}"
            for name in ("world_size", "total_batch_size", "records")
            if state[name] != here[name]
        ]
        if changed:
            logger.warning(
                "Changed since the checkpoint: %s. The data continue after image %d of their "
                "order, but with other batches than without the change",
                ", ".join(changed),
                images,
            )


def build_train_loader(cfg: CfgNode, mapper: Callable[[Record], Record]) -> TrainLoader:
    """Build the loader of the training sets, with the sampler that the config names.

    Args:
        cfg: The config of the run. Without a SEED one is drawn, the same for all processes.
        mapper: Makes a sample of a record.

    Returns:
        A loader with the order of Detectron2 without workers.

    Raises:
        ValueError: If DATALOADER.SAMPLER_TRAIN or SOLVER.IMS_PER_BATCH cannot be used.
    """
    world_size = comm.get_world_size()
    batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
    if rest or not batch_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: it must be a multiple of the "
            f"{world_size} processes"
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    seeded = cfg.clone()
    seeded.defrost()

    def arguments(seed: int, dataset: Any = None) -> dict[str, Any]:
        # Detectron2's samplers take SEED or a number that NumPy draws.
        seeded.SEED = seed
        with random_numbers_of(seed), proposals_as_data(), loading_lazily(), cycles_uncollected():
            return build_detection_train_loader.from_config(seeded, mapper=mapper, dataset=dataset)

    first = arguments(seed)
    listed = first["dataset"]
    records = PackedRecords(listed) if isinstance(listed, list) else listed
    samplers = {seed: first["sampler"]}

    def build_sampler(wanted: int) -> Sampler[int]:
        if wanted not in samplers:
            samplers[wanted] = arguments(wanted, records)["sampler"]
        return samplers[wanted]

    return TrainLoader(
        records,
        mapper,
        build_sampler,
        IsLandscape(listed) if first["aspect_ratio_grouping"] else lambda _index: None,
        seed=seed,
        batch_size=batch_size,
        num_workers=first["num_workers"],
        skip=cfg.DATALOADER.ON_CORRUPT_IMAGE == "skip",
    )


class EvaluationLoader:
    """Detectron2's loader of a test set, safe with little shared memory.

    Args:
        loader: The loader; its workers send packed batches.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Record]]:
        for batch in map(unpack, from_workers(self.loader)):
            for record in batch:
                if isinstance(record, Fault):
                    raise UnusableDataError(record.reason)
            yield batch


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Callable[[Record], Record]
) -> EvaluationLoader:
    """Build the loader of a test set.

    Args:
        cfg: The config of the run.
        dataset_name: Registered name of the set.
        mapper: Makes a sample of a record; raises a ValueError that names an unusable file.

    Returns:
        A loader that raises an UnusableDataError at an unusable file, and if a worker dies.
    """
    collate = pack if cfg.DATALOADER.NUM_WORKERS else unpack
    with proposals_as_data(), loading_lazily():
        loader = build_detection_test_loader(
            cfg, dataset_name, mapper=MappedRecord(mapper), collate_fn=collate
        )
    loader.worker_init_fn = begin_worker
    if loader.num_workers:
        loader.multiprocessing_context = START_METHOD
    return EvaluationLoader(loader)


# Workers


def from_workers(loader: DataLoader) -> Iterator[Any]:
    """Start the workers of a loader and yield its items.

    A signal waits until all workers have started and know how to treat it. The death of a worker
    is noticed within seconds when an item is awaited, not in the midst of a training step.

    Raises:
        UnusableDataError: If a worker died.
    """
    former = signal.getsignal(signal.SIGCHLD)
    others = {*active_children()}
    with signals_wait():
        items = iter(loader)
    workers = [child for child in active_children() if child not in others]
    if threading.current_thread() is threading.main_thread():
        # The handler of torch raises an error wherever the main thread is.
        signal.signal(signal.SIGCHLD, former or signal.SIG_DFL)
    return _received(items, sorted(workers, key=lambda worker: worker.pid or 0))


def _received(items: Iterable[Any], workers: list[BaseProcess]) -> Iterator[Any]:
    try:
        yield from items
    except (RuntimeError, OSError, EOFError) as error:  # the last two if it died while it sent
        # A core dump takes a while, and a process ends a moment after its connections.
        seconds = DYING_SECONDS if isinstance(error, RuntimeError) else 6 * DYING_SECONDS
        dying = wait([worker.sentinel for worker in workers], seconds) if workers else []
        for number, worker in enumerate(workers, start=1):
            if worker.sentinel in dying:
                worker.join(DYING_SECONDS)
            if worker.exitcode:
                which = f"data worker {number} of {len(workers)} (process {worker.pid})"
                raise UnusableDataError(f"{which} {cause_of_death(worker.exitcode)}") from error
        raise


def cause_of_death(exit_code: int) -> str:
    """Describe the likely cause of the death of a data worker, and what helps.

    Args:
        exit_code: Exit code of the worker; negative if a signal ended it.
    """
    advice = "lower DATALOADER.NUM_WORKERS, or set it to 0 to see the cause"
    if exit_code > 0:
        return f"ended with exit code {exit_code}: {advice}"
    name = signal.Signals(-exit_code).name
    if name == "SIGKILL":
        return (
            "was killed by SIGKILL, as the system does when memory runs out: lower "
            "DATALOADER.NUM_WORKERS"
        )
    if name == "SIGBUS":
        return (
            "was ended by SIGBUS, usually because the shared memory is full: give it more (docker "
            "run --shm-size=8g) or lower DATALOADER.NUM_WORKERS"
        )
    return f"was ended by {name}: {advice}"


def begin_worker(_worker: int) -> None:
    """Make a worker outlive a signal to its whole process group, but not its main process.

    It ends when the main process sends SIGTERM or has ended. Until here, all signals are blocked.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)
    if hasattr(signal, "sigwaitinfo"):  # only where the sender of a signal is known
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_main_process, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_with_the_main_process() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
