"""Config and classes of a model that is about to run."""

import argparse
import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from point_rend.checkpoint.class_metadata import (
    StoredMetadata,
    read_metadata,
    read_stored_metadata,
)
from point_rend.checkpoint.zoo import PREFIX, published_url
from point_rend.config.agreement import warn_if_trained_otherwise
from point_rend.config.dumping import CONFIG_NAME
from point_rend.config.loading import ARGUMENT, COMMAND_LINE, load_config, parse_config
from point_rend.config.schema import ALWAYS, check_rules
from point_rend.config.tasks import model_outputs
from point_rend.data.datasets import classes
from point_rend.data.datasets.keypoints import build_keypoint_metadata
from point_rend.inference.classes import Fields, build_metadata, class_fields
from point_rend.runtime import run_config
from point_rend.runtime.description import INSTANCES
from point_rend.runtime.files import exported_file, read_description
from point_rend.runtime.hub import find_folder
from point_rend.runtime.model_folder import build_folder_config, read_model_folder
from point_rend.runtime.run_config import build_run_config
from point_rend.utils.arguments import check_backend

logger = logging.getLogger(__name__)


class Settings(NamedTuple):
    """A frozen config with weights and device, and the metadata of its classes."""

    cfg: CfgNode
    metadata: Metadata


def load_settings(
    config_file: str,
    opts: Sequence[str] = (),
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    class_names: str | None = None,
    confidence_threshold: float | None = None,
    ignore_class_names: bool = False,
    allow_unsafe: bool = False,
    opts_source: str = ARGUMENT,
) -> Settings:
    """Load a config and look up the classes of its checkpoint.

    Class counts that neither the config nor `opts` set are taken from `class_names`, or else from
    the checkpoint.

    Args:
        config_file: As of :func:`load_config`.
        opts: Config keys and values in turn; they override the file.
        weights: File, URL or `zoo://` name; by default MODEL.WEIGHTS.
        device: cpu, cuda or cuda:N; by default MODEL.DEVICE, or the CPU if the file asks for CUDA
            and this machine has none.
        class_names: As of :func:`read_classes`; by default those of the checkpoint, or else of the
            data sets of the config.
        confidence_threshold: Lowest score of an instance; by default the config's.
        ignore_class_names: Whether `class_names` are taken by position.
        allow_unsafe: Whether to load a checkpoint that executes code.
        opts_source: As of :func:`load_config`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If something does not fit.
    """
    cfg = load_config(config_file, opts, opts_source=opts_source)
    check_rules(cfg, ALWAYS)
    if weights is not None:
        cfg.MODEL.WEIGHTS = os.fspath(weights)
    if not cfg.MODEL.WEIGHTS:
        expected = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
        raise ValueError(f"MODEL.WEIGHTS is empty: expected a checkpoint, such as {expected}")
    if confidence_threshold is not None:
        _set_confidence_threshold(cfg, confidence_threshold)
    given = None if class_names is None else class_fields(model_outputs(cfg), class_names)
    stored = read_stored_metadata(cfg.MODEL.WEIGHTS, allow_unsafe=allow_unsafe)

    def is_set(key: str) -> bool:
        return classes.is_set(config_file, opts, key)

    _set_class_counts(cfg, is_set, given if given is not None else stored.classes)
    return _finish(cfg, stored, given, device, opts, by_position=ignore_class_names)


def load_stored_settings(
    checkpoint: str | os.PathLike[str],
    opts: Sequence[str] = (),
    *,
    device: str | None = None,
    allow_unsafe: bool = False,
) -> Settings:
    """Load the config that is stored in a checkpoint, or `config.yaml` in its folder.

    Args:
        checkpoint: The file.
        opts, device, allow_unsafe: As of :func:`load_settings`.

    Raises:
        FileNotFoundError: If there is no such checkpoint, or no config in either place.
        ValueError: If something does not fit.
    """
    path = os.fspath(checkpoint)
    if path.startswith(PREFIX):
        published_url(path)
        name = path.removeprefix(PREFIX)
        raise ValueError(
            f"{path} has no config in the file: use Predictor.from_config_file({name!r}, "
            f"weights={path!r})"
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no checkpoint {path}")
    stored = read_stored_metadata(path, allow_unsafe=allow_unsafe)
    config_file = Path(path).with_name(CONFIG_NAME)
    if stored.config is None and not config_file.is_file():
        raise FileNotFoundError(
            f"{path} has no config, neither in the file nor as {config_file}: pass one with "
            "Predictor.from_config_file(config_file, weights=...)"
        )
    if stored.config is None:
        return load_settings(
            str(config_file), opts, weights=path, device=device, allow_unsafe=allow_unsafe
        )
    cfg = parse_config(stored.config, f"the config in {path}", opts)
    cfg.MODEL.WEIGHTS = path
    return _finish(cfg, stored, None, device, opts)


def load_exported_settings(
    path: str | os.PathLike[str],
    opts: Sequence[str] = (),
    *,
    class_names: str | None = None,
    confidence_threshold: float | None = None,
    ignore_class_names: bool = False,
    opts_source: str = ARGUMENT,
) -> Settings:
    """Load the config and the classes in a file of `pointrend export`; MODEL.WEIGHTS names it.

    Args:
        path: The file.
        opts: As of :func:`load_settings`; keys of the model are part of the file.
        class_names, ignore_class_names, opts_source: As of :func:`load_settings`.
        confidence_threshold: Lowest score of an instance; by default the file's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or something does not fit.
    """
    description = read_description(path)
    cfg = build_run_config(description, path, opts, opts_source=opts_source)
    if confidence_threshold is not None:
        of_file = description.score_threshold
        if confidence_threshold < of_file and description.task == INSTANCES:
            logger.warning("%s finds no instances of scores below %g", path, of_file)
        of_config = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST  # not below the file's
        _set_confidence_threshold(cfg, max(confidence_threshold, of_config))
    given = None if class_names is None else class_fields(model_outputs(cfg), class_names)
    stored = StoredMetadata(run_config.class_fields(description), description.config)
    return _finish(cfg, stored, given, None, opts, by_position=ignore_class_names)


def load_folder_settings(
    folder: str | os.PathLike[str],
    opts: Sequence[str] = (),
    *,
    device: str | None = None,
    class_names: str | None = None,
    confidence_threshold: float | None = None,
    ignore_class_names: bool = False,
    opts_source: str = ARGUMENT,
) -> Settings:
    """Load the config and the classes in a folder that `Predictor.save_pretrained` has written.

    Args:
        folder: The folder.
        opts, device, class_names, confidence_threshold, ignore_class_names, opts_source: As of
            :func:`load_settings`.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        ValueError: If something does not fit.
    """
    model = read_model_folder(folder)
    cfg = build_folder_config(model, opts, opts_source=opts_source)
    if confidence_threshold is not None:
        _set_confidence_threshold(cfg, confidence_threshold)
    given = None if class_names is None else class_fields(model_outputs(cfg), class_names)
    keypoints = build_keypoint_metadata(cfg, read_metadata(model.weights))  # labels.json has none
    stored = StoredMetadata(model.classes | keypoints, model.config)
    return _finish(cfg, stored, given, device, opts, by_position=ignore_class_names)


def read_settings(args: argparse.Namespace) -> Settings:
    """Load the settings that a command line describes.

    Args:
        args: With the options of `options.build_parser`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If something does not fit.
    """
    threshold = args.confidence_threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--confidence-threshold: expected a number from 0 to 1, got {threshold}")
    exported = exported_file(args.model)
    check_backend(args.backend, exported)
    if exported is not None:
        load = functools.partial(load_exported_settings, exported)
    elif args.model is not None:
        load = functools.partial(load_folder_settings, find_folder(args.model))
    else:
        load = functools.partial(
            load_settings, args.config_file, allow_unsafe=args.allow_unsafe_checkpoint
        )
    settings = load(
        args.opts,
        class_names=args.classes,
        confidence_threshold=args.confidence_threshold,
        ignore_class_names=args.ignore_class_names,
        opts_source=COMMAND_LINE,
    )
    if "instances" in model_outputs(settings.cfg) and not settings.cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is False: expected a model that segments")
    return settings


def _finish(
    cfg: CfgNode,
    stored: StoredMetadata,
    given: Fields | None,
    device: str | None,
    opts: Sequence[str],
    *,
    by_position: bool = False,
) -> Settings:
    if device is not None:
        cfg.MODEL.DEVICE = device
    elif (
        cfg.MODEL.DEVICE.startswith("cuda")
        and not torch.cuda.is_available()
        and "MODEL.DEVICE" not in opts[::2]
    ):
        logger.warning("This machine has no CUDA device: the model runs on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    warn_if_trained_otherwise(cfg, stored.config, cfg.MODEL.WEIGHTS)
    metadata = build_metadata(cfg, stored.classes, given, by_position=by_position)
    return Settings(cfg, metadata)


def _set_confidence_threshold(cfg: CfgNode, threshold: float) -> None:
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = threshold


def _set_class_counts(cfg: CfgNode, is_set: Callable[[str], bool], fields: Fields) -> None:
    for count in classes.CLASS_COUNTS:
        if count.output in model_outputs(cfg) and count.names in fields and not is_set(count.key):
            cfg.merge_from_list([count.key, len(fields[count.names])])
