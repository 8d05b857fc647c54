"""Keypoints of data sets: their names, their mirror images, their number in a config."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from point_rend.checkpoint.class_metadata import KEYPOINT_FIELDS
from point_rend.config.checks import COCO_KEYPOINTS
from point_rend.data.datasets.classes import describe, is_set
from point_rend.visualization.drawing import color_of

NUMBER = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
SIGMAS = "TEST.KEYPOINT_OKS_SIGMAS"
MEAN_SIGMA = 0.067  # of the 17 keypoints of COCO
_RIGHT = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "l": "r", "L": "R"}
_WORD = re.compile("left|Left|LEFT")
_LETTER = re.compile(r"(?<![A-Za-z])[lL](?![a-z])|(?<=[a-z])L(?![A-Za-z])")  # l_eye, eyeL


def keypoint_metadata(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the names of keypoints, the pairs that a mirror image exchanges, and the skeleton.

    Args:
        categories: Of a COCO file, some of them with the names of their "keypoints", and with a
            "skeleton", pairs of their numbers from 1 (or from 0, if one is 0).

    Returns:
        Detectron2's metadata; empty without names, if two categories have different ones, or if a
        name occurs twice.
    """
    named = [category for category in categories if category.get("keypoints")]
    names = named[0]["keypoints"] if named else None
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) < len(names)
        or any(category["keypoints"] != names for category in named)
    ):
        return {}
    pairs = [(name, right) for name in names if (right := _mirrored(name)) in names]
    return {
        "keypoint_names": names,
        "keypoint_flip_map": [(name, right) for name, right in pairs if name != right],
        "keypoint_connection_rules": _connections(names, named[0].get("skeleton")),
    }


def _mirrored(name: str) -> str:
    """Return the name of the right part for that of a left one; other names as they are."""
    pattern = _WORD if _WORD.search(name) else _LETTER
    return pattern.sub(lambda found: _RIGHT[found[0]], name)


def _connections(
    names: Sequence[str], skeleton: Any
) -> list[tuple[str, str, tuple[int, int, int]]]:
    """Return the lines of a skeleton with colors (RGB); what is no pair of numbers is left out."""
    lines = [
        line
        for line in (skeleton if isinstance(skeleton, list) else ())
        if isinstance(line, list) and len(line) == 2 and all(type(end) is int for end in line)
    ]
    first = 0 if any(0 in line for line in lines) else 1
    within = range(first, len(names) + first)
    return [
        (names[start - first], names[end - first], color_of(number)[::-1])
        for number, (start, end) in enumerate(lines)
        if start in within and end in within
    ]


def fill_keypoints(
    cfg: CfgNode, datasets: Sequence[str], config_file: str, opts: Sequence[str]
) -> list[str]:
    """Take the number of keypoints from the data sets, if neither file nor option gives it.

    If it is not that of COCO, and no sigmas are given, all keypoints get the mean of COCO's.

    Args:
        cfg: The config, whose model detects keypoints; it may change.
        datasets: Names of the registered data sets of the run.
        config_file: YAML file of the config.
        opts: Keys and values that override it.

    Returns:
        Messages of what was taken.

    Raises:
        ValueError: If the data sets name different keypoints.
    """
    named = {name: MetadataCatalog.get(name).get("keypoint_names") for name in datasets}
    named = {name: list(names) for name, names in named.items() if names}
    if not named:
        return []
    (first, names), *others = named.items()
    for other, its in others:
        if its != names:
            raise ValueError(
                f"the data sets of a run must have the same keypoints in the same order, but those "
                f"of {describe(first)} are {', '.join(names)}, and those of {describe(other)} are "
                f"{', '.join(its)}"
            )
    said, head = [], cfg.MODEL.ROI_KEYPOINT_HEAD
    if not is_set(config_file, opts, NUMBER):
        head.NUM_KEYPOINTS = len(names)
        said.append(f"{NUMBER} is {len(names)}, the number of names in the data sets")
    if head.NUM_KEYPOINTS != COCO_KEYPOINTS and not cfg.TEST.KEYPOINT_OKS_SIGMAS:
        cfg.TEST.KEYPOINT_OKS_SIGMAS = [MEAN_SIGMA] * head.NUM_KEYPOINTS
        said.append(f"{SIGMAS} is {MEAN_SIGMA} for each keypoint, the mean of COCO's")
    return said


def build_keypoint_metadata(cfg: CfgNode, *stored: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what is known about the keypoints of a model.

    Args:
        cfg: The config.
        stored: Fields of Detectron2's metadata that are asked before the data sets of the config.

    Returns:
        The fields `KEYPOINT_FIELDS`, in plain types; empty if the model has no keypoints, or if
        nothing has as many.
    """
    datasets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if cfg.MODEL.KEYPOINT_ON else ()
    known = (MetadataCatalog.get(x).as_dict() for x in datasets if x in MetadataCatalog.list())
    for fields in (*stored, *known):
        names, lines = (fields.get(field) or () for field in KEYPOINT_FIELDS)
        if cfg.MODEL.KEYPOINT_ON and len(names) == cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
            rules = [[start, end, [int(x) for x in color]] for start, end, color in lines]
            return dict(zip(KEYPOINT_FIELDS, (list(names), rules), strict=True))
    return {}


def keypoint_fields(metadata: Metadata) -> dict[str, Any]:
    """Return the keypoints and the skeleton of a category of a COCO file; empty without names."""
    names, lines = (list(metadata.get(field) or ()) for field in KEYPOINT_FIELDS)
    if not names:
        return {}
    skeleton = [[names.index(start) + 1, names.index(end) + 1] for start, end, _ in lines]
    return {"keypoints": names, "skeleton": skeleton}
