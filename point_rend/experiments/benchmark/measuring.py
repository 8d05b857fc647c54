"""Measurement of a case: time, peak memory and agreement of both sides."""

import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from point_rend.experiments.benchmark.case import Agreement, Case, Comparison, Run
from point_rend.experiments.benchmark.memory import available_memory, largest_batch, peak_memory
from point_rend.experiments.benchmark.settings import Settings
from point_rend.experiments.benchmark.timing import interleaved_seconds, share_of_time

MEMORY_MARGIN = 0.8  # share of the available memory that a run may take


@dataclass(frozen=True)
class Measurement:
    """Measurement of one side of a case.

    Attributes:
        seconds: Time of each round.
        peak_bytes: Peak memory, where it can be measured.
        head_share: Share of the time, from 0 to 1, that the head of a whole model takes.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None
    head_share: float | None = None

    @property
    def median(self) -> float:
        """Median time in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Record:
    """Measurements of a case.

    Attributes:
        name, parameters, baseline_name, baseline_bytes_estimated: Those of the case.
        ours: Our side.
        baseline: The baseline; None where it was not measured.
        agreement: Agreement of the outputs, where they are meant to be equal.
        largest_batches: Images that fit on a GPU, ours and the baseline's.
        baseline_failure: Reason why the baseline was not measured.
    """

    name: str
    parameters: Mapping[str, int]
    baseline_name: str
    ours: Measurement
    baseline: Measurement | None
    baseline_bytes_estimated: int
    agreement: Agreement | None
    largest_batches: tuple[int, int] | None = None
    baseline_failure: str | None = None


def autocast(settings: Settings) -> torch.autocast:
    """Return a context of the precision in the settings, to be entered once."""
    dtype = None if settings.amp == "none" else getattr(torch, settings.amp)
    kind = torch.device(settings.device).type
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)


def in_context(run: Run, settings: Settings, *, training: bool) -> Run:
    """Return a run with gradients in training, and otherwise without, under the set autocast.

    Each run enters autocast anew, as each batch of an evaluation does: inside one context, weights
    are converted only once.
    """

    def run_in_context() -> Any:
        precision = nullcontext() if training else autocast(settings)
        with torch.set_grad_enabled(training), precision:
            return run()

    return run_in_context


def measure(case: Case, comparison: Comparison, settings: Settings) -> Record:
    """Measure both sides of a case; the baseline only if it works and fits into memory."""
    ours, baseline = (
        in_context(run, settings, training=comparison.training)
        for run in (comparison.ours, comparison.baseline)
    )
    failure, agreement, is_broken = None, None, False
    if case.baseline_bytes > MEMORY_MARGIN * available_memory(settings.device):
        failure = f"does not fit (≈ {case.baseline_bytes / 2**30:.1f} GiB)"
    our_output = ours()
    if failure is None:
        try:
            baseline_output = baseline()
        except torch.OutOfMemoryError:
            failure = "does not fit"
        except RuntimeError as error:  # e.g. under autocast
            failure, is_broken = f"fails: {str(error).splitlines()[0]}", True
        else:
            if comparison.compare is not None:
                agreement = comparison.compare(our_output, baseline_output)
            del baseline_output
    del our_output
    runs = [ours] if failure else [ours, baseline]
    peaks = [peak_memory(run, settings.device) for run in runs]
    seconds = interleaved_seconds(runs, settings.repeat, settings.device)
    shares: list[float | None] = [None] * len(runs)
    if comparison.heads is not None:
        shares = [
            share_of_time(run, head, settings.repeat, settings.device)
            for run, head in zip(runs, comparison.heads, strict=False)
        ]
    batches = None
    is_on_gpu = torch.device(settings.device).type == "cuda"
    if comparison.batch_steps and is_on_gpu and not is_broken:
        our_step, baseline_step = comparison.batch_steps
        batches = (largest_batch(our_step), largest_batch(baseline_step))
    sides = [Measurement(*side) for side in zip(seconds, peaks, shares, strict=True)]
    return Record(
        name=case.name,
        parameters=case.parameters,
        baseline_name=case.baseline,
        ours=sides[0],
        baseline=None if failure else sides[1],
        baseline_bytes_estimated=case.baseline_bytes,
        agreement=agreement,
        largest_batches=batches,
        baseline_failure=failure,
    )
