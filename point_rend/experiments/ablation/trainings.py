"""Trainings that an ablation compares: settings times seeds, resumable, as a table and a plot."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode

from point_rend.engine.arguments import build_parser
from point_rend.engine.setup import setup
from point_rend.experiments.ablation.results import (
    Metrics,
    load_metrics,
    metric_of,
    provenance_of,
    save_metrics,
)
from point_rend.experiments.plots import plot_panels
from point_rend.utils.children import run_child
from point_rend.utils.errors import signal_exit_code
from point_rend.utils.json_files import parse_json
from point_rend.utils.locks import unlock_folders

TRAIN = (sys.executable, "-m", "point_rend", "train")


class TrainingRun(NamedTuple):
    """A training with one setting and one seed.

    Attributes:
        setting: Name of the setting.
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
            options: Options of `pointrend train` that select the setting.
            output: Folder of all trainings.
        """
        return [*options, "SEED", str(self.seed), "OUTPUT_DIR", str(output / self.name)]


Results = dict[TrainingRun, Metrics]


def train_settings(
    shared: Mapping[str, Sequence[str]],
    selecting: Mapping[str, Sequence[str]],
    output: Path,
    seeds: Sequence[int],
    *,
    check: Callable[[CfgNode], None] | None = None,
) -> Results:
    """Train and evaluate a model with all settings and seeds, except for the finished runs.

    Args:
        shared: By setting, the options of `pointrend train` on which its metrics depend.
        selecting: By setting, the keys and values that follow them.
        output: Folder for the trainings and their metrics.
        seeds: Seeds.
        check: Refuses the config of a setting whose training would be meaningless.

    Returns:
        The metrics of the runs, by task and metric (with several data sets also by data set).

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together; this
            is checked for all settings before the first training.
        SystemExit: If a training failed or was interrupted.
    """
    runs = [TrainingRun(setting, seed) for seed in seeds for setting in shared]
    files = {run: output / f"{run.name}.json" for run in runs}
    provenances = {x: provenance_of(options, training=True) for x, options in shared.items()}
    results = {run: load_metrics(files[run], provenances[run.setting]) for run in runs}
    missing = [run for run in runs if results[run] is None]
    commands = {
        run: run.command_line([*shared[run.setting], *selecting[run.setting]], output)
        for run in missing
    }
    iterations = {}
    for run in missing:
        if run.setting not in iterations:
            cfg = check_training(commands[run])
            if check is not None:
                check(cfg)
            iterations[run.setting] = cfg.SOLVER.MAX_ITER
    for run in missing:
        provenance = provenances[run.setting]
        save_metrics(files[run], provenance, None)
        train(commands[run])
        results[run] = final_metrics(output / run.name, iterations[run.setting])
        save_metrics(files[run], provenance, results[run])
    return {run: metrics for run, metrics in results.items() if metrics is not None}


def check_training(command: Sequence[str]) -> CfgNode:
    """Check before the first training that this one would not fail at its start.

    Returns:
        Its config.

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together.
    """
    args = build_parser().parse_args(command)
    if args.eval_only or args.num_machines > 1:
        option = "--eval-only" if args.eval_only else "--num-machines"
        raise ValueError(f"{option}: expected options of a training on one machine")
    args.resume = True  # as the training does
    cfg = setup(args).cfg
    unlock_folders()  # for the training
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: expected data sets for the evaluation")
    return cfg


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


def format_trainings(
    results: Mapping[TrainingRun, Metrics],
    titles: Mapping[str, str],
    metrics: Sequence[str],
    *,
    heading: str,
) -> str:
    """Lay out a Markdown table, a line for each setting: mean ± standard deviation over seeds.

    Args:
        results: Metrics of the runs.
        titles: Settings to show, with their titles.
        metrics: Metrics to show.
        heading: Heading of the first column.
    """
    lines = [
        f"| {heading} | {' | '.join(metrics)} | seeds |",
        "|---|" + "---:|" * (len(metrics) + 1),
    ]
    for setting, title in titles.items():
        columns = [values_of(results, setting, metric) for metric in metrics]
        numbers = [*map(mean_and_deviation, columns), str(len(columns[0]))]
        lines.append(f"| {' | '.join([title, *numbers])} |")
    return "\n".join(lines)


def plot_trainings(
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
        if sum(map(len, settings)) > 40:
            axes.tick_params(axis="x", labelrotation=30)

    plot_panels(metrics, plot, file, width=max(4.5, 0.9 * len(settings)))
