"""A trained model, written into one folder with all that others need to run it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from torch import nn

from point_rend.checkpoint.class_metadata import CONFIG
from point_rend.checkpoint.safetensors_file import save_safetensors
from point_rend.config.dumping import CONFIG_NAME, dump_config
from point_rend.config.loading import parse_config
from point_rend.data.datasets.classes import CLASS_COUNTS
from point_rend.data.datasets.keypoints import build_keypoint_metadata
from point_rend.inference.classes import build_metadata
from point_rend.inference.model_card import build_card, flat_metrics, read_metrics_file
from point_rend.runtime.exported_model import ExportedModel
from point_rend.runtime.model_folder import CARD_NAME, FILES, LABELS_NAME, WEIGHTS_NAME, labels_text
from point_rend.utils.files import atomic_file, atomic_folder, write_text

Metrics = Mapping[str, Any] | str | os.PathLike[str]

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,63}")
_PUBLIC = {"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cuda", "OUTPUT_DIR": "./output"}  # in the config


def save_folder(
    folder: str | os.PathLike[str],
    model: nn.Module,
    cfg: CfgNode,
    metadata: Metadata,
    *,
    license: str = "",
    metrics: Metrics | None = None,
    overwrite: bool = False,
    name: str = "",
) -> Path:
    """Write a model into one folder, complete or not at all.

    Args:
        folder: The folder, which is created.
        model: The model, with its present parameters.
        cfg: Its config.
        metadata: Names, ids and colors of the classes.
        license: Identifier of the model's license for the card, such as apache-2.0.
        metrics: Metrics for the card, in percent: nested as an evaluation returns them, such as
            `{"segm": {"AP": 37.2}}`, or a file of them, such as the `metrics.json` of a training.
        overwrite: Whether to replace the model in a folder that is not empty. Other files in it
            stay.
        name: Name of the model in the card, such as a repository; by default the folder.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If there is no such file of metrics.
        NotSavedError: If the folder cannot be written.
        ValueError: If it is not empty, the model is an exported one, or an argument does not fit.
    """
    folder = Path(folder)
    if isinstance(model, ExportedModel):
        raise ValueError(
            f"{cfg.MODEL.WEIGHTS} is an exported model: save the model that it was exported from"
        )
    check_target(folder, overwrite=overwrite)
    if license and not _LICENSE.fullmatch(license):
        raise ValueError(
            f"license {license!r:.100}: expected an identifier as of SPDX in small letters, such "
            "as apache-2.0, mit or other"
        )
    found = read_metrics_file(metrics) if isinstance(metrics, str | os.PathLike) else metrics
    classes = build_metadata(cfg, metadata.as_dict()).as_dict()
    public = _public(cfg)

    def write(into: Path) -> None:
        with atomic_file(into / WEIGHTS_NAME) as file:
            stored = _stored_metadata(classes) | build_keypoint_metadata(public, classes)
            stored[CONFIG] = dump_config(public)
            sha256 = save_safetensors(model.state_dict(), file, metadata=stored)
        write_text(into / CONFIG_NAME, dump_config(public))
        write_text(into / LABELS_NAME, labels_text(classes))
        card = build_card(
            public,
            classes,
            name=name or os.path.basename(os.path.realpath(folder)),
            sha256=sha256,
            license=license,
            metrics=flat_metrics(found or {}),
        )
        write_text(into / CARD_NAME, card)

    if not folder.is_dir():
        with atomic_folder(os.path.realpath(folder)) as temporary:  # also behind a link
            write(temporary)
        return folder
    # A folder that exists may be the working directory, a mount, or one of other rights: it stays.
    is_empty = not any(folder.iterdir())
    try:
        write(folder)  # the card comes last: its SHA-256 shows whether all files are of one model
    except BaseException:
        for written in FILES if is_empty else ():
            (folder / written).unlink(missing_ok=True)
        raise
    return folder


def check_target(folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse a folder that is in use, or a file.

    Raises:
        ValueError: If it is one.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty: choose another folder, or pass overwrite=True (--overwrite on "
            "the command line) to replace the model in it"
        )


def _public(cfg: CfgNode) -> CfgNode:
    """Return a config without what belongs to this machine."""
    public = cfg.clone()
    public.defrost()
    public.merge_from_list([x for pair in _PUBLIC.items() for x in pair])
    # Read again: lists that several keys share would be written as references.
    return parse_config(dump_config(public), "the config")


def _stored_metadata(classes: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata of classes in plain types, as checkpoints store it."""
    stored: dict[str, Any] = {}
    for count in CLASS_COUNTS:
        if count.names in classes:
            colors, ids = f"{count.kind}_colors", f"{count.kind}_dataset_id_to_contiguous_id"
            stored[count.names] = list(classes[count.names])
            stored[colors] = [[int(x) for x in color] for color in classes[colors]]
            stored[ids] = {int(own): int(index) for own, index in classes[ids].items()}
    return stored
