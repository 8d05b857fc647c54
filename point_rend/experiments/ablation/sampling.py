"""Table 4 of the paper: the choice of the training points, with several seeds."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from point_rend.config.tasks import model_outputs
from point_rend.experiments.ablation.settings import SAMPLING_SETTINGS
from point_rend.experiments.ablation.trainings import Results, train_settings
from point_rend.point_head import build_point_sampler

MASK_HEAD, SEMANTIC_HEAD = "PointRendMaskHead", "PointRendSemSegHead"  # that sample their points


def sampling_ablation(
    options: Sequence[str],
    output: Path,
    settings: Sequence[str],
    seeds: Sequence[int],
    *,
    lengths: Sequence[int] = (),
    metrics: Sequence[str] = (),
) -> Results:
    """Train and evaluate a model with all settings and seeds, except for the finished runs.

    Args:
        options: Options of `pointrend train`.
        output: Folder for the trainings and their metrics.
        settings: Keys of ``SAMPLING_SETTINGS``.
        seeds: Seeds.
        lengths, metrics: As of :func:`train_settings`.

    Returns:
        The metrics of the runs.

    Raises:
        FileNotFoundError, ValueError, SystemExit: As :func:`train_settings`.
    """
    selecting = {setting: SAMPLING_SETTINGS[setting].options for setting in settings}
    shared = dict.fromkeys(settings, options)
    return train_settings(
        shared,
        selecting,
        output,
        seeds,
        lengths=lengths,
        metrics=metrics,
        check=check_sampling,
    )


def check_sampling(cfg: CfgNode) -> None:
    """Refuse a model on which the choice of the training points has no effect.

    Args:
        cfg: The config of a training.

    Raises:
        ValueError: If no head samples its points by MODEL.POINT_HEAD, or not in this way.
    """
    outputs = model_outputs(cfg)
    mask_head, semantic_head = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.SEM_SEG_HEAD
    samples_in_boxes = mask_head.NAME == MASK_HEAD and mask_head.POINT_HEAD_ON
    samples_in_images = semantic_head.NAME == SEMANTIC_HEAD and not semantic_head.POINT_HEAD.NAME
    if not (
        ("instances" in outputs and samples_in_boxes)
        or ("sem_seg" in outputs and samples_in_images)
    ):
        raise ValueError(
            "expected a model that samples its training points by MODEL.POINT_HEAD: with "
            f"MODEL.ROI_MASK_HEAD.NAME {MASK_HEAD} and POINT_HEAD_ON True, or with "
            f"MODEL.SEM_SEG_HEAD.NAME {SEMANTIC_HEAD}"
        )
    build_point_sampler(cfg)
