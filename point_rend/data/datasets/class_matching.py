"""Classes of a checkpoint and of data sets, matched by name."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from point_rend.checkpoint import zoo
from point_rend.config.files import get_config_file
from point_rend.config.loading import load_config
from point_rend.config.tasks import model_outputs
from point_rend.data.datasets.class_names import (
    compare_names,
    match_by_name,
    same_but_for_spelling,
)
from point_rend.data.datasets.classes import CLASS_COUNTS, class_names, training_class_metadata

logger = logging.getLogger(__name__)

OPTION = "--ignore-class-names"

# For each kind of classes, thing or stuff, the index among those of a data set of each class of the
# model; kinds of the same order are absent.
ClassOrder = Mapping[str, Sequence[int]]
NamesByKind = Mapping[str, Sequence[str]]  # by thing or stuff


def published_classes(weights: str) -> dict[str, Any]:
    """Return the class metadata of a published model, which its file lacks.

    Args:
        weights: As MODEL.WEIGHTS.

    Returns:
        The metadata of its training set; empty if the weights are no published model's.
    """
    name = zoo.published_name(weights)
    return training_class_metadata(load_config(get_config_file(name))) if name else {}


class EvaluatedClasses:
    """The classes of a model that is evaluated.

    Args:
        expected: The class names of the test sets, by kind.
        where: Name of the test sets for messages.
        by_position: Whether the classes are taken by position where their names differ.
        training_sets: For each training set of the config, the same fields as `expected`.

    Attributes:
        order: The model's classes among those of the test sets, after :meth:`check`.
    """

    def __init__(
        self,
        expected: NamesByKind,
        where: str,
        *,
        by_position: bool = False,
        training_sets: Mapping[str, NamesByKind] | None = None,
    ) -> None:
        self._expected = expected
        self._where = where
        self._by_position = by_position
        self._training_sets = training_sets or {}
        self.order: ClassOrder = {}

    def check(self, source: str, stored: Mapping[str, Any], *, resuming: bool = False) -> None:
        """Match the classes of a checkpoint, before its parameters are loaded.

        Args:
            source: File or URL of the checkpoint.
            stored: The class metadata that it stores.
            resuming: Whether it is the last checkpoint of OUTPUT_DIR; no difference here.

        Raises:
            ValueError: If it has other classes than the test sets.
        """
        del resuming
        known = {**published_classes(source), **stored}
        order = {}
        for kind, names in self._expected.items():
            own = known.get(f"{kind}_classes")
            if own is None:
                self._warn_of_training_sets(source, kind, names)
                continue
            indices = self._match(source, own, names, kind)
            if indices != list(range(len(indices))):
                order[kind] = indices
        self.order = order

    def _match(self, source: str, own: Sequence[str], names: Sequence[str], kind: str) -> list[int]:
        if list(own) == list(names):
            return list(range(len(own)))
        comparison = compare_names(source, own, self._where, names, kind=kind)
        indices = match_by_name(own, names)
        if indices is not None and not self._by_position:
            logger.warning("%s; they are matched by name", comparison)
            return indices
        if self._by_position or same_but_for_spelling(own, names):
            logger.warning("%s; they are taken by their position", comparison)
            return list(range(len(own)))
        raise ValueError(
            f"{comparison}: expected the same names, in any order; {OPTION} takes the classes by "
            "their position"
        )

    def _warn_of_training_sets(self, source: str, kind: str, names: Sequence[str]) -> None:
        """Warn if the weights have no class names, and the config's training sets have others."""
        for dataset, classes in self._training_sets.items():
            trained = classes.get(kind, names)
            if len(trained) == len(names) and list(trained) != list(names):
                where = f"DATASETS.TRAIN {dataset}"
                logger.warning(
                    "%s has no class names, so its classes are taken by their position; %s",
                    source,
                    compare_names(where, trained, self._where, names, kind=kind),
                )
                return


def build_evaluated_classes(cfg: CfgNode, *, by_position: bool = False) -> EvaluatedClasses:
    """Build the check of the classes of a model that is evaluated on DATASETS.TEST.

    Args:
        cfg: The finished config.
        by_position: Whether the classes are taken by position where their names differ.
    """
    kinds = _kinds(model_outputs(cfg))
    registered = [name for name in cfg.DATASETS.TRAIN if name in DatasetCatalog]
    return EvaluatedClasses(
        _names_by_kind(cfg.DATASETS.TEST, kinds),
        f"DATASETS.TEST {', '.join(cfg.DATASETS.TEST)}",
        by_position=by_position,
        training_sets={name: _names_by_kind([name], kinds) for name in registered},
    )


class TrainedClasses:
    """The classes of a model that is trained.

    Args:
        expected: The class names of the training sets, by kind.
        where: Name of the training sets for messages.
        by_position: Whether a training resumes where the names of the classes differ.
    """

    def __init__(self, expected: NamesByKind, where: str, *, by_position: bool = False) -> None:
        self._expected = expected
        self._where = where
        self._by_position = by_position

    def check(self, source: str, stored: Mapping[str, Any], *, resuming: bool) -> None:
        """Compare the classes of a checkpoint, before its parameters are loaded.

        A training may start from the weights of any other classes. Another number of them shows in
        the shapes; the same number is a warning here.

        Args:
            source: File or URL of the checkpoint.
            stored: The class metadata that it stores.
            resuming: Whether a training is resumed from it.

        Raises:
            ValueError: If a training is resumed with other classes.
        """
        known = {**published_classes(source), **stored}
        for kind, names in self._expected.items():
            own = known.get(f"{kind}_classes", names)
            if list(own) == list(names):
                continue
            comparison = compare_names(source, own, self._where, names, kind=kind)
            if resuming and not self._by_position and not same_but_for_spelling(own, names):
                raise ValueError(
                    f"{comparison}: a training resumes with the same classes in the same order; "
                    "for others start a new one, in another OUTPUT_DIR, with MODEL.WEIGHTS set to "
                    f"a checkpoint; {OPTION} takes the classes by their position"
                )
            if len(own) == len(names):
                logger.warning(
                    "%s; the layers of the classes start from those of the checkpoint by position, "
                    "and have to learn the difference",
                    comparison,
                )


def build_trained_classes(cfg: CfgNode, *, by_position: bool = False) -> TrainedClasses:
    """Build the check of the classes of a checkpoint from which DATASETS.TRAIN is trained.

    Args:
        cfg: The finished config.
        by_position: Whether a training resumes where the names of the classes differ.
    """
    known = training_class_metadata(cfg)
    fields = {kind: f"{kind}_classes" for kind in _kinds(model_outputs(cfg))}
    expected = {kind: known[field] for kind, field in fields.items() if field in known}
    where = f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}"
    return TrainedClasses(expected, where, by_position=by_position)


def _kinds(outputs: Collection[str]) -> list[str]:
    return [count.kind for count in CLASS_COUNTS if count.output in outputs]


def _names_by_kind(datasets: Sequence[str], kinds: Sequence[str]) -> NamesByKind:
    names = {kind: class_names(datasets, f"{kind}_classes") for kind in kinds}
    return {kind: known for kind, known in names.items() if known}
