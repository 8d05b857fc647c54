"""Training loaders of users: those of Detectron2, of torch, and any other iterable of batches.

A loader of :func:`detectron2.data.build_detection_train_loader` becomes one of ours, with the same
data set, mapper and sampler, so that it resumes exactly. Any other one is iterated as it is.
"""

import contextlib
import copy
import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from point_rend.data.loader.loaders import TrainLoader
from point_rend.data.loader.order import IsLandscape
from point_rend.data.loader.samples import Record, UnusableDataError
from point_rend.data.loader.together import BatchStream
from point_rend.utils.seeding import random_numbers_of

# Samplers of Detectron2 whose order follows from a seed that they keep.
SEEDED = (TrainingSampler, RepeatFactorTrainingSampler)

logger = logging.getLogger(__name__)


class ForeignLoader(BatchStream):
    """The batches of any iterable, without end.

    An iterable that ends is iterated again, as the next epoch; its sampler learns the number of
    the epoch if it has ``set_epoch``. An iterator, such as the result of a generator function, ends
    the training if it ends.

    The state is that of the iterable if it has ``state_dict`` and ``load_state_dict``, as
    torchdata's StatefulDataLoader has. Without them a resumed training begins a new epoch.

    Args:
        batches: Yields lists of samples.
        seed: Seed of the training, 0 or more.
        source: The function that returned the iterable, for messages.
    """

    def __init__(self, batches: Iterable[Any], *, seed: int, source: str) -> None:
        super().__init__(seed)
        self.iterable = batches
        self.source = source
        self.epoch = 0
        self.has_state = all(
            callable(getattr(batches, name, None)) for name in ("state_dict", "load_state_dict")
        )
        self._continues = False  # within an epoch, after a resume

    def __iter__(self) -> Iterator[Any]:
        batches = self._endless()
        while True:
            # What a loader draws, to shuffle for example, must not change what the model draws.
            numbers = random_numbers_of(self.seed, self.batches, comm.get_rank(), 0)
            with _keeping_the_handler_of_children(), numbers:
                batch = self.next_together(batches)
            self.batches += 1
            yield batch

    def _endless(self) -> Iterator[Any]:
        while True:
            for part in (self.iterable, *_samplers(self.iterable)):
                if callable(set_epoch := getattr(part, "set_epoch", None)):
                    set_epoch(self.epoch)
            batches = iter(self.iterable)
            count = 0
            for count, batch in enumerate(self._received(batches), start=1):  # noqa: B007
                if fault := _fault_of(batch):
                    raise UnusableDataError(f"{self.source} returned a loader that yields {fault}")
                yield batch
            if batches is self.iterable:
                raise UnusableDataError(
                    f"the iterator that {self.source} returned has ended after {self.batches} "
                    "batches: return an iterable that can be iterated again, such as a "
                    "DataLoader, or an endless one"
                )
            if not count and not self._continues:
                raise UnusableDataError(
                    f"{self.source} returned a loader without any batch: it has fewer images than "
                    "a batch, or none"
                )
            self._continues = False
            logger.info("Epoch %d of the loader of %s has ended", self.epoch, self.source)
            self.epoch += 1

    def _received(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = str(error).splitlines()[0].rstrip(".")
            raise UnusableDataError(
                f"the loader of {self.source}: {reason}: lower its num_workers, or set it to 0 to "
                "see the cause"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Return the progress, and the state of the iterable if it has one."""
        state = {
            "seed": self.seed,
            "batches": self.batches,
            "world_size": comm.get_world_size(),
            "epoch": self.epoch,
        }
        return state | ({"loader": self.iterable.state_dict()} if self.has_state else {})  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, exactly if the iterable has a state.

        Raises:
            ValueError: If the state is not one of a loader, or the iterable refuses it.
        """
        state = self.state_dict() | {"loader": None} | state
        for name in ("seed", "batches", "epoch"):
            if not isinstance(state[name], int) or state[name] < 0:
                raise ValueError(f"{name} of its data is {state[name]!r:.50}, expected 0 or more")
        self.seed, self.batches, self.epoch = (state[x] for x in ("seed", "batches", "epoch"))
        if not self.has_state:
            return
        if state["loader"] is None:
            logger.warning(
                "The checkpoint has no state of the loader of %s: its data begin anew", self.source
            )
            return
        try:
            self.iterable.load_state_dict(state["loader"])  # type: ignore[attr-defined]
        except Exception as error:  # whatever its author chose
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"the loader of {self.source} does not accept its state: {reason}"
            ) from error
        self._continues = True

    def warn(self) -> None:
        """Warn once if a resumed training will see other data than an uninterrupted one."""
        several = comm.get_world_size() > 1
        if self.has_state and not several:
            return
        if self.has_state:
            lost = (
                "is saved with the state of process 0 alone, from which a resumed training "
                "continues all processes: an uninterrupted one sees the same images only if their "
                "loaders differ in nothing but the rank"
            )
        else:
            kind = type(self.iterable)
            lost = (
                f"({kind.__module__}.{kind.__qualname__}) has no state_dict and load_state_dict: a "
                "resumed training begins a new pass over its data, so the order of the images is "
                "not that of an uninterrupted one; everything else is resumed exactly"
            )
        logger.warning(
            "The loader of %s %s. For an exact resume return point_rend.build_train_loader(cfg, "
            "mapper)%s",
            self.source,
            lost,
            "" if self.has_state else ", or a loader with a state",
        )


@contextlib.contextmanager
def _keeping_the_handler_of_children() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD, which raises wherever the main thread is."""
    former = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGCHLD) is not former:
            signal.signal(signal.SIGCHLD, former or signal.SIG_DFL)


def build_own_loader(
    cfg: CfgNode, loader: Any, source: str, *, warns: bool = True
) -> TrainLoader | ForeignLoader:
    """Return a user's training loader as the trainer needs it.

    Args:
        cfg: The config of the run. Without a SEED one is drawn, the same for all processes.
        loader: What the user's ``build_train_loader`` returned.
        source: The name of that function, for messages.
        warns: Whether to warn of a loader that cannot resume exactly.

    Returns:
        A loader of ours unchanged; one of Detectron2 as one of ours; any other one wrapped.

    Raises:
        ValueError: If it is not iterable.
    """
    if isinstance(loader, TrainLoader | ForeignLoader):
        return loader
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    parts = parts_of_detectron2(loader)
    if parts is not None:
        logger.info(
            "The loader of %s is Detectron2's: its images come in the order of the same sampler, "
            "which a resumed training continues exactly",
            source,
        )
        skips = cfg.DATALOADER.ON_CORRUPT_IMAGE == "skip"
        return parts.train_loader(seed, skip=skips)
    if not isinstance(loader, Iterable):
        raise ValueError(
            f"{source} returned a value of type {type(loader).__qualname__}: expected an iterable "
            "of batches, such as point_rend.build_train_loader(cfg, mapper)"
        )
    wrapped = ForeignLoader(loader, seed=seed, source=source)
    if warns:
        wrapped.warn()
    return wrapped


class LoaderParts(NamedTuple):
    """The parts of a training loader of Detectron2.

    Attributes:
        records: The data set, by index.
        mapper: Makes a sample of a record.
        sampler: The sampler, which keeps its seed.
        batch_size: Number of images per batch of this process.
        num_workers: Number of worker processes.
        groups: Whether batches are of wide or of high images only.
    """

    records: Dataset[Record]
    mapper: Callable[[Record], Record | None]
    sampler: Sampler[int]
    batch_size: int
    num_workers: int
    groups: bool

    def train_loader(self, seed: int, *, skip: bool) -> TrainLoader:
        """Build a loader of ours from the parts.

        Args:
            seed: Seed of the training, which the sampler gets, too.
            skip: As of :class:`TrainLoader`.
        """

        def build_sampler(wanted: int) -> Sampler[int]:
            seeded = copy.copy(self.sampler)
            seeded._seed = wanted  # type: ignore[attr-defined]
            return seeded

        return TrainLoader(
            self.records,
            self.mapper,  # type: ignore[arg-type]
            build_sampler,
            IsLandscape(self.records) if self.groups else lambda _index: None,  # type: ignore[arg-type]
            seed=seed,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            skip=skip,
        )


def parts_of_detectron2(loader: Any) -> LoaderParts | None:
    """Take a training loader of Detectron2 apart.

    Args:
        loader: Any loader.

    Returns:
        Its parts; None if it is not exactly what ``build_detection_train_loader`` returns with one
        of the samplers in ``SEEDED`` and without a collate_fn of the user.
    """
    groups = type(loader) is AspectRatioGroupedDataset
    inner = loader.dataset if groups else loader
    if type(inner) is not DataLoader:
        return None
    stream: Any = inner.dataset
    if type(stream) is not ToIterableDataset or type(stream.sampler) not in SEEDED:
        return None
    if not groups and inner.collate_fn is not trivial_batch_collator:
        return None
    records, mapper = stream.dataset, _unchanged
    if type(records) is MapDataset:
        records, mapper = records._dataset, records._map_func
    if groups and type(records) is not DatasetFromList:
        return None  # all sizes are needed in advance, and its items may be whole images
    return LoaderParts(
        records=records,
        mapper=mapper,
        sampler=stream.sampler,
        batch_size=loader.batch_size,
        num_workers=inner.num_workers,
        groups=groups,
    )


def _unchanged(record: Record) -> Record:
    return record


def _samplers(iterable: Any) -> list[Any]:
    batch_sampler = getattr(iterable, "batch_sampler", None)
    found = [getattr(iterable, "sampler", None), batch_sampler]
    own = getattr(batch_sampler, "sampler", None)
    return found if own is found[0] else [*found, own]


def _fault_of(batch: Any) -> str:
    """Describe what is wrong with a batch, and what was expected; nothing if it can be used."""
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        wrong = next((x for x in batch if not isinstance(x, Mapping)), None)
        if len(batch) and wrong is None:
            return ""
        kind = f"a batch with a value of type {type(wrong).__qualname__}" if batch else "no image"
    else:
        kind = f"a batch of type {type(batch).__qualname__}"
    return (
        f"{kind}: expected a list of dicts, one for each image (for a DataLoader: "
        "collate_fn=detectron2.data.build.trivial_batch_collator)"
    )
