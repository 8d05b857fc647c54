"""Processes that start while torch sees a device besides the CPU, as on a machine with a GPU."""

import os
import subprocess
import sys

from tests.tiny_datasets import REPOSITORY

# Workers of a loader, and a training in a fork.
STARTING_PROCESSES = [
    "tests/data/loader/test_loaders.py::test_a_worker_ends_with_its_main_process_and_ignores_others",
    "tests/engine/test_trainer.py::test_a_full_disk_ends_a_training_with_one_line_that_names_the_file",
]


def test_loaders_and_trainings_start_although_torch_has_a_thread_for_the_device() -> None:
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.one_device",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*pytest, *STARTING_PROCESSES],
        cwd=REPOSITORY,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(STARTING_PROCESSES)} passed" in done.stdout
