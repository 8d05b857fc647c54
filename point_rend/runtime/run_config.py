"""The config in an exported file, for a run of the file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from point_rend.config.defaults import pixel_format, value_of
from point_rend.config.loading import ARGUMENT, parse_config
from point_rend.config.schema import ALWAYS, check_rules
from point_rend.config.tasks import model_outputs
from point_rend.runtime.description import INSTANCES, MASK_HEAD, Description

THRESHOLD, DETECTIONS = "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "TEST.DETECTIONS_PER_IMAGE"
# Computed by the graph, besides all of MODEL.
FIXED = (
    *("INPUT.FORMAT", "INPUT.CHANNELS", "INPUT.BITS"),
    *("TEST.AUG.ENABLED", "TEST.MIXED_PRECISION", "TEST.PRECISE_BN.ENABLED"),
)


def build_run_config(
    description: Description,
    path: str | os.PathLike[str],
    opts: Sequence[str] = (),
    *,
    opts_source: str = ARGUMENT,
) -> CfgNode:
    """Build the config of a run of an exported file: that of its model, then options.

    Args:
        description: The description in the file.
        path: The file, which becomes MODEL.WEIGHTS.
        opts: Config keys and values in turn, such as of DATASETS, INPUT, DATALOADER and OUTPUT_DIR;
            the graph has the others.
        opts_source: Name of their origin for messages.

    Returns:
        The config, not frozen.

    Raises:
        ValueError: If the config in the file is damaged, or an option would change the graph.
    """
    path = os.fspath(path)
    if description.task == MASK_HEAD:
        raise ValueError(
            f"{path} is a mask head without its model, which needs features and boxes: expected a "
            "file of `pointrend export` without --part mask-head"
        )
    stored = parse_config(description.config, f"the config in {path}")
    cfg = parse_config(description.config, f"the config in {path}", opts, opts_source=opts_source)
    _check_stored(stored, description, path)
    _check_options(cfg, stored, path)
    check_rules(cfg, ALWAYS)
    cfg.MODEL.WEIGHTS = path
    return cfg


def class_fields(description: Description) -> dict[str, Any]:
    """Return the classes of a file as fields of Detectron2's metadata."""
    kind = "thing" if description.task == INSTANCES else "stuff"
    fields: dict[str, Any] = {}
    if description.classes:
        fields[f"{kind}_classes"] = list(description.classes)
    if description.class_ids:
        ids = enumerate(description.class_ids)
        fields[f"{kind}_dataset_id_to_contiguous_id"] = {identity: k for k, identity in ids}
    if description.class_colors:
        fields[f"{kind}_colors"] = [list(color) for color in description.class_colors]
    return fields


def _check_stored(stored: CfgNode, description: Description, path: str) -> None:
    """Refuse a config that is not that of the graph."""
    pairs = (
        ("outputs", ", ".join(sorted(model_outputs(stored))), description.task),
        ("INPUT.FORMAT", stored.INPUT.FORMAT, description.image_format),
        ("INPUT.CHANNELS", pixel_format(stored).num_channels, description.channels),
        ("INPUT.BITS", pixel_format(stored).bits, description.bits),
        ("TEST.AUG.ENABLED", stored.TEST.AUG.ENABLED, False),
    )
    for name, value, of_graph in pairs:
        if value != of_graph:
            raise ValueError(
                f"the config in {path} is not that of its graph: {name} {value}, expected "
                f"{of_graph}"
            )


def _check_options(cfg: CfgNode, stored: CfgNode, path: str) -> None:
    """Refuse options that change what the graph computes."""
    if cfg.MODEL.WEIGHTS != stored.MODEL.WEIGHTS:
        raise ValueError(
            f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS}, but {path} has weights of its own: leave "
            "MODEL.WEIGHTS or --model out"
        )
    if cfg.MODEL.DEVICE != "cpu":
        raise ValueError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but {path} runs on the CPU only")
    of_file, limit = value_of(stored, THRESHOLD), value_of(cfg, THRESHOLD)
    if limit < of_file:
        raise ValueError(f"{THRESHOLD} is {limit}, but {path} was exported with {of_file}")
    of_file, limit = value_of(stored, DETECTIONS), value_of(cfg, DETECTIONS)
    if limit < 0 <= of_file or limit > of_file >= 0:
        raise ValueError(f"{DETECTIONS} is {limit}, but {path} was exported with {of_file}")
    for key in [*_keys(stored.MODEL, "MODEL"), *FIXED]:
        if key != THRESHOLD and value_of(cfg, key) != value_of(stored, key):
            raise ValueError(
                f"{key} is part of {path}, which was exported with {value_of(stored, key)}: export "
                f"the model again with {key} {value_of(cfg, key)}"
            )


def _keys(node: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield all keys below a node of a config."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}"
