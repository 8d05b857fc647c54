"""The description of a model that is exported."""

import hashlib
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from point_rend.checkpoint.sealed_file import without_query
from point_rend.config.defaults import pixel_format
from point_rend.config.dumping import dump_config
from point_rend.export.graph import Graph
from point_rend.runtime.description import (
    IMAGE_FORMATS,
    INSTANCES,
    MASK_HEAD,
    SEM_SEG,
    Description,
)
from point_rend.utils.downloads import local_path
from point_rend.utils.reading import open_regular_file


def check_exportable(cfg: CfgNode) -> None:
    """Refuse a config whose images an exported file cannot describe, before a model is built.

    Raises:
        ValueError: If there are such keys; the message names one.
    """
    if cfg.TEST.AUG.ENABLED:
        raise ValueError(
            "TEST.AUG.ENABLED is True, but test-time augmentation has no graph: expected False"
        )
    if cfg.INPUT.FORMAT not in IMAGE_FORMATS:
        raise ValueError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, which has no exported form: expected "
            f"{' or '.join(IMAGE_FORMATS)}"
        )


@torch.no_grad()
def describe(graph: Graph, cfg: CfgNode, metadata: Metadata, version: str) -> Description:
    """Describe a graph for the programs that will run it.

    Args:
        graph: The graph.
        cfg: The config of its model.
        metadata: Names, ids and colors of the classes.
        version: Version of this package.

    Raises:
        OSError: If the checkpoint cannot be read.
    """
    stored = cfg.clone()
    stored.defrost()
    stored.MODEL.WEIGHTS, stored.MODEL.DEVICE, stored.OUTPUT_DIR = "", "cpu", "./output"
    graph_limits: Any = graph
    mask_side = 0
    if graph.task != SEM_SEG:
        outputs = graph(*graph.example())
        masks = outputs if isinstance(outputs, torch.Tensor) else outputs[-1]
        mask_side = masks.shape[-1]
    instances = graph.task == INSTANCES
    return Description(
        task=graph.task,
        version=version,
        **_classes(metadata, "stuff" if graph.task == SEM_SEG else "thing"),
        image_format=cfg.INPUT.FORMAT,
        channels=pixel_format(cfg).num_channels,
        bits=pixel_format(cfg).bits,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        divisor=1 if graph.task == MASK_HEAD else graph_limits.divisor,
        max_side=graph_limits.max_side,
        max_batch=graph_limits.max_batch,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST if instances else 0.0,
        nms_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST if instances else 1.0,
        detections_per_image=max(cfg.TEST.DETECTIONS_PER_IMAGE, 0) if instances else 0,
        mask_side=mask_side,
        weights_sha256=sha256_of(cfg.MODEL.WEIGHTS),
        config=dump_config(stored),
    )


def sha256_of(weights: str) -> str:
    """Return the SHA-256 of a checkpoint, in hexadecimal digits.

    Args:
        weights: As MODEL.WEIGHTS.
    """
    with open_regular_file(local_path(without_query(weights)), what="checkpoint") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _classes(metadata: Metadata, kind: str) -> dict[str, Any]:
    """Return the fields of the classes; without their names, which are numbers then, none."""
    names = list(metadata.get(f"{kind}_classes"))
    if names == [f"class {k}" for k in range(len(names))]:
        return {"classes": ()}
    to_index = metadata.get(f"{kind}_dataset_id_to_contiguous_id")
    to_id = {index: identity for identity, index in to_index.items()}
    return {
        "classes": tuple(names),
        "class_ids": tuple(to_id[k] for k in range(len(names))),
        "class_colors": tuple(tuple(map(int, x)) for x in metadata.get(f"{kind}_colors")),
    }
