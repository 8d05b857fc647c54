"""Files of an evaluation, whose loss does not cost the metrics.

Evaluators compute and log their metrics also if a file cannot be saved, and report this at the end.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator

from point_rend.utils.files import NotSavedError, atomic_file, write_text


class FileSaver:
    """Saves the files of an evaluator in a folder.

    Args:
        folder: The folder; it is created with the first file.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._error: NotSavedError | None = None

    def save_json(self, name: str, value: Any) -> None:
        """Save a value as JSON; keep an error for :meth:`finish`."""
        with self._keeping_errors():
            write_text(os.path.join(self._folder, name), json.dumps(value))

    def save_tensors(self, name: str, value: Any) -> None:
        """Save a value as `torch.save` does; keep an error for :meth:`finish`."""
        with self._keeping_errors(), atomic_file(os.path.join(self._folder, name)) as file:
            torch.save(value, file)

    @contextlib.contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except NotSavedError as error:
            self._error = self._error or error

    def finish(self) -> None:
        """Raise the first error since the last call.

        Raises:
            NotSavedError: If a file could not be saved.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error


def evaluate_all(evaluators: Iterable[DatasetEvaluator]) -> list[Any]:
    """Return the results of evaluators, all of which are called before an error is raised.

    Raises:
        NotSavedError: If a file of one of them could not be saved.
    """
    results, errors = [], []
    for evaluator in evaluators:
        try:
            results.append(evaluator.evaluate())
        except NotSavedError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results
