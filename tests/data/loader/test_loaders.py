"""Data loaders: Detectron2's order with interruptions, workers, ranks, broken images."""

import itertools
import logging
import multiprocessing
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.utils import comm

from point_rend.config.defaults import add_pointrend_config
from point_rend.data.loader.loaders import TrainLoader, build_test_loader, build_train_loader
from point_rend.utils.errors import TrainingStop
from tests.engine.killing import PATIENCE, spared
from tests.runs import files_limited_to

COUNT = 23
BROKEN = (4, 5, 17)

Batch = list[dict[str, Any]]


def records() -> list[dict[str, Any]]:
    """Records of wide and high images; every fifth image has a rare class."""
    sizes = random.Random(1)
    return [
        {
            "image_id": number,
            "file_name": f"{number}.jpg",
            "width": sizes.choice([4, 6]),
            "height": 5,
            "annotations": [{"category_id": int(number % 5 == 0), "iscrowd": 0}],
        }
        for number in range(COUNT)
    ]


def augmented(record: dict[str, Any]) -> dict[str, Any]:
    """A mapper that draws from all generators."""
    noise = random.random(), float(np.random.rand()), float(torch.rand(()))
    return {key: record[key] for key in ("image_id", "width", "height")} | {"noise": noise}


def choosy(record: dict[str, Any]) -> dict[str, Any]:
    if record["image_id"] in BROKEN:
        raise ValueError(f"file {record['file_name']} cannot be used")
    return augmented(record)


def large(record: dict[str, Any]) -> dict[str, Any]:
    image = torch.full((3, 100, 100), record["image_id"], dtype=torch.uint8)
    return augmented(record) | {"image": image}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    DatasetCatalog.register("records", records)
    try:
        yield
    finally:
        DatasetCatalog.remove("records")


def config(**settings: Any) -> CfgNode:
    cfg = get_cfg()
    add_pointrend_config(cfg)
    cfg.DATASETS.TRAIN = ("records",)
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 5, 2, 0
    cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5, 0.6
    for key, value in settings.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    cfg.freeze()
    return cfg


def loader(mapper: Any = augmented, **settings: Any) -> TrainLoader:
    return build_train_loader(config(**settings), mapper)


def take(loader: Any, batches: int) -> list[Batch]:
    return list(itertools.islice(loader, batches))


def ids(batches: list[Batch]) -> list[list[int]]:
    return [[sample["image_id"] for sample in batch] for batch in batches]


# Order


@pytest.mark.parametrize("grouping", [True, False])
def test_the_order_is_that_of_detectron2_without_workers(grouping: bool) -> None:
    settings = {"DATALOADER__ASPECT_RATIO_GROUPING": grouping}
    ours = loader(**settings)
    stock = build_detection_train_loader(
        config(**settings), mapper=augmented, sampler=ours.build_sampler(5)
    )
    expected = ids(take(stock, 60))
    assert ids(take(ours, 60)) == expected
    assert ours.batches == 60


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize(
    "sampler",
    ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"],
)
def test_a_resumed_order_continues_as_if_uninterrupted(sampler: str, grouping: bool) -> None:
    settings = {
        "DATALOADER__SAMPLER_TRAIN": sampler,
        "DATALOADER__ASPECT_RATIO_GROUPING": grouping,
    }
    full = take(loader(**settings), 40)
    found: list[Batch] = []
    state: dict[str, int] = {}
    for batches in (1, 0, 16, 23):
        part = loader(**settings)
        if state:
            part.load_state_dict(state)
        found += take(part, batches)
        state = part.state_dict()
    assert state["batches"] == 40
    assert found == full


def test_different_seeds_give_different_orders() -> None:
    names = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
    for name in names:
        orders = [
            ids(take(loader(SEED=seed, DATALOADER__SAMPLER_TRAIN=name), 10)) for seed in (0, 1)
        ]
        assert orders[0] != orders[1], name


def test_without_a_seed_one_is_drawn_and_resumed() -> None:
    drawn = [loader(SEED=-1, DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler") for _ in "ab"]
    assert drawn[0].seed != drawn[1].seed
    full = [take(one, 6) for one in drawn]
    assert ids(full[0]) != ids(full[1])
    other = loader(SEED=-1, DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler")
    other.load_state_dict(drawn[0].state_dict() | {"batches": 2})
    assert take(other, 4) == full[0][2:]


@pytest.mark.parametrize("workers", [1, 3])
def test_samples_are_the_same_for_any_number_of_workers(workers: int) -> None:
    part = loader(DATALOADER__NUM_WORKERS=workers)
    part.load_state_dict(part.state_dict() | {"batches": 3})
    assert take(part, 12) == take(loader(), 15)[3:]


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_does_not_change_the_random_numbers_of_the_training(workers: int) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    take(loader(DATALOADER__NUM_WORKERS=workers), 2)
    assert torch.equal(torch.rand(3), expected)


# Ranks


def of_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> TrainLoader:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(comm, "all_gather", lambda data: [data] * world_size)
    return loader(DATALOADER__ASPECT_RATIO_GROUPING=False, SOLVER__IMS_PER_BATCH=6)


def test_ranks_share_the_stream_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(itertools.chain(*take(of_rank(monkeypatch, 0, 1), 10)))
    shares = [list(itertools.chain(*take(of_rank(monkeypatch, rank, 3), 10))) for rank in range(3)]
    assert list(itertools.chain(*zip(*shares, strict=True))) == alone


def test_with_other_ranks_a_resumed_order_continues_at_the_same_image_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = list(itertools.chain(*take(of_rank(monkeypatch, 0, 1), 10)))
    state = of_rank(monkeypatch, 0, 3).state_dict() | {"batches": 4}
    part = of_rank(monkeypatch, 0, 1)
    with caplog.at_level(logging.WARNING):
        part.load_state_dict(state)
    assert "world size 3 -> 1" in caplog.text
    assert "after image 24" in caplog.text
    assert list(itertools.chain(*take(part, 6))) == full[24:]


def test_a_batch_size_that_the_ranks_cannot_divide_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 6: it must be a multiple of the 4"):
        of_rank(monkeypatch, 0, 4)


# Broken images


def test_a_broken_image_ends_the_training_with_its_name() -> None:
    with pytest.raises(TrainingStop, match=r"file \d+\.jpg cannot be used; .*skip") as stop:
        take(loader(choosy), 40)
    assert stop.value.exit_code == 2
    assert stop.value.saves


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_may_be_skipped_with_a_counted_warning(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"DATALOADER__ON_CORRUPT_IMAGE": "skip", "DATALOADER__NUM_WORKERS": workers}
    planned = ids(take(loader(), 40))
    with caplog.at_level(logging.WARNING):
        found = ids(take(loader(choosy, **settings), 40))
    instead = {4: 6, 5: 6, 17: 18}
    assert found == [[instead.get(number, number) for number in batch] for batch in planned]
    faults = sum({4: 2, 5: 1, 17: 1}.get(number, 0) for number in itertools.chain(*planned))
    assert f"Skipped, number {faults} of this run: file" in caplog.text


def test_a_data_set_of_broken_images_always_ends_the_training() -> None:
    def refuse(record: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(f"file {record['file_name']} cannot be used")

    with pytest.raises(TrainingStop, match="10 in a row cannot be used"):
        take(loader(refuse, DATALOADER__ON_CORRUPT_IMAGE="skip"), 1)


# Workers


def test_exhausted_shared_memory_gives_one_warning_and_loses_no_image(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batches = iter(loader(large, DATALOADER__NUM_WORKERS=2))
    with caplog.at_level(logging.WARNING), files_limited_to(20_000):
        found = take(batches, 5)
    assert caplog.text.count("The shared memory of the workers is exhausted") == 1
    for sample in itertools.chain(*found):
        assert sample["image"].shape == (3, 100, 100)
        assert torch.all(sample["image"] == sample["image_id"])
    assert ids(found) == ids(take(loader(), 5))


@pytest.mark.parametrize("limit", [20_000, None])
def test_a_test_set_is_read_in_order_with_any_shared_memory(limit: int | None) -> None:
    test_set = build_test_loader(config(DATALOADER__NUM_WORKERS=1), "records", large)
    assert len(test_set) == COUNT
    with files_limited_to(limit or -1):
        found = list(test_set)
    assert ids(found) == [[number] for number in range(COUNT)]
    assert all(torch.all(sample["image"] == sample["image_id"]) for (sample,) in found)


def test_a_worker_ends_with_its_main_process_and_ignores_others() -> None:
    batches = iter(loader(DATALOADER__NUM_WORKERS=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert spared(worker)
    expected = ids(take(loader(), 6))[1:]
    assert ids(take(batches, 5)) == expected
    worker.terminate()
    worker.join(PATIENCE)
    assert worker.exitcode == 0
