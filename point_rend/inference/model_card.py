"""The card of a model: data for the Hugging Face Hub, then text for its readers."""

import json
import math
import os
import platform
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode

from point_rend.config.dumping import CONFIG_NAME
from point_rend.config.tasks import INSTANCES, SEM_SEG, model_outputs
from point_rend.evaluation.evaluators import BOUNDARY
from point_rend.runtime.model_folder import (
    LABELS_NAME,
    SECTION,
    WEIGHTS_NAME,
    card_text,
)
from point_rend.utils.errors import shorten
from point_rend.utils.json_files import parse_json
from point_rend.utils.reading import read_bytes
from point_rend.utils.version import __version__

TASKS = ("segm", BOUNDARY, "bbox", "sem_seg", "panoptic_seg")  # in the names of metrics
MAX_BYTES = 1 << 30  # of metrics.json

Metrics = Mapping[str, float]  # such as segm/AP, in percent

_CARD = """
# {name}

A [PointRend](https://arxiv.org/abs/1912.08193) model for {task}.

| | |
|---|---|
{facts}

## Use

```python
from point_rend import Predictor

predictor = Predictor.from_pretrained({quoted})
output = predictor("photo.jpg")  # Detectron2's results, such as {{"instances": Instances}}
```

```bash
pointrend predict --model {word} --input photos/ --output predictions
pointrend evaluate --model {word} {datasets}
```

The config and the parameters also work on their own, in every command, as `--config-file` and
MODEL.WEIGHTS.
{metrics}
## Files

| file | contents |
|---|---|
| `{weights}` | the parameters; SHA-256 `{sha256}` |
| `{config}` | the complete config |
| `{labels}` | names, ids and colors of the classes |
"""


def read_metrics_file(path: str | os.PathLike[str]) -> dict[str, float]:
    """Read the last metrics of a training from its `metrics.json`, or those of any JSON file.

    Args:
        path: A JSON object, such as `{"segm": {"AP": 37.2}}`, or one such object per line, of
            which the later ones replace values of the earlier ones.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not JSON, or holds no metric.
    """
    content = read_bytes(os.fspath(path), what="metrics file", max_bytes=MAX_BYTES)
    where = f"metrics file {os.fspath(path)}"
    lines = content.splitlines()
    try:
        records = [parse_json(content, where)]
    except ValueError:
        if len(lines) < 2:
            raise
        records = [
            parse_json(line, f"{where}, line {k}") for k, line in enumerate(lines, 1) if line
        ]
    found: dict[str, float] = {}
    for record in records:
        found |= flat_metrics(record)
    if not found:
        raise ValueError(f"{where} has no metric of {', '.join(TASKS)}, such as segm/AP")
    return found


def flat_metrics(metrics: Any) -> dict[str, float]:
    """Return the metrics of all classes together by names such as `segm/AP`; others are left out.

    Args:
        metrics: Nested as an evaluation returns them, or flat as in `metrics.json`.
    """
    found = {}
    for name, value in _numbers(metrics):
        *_, task, metric = ("", *name.split("/"))
        if task in TASKS and "-" not in metric and math.isfinite(value):
            found[name] = round(float(value), 3)
    return found


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _numbers(below, f"{path}/{key}".lstrip("/"))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def build_card(
    cfg: CfgNode,
    classes: Mapping[str, Any],
    *,
    name: str,
    sha256: str,
    license: str = "",
    metrics: Metrics | None = None,
) -> str:
    """Write the card of a model.

    Args:
        cfg: The config.
        classes: Detectron2's metadata of the classes.
        name: Folder or repository, which is the title, and the name in the commands.
        sha256: SHA-256 of the parameters.
        license: Identifier of a license, such as apache-2.0.
        metrics: As of :func:`flat_metrics`.
    """
    task = _task(cfg)
    metrics = metrics or {}
    data: dict[str, Any] = {"library_name": "point_rend"}
    if license:
        data["license"] = license
    data |= {
        "pipeline_tag": "image-segmentation",
        "tags": ["point_rend", "detectron2", task.replace(" ", "-")],
    }
    if cfg.DATASETS.TRAIN:
        data["datasets"] = list(cfg.DATASETS.TRAIN)
    if metrics:
        data["model-index"] = [{"name": name, "results": list(_results(cfg, task, metrics))}]
    data[SECTION] = {"version": __version__, "sha256": sha256}
    datasets = f'DATASETS.TEST "{tuple(cfg.DATASETS.TEST)}"' if cfg.DATASETS.TEST else ""
    body = _CARD.format(
        name=shorten(name),
        word=shlex.quote(name),
        task=task,
        facts="\n".join(f"| {key} | {value} |" for key, value in _facts(cfg, classes).items()),
        quoted=json.dumps(name),
        datasets=datasets,
        metrics=_table(metrics),
        sha256=sha256,
        config=CONFIG_NAME,
        weights=WEIGHTS_NAME,
        labels=LABELS_NAME,
    )
    return card_text(data, "\n".join(line.rstrip() for line in body.splitlines()) + "\n")


def _task(cfg: CfgNode) -> str:
    kinds = {INSTANCES: "instance segmentation", SEM_SEG: "semantic segmentation"}
    return kinds.get(model_outputs(cfg), "panoptic segmentation")


def _results(cfg: CfgNode, task: str, metrics: Metrics) -> Iterator[dict[str, Any]]:
    """Yield the metrics in the form of the Hub, one record for each data set."""
    by_dataset: dict[str, list[dict[str, Any]]] = {}
    for name, value in metrics.items():
        *parts, kind, metric = name.split("/")
        own = "/".join(parts) or ", ".join(cfg.DATASETS.TEST) or "unknown"
        entry = {"type": metric, "name": f"{kind} {metric}", "value": value}
        by_dataset.setdefault(own, []).append(entry)
    for dataset, entries in by_dataset.items():
        yield {
            "task": {"type": "image-segmentation", "name": task.capitalize()},
            "dataset": {"type": dataset, "name": dataset},
            "metrics": entries,
        }


def _facts(cfg: CfgNode, classes: Mapping[str, Any]) -> dict[str, str]:
    names = [*(classes.get("thing_classes") or ()), *(classes.get("stuff_classes") or ())]
    shown = ", ".join(map(_in_table, names[:10]))
    backbone = cfg.MODEL.BACKBONE.NAME
    if "resnet" in backbone:
        backbone += f" of depth {cfg.MODEL.RESNETS.DEPTH}"
    versions = {
        "point_rend": __version__,
        "PyTorch": torch.__version__,
        "Detectron2": detectron2.__version__,
        "Python": platform.python_version(),
    }
    return {
        "model": f"{cfg.MODEL.META_ARCHITECTURE}, {backbone}",
        "classes": f"{len(names)}: {shown}{', …' if len(names) > 10 else ''}",
        "training data": _in_table(", ".join(cfg.DATASETS.TRAIN)) or "not recorded",
        "images": f"{cfg.INPUT.FORMAT}, short side {cfg.INPUT.MIN_SIZE_TEST}, long side "
        f"{cfg.INPUT.MAX_SIZE_TEST} at most",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _in_table(text: str) -> str:
    """Return a text as a cell of a table can show it."""
    return shorten(text).replace("|", "/")


def _table(metrics: Metrics) -> str:
    if not metrics:
        return ""
    rows = "\n".join(f"| {name} | {value:.1f} |" for name, value in metrics.items())
    return f"\n## Metrics\n\n| metric | % |\n|---|---|\n{rows}\n"
