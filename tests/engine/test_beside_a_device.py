"""Processes that start while torch sees a device besides the CPU, as on a machine with a GPU."""

import os
import subprocess
import sys

import pytest

from tests.tiny_datasets import REPOSITORY

WORKERS = "data/loader/test_loaders.py::test_a_worker_ends_with_its_main_process_and_ignores_others"
TRAINING = (
    "engine/test_trainer.py::test_a_full_disk_ends_a_training_with_one_line_that_names_the_file"
)
LAUNCH = "engine/test_runs_together.py::test_evaluation_in_two_processes_gives_the_results_of_one"


@pytest.mark.parametrize(
    "test", [WORKERS, *(pytest.param(x, marks=pytest.mark.slow) for x in (TRAINING, LAUNCH))]
)
def test_processes_start_although_torch_has_a_thread_for_the_device(test: str) -> None:
    options = ["-q", "-p", "tests.one_device", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/{test}"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_tests_fork_only_where_the_fork_computes_nothing() -> None:
    forking = {
        "tests/batch_inference/test_run.py",
        "tests/engine/test_beside_a_device.py",
        "tests/engine/test_signals.py",
        "tests/test_architecture.py",
        "tests/tools/test_scripts.py",
        "tests/utils/test_locks.py",
        "tests/utils/test_waiting.py",
    }
    tests = {x.relative_to(REPOSITORY): x for x in (REPOSITORY / "tests").rglob("*.py")}
    assert {x.as_posix() for x, file in tests.items() if "os.fork(" in file.read_text()} == forking
