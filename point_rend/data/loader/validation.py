"""Loader of a test set with its ground truth, for losses."""

from collections.abc import Callable, Iterator

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset

from point_rend.data.datasets.packed import loading_lazily
from point_rend.data.datasets.proposals import proposals_as_data
from point_rend.data.loader.loaders import START_METHOD, begin_worker, from_workers
from point_rend.data.loader.order import StreamPosition
from point_rend.data.loader.records import PackedRecords
from point_rend.data.loader.samples import Record, Sample, Samples, UnusableDataError
from point_rend.data.loader.transport import pack, unpack
from point_rend.utils import progress
from point_rend.utils.seeding import random_numbers_of

SEED = 0  # of the mapper, the same for every training, so that its samples are


class ValidationLoader:
    """The images of this process, in order, each with its number in the set.

    The samples depend neither on the number of workers nor on that of the processes.

    Args:
        records: The set, by index.
        mapper: Makes a sample of a record; raises a ValueError that names an unusable file.
        num_workers: Number of worker processes.
    """

    def __init__(
        self,
        records: Dataset[Record],
        mapper: Callable[[Record], Record],
        *,
        num_workers: int = 0,
    ) -> None:
        self.samples = Samples(records, mapper, seed=SEED)
        self.numbers = list(InferenceSampler(len(records)))  # type: ignore[arg-type]
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        loader = DataLoader(
            self.samples,
            sampler=[StreamPosition(number, number) for number in self.numbers],
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=pack if self.num_workers else unpack,
            worker_init_fn=begin_worker,
            multiprocessing_context=START_METHOD if self.num_workers else None,
        )
        with random_numbers_of(SEED):  # torch draws one for its workers
            arriving = from_workers(loader)
        for content in arriving:
            progress.note(progress.EVALUATING)
            sample: Sample = unpack(content)
            if sample.data is None:
                raise UnusableDataError(sample.faults[-1])
            yield sample.position.number, sample.data


def build_validation_loader(
    cfg: CfgNode, dataset_name: str, mapper: Callable[[Record], Record]
) -> ValidationLoader:
    """Build the loader of a test set with its ground truth.

    Images without annotations, or with too few keypoints, are left out if a training would do so.

    Args:
        cfg: The config of the run.
        dataset_name: Registered name of the set, one of DATASETS.TEST.
        mapper: Makes a sample of a record, with ground truth.

    Returns:
        A loader that raises an UnusableDataError at an unusable file, and if a worker dies.
    """
    files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        position = list(cfg.DATASETS.TEST).index(dataset_name)
        files = [cfg.DATASETS.PROPOSAL_FILES_TEST[position]]
    minimum = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    with proposals_as_data(), loading_lazily():
        records = get_detection_dataset_dicts(
            dataset_name,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=minimum,
            proposal_files=files,
        )
    if isinstance(records, list):
        records = PackedRecords(records)
    return ValidationLoader(records, mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)
