"""Evaluating data sets that share images in one pass over these images.

AP and AP* of a model, for instance, are measured on the same images with different annotations: the
model need not see them twice.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

Key = tuple[str, Any]
Results = dict[str, Any]

logger = logging.getLogger(__name__)


class SharedEvaluator(DatasetEvaluator):
    """Evaluators of several data sets, each of which is given the images of its own set.

    Args:
        evaluators: By the names of the data sets.
        file_names: Of each set its images, and how the set itself writes the names of their files.
    """

    def __init__(
        self,
        evaluators: Mapping[str, DatasetEvaluator],
        file_names: Mapping[str, Mapping[Key, str]],
    ) -> None:
        self._evaluators = evaluators
        self._file_names = file_names

    def reset(self) -> None:
        """Forget all images."""
        for evaluator in self._evaluators.values():
            evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> None:
        """Hand inputs and outputs of a model on."""
        keys = list(map(image_key, inputs))
        for name, evaluator in self._evaluators.items():
            file_names = self._file_names[name]
            own = [i for i, key in enumerate(keys) if key in file_names]
            evaluator.process(
                [{**inputs[i], "file_name": file_names[keys[i]]} for i in own],
                [outputs[i] for i in own],
            )

    def evaluate(self) -> Results:
        """Return the results by data set."""
        return {name: evaluator.evaluate() for name, evaluator in self._evaluators.items()}


def image_key(record: Mapping[str, Any]) -> Key:
    """Tell an image from the others of its set, before and after the set's loader has read it."""
    return os.path.abspath(record["file_name"]), record.get("image_id")


def group_by_images(images: Mapping[str, frozenset[Any]]) -> list[list[str]]:
    """Group data sets whose images are among those of another.

    Args:
        images: Of each set, with all that a model's result depends on.

    Returns:
        Groups of names; the first of a group has all images of the others.
    """
    groups: list[list[str]] = []
    for name in sorted(images, key=lambda name: -len(images[name])):
        host = next((group for group in groups if images[name] <= images[group[0]]), None)
        if host is None:
            groups.append([name])
        else:
            host.append(name)
    return groups


def evaluate_together(
    model: nn.Module,
    names: Sequence[str],
    build_loader: Callable[[str], Any],
    build_evaluator: Callable[[str], DatasetEvaluator],
) -> Results:
    """Evaluate a model on data sets; those that share images share a pass over them.

    Args:
        model: The model.
        names: Registered names of the data sets.
        build_loader: Makes the loader of a data set.
        build_evaluator: Makes the evaluator of a data set.

    Returns:
        The results by data set, in the order of the names; in processes other than the first they
        are empty.
    """
    images, file_names = {}, {}
    for name in names:
        records = DatasetCatalog.get(name)
        # Sets that do not say the sizes get them from their loaders.
        images[name] = frozenset((image_key(x), x.get("height"), x.get("width")) for x in records)
        file_names[name] = {image_key(x): x["file_name"] for x in records}
    found: Results = {}
    for group in group_by_images(images):
        if len(group) > 1:
            logger.info("One pass over the images of %s evaluates %s", group[0], ", ".join(group))
        evaluators = {name: build_evaluator(name) for name in group}
        shared = SharedEvaluator(evaluators, file_names)
        found |= inference_on_dataset(model, build_loader(group[0]), shared)
    results = {name: found[name] or {} for name in names}
    for name in names if comm.is_main_process() else ():
        logger.info("Results of %s in csv format:", name)
        print_csv_format(results[name])
    return results
