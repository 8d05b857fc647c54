"""Table 4 of the paper: the choice of the training points, with several seeds."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from point_rend.config.tasks import model_outputs
from point_rend.engine.arguments import build_parser
from point_rend.engine.setup import read_config, setup
from point_rend.experiments.ablation.results import (
    Metrics,
    load_metrics,
    metric_of,
    plot_panels,
    provenance_of,
    save_metrics,
)
from point_rend.experiments.ablation.settings import SAMPLING_SETTINGS
from point_rend.point_head import build_point_sampler
from point_rend.utils.children import run_child
from point_rend.utils.errors import signal_exit_code
from point_rend.utils.json_files import parse_json
from point_rend.utils.locks import unlock_folders

TRAIN = (sys.executable, "-m", "point_rend", "train")
MASK_HEAD, SEMANTIC_HEAD = "PointRendMaskHead", "PointRendSemSegHead"  # that sample their points


class TrainingRun(NamedTuple):
    """A training with one setting and one seed.

    Attributes:
        setting: Key of ``SAMPLING_SETTINGS``.
        seed: Seed of the weights, the order of the data and the points.
    """

    setting: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.setting}_seed{self.seed}"

    def command_line(self, options: Sequence[str], output: Path) -> list[str]:
        """Return the options of this training.

        Args:
            options: Options of `pointrend train` that all trainings share.
            output: Folder of all trainings.
        """
        own = ["SEED", str(self.seed), "OUTPUT_DIR", str(output / self.name)]
        return [*options, *SAMPLING_SETTINGS[self.setting].options, *own]


def sampling_ablation(
    options: Sequence[str], output: Path, settings: Sequence[str], seeds: Sequence[int]
) -> dict[TrainingRun, Metrics]:
    """Train and evaluate a model with all settings and seeds, except for the finished runs.

    Args:
        options: Options of `pointrend train`.
        output: Folder for the trainings and their metrics.
        settings: Keys of ``SAMPLING_SETTINGS``.
        seeds: Seeds.

    Returns:
        The metrics of the runs, by task and metric (with several data sets also by data set).

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together.
        SystemExit: If a training failed or was interrupted.
    """
    runs = [TrainingRun(setting, seed) for seed in seeds for setting in settings]
    files = {run: output / f"{run.name}.json" for run in runs}
    provenance = provenance_of(options, training=True)
    results = {run: load_metrics(files[run], provenance) for run in runs}
    missing = [run for run in runs if results[run] is None]
    if missing:
        iterations = check_trainings(missing, options, output)
    for run in missing:
        save_metrics(files[run], provenance, None)
        train(run.command_line(options, output))
        results[run] = final_metrics(output / run.name, iterations)
        save_metrics(files[run], provenance, results[run])
    return {run: metrics for run, metrics in results.items() if metrics is not None}


def check_trainings(runs: Sequence[TrainingRun], options: Sequence[str], output: Path) -> int:
    """Check before the first training that none of them would fail or be meaningless.

    Returns:
        The number of iterations.

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together.
    """
    parser = build_parser()
    args = parser.parse_args(runs[0].command_line(options, output))
    if args.eval_only or args.num_machines > 1:
        option = "--eval-only" if args.eval_only else "--num-machines"
        raise ValueError(f"{option}: expected options of a training on one machine")
    args.resume = True  # as the training does
    cfg = setup(args).cfg
    unlock_folders()  # for the training
    outputs = model_outputs(cfg)
    mask_head, semantic_head = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.SEM_SEG_HEAD
    samples_in_boxes = mask_head.NAME == MASK_HEAD and mask_head.POINT_HEAD_ON
    samples_in_images = semantic_head.NAME == SEMANTIC_HEAD and not semantic_head.POINT_HEAD.NAME
    if not (
        ("instances" in outputs and samples_in_boxes)
        or ("sem_seg" in outputs and samples_in_images)
    ):
        raise ValueError(
            f"{args.config_file}: expected a model that samples its training points by "
            f"MODEL.POINT_HEAD: with MODEL.ROI_MASK_HEAD.NAME {MASK_HEAD} and POINT_HEAD_ON "
            f"True, or with MODEL.SEM_SEG_HEAD.NAME {SEMANTIC_HEAD}"
        )
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: expected data sets for the evaluation")
    for run in runs:
        args = parser.parse_args(run.command_line(options, output))
        build_point_sampler(read_config(args))
    return cfg.SOLVER.MAX_ITER


def train(options: Sequence[str]) -> None:
    """Run a training in a process of its own.

    SIGTERM and SIGINT are passed on to it, since it saves a checkpoint before it ends.

    Raises:
        SystemExit: If it failed or was interrupted, with its exit code.
    """
    command = [*TRAIN, "--resume", *options]
    print(f"\n$ {shlex.join(command)}\n", flush=True)
    code = run_child(command)
    if code > signal_exit_code(0):
        print("Run the same command again to continue.", file=sys.stderr)
    if code:
        raise SystemExit(code)


def final_metrics(training: Path, iterations: int) -> Metrics:
    """Read the metrics of the evaluation at the end of a training.

    Args:
        training: Folder of the training.
        iterations: Its number of iterations.

    Raises:
        ValueError: If it was not evaluated at its end.
    """
    file = training / "metrics.json"
    lines = file.read_bytes().splitlines()
    last = parse_json(lines[-1], f"{file}, last line,") if lines else {}
    iteration = last.pop("iteration", None) if isinstance(last, dict) else None
    if not isinstance(iteration, int) or iteration < iterations:
        raise ValueError(
            f"{file}: the last line is not an evaluation after {iterations} iterations"
        )
    return last


def values_of(results: Mapping[TrainingRun, Metrics], setting: str, metric: str) -> list[float]:
    """Return a metric of a setting for each seed.

    Raises:
        ValueError: If it was not measured.
    """
    return [metric_of(results[run], metric) for run in results if run.setting == setting]


def sample_deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 for a single value, NaN if one is NaN."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def mean_and_deviation(values: Sequence[float]) -> str:
    """Write the mean and the standard deviation of a sample; of a single value, the mean only."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {sample_deviation(values):.2f}" if len(values) > 1 else mean


def format_sampling(
    results: Mapping[TrainingRun, Metrics], settings: Sequence[str], metrics: Sequence[str]
) -> str:
    """Lay out a Markdown table, a line for each setting: mean ± standard deviation over seeds."""
    lines = [
        f"| training points | {' | '.join(metrics)} | seeds |",
        "|---|" + "---:|" * (len(metrics) + 1),
    ]
    for setting in settings:
        columns = [values_of(results, setting, metric) for metric in metrics]
        numbers = [*map(mean_and_deviation, columns), str(len(columns[0]))]
        lines.append(f"| {' | '.join([SAMPLING_SETTINGS[setting].title, *numbers])} |")
    return "\n".join(lines)


def plot_sampling(
    results: Mapping[TrainingRun, Metrics],
    settings: Sequence[str],
    metrics: Sequence[str],
    file: Path,
) -> None:
    """Plot each training as a dot, and next to it the mean and deviation of its setting."""

    def plot(axes: Any, metric: str) -> None:
        for x, setting in enumerate(settings):
            values = values_of(results, setting, metric)
            axes.scatter([x] * len(values), values, s=16, alpha=0.6, color=f"C{x}")
            mean, deviation = np.mean(values), sample_deviation(values)
            axes.errorbar(x + 0.2, mean, deviation, fmt="o", capsize=4, color=f"C{x}")
        axes.set_xticks(range(len(settings)), settings)
        axes.set_xlim(-0.5, len(settings) - 0.3)

    plot_panels(metrics, plot, file, width=4.5)
