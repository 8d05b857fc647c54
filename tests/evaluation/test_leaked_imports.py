"""Cityscapes with a Detectron2 that imports its tools under a name of Meta's own repository."""

import re
import subprocess
import sys

from tests.conftest import REPOSITORY

FILES = (
    "tests/evaluation/test_evaluators.py",
    "tests/evaluation/test_semantic_evaluators.py",
    "tests/engine/test_train_net.py",
    "tests/engine/test_train_net_semantic.py",
)


def test_cityscapes_is_trained_and_evaluated_in_spite_of_leaked_imports() -> None:
    """The tests of Cityscapes pass in a process in which Detectron2's files have the leak."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.leaked_imports"),
            *("-p", "no:cacheprovider", "-k", "cityscapes", *FILES),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 5
