"""Runs benchmark cases and reports what they measured."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from point_rend.engine.preflight import check_device
from point_rend.experiments.benchmark.case import Case
from point_rend.experiments.benchmark.instance_cases import (
    POINTREND,
    conv_cases,
    implicit_cases,
    instance_config,
    masks_cases,
)
from point_rend.experiments.benchmark.load import busy_processes
from point_rend.experiments.benchmark.measuring import Record, measure
from point_rend.experiments.benchmark.model_cases import model_cases
from point_rend.experiments.benchmark.pasting_cases import pasting_cases
from point_rend.experiments.benchmark.report import (
    describe_machine,
    format_json,
    format_markdown,
    save_report,
    table_row,
)
from point_rend.experiments.benchmark.residual_cases import residual_cases
from point_rend.experiments.benchmark.semantic_cases import semantic_cases
from point_rend.experiments.benchmark.settings import OVERVIEW, Settings
from point_rend.experiments.benchmark.training_cases import train_cases
from point_rend.utils.errors import user_errors

CASES: dict[str, Callable[[Settings], list[Case]]] = {
    "masks": masks_cases,
    "implicit": implicit_cases,
    "conv": conv_cases,
    "pasting": pasting_cases,
    "semantic": semantic_cases,
    "residual": residual_cases,
    "model": model_cases,
    "train": train_cases,
}


def make_cases(names: Sequence[str], settings: Settings) -> list[Case]:
    """Return the cases of several names, after a check of the settings.

    Args:
        names: Keys of ``CASES``, or ``OVERVIEW``.
        settings: The settings.

    Raises:
        ValueError: If this machine or a config does not support the settings, or if they have
            boxes or classes for the overview.
    """
    check_device(settings.device, option="--device")
    if torch.device(settings.device).type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {settings.device}: expected cpu, cuda or cuda:N")
    if OVERVIEW in names and (settings.boxes or settings.classes):
        raise ValueError(f"--boxes and --classes: expected none, since {OVERVIEW} has its own")
    instance_config(POINTREND, 1, settings.opts)
    makers = {**CASES, OVERVIEW: overview_cases}
    return [case for name in names for case in makers[name](settings)]


def overview_cases(settings: Settings) -> list[Case]:
    """Return a choice of cases of all kinds, which take minutes; only the slowest are left out."""
    frequent = replace(settings, boxes=(20, 100), classes=(80,))
    crowded = replace(settings, boxes=(300,), classes=(1203,))  # an image of LVIS
    *_, pasting = pasting_cases(settings)
    semantic_head, *_ = semantic_cases(settings)
    *_, semantic_model = model_cases(settings)
    labels, roi_heads_step, _ = train_cases(settings)
    residual, *_ = residual_cases(settings)
    return [
        *masks_cases(frequent),
        *masks_cases(crowded),
        *conv_cases(settings),
        *implicit_cases(settings),
        residual,
        semantic_head,
        semantic_model,
        pasting,
        labels,
        roi_heads_step,
    ]


def run_cases(
    cases: Sequence[Case], settings: Settings, folder: Path | None, stem: str
) -> list[Record]:
    """Measure cases, print a line for each and the table at the end, and save a report.

    The cases that were measured are reported even if a later one fails.

    Args:
        cases: The cases.
        settings: The settings.
        folder: Folder of the report, if one is to be saved.
        stem: Name of its files, without suffix.

    Returns:
        The measurements.

    Raises:
        SystemExit: With code 2 if an option changes the weights of our side.
    """
    records: list[Record] = []
    try:
        for case in cases:
            torch.manual_seed(settings.seed)
            with user_errors():  # options that change the weights of our side
                comparison = case.build(settings)
            with busy_processes(settings.busy_processes):
                records.append(measure(case, comparison, settings))
            del comparison
            print(" | ".join(table_row(records[-1])), file=sys.stderr, flush=True)
    finally:
        if records:
            machine = describe_machine(settings.device)
            table = format_markdown(records, machine, settings)
            print(f"\n{table}")
            if folder:
                data = format_json(records, machine, settings)
                save_report(folder, stem, records, table, data)
    return records
