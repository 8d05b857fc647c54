"""Signals to the ranks of a training that a launcher started."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils import comm

from point_rend.data.mapper import NamingDatasetMapper
from point_rend.engine import trainer
from tests.engine.killing import (
    assert_identical,
    command,
    final,
    signal_itself,
    start_two,
    tagged_iteration,
)
from tests.tiny_datasets import CocoSet

ENDLESS = ["SOLVER.MAX_ITER", "1000000", "SOLVER.CHECKPOINT_PERIOD", "1000000"]


pytestmark = pytest.mark.usefixtures("_restored")


def test_a_signal_to_one_rank_ends_both_after_the_same_iteration_and_loses_nothing(
    mixed: CocoSet, tmp_path: Path
) -> None:
    more = ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", "9"]
    stop = signal_itself(signal.SIGTERM, iteration=4, rank=1)
    argv = command(mixed, tmp_path / "resumed", *more)
    runs = start_two("torchrun", argv, tmp_path, first=stop)
    assert [run.end() for run in runs] == [143, 143], runs[0].output()
    last = runs[0].output().splitlines()[-1]
    assert "train_net.py: stopped by SIGTERM" in last
    assert "resume with: <the same launcher> " in last
    assert "stopped by" not in runs[1].output()
    assert tagged_iteration(tmp_path / "resumed") == 4

    for output in (tmp_path / "resumed", tmp_path / "uninterrupted"):
        runs = start_two("torchrun", command(mixed, output, *more), tmp_path)
        assert [run.end() for run in runs] == [0, 0]
    assert_identical(
        final(tmp_path / "resumed")["model"], final(tmp_path / "uninterrupted")["model"]
    )


def test_an_image_that_one_rank_cannot_read_ends_both_with_its_name_and_loses_nothing(
    mixed: CocoSet, tmp_path: Path
) -> None:
    def fail_after_four_images() -> None:
        def read(mapper: NamingDatasetMapper, record: dict[str, Any]) -> dict[str, Any]:
            read_before.append(record)
            if comm.get_rank() == 1 and len(read_before) > 4:
                raise ValueError("file 007.png cannot be used")
            return original_read(mapper, record)

        read_before: list[dict[str, Any]] = []
        original_read = NamingDatasetMapper.__call__
        NamingDatasetMapper.__call__ = read

    more = ["DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", "2"]
    argv = command(mixed, tmp_path / "output", *ENDLESS, *more)
    runs = start_two("torchrun", argv, tmp_path, first=fail_after_four_images)
    assert [run.end() for run in runs] == [2, 2], runs[0].output()
    last = runs[0].output().splitlines()[-1]
    assert last.startswith("train_net.py: error: image ")
    assert ": file 007.png cannot be used; " in last
    assert "file 007.png" not in runs[1].output()
    iteration = tagged_iteration(tmp_path / "output")
    assert iteration >= 1
    saved = torch.load(tmp_path / "output" / f"model_{iteration:07d}.pth", weights_only=True)
    assert saved["trainer"]["data"]["batches"] == iteration + 1


def test_signals_to_all_ranks_end_an_evaluation_and_the_main_one_saves(
    mixed: CocoSet, tmp_path: Path
) -> None:
    def test(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        print("the evaluation goes on")

    def evaluate_so() -> None:
        trainer.Trainer.test = test

    argv = command(mixed, tmp_path / "output", *ENDLESS, "TEST.EVAL_PERIOD", "2")
    runs = start_two("torchrun", argv, tmp_path, first=evaluate_so)
    assert [run.end() for run in runs] == [143, 143], runs[0].output()
    assert not any("the evaluation goes on" in run.output() for run in runs)
    assert tagged_iteration(tmp_path / "output") == 1
