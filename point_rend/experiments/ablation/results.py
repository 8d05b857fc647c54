"""Cells of an ablation: the figures of each in a file of its own (see tools/ablate.py)."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from point_rend.engine.arguments import build_parser
from point_rend.engine.setup import read_config, register_datasets
from point_rend.utils.files import atomic_file, write_text

Figures = dict[str, float]
ANNOTATIONS = ("json_file", "panoptic_json", "panoptic_root", "sem_seg_root", "gt_dir")  # metadata


class Origin(NamedTuple):
    """What figures follow from.

    Attributes:
        options: Of train_net.py, of the whole command.
        inputs: Digests of what the options name, by the words for it.
    """

    options: list[str]
    inputs: dict[str, str]


def origin_of(options: Sequence[str], *, training: bool) -> Origin:
    """Digest what the options name: the config, the weights and the annotations of the data sets.

    Args:
        options: Of train_net.py.
        training: Whether the figures depend on the training sets, too.

    Raises:
        FileNotFoundError, ValueError: If options, config and data sets do not fit together.
    """
    args = build_parser().parse_args(options)
    cfg = read_config(args)
    register_datasets(args)
    cfg.OUTPUT_DIR = ""  # figures are the same wherever they are kept
    inputs = {f"config {args.config_file}": hashlib.sha256(cfg.dump().encode()).hexdigest()}
    weights = Path(cfg.MODEL.WEIGHTS)
    if weights.is_file():  # others are names of models, which the config tells apart
        inputs[f"MODEL.WEIGHTS {weights}"] = digest(weights)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if training else cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name).as_dict() if name in DatasetCatalog else {}
        for path in (Path(metadata[key]) for key in ANNOTATIONS if metadata.get(key)):
            inputs[f"annotations {path} of {name}"] = digest(path)
    return Origin(list(options), inputs)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder with their names; "" of nothing."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{digest(file)} {file.relative_to(path)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest() if files else ""


def read_cell(file: Path, origin: Origin) -> Figures | None:
    """Read the figures of a finished cell; None if it is not finished.

    Args:
        file: Where they are kept.
        origin: Of this command.

    Raises:
        ValueError: If it was begun with other options, config, weights or annotations, or the file
            cannot be read.
    """
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not _is_cell(content):
        raise ValueError(
            f"{file} is no cell of this version of ablate.py: expected a JSON object with options, "
            "inputs and figures; without the file the cell is measured anew"
        )
    former = Origin(content["options"], content["inputs"])
    expected = "expected the same ones, or another --output"
    if former.options != origin.options:
        words = " ".join(former.options)
        raise ValueError(f"{file} was measured with other options, {words}: {expected}")
    changed = [x for x in origin.inputs if origin.inputs[x] != former.inputs.get(x)]
    changed += [x for x in former.inputs if x not in origin.inputs]
    if changed:
        raise ValueError(
            f"{file} was measured with other contents of {' and '.join(changed)}: {expected}"
        )
    return content["figures"]


def keep_cell(file: Path, origin: Origin, figures: Figures | None) -> None:
    """Write for :func:`read_cell` the figures of a finished cell, or None for one that is begun."""
    text = json.dumps({**origin._asdict(), "figures": figures}, indent=2)
    write_text(file, text)


def _is_cell(content: Any) -> bool:
    if not isinstance(content, dict) or not {"options", "inputs", "figures"} <= content.keys():
        return False
    options, inputs, figures = content["options"], content["inputs"], content["figures"]
    return (
        isinstance(options, list)
        and all(isinstance(word, str) for word in options)
        and isinstance(inputs, dict)
        and (figures is None or isinstance(figures, dict))
        and all(isinstance(value, int | float) for value in (figures or {}).values())
    )


def metric_of(figures: Figures, metric: str) -> float:
    """Look up a metric.

    Raises:
        ValueError: If it was not measured.
    """
    if metric not in figures:
        raise ValueError(f"--metric {metric}: expected one of {', '.join(sorted(figures))}")
    return figures[metric]


def draw_panels(
    metrics: Sequence[str], draw: Callable[[Any, str], object], file: Path, *, width: float = 6.0
) -> None:
    """Draw a panel for each metric.

    Args:
        metrics: Their names stand at the axes.
        draw: Takes the axes of a panel and the metric, and draws what is in it.
        file: A PNG.
        width: Of a panel, in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * len(metrics), 4), layout="constrained")
    for axes, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        draw(axes, metric)
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
    with atomic_file(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
