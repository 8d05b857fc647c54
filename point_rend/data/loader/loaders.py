"""The loaders of a run: resumable, the same for all worker counts, content with any /dev/shm."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from point_rend.data.loader.order import Turn, WiderThanHigh, behind, grouped, turns
from point_rend.data.loader.samples import Record, Sample, Samples
from point_rend.data.loader.transport import Parcel, packed, unpacked
from point_rend.utils.errors import USER_ERROR, TrainingStop
from point_rend.utils.seeding import random_numbers_of

# A process that was spawned spawns its workers, too, unless told otherwise: they then import all
# of this for seconds, in which a signal kills them.
START_METHOD = "fork" if sys.platform == "linux" else None
ATTEMPTS = 10  # records tried for a turn where those that cannot be used are skipped

logger = logging.getLogger(__name__)


class TrainLoader:
    """Endless batches of training samples, in an order that follows from a seed alone.

    Number of workers and interruptions change neither the order nor the samples. It can be iterated
    over once; `state_dict` then tells how far that has come.

    Args:
        records: The data set, by index.
        mapper: Makes a sample of a record; it raises a ValueError that names the file if it cannot.
        build_sampler: Makes a sampler of Detectron2 from a seed.
        kind: Tells by index what the images of a batch have in common.
        seed: Seed of the training, 0 or more.
        batch_size: Images per batch, of this process.
        num_workers: Number of worker processes.
        skip: Whether records that cannot be used are replaced by later ones, with a warning; if
            not, they end the training, on all processes together.
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
        self.records = records
        self.mapper = mapper
        self.build_sampler = build_sampler
        self.kind = kind
        self.seed = seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.skip = skip
        self.batches = 0
        self.faults = 0
        self._without_shared_memory = False
        # Not over NCCL, as the signals are not.
        self._group: Any = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def __iter__(self) -> Iterator[list[Record]]:
        samples = Samples(
            self.records, self.mapper, seed=self.seed, attempts=ATTEMPTS if self.skip else 1
        )
        loader = DataLoader(
            samples,
            sampler=self._remaining_turns(),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=packed if self.num_workers else unpacked,
            worker_init_fn=leave_signals_to_the_main_process,
            multiprocessing_context=START_METHOD if self.num_workers else None,
        )
        with random_numbers_of(self.seed):  # of which torch would draw one for its workers
            arriving = iter(loader)
        batches = grouped(map(self._received, arriving), self._kind_of, self.batch_size)
        while True:
            batch = self._next_unless_one_ends(batches)
            self.batches += 1
            yield [sample.data for sample in batch if sample.data is not None]

    def _next_unless_one_ends(self, batches: Iterator[list[Sample]]) -> list[Sample]:
        """Take the next batch; where that ends the training of one process, all end together."""
        stop: TrainingStop | None = None
        batch: list[Sample] = []
        try:
            batch = next(batches)
        except TrainingStop as own:
            stop = own
        if self._group is not None:
            one_ends = torch.tensor(stop is not None, dtype=torch.int32)
            dist.all_reduce(one_ends, dist.ReduceOp.MAX, group=self._group)
            if one_ends:
                reason = next(filter(None, comm.all_gather(stop.reason if stop else "")))
                stop = TrainingStop(reason, exit_code=USER_ERROR, together=True)
        if stop is not None:
            raise stop
        return batch

    def _remaining_turns(self) -> Iterator[Turn]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        stream = turns(self.build_sampler(self.seed), rank=rank, world_size=world_size)
        return behind(stream, lambda turn: self.kind(turn.record), self.batch_size, self.batches)

    def _kind_of(self, sample: Sample) -> Any:
        return self.kind(sample.turn.record)

    def _received(self, content: Sample | Parcel | bytes) -> Sample:
        """Unpack what a worker has sent; tell of faults, and end the training if need be."""
        if isinstance(content, bytes) and not self._without_shared_memory:
            self._without_shared_memory = True
            logger.warning(
                "The shared memory of the workers is exhausted: samples go through pipes, which is "
                "slower. Give it more (docker run --shm-size=8g) or lower DATALOADER.NUM_WORKERS"
            )
        sample: Sample = unpacked(content)
        for fault in sample.faults if self.skip else ():
            self.faults += 1
            logger.warning("Skipped, number %d of this run: %s", self.faults, fault)
        if sample.data is None:
            last = sample.faults[-1]
            advice = (
                f"{ATTEMPTS} in a row cannot be used"
                if self.skip
                else "repair it, or pass DATALOADER.ON_CORRUPT_IMAGE skip"
            )
            raise TrainingStop(f"{last}; {advice}", exit_code=USER_ERROR)
        return sample

    def state_dict(self) -> dict[str, int]:
        """Say which order it is, and how much of it has been seen."""
        world_size = comm.get_world_size()
        return {
            "seed": self.seed,
            "batches": self.batches,
            "total_batch_size": self.batch_size * world_size,
            "world_size": world_size,
            "records": len(self.records),  # type: ignore[arg-type]
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue an order where it was left.

        With other processes or other batches it continues at the same image, but in batches of
        its own, and says so.
        """
        here = self.state_dict()
        images = state["batches"] * state["total_batch_size"]
        if state["seed"] != self.seed:
            logger.info("The data go on in the order of seed %d, as they began", state["seed"])
        self.seed = state["seed"]
        self.batches = images // here["total_batch_size"]
        changed = [
            f"{name.replace('_', ' ')} {state[name]} -> {here[name]}"
            for name in ("world_size", "total_batch_size", "records")
            if state[name] != here[name]
        ]
        if changed:
            logger.warning(
                "Since the checkpoint has changed: %s. The data continue behind image %d of their "
                "order, but not exactly as they would have",
                ", ".join(changed),
                images,
            )


def build_train_loader(cfg: CfgNode, mapper: Callable[[Record], Record]) -> TrainLoader:
    """Build the loader of the training sets, with the sampler that the config names.

    Args:
        cfg: The config of the run. Without a SEED one is drawn, the same for all processes.
        mapper: Makes a sample of a record.

    Returns:
        A loader whose order is that of Detectron2 without workers.

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
        with random_numbers_of(seed):
            return build_detection_train_loader.from_config(seeded, mapper=mapper, dataset=dataset)

    first = arguments(seed)
    listed = first["dataset"]
    records = DatasetFromList(listed, copy=False) if isinstance(listed, list) else listed
    samplers = {seed: first["sampler"]}

    def build_sampler(wanted: int) -> Sampler[int]:
        if wanted not in samplers:
            samplers[wanted] = arguments(wanted, records)["sampler"]
        return samplers[wanted]

    return TrainLoader(
        records,
        mapper,
        build_sampler,
        WiderThanHigh(listed) if first["aspect_ratio_grouping"] else lambda _index: None,
        seed=seed,
        batch_size=batch_size,
        num_workers=first["num_workers"],
        skip=cfg.DATALOADER.ON_CORRUPT_IMAGE == "skip",
    )


class EvaluationLoader:
    """Detectron2's loader of a test set, for which shared memory need not suffice.

    Args:
        loader: The loader; its workers send packed batches.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Record]]:
        return map(unpacked, self.loader)


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Callable[[Record], Record]
) -> EvaluationLoader:
    """Build the loader of a test set.

    Args:
        cfg: The config of the run.
        dataset_name: Registered name of the set.
        mapper: Makes a sample of a record.
    """
    collate = packed if cfg.DATALOADER.NUM_WORKERS else unpacked
    loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper, collate_fn=collate)
    loader.worker_init_fn = leave_signals_to_the_main_process
    if loader.num_workers:
        loader.multiprocessing_context = START_METHOD
    return EvaluationLoader(loader)


def leave_signals_to_the_main_process(_worker: int) -> None:
    """Let a worker live on when a whole group of processes is asked to end.

    It ends when the main process asks for it, with the same signal, or has ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # only where the sender of a signal can be told
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
