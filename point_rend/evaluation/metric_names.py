"""Names of the metrics that the evaluations of a training can give."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from point_rend.config.checks import AVERAGED_RESULTS
from point_rend.evaluation.build import EVALUATIONS, build_tasks
from point_rend.evaluation.coco_ap import METRICS
from point_rend.evaluation.evaluators import BOUNDARY, KEYPOINTS

VALIDATION = "validation"  # the losses stand below this name
TOTAL_LOSS = "total_loss"

COCO = METRICS
LVIS = (*METRICS, "APr", "APc", "APf")
POINTS = ("AP", "AP50", "AP75", "APm", "APl")
CITYSCAPES = ("AP", "AP50")
LABEL_MAPS = ("mIoU", "fwIoU", "mACC", "pACC")
CITYSCAPES_LABEL_MAPS = ("IoU", "iIoU", "IoU_sup", "iIoU_sup")
SEGMENTS = tuple(
    f"{metric}{group}" for group in ("", "_th", "_st") for metric in ("PQ", "SQ", "RQ")
)


class MetricNames(NamedTuple):
    """Names of metrics.

    Attributes:
        overall: Those over all classes.
        by_class: Those of single classes.
        beginnings: Of names that are known once they are computed: of losses, of PQ by class.
    """

    overall: list[str]
    by_class: list[str]
    beginnings: list[str]

    def include(self, name: str) -> bool:
        """Return whether a metric may have this name."""
        known = (*self.overall, *self.by_class)
        return name in known or any(name.startswith(x) and name != x for x in self.beginnings)

    def match(self, pattern: str) -> bool:
        """Return whether a metric may have a name in which each ``*`` stands for any letters."""
        start = pattern.partition("*")[0]
        return any(fnmatchcase(x, pattern) for x in (*self.overall, *self.by_class)) or any(
            x.startswith(start) or start.startswith(x) for x in self.beginnings
        )


def build_metric_names(cfg: CfgNode) -> MetricNames:
    """List the metrics of the evaluations of a training, by their names in metrics.json.

    With several data sets, each name begins with that of its set.

    Args:
        cfg: The finished config; the evaluators are those of this package.
    """
    names = MetricNames([], [], [])
    several = len(cfg.DATASETS.TEST) > 1
    for dataset in cfg.DATASETS.TEST:
        start = f"{dataset}/" if several else ""
        for task, metrics, by_class in _build_metrics(cfg, dataset):
            names.overall.extend(f"{start}{task}/{metric}" for metric in metrics)
            names.by_class.extend(f"{start}{task}/{metric}" for metric in by_class)
            if task == "panoptic_seg":  # the file of the ground truth names its classes
                names.beginnings.append(f"{start}{task}/PQ-")
        if cfg.TEST.VALIDATION_LOSS:
            losses = f"{VALIDATION}/{start}"
            names.overall.append(f"{losses}{TOTAL_LOSS}")
            names.beginnings.append(losses)
    if cfg.MODEL_EMA.ENABLED:
        for group in names:
            group.extend([f"{AVERAGED_RESULTS}/{name}" for name in group])
    return names


def is_loss(name: str, datasets: Sequence[str]) -> bool:
    """Return whether a metric is a loss, of which a smaller value is better.

    Args:
        name: Its name in metrics.json.
        datasets: Names of the test sets.
    """
    parts = name.split("/")
    if parts[0] == AVERAGED_RESULTS:
        parts = parts[1:]
    if parts[0] != VALIDATION or len(parts) < 2:
        return False
    if len(datasets) < 2:
        return True
    # A data set may be called "validation", too: its metrics are no losses.
    of_set = "/".join(parts[1:])
    return any(of_set.startswith(f"{dataset}/") for dataset in datasets)


def _build_metrics(
    cfg: CfgNode, dataset: str
) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """Yield the tasks of an evaluation, with their metrics overall and by class."""
    metadata = MetadataCatalog.get(dataset)
    kind = metadata.get("evaluator_type", "")
    things, stuff = metadata.get("thing_classes", []), metadata.get("stuff_classes", [])
    aps = [f"AP-{name}" for name in things] * (len(things) > 1)
    tasks = build_tasks(cfg)
    if kind in ("coco", "coco_panoptic_seg"):
        if cfg.MODEL.KEYPOINT_ON:
            tasks.append(KEYPOINTS)
        for task in tasks:
            yield task, POINTS if task == KEYPOINTS else COCO, aps
    elif kind == "lvis":
        for task in tasks:
            yield task, LVIS, aps
    elif kind in ("cityscapes_instance", "cityscapes_panoptic_separated"):
        yield "segm", CITYSCAPES, ()
        if BOUNDARY in tasks:
            yield BOUNDARY, CITYSCAPES, [f"AP-{name}" for name in things]
    if kind in ("sem_seg", "coco_panoptic_seg", "cityscapes_panoptic_separated"):
        yield "sem_seg", LABEL_MAPS, [f"{x}-{name}" for x in ("IoU", "ACC") for name in stuff]
    if kind == "cityscapes_sem_seg":
        yield "sem_seg", CITYSCAPES_LABEL_MAPS, ()
    if kind in ("coco_panoptic_seg", "cityscapes_panoptic_separated"):
        yield "panoptic_seg", SEGMENTS, ()
    maps = kind in EVALUATIONS and "sem_seg" in EVALUATIONS[kind].outputs
    if maps and cfg.TEST.BOUNDARY_METRICS:
        yield "boundary_sem_seg", ("mIoU",), [f"IoU-{name}" for name in stuff]
