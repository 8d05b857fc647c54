"""Trainers of users: their mappers, augmentations and loaders, as Detectron2 documents them."""

import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import transforms as T
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import DataLoader, DistributedSampler

from point_rend.cli import train
from point_rend.data.loader.foreign import ForeignLoader, build_own_loader
from point_rend.data.loader.loaders import TrainLoader, build_train_loader
from point_rend.data.mapper import NamingDatasetMapper
from point_rend.engine import trainer
from point_rend.engine.trainer import Trainer
from tests.engine.killing import (
    Run,
    assert_identical,
    command,
    final,
    start_two,
    tagged_iteration,
)
from tests.runs import metrics, refusal, set_up
from tests.tiny_datasets import CocoSet

pytestmark = pytest.mark.usefixtures("_restored")

WARNING = "For an exact resume return point_rend.build_train_loader(cfg, mapper)"
NO_TEST = ["DATASETS.TEST", "()"]


def trainer_with(
    build: Callable[[CfgNode], Any], build_test: Callable[..., Any] | None = None
) -> type[Trainer]:
    """Return a subclass of the trainer, as users write it."""

    class MyTrainer(Trainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            return build(cfg)

        @classmethod
        def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
            if build_test is None:
                return super().build_test_loader(cfg, dataset_name)
            return build_test(cfg, dataset_name)

    return MyTrainer


def rotated(record: dict[str, Any], *, cfg: CfgNode) -> dict[str, Any]:
    """A mapper that is a function."""
    augmentations = [
        T.ResizeShortestEdge((56, 64), sample_style="choice"),
        T.RandomRotation([-9, 9]),
    ]
    return DatasetMapper(cfg, is_train=True, augmentations=augmentations)(record)


def with_function(cfg: CfgNode) -> Any:
    return build_detection_train_loader(cfg, mapper=functools.partial(rotated, cfg=cfg))


def with_list(cfg: CfgNode) -> Any:
    mapper = DatasetMapper(cfg, is_train=True, augmentations=[T.Resize((64, 64)), T.RandomFlip()])
    return build_detection_train_loader(cfg, mapper=mapper)


def with_ours(cfg: CfgNode) -> TrainLoader:
    mapper = NamingDatasetMapper(cfg, is_train=True, augmentations=[T.RandomRotation([-9, 9])])
    return build_train_loader(cfg, mapper)


class MappedList(torch.utils.data.Dataset):
    """A map-style data set of torch that reads its images itself."""

    def __init__(self, cfg: CfgNode) -> None:
        self.records = DatasetCatalog.get("mixed")
        self.mapper = DatasetMapper(cfg, is_train=True)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.mapper(self.records[index])


def with_torch(cfg: CfgNode) -> DataLoader:
    return DataLoader(
        MappedList(cfg), batch_size=2, shuffle=True, collate_fn=trivial_batch_collator
    )


def with_generator(cfg: CfgNode, *, length: int | None = None) -> Iterator[list[dict[str, Any]]]:
    data = MappedList(cfg)
    for number in itertools.islice(itertools.count(), length):
        yield [data[number % len(data)]]


class Stateful:
    """An endless loader that knows its state, as torchdata's does."""

    def __init__(self, cfg: CfgNode) -> None:
        self.data = MappedList(cfg)
        self.position = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while True:
            self.position += 1
            yield [self.data[5 * self.position % len(self.data)]]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


# --- trainings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        with_function,
        *(pytest.param(x, marks=pytest.mark.slow) for x in (with_list, with_ours)),
        Stateful,
    ],
)
def test_a_resumed_training_with_parts_of_a_user_is_that_of_an_uninterrupted_one(
    build: Callable[[CfgNode], Any], mixed: CocoSet, tmp_path: Path
) -> None:
    chosen = trainer_with(build)

    class Interrupted(chosen):  # type: ignore[misc,valid-type]
        def run_step(self) -> None:
            super().run_step()
            if self.iter == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    more = [*NO_TEST, "SOLVER.MAX_ITER", "4"]
    train.main(command(mixed, tmp_path / "uninterrupted", *more), trainer=chosen)
    argv = command(mixed, tmp_path / "resumed", *more)
    with pytest.raises(SystemExit):
        train.main(argv, trainer=Interrupted)
    assert tagged_iteration(tmp_path / "resumed") == 1
    train.main(argv, trainer=chosen)
    assert_identical(final(tmp_path / "resumed"), final(tmp_path / "uninterrupted"))
    assert WARNING not in (tmp_path / "resumed" / "log.txt").read_text()


def build_plain_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    mapper = DatasetMapper(cfg, is_train=False, augmentations=[T.Resize((48, 48))])
    return build_detection_test_loader(cfg, name, mapper=mapper)


@pytest.mark.parametrize("build", [with_torch, with_generator])
def test_any_iterable_of_batches_trains_evaluates_and_resumes_with_one_warning_a_run(
    build: Callable[[CfgNode], Any], mixed: CocoSet, tmp_path: Path
) -> None:
    chosen = trainer_with(build, build_plain_test_loader)
    for iterations in (3, 5):  # an epoch of torch's loader has three batches
        argv = command(mixed, tmp_path / "output", "SOLVER.MAX_ITER", str(iterations))
        train.main(argv, trainer=chosen)
    log = (tmp_path / "output" / "log.txt").read_text()
    assert log.count(WARNING) == 2
    assert "segm/AP" in metrics(tmp_path / "output")[-1]
    assert final(tmp_path / "output")["trainer"]["data"]["batches"] == 5


def test_precise_bn_takes_the_loader_of_a_user(mixed: CocoSet, tmp_path: Path) -> None:
    more = ["TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "4"]
    argv = command(mixed, tmp_path / "output", *NO_TEST, *more, "SOLVER.MAX_ITER", "1")
    train.main(argv, trainer=trainer_with(with_torch))
    assert (tmp_path / "output" / "log.txt").read_text().count(WARNING) == 1


def test_an_own_trainer_evaluates(mixed: CocoSet, tmp_path: Path) -> None:
    seen = []

    def build(cfg: CfgNode, name: str) -> DataLoader:
        seen.append(name)
        return build_plain_test_loader(cfg, name)

    argv = command(mixed, tmp_path / "output", "MODEL.WEIGHTS", "")[1:]
    train.main(["--eval-only", *argv], trainer=trainer_with(with_list, build))
    assert seen == ["mixed"]


# --- loaders --------------------------------------------------------------------------------------


def test_a_loader_of_detectron2_becomes_one_of_ours_with_the_order_of_its_sampler(
    mixed: CocoSet, tmp_path: Path
) -> None:
    cfg = set_up(command(mixed, tmp_path / "output")).cfg
    for grouped in (True, False):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouped
        sampler = TrainingSampler(6, seed=cfg.SEED)

        def build(sampler: TrainingSampler = sampler, cfg: CfgNode = cfg) -> Any:
            return build_detection_train_loader(cfg, mapper=dict, sampler=sampler)

        ours = build_own_loader(cfg, build(), "build")
        assert isinstance(ours, TrainLoader)
        pairs = zip(itertools.islice(build(), 10), ours, strict=False)
        for theirs, batch in pairs:
            assert [x["image_id"] for x in batch] == [x["image_id"] for x in theirs]


def test_a_loader_of_detectron2_with_the_users_collate_function_is_taken_as_it_is(
    mixed: CocoSet, tmp_path: Path
) -> None:
    cfg = set_up(command(mixed, tmp_path / "output")).cfg

    def reverse(batch: list[Any]) -> list[Any]:
        return batch[::-1]

    loader = build_detection_train_loader(cfg, mapper=dict, collate_fn=reverse)
    assert isinstance(build_own_loader(cfg, loader, "build"), ForeignLoader)


def test_epochs_are_counted_and_the_sampler_learns_their_numbers() -> None:
    sampler = DistributedSampler([0] * 4, num_replicas=1, rank=0, seed=7)
    data = [{"image_id": number} for number in range(4)]
    loader = DataLoader(data, batch_size=2, sampler=sampler, collate_fn=trivial_batch_collator)

    def ids(batches: Any, count: int) -> list[int]:
        return [x["image_id"] for batch in itertools.islice(batches, count) for x in batch]

    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    first = ForeignLoader(loader, seed=0, source="build")
    assert ids(first, 6) == expected
    resumed = ForeignLoader(loader, seed=0, source="build")
    resumed.load_state_dict(first.state_dict())
    assert ids(resumed, 2) == expected[-4:]  # the epoch begins anew


def test_the_state_of_a_loader_of_another_kind_can_be_resumed() -> None:
    ours = TrainLoader([{}] * 9, dict, lambda _seed: range(9), int, seed=3, batch_size=2)  # type: ignore[arg-type,return-value]
    ours.batches = 4
    foreign = ForeignLoader([[{}]], seed=0, source="build")
    foreign.load_state_dict(ours.state_dict())
    assert (foreign.seed, foreign.batches) == (3, 4)
    foreign.batches = 5
    ours.load_state_dict(foreign.state_dict())
    assert (ours.seed, ours.batches) == (3, 5)


# --- faults ---------------------------------------------------------------------------------------


def first_line(build: Callable[[CfgNode], Any], mixed: CocoSet, tmp_path: Path, capsys: Any) -> str:
    argv = command(mixed, tmp_path / "output", *NO_TEST, "SOLVER.MAX_ITER", "9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "build_train_loader", classmethod(lambda _, cfg: build(cfg)))
        return refusal(argv, capsys)


def mapped(result: Callable[[dict[str, Any]], Any]) -> Callable[[CfgNode], Any]:
    def my_mapper(record: dict[str, Any]) -> Any:
        return result(record)

    return lambda cfg: build_detection_train_loader(cfg, mapper=my_mapper)


def refuse(_record: dict[str, Any]) -> Any:
    raise ValueError("my rule is broken")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda _: None, "build_train_loader returned a value of type NoneType: expected an itera"),
        (lambda _: [], "returned a loader without any batch"),
        (lambda _: [{"image": 0}], "yields a batch of type dict: expected a list of dicts"),
        (lambda _: [[torch.zeros(3)]], "yields a batch with a value of type Tensor: expected"),
        (functools.partial(with_generator, length=2), "has ended after 2 batches: return an ite"),
        (mapped(lambda _: None), "mapper my_mapper returned None for 10 records in a row"),
        (mapped(lambda _: [1]), "mapper my_mapper returned a value of type list: expected a dict"),
        (
            mapped(lambda x: x | {"image": torch.zeros(64, 96, 3)}),
            'mapper my_mapper returned a tensor of (64, 96, 3) as "image", which looks like (H, W',
        ),
        (
            mapped(lambda x: x | {"image": torch.zeros(3, 9, 9), "instances": x["annotations"]}),
            'a value of type list as "instances": expected detectron2.Instances for image ',
        ),
        (mapped(refuse), "cannot be used by mapper my_mapper: my rule is broken"),
    ],
)
def test_what_no_model_can_be_trained_on_ends_the_training_with_one_line(
    build: Callable[[CfgNode], Any],
    words: str,
    mixed: CocoSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert words in first_line(build, mixed, tmp_path, capsys)


def test_a_record_for_which_a_mapper_returns_none_is_left_out(
    mixed: CocoSet, tmp_path: Path
) -> None:
    cfg = set_up(command(mixed, tmp_path / "output")).cfg
    chosen = mapped(lambda x: x if x["image_id"] % 2 else None)
    loader = build_own_loader(cfg, chosen(cfg), "build")
    ids = {x["image_id"] for batch in itertools.islice(loader, 20) for x in batch}
    assert ids == {1, 3, 5}


def slow(_: CfgNode) -> Iterator[Any]:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)  # for a batch that never comes
    yield []


def test_a_signal_interrupts_the_wait_for_a_batch_of_a_users_loader(
    mixed: CocoSet, tmp_path: Path
) -> None:
    def patch() -> None:
        from point_rend.engine import signals

        signals.READING_SECONDS = 0.2

        def build(_cls: type, cfg: CfgNode) -> Any:
            return itertools.chain(itertools.islice(with_generator(cfg), 2), slow(cfg))

        trainer.Trainer.build_train_loader = classmethod(build)  # type: ignore[assignment,method-assign]

    argv = command(mixed, tmp_path / "output", *NO_TEST, "SOLVER.MAX_ITER", "9")
    run = Run(argv, tmp_path / "log.txt", forked=True, first=patch)
    assert run.end() == 128 + signal.SIGTERM, run.output()
    assert "Traceback" not in run.output()
    assert tagged_iteration(tmp_path / "output") == 1


def test_all_processes_end_together_where_the_loader_of_one_ends(
    mixed: CocoSet, tmp_path: Path
) -> None:
    def patch() -> None:
        def build(_cls: type, cfg: CfgNode) -> Any:
            rank = int(os.environ["RANK"])
            return with_generator(cfg, length=2 if rank else 4)

        trainer.Trainer.build_train_loader = classmethod(build)  # type: ignore[assignment,method-assign]

    argv = command(mixed, tmp_path / "output", *NO_TEST, "SOLVER.MAX_ITER", "9")
    runs = start_two("torchrun", argv, tmp_path, first=patch)
    assert [run.end() for run in runs] == [2, 2]
    assert "has ended after 2 batches" in runs[0].output()
    assert runs[0].output().count(WARNING) == 1
    assert WARNING not in runs[1].output()
    assert tagged_iteration(tmp_path / "output") == 1
