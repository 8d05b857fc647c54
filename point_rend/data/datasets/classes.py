"""Class names and counts of registered data sets."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from point_rend.config.defaults import INHERIT, add_pointrend_config, value_of
from point_rend.config.loading import merge_from_file_safely
from point_rend.config.tasks import model_outputs
from point_rend.data.datasets.class_names import compare_names


def class_names(datasets: Sequence[str], kind: str = "thing_classes") -> list[str] | None:
    """Return the classes that all data sets of a run share.

    Args:
        datasets: Registered names.
        kind: Field of the metadata: thing_classes of instances, or stuff_classes of label maps.

    Returns:
        The class names in the order of their indices; None if no data set has class names.

    Raises:
        ValueError: If a name is not registered, or if two data sets have different classes.
    """
    first, classes = "", None
    for name in datasets:
        if name not in DatasetCatalog:
            raise ValueError(
                f"data set {name!r} is not registered; register your own with --register-coco NAME "
                "JSON IMAGE_ROOT, or with --register-sem-seg NAME IMAGES LABELS CLASSES"
            )
        own = MetadataCatalog.get(name).get(kind)
        if own is None:
            continue
        if classes is None:
            first, classes = name, own
        elif list(own) != list(classes):
            comparison = compare_names(
                describe(first), classes, describe(name), own, kind=kind.removesuffix("_classes")
            )
            raise ValueError(
                "the data sets of a run must have the same classes in the same order, but "
                f'{comparison}; choose them with DATASETS.TRAIN and DATASETS.TEST; "()" means none'
            )
    return classes


def class_metadata(datasets: Sequence[str], kind: str) -> dict[str, Any]:
    """Collect the metadata of the classes from the first data set with class names.

    Args:
        datasets: Registered names.
        kind: thing or stuff.

    Returns:
        The names and, if known, the colors and ids of the classes, under the names of Detectron2's
        metadata and in plain types; empty without names.
    """
    for name in datasets:
        known = MetadataCatalog.get(name)
        names = known.get(f"{kind}_classes")
        if not names:
            continue
        metadata: dict[str, Any] = {f"{kind}_classes": [str(x) for x in names]}
        colors = known.get(f"{kind}_colors")
        if colors:
            metadata[f"{kind}_colors"] = [[int(x) for x in color] for color in colors]
        ids = known.get(f"{kind}_dataset_id_to_contiguous_id")
        if ids:
            metadata[f"{kind}_dataset_id_to_contiguous_id"] = {
                int(own): int(index) for own, index in ids.items()
            }
        return metadata
    return {}


def describe(dataset: str) -> str:
    """Return the name of a data set for a message, with its annotation file if it has one."""
    json_file = MetadataCatalog.get(dataset).get("json_file")
    return f"{dataset} ({json_file})" if json_file else dataset


UNSET = -1


class ClassCount(NamedTuple):
    """A number of classes in the config.

    Attributes:
        output: Field of the model's results that has these classes.
        kind: Kind of the classes, the prefix of the fields of a data set's metadata.
        key: Config key of the number.
    """

    output: str
    kind: str
    key: str

    @property
    def names(self) -> str:
        """Field of a data set's metadata with the class names."""
        return f"{self.kind}_classes"


CLASS_COUNTS = (
    ClassCount("instances", "thing", "MODEL.ROI_HEADS.NUM_CLASSES"),
    ClassCount("sem_seg", "stuff", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
)


def is_set(config_file: str, opts: Sequence[str], key: str) -> bool:
    """Return whether a config file or option sets a key, even to its default value."""
    probe = get_cfg()
    add_pointrend_config(probe)
    probe.merge_from_list([key, UNSET])
    merge_from_file_safely(probe, config_file)
    probe.merge_from_list(list(opts))
    return value_of(probe, key) != UNSET


def fill_class_count(
    cfg: CfgNode,
    count: ClassCount,
    datasets: Sequence[str],
    config_file: str,
    opts: Sequence[str],
) -> bool:
    """Take a class count from the data sets, or check that the configured one agrees.

    Args:
        cfg: The config; the value of `count.key` may change.
        count: The class count.
        datasets: Names of the registered data sets of the run.
        config_file: YAML file of the config.
        opts: Keys and values that override it.

    Returns:
        Whether the count was taken from the data sets.

    Raises:
        ValueError: If the data sets have different classes, or if a count in the config differs
            from theirs.
    """
    classes = class_names(datasets, count.names)
    if classes is None:
        return False
    was_set = is_set(config_file, opts, count.key)
    keys = [count.key] if was_set else []
    semantic = count.output == "sem_seg"
    own_point_head = semantic and cfg.MODEL.SEM_SEG_HEAD.POINT_HEAD.NAME
    point_head = f"MODEL.{'SEM_SEG_HEAD.' if own_point_head else ''}POINT_HEAD.NUM_CLASSES"
    if value_of(cfg, point_head) != INHERIT:
        keys.append(point_head)
    for key in keys:
        if value_of(cfg, key) != len(classes):
            advice = f"leave the key out and it follows the data, or pass {key} {len(classes)}"
            if is_set(config_file, (), key):
                advice = (
                    f"{config_file} or its base sets it; to override it pass {key} {len(classes)}"
                )
            raise ValueError(
                f"{key} is {value_of(cfg, key)}, but the number of classes is {len(classes)} in "
                f"{', '.join(map(describe, dict.fromkeys(datasets)))}; {advice}"
            )
    cfg.merge_from_list([count.key, len(classes)])
    return not was_set


def check_class_count(cfg: CfgNode, count: ClassCount, datasets: Sequence[str], model: str) -> None:
    """Refuse data sets with another number of classes than an exported model.

    Args:
        cfg: The config of the model.
        count: The class count.
        datasets: Names of the registered data sets of the run.
        model: The file.

    Raises:
        ValueError: If the numbers differ, or the data sets have different classes.
    """
    classes, own = class_names(datasets, count.names), value_of(cfg, count.key)
    if classes is not None and len(classes) != own:
        raise ValueError(
            f"{model} has {own} classes, but the number of classes is {len(classes)} in "
            f"{', '.join(map(describe, datasets))}"
        )


def training_class_metadata(cfg: CfgNode) -> dict[str, Any]:
    """Collect the class metadata of the training sets if they have the model's class counts."""
    outputs = model_outputs(cfg)
    known: dict[str, Any] = {}
    for count in CLASS_COUNTS:
        metadata = class_metadata(cfg.DATASETS.TRAIN, count.kind)
        if count.output in outputs and len(metadata.get(count.names, ())) == value_of(
            cfg, count.key
        ):
            known |= metadata
    return known
