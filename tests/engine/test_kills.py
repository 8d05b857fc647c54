"""Trainings that are killed and resumed, compared bit by bit with an uninterrupted one."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.engine.killing import (
    Run,
    assert_identical,
    command,
    final,
    signal_itself,
    tagged_iteration,
    write_mixed,
)
from tests.tiny_datasets import CocoSet

pytestmark = pytest.mark.usefixtures("_restored")


@pytest.fixture
def mixed(tmp_path: Path) -> CocoSet:
    return write_mixed(tmp_path / "mixed")


def test_a_training_that_is_stopped_and_killed_ends_with_the_same_state_for_any_worker_count(
    mixed: CocoSet, tmp_path: Path
) -> None:
    schedule = ["SOLVER.MAX_ITER", "9", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "3"]
    schedule += ["TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2"]
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    log = tmp_path / "log.txt"
    reference = Run(
        command(mixed, uninterrupted, *schedule), tmp_path / "uninterrupted.txt", forked=True
    )
    argv = command(mixed, resumed, *schedule, "DATALOADER.NUM_WORKERS", "2")

    stopped = Run(argv, log, forked=True, first=signal_itself(signal.SIGTERM, iteration=2))
    assert stopped.end() == 128 + signal.SIGTERM
    assert tagged_iteration(resumed) == 2

    killed = Run(argv, log, forked=True, first=signal_itself(signal.SIGKILL, iteration=6))
    assert killed.end() == -signal.SIGKILL
    assert tagged_iteration(resumed) == 5
    assert "Starting training from iteration 3\n" in killed.output()

    assert Run(argv, log, forked=True).end() == 0
    assert reference.end() == 0
    assert_identical(final(resumed), final(uninterrupted))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_ten_kills_at_random_moments_do_not_change_the_result(
    seed: int, mixed: CocoSet, tmp_path: Path
) -> None:
    moments = random.Random(seed)
    schedule = ["SOLVER.MAX_ITER", "300", "SOLVER.CHECKPOINT_PERIOD", "7", "TEST.EVAL_PERIOD", "40"]
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    log = tmp_path / "log.txt"
    argv = command(mixed, resumed, *schedule, "DATALOADER.NUM_WORKERS", "2")
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL] * 2
    reached = -1
    for number in signals:
        run = Run(argv, log, forked=False)
        run.wait_for_output("Starting training")
        time.sleep(moments.uniform(0, 2))
        run.kill(number)
        code = -number if number == signal.SIGKILL else 128 + number
        assert run.end() == code, run.output()
        assert f"Starting training from iteration {reached + 1}\n" in run.output()
        assert tagged_iteration(resumed) >= reached
        reached = tagged_iteration(resumed)
    assert Run(argv, log, forked=False).end() == 0
    assert (
        Run(
            command(mixed, uninterrupted, *schedule), tmp_path / "uninterrupted.txt", forked=False
        ).end()
        == 0
    )
    assert_identical(final(resumed), final(uninterrupted))
