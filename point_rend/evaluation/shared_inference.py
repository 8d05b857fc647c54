"""Shared inference: one pass over the images evaluates all data sets that contain them.

For example, AP and AP* are measured on the same images with different annotations, so the model
needs to see each image only once.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from point_rend.evaluation.saving import evaluate_all
from point_rend.utils.files import NotSavedError

ImageKey = tuple[str, Any]  # absolute path, image id
Results = dict[str, Any]

logger = logging.getLogger(__name__)


class SharedEvaluator(DatasetEvaluator):
    """Evaluators of several data sets, each of which gets the images of its own set.

    Args:
        evaluators: Evaluators by data set.
        file_names: For each data set, the file names of its images as the set itself writes them.
    """

    def __init__(
        self,
        evaluators: Mapping[str, DatasetEvaluator],
        file_names: Mapping[str, Mapping[ImageKey, str]],
    ) -> None:
        self._evaluators = evaluators
        self._file_names = file_names

    def reset(self) -> None:
        """Forget all images."""
        for evaluator in self._evaluators.values():
            evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> None:
        """Pass inputs and outputs of the model to the evaluators of their data sets."""
        keys = list(map(image_key, inputs))
        for name, evaluator in self._evaluators.items():
            file_names = self._file_names[name]
            own = [i for i, key in enumerate(keys) if key in file_names]
            evaluator.process(
                [{**inputs[i], "file_name": file_names[keys[i]]} for i in own],
                [outputs[i] for i in own],
            )

    def evaluate(self) -> Results:
        """Return the results by data set.

        Raises:
            NotSavedError: If a file could not be saved; all metrics have been logged.
        """
        results = evaluate_all(self._evaluators.values())
        return dict(zip(self._evaluators, results, strict=True))


def image_key(record: Mapping[str, Any]) -> ImageKey:
    """Return a key of an image that is the same before and after the loader has read it."""
    return os.path.abspath(record["file_name"]), record.get("image_id")


def group_by_images(images: Mapping[str, frozenset[Any]]) -> list[list[str]]:
    """Group each data set with one that contains all of its images.

    Args:
        images: For each data set, its images with everything a model's result depends on.

    Returns:
        Groups of names; the first data set of a group contains the images of the others.
    """
    groups: list[list[str]] = []
    for name in sorted(images, key=lambda name: -len(images[name])):
        host = next((group for group in groups if images[name] <= images[group[0]]), None)
        if host is None:
            groups.append([name])
        else:
            host.append(name)
    return groups


def evaluate_with_shared_inference(
    model: nn.Module,
    names: Sequence[str],
    build_loader: Callable[[str], Any],
    build_evaluator: Callable[[str], DatasetEvaluator],
) -> Results:
    """Evaluate a model on data sets; those that share images share the inference.

    Args:
        model: The model.
        names: Registered names of the data sets.
        build_loader: Builds the loader of a data set.
        build_evaluator: Builds the evaluator of a data set.

    Returns:
        The results by data set, in the order of the names; empty in all processes but the first.

    Raises:
        NotSavedError: If a file could not be saved; all metrics have been logged.
    """
    images, file_names = {}, {}
    for name in names:
        records = DatasetCatalog.get(name)
        # Data sets without sizes get them from their loaders.
        images[name] = frozenset((image_key(x), x.get("height"), x.get("width")) for x in records)
        file_names[name] = {image_key(x): x["file_name"] for x in records}
    evaluated: Results = {}
    errors = []
    for group in group_by_images(images):
        if len(group) > 1:
            logger.info("Inference on the images of %s is shared by %s", group[0], ", ".join(group))
        evaluators = {name: build_evaluator(name) for name in group}
        shared = SharedEvaluator(evaluators, file_names)
        try:
            evaluated |= inference_on_dataset(model, build_loader(group[0]), shared)
        except NotSavedError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    results = {name: evaluated[name] or {} for name in names}
    for name in names if comm.is_main_process() else ():
        logger.info("Results of %s in csv format:", name)
        print_csv_format(results[name])
    return results
