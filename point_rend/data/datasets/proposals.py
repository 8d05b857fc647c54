"""Precomputed proposals, read as data: Detectron2's reader executes what a file asks for."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import detectron2.data.build
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from point_rend.checkpoint.array_pickle import load_arrays
from point_rend.checkpoint.sealed_file import read_checkpoint
from point_rend.config.tasks import INSTANCES, model_outputs, reads_proposals
from point_rend.utils.downloads import is_url, local_path, resolve
from point_rend.utils.reading import check_regular_file

WHAT = "proposal file"
# Names in the files of Detectron, and of Detectron2.
_RENAMED = {"indexes": "ids", "scores": "objectness_logits"}
_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)

logger = logging.getLogger(__name__)


def check_proposal_files(cfg: CfgNode, *, training: bool) -> None:
    """Refuse proposals that are missing, before a run; their contents are checked when loaded.

    Args:
        cfg: The config of the run.
        training: Whether the run trains; it also evaluates then.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If there is not one file per data set, or the model needs proposals and gets
            none.
    """
    if reads_proposals(cfg) and model_outputs(cfg) != INSTANCES:
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, but "
            f"{cfg.MODEL.META_ARCHITECTURE} generates its proposals: expected RPN"
        )
    if not cfg.MODEL.LOAD_PROPOSALS:
        if reads_proposals(cfg):
            raise ValueError(
                "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, but MODEL.LOAD_PROPOSALS "
                "is False: expected True, and a file per data set in DATASETS.PROPOSAL_FILES_TRAIN "
                "and DATASETS.PROPOSAL_FILES_TEST"
            )
        return
    weighted = cfg.DATALOADER.SAMPLER_TRAIN.startswith("Weighted")
    if training and weighted and len(cfg.DATASETS.TRAIN) > 1:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} of Detectron2 cannot load "
            "proposals for several data sets: expected another sampler or one data set"
        )
    for split in ("TRAIN", "TEST") if training else ("TEST",):
        names, files = cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
        if len(names) != len(files):
            raise ValueError(
                f"DATASETS.PROPOSAL_FILES_{split} has {len(files)} files, but DATASETS.{split} "
                f"{len(names)} data sets: expected one file for each"
            )
        for file in files:
            if is_url(file):
                resolve(file)
            else:
                check_regular_file(file, what=WHAT)


def check_test_proposals(cfg: CfgNode) -> None:
    """Load the proposals of the test sets once, so that no evaluation stops at them.

    Raises:
        OSError: As :func:`load_proposals`.
        ValueError: As :func:`load_proposals`.
    """
    if cfg.MODEL.LOAD_PROPOSALS:
        for name, file in zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=True):
            load_proposals(DatasetCatalog.get(name), file)


@contextlib.contextmanager
def proposals_as_data() -> Iterator[None]:
    """Let the loaders of Detectron2 read proposals by :func:`load_proposals` within the block."""
    stock = detectron2.data.build.load_proposals_into_dataset
    detectron2.data.build.load_proposals_into_dataset = load_proposals
    try:
        yield
    finally:
        detectron2.data.build.load_proposals_into_dataset = stock


def load_proposals(records: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """Add the proposals of a file to the records of a data set, best first.

    The result is that of Detectron2's `load_proposals_into_dataset`.

    Args:
        records: The data set; changed in place.
        path: File or URL of a pickled dict of lists, with one item per image: `ids`, `boxes` (N, 4)
            and `objectness_logits` (N,); and `bbox_mode`, XYXY_ABS by default.

    Returns:
        The records.

    Raises:
        OSError: If the file cannot be read or downloaded.
        ValueError: If it would execute code, is damaged or does not fit the data set.
    """
    logger.info("Loading proposals from %s", path)
    content = read_checkpoint(os.fspath(local_path(path)), load_arrays, what=WHAT)
    content = {_RENAMED.get(key, key): value for key, value in content.items()}
    ids, boxes, logits = (
        _list(path, content, key) for key in ("ids", "boxes", "objectness_logits")
    )
    if not len(ids) == len(boxes) == len(logits):
        raise ValueError(
            f"{WHAT} {path}: {len(ids)} ids, {len(boxes)} boxes and {len(logits)} "
            "objectness_logits, expected one of each per image"
        )
    mode = content.get("bbox_mode", BoxMode.XYXY_ABS)
    if not isinstance(mode, int | np.integer) or int(mode) not in _MODES:
        raise ValueError(
            f"{WHAT} {path}: bbox_mode is {mode!r:.80}, expected 0 (XYXY_ABS) or 1 (XYWH_ABS)"
        )
    index_of = _index(path, ids, records)
    for record in records:
        index = index_of[str(record["image_id"])]
        where = f"{WHAT} {path}, image {record['image_id']}"
        record |= _proposals(where, boxes[index], logits[index])
        record["proposal_bbox_mode"] = BoxMode(int(mode))
    return records


def _list(path: str, content: dict[Any, Any], key: str) -> Any:
    if key not in content:
        known = ", ".join(sorted(map(str, content)))
        raise ValueError(f"{WHAT} {path}: {key} is missing; there are {known:.200}")
    value = content[key]
    if not (isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim)):
        raise ValueError(f"{WHAT} {path}: {key} is {type(value).__name__}, expected a list")
    return value


def _index(path: str, ids: Sequence[Any], records: list[dict[str, Any]]) -> dict[str, int]:
    """Return the places of the images of a data set in a file."""
    wanted = {str(record["image_id"]) for record in records}
    index_of: dict[str, int] = {}
    for index, image_id in enumerate(ids):
        if not isinstance(image_id, int | str | np.integer):
            raise ValueError(
                f"{WHAT} {path}: ids hold {type(image_id).__name__}, expected ids of images"
            )
        name = str(image_id)
        if name in index_of:
            raise ValueError(f"{WHAT} {path}: image {name:.80} is there twice")
        if name in wanted:
            index_of[name] = index
    lacking = sorted(wanted - index_of.keys())
    if lacking:
        raise ValueError(
            f"{WHAT} {path}: no proposals for {len(lacking)} of {len(wanted)} images, such as "
            f"image {lacking[0]:.80}; is it the file of another data set?"
        )
    return index_of


def _proposals(where: str, boxes: Any, logits: Any) -> dict[str, np.ndarray]:
    """Check the proposals of an image and return them sorted, best first."""
    for name, array in (("boxes", boxes), ("objectness_logits", logits)):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            kind = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"{where}: {name} are {kind}, expected an array of numbers")
    if boxes.ndim != 2 or boxes.shape[1:] != (4,) or logits.shape != boxes.shape[:1]:
        raise ValueError(
            f"{where}: boxes of shape {boxes.shape} and objectness_logits of shape {logits.shape}, "
            "expected (N, 4) and (N,)"
        )
    if not np.isfinite(boxes).all() or np.isnan(logits).any():
        raise ValueError(f"{where}: boxes or objectness_logits that are not finite numbers")
    order = logits.argsort()[::-1]
    return {"proposal_boxes": boxes[order], "proposal_objectness_logits": logits[order]}
