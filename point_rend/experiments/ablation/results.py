"""Results of an ablation: the metrics of each run in a JSON file, with their provenance.

A file holds ``options``, ``inputs`` and ``figures``: the options of the command, digests of the
files that they name, and the metrics, which are null while the run is unfinished. An interrupted
command reads the files of the finished runs, if options and inputs are the same.
"""

import fnmatch
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from point_rend.config.checks import AVERAGED_RESULTS
from point_rend.config.dumping import dump_config
from point_rend.engine.arguments import build_parser
from point_rend.engine.preflight import check_metric
from point_rend.engine.setup import read_config, register_datasets
from point_rend.evaluation.metric_names import build_metric_names
from point_rend.utils.files import write_text
from point_rend.utils.json_files import read_json

Metrics = dict[str, float]
ANNOTATIONS = ("json_file", "panoptic_json", "panoptic_root", "sem_seg_root", "gt_dir")  # metadata
# The first of these that was measured is shown by default.
USUAL_METRICS = ("segm/AP", "sem_seg/mIoU", "sem_seg/IoU")
BOUNDARY_METRICS = ("boundary/AP", "boundary_sem_seg/mIoU")


class Provenance(NamedTuple):
    """Everything that metrics depend on.

    Attributes:
        options: Options of `pointrend train` that the command was given.
        inputs: Digests of the contents that the options name, by a description of each.
    """

    options: list[str]
    inputs: dict[str, str]


def provenance_of(options: Sequence[str], *, training: bool) -> Provenance:
    """Digest what the options name: the config, the weights and the annotations of the data sets.

    Args:
        options: Options of `pointrend train`.
        training: Whether the metrics also depend on the training sets.

    Raises:
        FileNotFoundError, ValueError: If options, config and data sets do not fit together.
    """
    args = build_parser().parse_args(options)
    cfg = read_config(args)
    register_datasets(args)
    cfg.OUTPUT_DIR = ""  # metrics do not depend on it
    text = dump_config(cfg)  # without keys of later versions of this package that are unused
    inputs = {f"config {args.config_file}": hashlib.sha256(text.encode()).hexdigest()}
    weights = Path(cfg.MODEL.WEIGHTS)
    if weights.is_file():  # others are names of models, which are part of the config
        inputs[f"MODEL.WEIGHTS {weights}"] = digest(weights)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if training else cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name).as_dict() if name in DatasetCatalog else {}
        for path in (Path(metadata[key]) for key in ANNOTATIONS if metadata.get(key)):
            inputs[f"annotations {path} of {name}"] = digest(path)
    return Provenance(list(options), inputs)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder and their names; "" without any."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{digest(file)} {file.relative_to(path)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest() if files else ""


def load_metrics(file: Path, provenance: Provenance) -> Metrics | None:
    """Read the metrics of a run; None if it is not finished.

    Args:
        file: File of the run.
        provenance: Provenance of the present command.

    Raises:
        ValueError: If the run was started with other options, config, weights or annotations, or
            the file cannot be read.
    """
    if not file.exists():
        return None
    content = read_json(file, what="result file")
    if not _is_result(content):
        raise ValueError(
            f"{file} is not a result of this version of the ablation: expected a JSON object with "
            "options, inputs and figures; delete the file to measure again"
        )
    former = Provenance(content["options"], content["inputs"])
    expected = "expected the same ones, or another --output"
    if former.options != provenance.options:
        words = " ".join(former.options)
        raise ValueError(f"{file} was measured with other options, {words}: {expected}")
    changed = [x for x in provenance.inputs if provenance.inputs[x] != former.inputs.get(x)]
    changed += [x for x in former.inputs if x not in provenance.inputs]
    if changed:
        raise ValueError(
            f"{file} was measured with other contents of {' and '.join(changed)}: {expected}"
        )
    return content["figures"]


def save_metrics(file: Path, provenance: Provenance, metrics: Metrics | None) -> None:
    """Write the metrics of a finished run, or None for one that has started."""
    text = json.dumps({**provenance._asdict(), "figures": metrics}, indent=2)
    write_text(file, text)


def _is_result(content: Any) -> bool:
    if not isinstance(content, dict) or not {"options", "inputs", "figures"} <= content.keys():
        return False
    options, inputs, metrics = content["options"], content["inputs"], content["figures"]
    return (
        isinstance(options, list)
        and all(isinstance(word, str) for word in options)
        and isinstance(inputs, dict)
        and (metrics is None or isinstance(metrics, dict))
        and all(isinstance(value, int | float) for value in (metrics or {}).values())
    )


def check_metrics(cfg: CfgNode, requested: Sequence[str]) -> None:
    """Refuse metrics that no evaluation of a config gives, before any work.

    Args:
        cfg: The finished config.
        requested: Their names, as of :func:`shown_metrics`.

    Raises:
        ValueError: If one of them is not among the metrics, or matches none.
    """
    for metric in requested:
        if "*" not in metric:
            check_metric(cfg, metric, "--metric")
        elif not build_metric_names(cfg).match(metric):
            raise ValueError(
                f"--metric is {metric!r:.100}, which matches no metric of the evaluations of this "
                "config"
            )


def shown_metrics(
    requested: Sequence[str], metrics: Metrics, *, boundary: bool = False
) -> list[str]:
    """Return the metrics to show.

    Args:
        requested: Their names; one with a ``*`` stands for all names that match it.
        metrics: Metrics of a run.
        boundary: Whether the default includes a boundary metric.

    Returns:
        Their names, each once; by default the first usual metric that was measured, and the first
        boundary metric, of each data set.
    """
    if requested:
        matching = {x: fnmatch.filter(metrics, x) if "*" in x else [] for x in requested}
        return list(dict.fromkeys(name for x in requested for name in matching[x] or [x]))
    shown = _of_data_sets(USUAL_METRICS, metrics) or [USUAL_METRICS[0]]
    return shown + (_of_data_sets(BOUNDARY_METRICS, metrics) if boundary else [])


def _of_data_sets(names: Sequence[str], metrics: Metrics) -> list[str]:
    """Return the first of several metrics that was measured, for each data set."""
    measured = [x for x in metrics if not x.startswith(f"{AVERAGED_RESULTS}/")]
    found = ([x for x in measured if x == name or x.endswith(f"/{name}")] for name in names)
    return next(filter(None, found), [])


def metric_of(metrics: Metrics, name: str) -> float:
    """Look up a metric.

    Raises:
        ValueError: If it was not measured.
    """
    if name not in metrics:
        raise ValueError(f"--metric {name}: expected one of {', '.join(sorted(metrics))}")
    return metrics[name]
