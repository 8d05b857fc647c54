"""Trainings that an ablation compares: settings times seeds, resumable, as a table and a plot."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode

from point_rend.engine.arguments import build_parser
from point_rend.engine.setup import read_config, setup
from point_rend.experiments.ablation.results import (
    Metrics,
    check_metrics,
    load_metrics,
    metric_of,
    provenance_of,
    save_metrics,
)
from point_rend.experiments.ablation.settings import as_options
from point_rend.experiments.plots import plot_panels
from point_rend.utils.children import run_child
from point_rend.utils.errors import DIVERGED, signal_exit_code
from point_rend.utils.json_files import parse_json
from point_rend.utils.locks import unlock_folders
from point_rend.utils.program import program

TRAIN = (sys.executable, "-m", "point_rend", "train")


class TrainingRun(NamedTuple):
    """A training with one setting and one seed.

    Attributes:
        setting: Name of the setting.
        seed: Seed of the weights, the order of the data and the points.
        iterations: Number of iterations; None for that of the config.
    """

    setting: str
    seed: int
    iterations: int | None = None

    @property
    def name(self) -> str:
        """Name of its files."""
        length = "" if self.iterations is None else f"_{self.iterations}it"
        return f"{self.setting}{length}_seed{self.seed}"

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
    lengths: Sequence[int] = (),
    metrics: Sequence[str] = (),
    check: Callable[[CfgNode], None] | None = None,
) -> Results:
    """Train and evaluate a model with all settings and seeds, except for the finished runs.

    Commands for different settings, seeds or lengths can share a folder at the same time.

    Args:
        shared: By setting, the options of `pointrend train` on which its metrics depend.
        selecting: By setting, the keys and values that follow them.
        output: Folder for the trainings and their metrics.
        seeds: Seeds.
        lengths: Numbers of iterations; by default the one of the config.
        metrics: Names of metrics that the evaluation has to give.
        check: Refuses the config of a setting whose training would be meaningless.

    Returns:
        The metrics of the runs, by task and metric (with several data sets also by data set).

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together; this
            is checked for all settings before the first training.
        SystemExit: If a training failed or was interrupted; if one diverged, after the others.
    """
    runs = [
        TrainingRun(setting, seed, length)
        for seed in seeds
        for length in lengths or (None,)
        for setting in shared
    ]
    files = {run: output / f"{run.name}.json" for run in runs}
    of_settings = {
        setting: provenance_of([*options, *selecting[setting]], training=True)
        for setting, options in shared.items()
    }
    _warn_of_replaced(shared, selecting)
    provenances = {}
    for run in runs:
        former = of_settings[run.setting]
        schedule = scaled_schedule(former.options, run.iterations)
        provenances[run] = former._replace(options=[*former.options, *schedule])
    results = {run: load_metrics(files[run], provenances[run]) for run in runs}
    missing = [run for run in runs if results[run] is None]
    commands = {run: run.command_line(provenances[run].options, output) for run in missing}
    last: dict[tuple[str, int | None], int] = {}  # iteration, by setting and length
    for run in missing:
        if (run.setting, run.iterations) not in last:
            cfg = check_training(commands[run])
            check_metrics(cfg, metrics)
            if check is not None:
                check(cfg)
            last[run.setting, run.iterations] = cfg.SOLVER.MAX_ITER
    diverged = []
    for run in missing:
        save_metrics(files[run], provenances[run], None)
        try:
            train(commands[run])
        except SystemExit as ended:
            if ended.code != DIVERGED:
                print(f"{run.name} has not ended; results of others are kept.", file=sys.stderr)
                raise
            diverged.append(run.name)
            continue
        results[run] = final_metrics(output / run.name, last[run.setting, run.iterations])
        save_metrics(files[run], provenances[run], results[run])
    if diverged:
        print(
            f"{program()}: {', '.join(diverged)} diverged; the results of all others are kept; "
            "leave these out to see a table",
            file=sys.stderr,
        )
        raise SystemExit(DIVERGED)
    return {run: found for run, found in results.items() if found is not None}


def _warn_of_replaced(
    shared: Mapping[str, Sequence[str]], selecting: Mapping[str, Sequence[str]]
) -> None:
    """Name the keys among the options whose values an ablation replaces."""
    replaced: dict[str, list[str]] = {}
    for setting, options in shared.items():
        given = build_parser().parse_args(options).opts[::2]
        for key in ("SEED", "OUTPUT_DIR", *selecting[setting][::2]):
            if key in given:
                replaced.setdefault(key, []).append(setting)
    for key, settings in replaced.items():
        where = "" if len(settings) == len(shared) else f" for {', '.join(settings)}"
        message = f"{key} among the options has no effect{where}: the ablation sets it"
        print(f"{program()}: {message}", file=sys.stderr)


def scaled_schedule(options: Sequence[str], iterations: int | None) -> list[str]:
    """Return the keys and values that give the schedule of a training another length.

    SOLVER.STEPS keep their shares of the training, without those that rounding moves to its start
    or its end, or onto another; all else, such as the warm-up, stays.

    Args:
        options: Options of `pointrend train`.
        iterations: Length; None for that of the config, which needs no key.
    """
    if iterations is None:
        return []
    solver = read_config(build_parser().parse_args(options)).SOLVER
    scaled = (round(step * iterations / max(solver.MAX_ITER, 1)) for step in solver.STEPS)
    steps = tuple(dict.fromkeys(step for step in scaled if step not in (0, iterations)))
    return as_options({"SOLVER.MAX_ITER": iterations, "SOLVER.STEPS": steps})


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


def values_of(
    results: Mapping[TrainingRun, Metrics],
    setting: str,
    metric: str,
    iterations: int | None = None,
) -> list[float]:
    """Return a metric of a setting, trained for some iterations, for each seed.

    Raises:
        ValueError: If it was not measured.
    """
    chosen = [x for x in results if (x.setting, x.iterations) == (setting, iterations)]
    return [metric_of(results[run], metric) for run in chosen]


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
    """Lay out a Markdown table of the mean ± standard deviation over seeds.

    Args:
        results: Metrics of the runs.
        titles: Settings to show, with their titles: a line for each of them and each length.
        metrics: Metrics to show.
        heading: Heading of the first column.
    """
    lengths = list(dict.fromkeys(run.iterations for run in results))
    columns = [*metrics, "seeds"] if lengths == [None] else ["iterations", *metrics, "seeds"]
    lines = [f"| {heading} | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for length in lengths:
        for setting, title in titles.items():
            measured = [values_of(results, setting, metric, length) for metric in metrics]
            cells = [title, *map(mean_and_deviation, measured), str(len(measured[0]))]
            if length is not None:
                cells.insert(1, str(length))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_trainings(
    results: Mapping[TrainingRun, Metrics],
    settings: Sequence[str],
    metrics: Sequence[str],
    file: Path,
) -> None:
    """Plot the trainings as dots, with the mean and the standard deviation over seeds.

    Of trainings of several lengths, a line for each setting joins the means over the iterations.
    """
    lengths = [x for x in dict.fromkeys(run.iterations for run in results) if x is not None]
    spread = 1.02  # factor by which the settings stand apart

    def plot_curves(axes: Any, metric: str) -> None:
        for number, setting in enumerate(settings):
            color, shift = f"C{number}", spread ** (number - (len(settings) - 1) / 2)
            samples = [values_of(results, setting, metric, length) for length in lengths]
            places = [length * shift for length in lengths]
            for place, values in zip(places, samples, strict=True):
                axes.scatter([place] * len(values), values, s=12, alpha=0.35, color=color)
            axes.errorbar(
                places,
                [np.mean(values) for values in samples],
                [sample_deviation(values) for values in samples],
                fmt="o-",
                markersize=4,
                capsize=4,
                color=color,
                label=setting,
            )
        axes.set_xscale("log")
        axes.set_xticks(lengths, map(str, lengths))
        axes.set_xticks([], minor=True)
        axes.set_xlabel("iterations")
        axes.legend()

    def plot_dots(axes: Any, metric: str) -> None:
        for x, setting in enumerate(settings):
            values = values_of(results, setting, metric)
            axes.scatter([x] * len(values), values, s=16, alpha=0.6, color=f"C{x}")
            mean, deviation = np.mean(values), sample_deviation(values)
            axes.errorbar(x + 0.2, mean, deviation, fmt="o", capsize=4, color=f"C{x}")
        axes.set_xticks(range(len(settings)), settings)
        axes.set_xlim(-0.5, len(settings) - 0.3)
        if sum(map(len, settings)) > 40:
            axes.tick_params(axis="x", labelrotation=30)

    if lengths:
        plot_panels(metrics, plot_curves, file)
    else:
        plot_panels(metrics, plot_dots, file, width=max(4.5, 0.9 * len(settings)))
