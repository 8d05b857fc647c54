"""Several configs trained on the same data, with several seeds.

If a config keeps averaged weights, they make a line of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from point_rend.config.checks import AVERAGED_RESULTS
from point_rend.engine.arguments import build_parser
from point_rend.experiments.ablation.results import Metrics
from point_rend.experiments.ablation.trainings import Results, TrainingRun, train_settings

AVERAGED = f"{AVERAGED_RESULTS}/"  # prefix of the metrics of averaged weights


def recipe_ablation(
    options: Sequence[str],
    output: Path,
    recipes: Sequence[str],
    seeds: Sequence[int],
    *,
    lengths: Sequence[int] = (),
    metrics: Sequence[str] = (),
) -> Results:
    """Train and evaluate the models of several configs, except for the finished runs.

    Args:
        options: Options of `pointrend train`, without a config file.
        output: Folder for the trainings and their metrics.
        recipes: Config files.
        seeds: Seeds.
        lengths, metrics: As of :func:`train_settings`.

    Returns:
        The metrics of the runs, whose settings are the names of the files without folder and
        ending.

    Raises:
        FileNotFoundError, ValueError, SystemExit: As :func:`train_settings`; ValueError also if two
            files have the same name, the options have a config file of their own, or a metric is
            one of averaged weights.
    """
    if config_file := build_parser().parse_args(options).config_file:
        raise ValueError(f"--config-file {config_file}: expected config files in --recipes alone")
    for metric in metrics:
        if metric.startswith(AVERAGED):
            raise ValueError(
                f"--metric {metric}: expected {metric.removeprefix(AVERAGED)}, since averaged "
                "weights have lines of their own"
            )
    shared = {}
    for recipe in recipes:
        name = Path(recipe).stem
        if name in shared:
            raise ValueError(
                f"--recipes has two files of the name {name}: expected names that differ"
            )
        shared[name] = ["--config-file", recipe, *options]
    selecting = dict.fromkeys(shared, ())
    return train_settings(shared, selecting, output, seeds, lengths=lengths, metrics=metrics)


def with_averaged_weights(results: Mapping[TrainingRun, Metrics]) -> Results:
    """Return results with the metrics of averaged weights as runs of their own.

    Args:
        results: Metrics of the runs; those that start with ``ema/`` belong to averaged weights.

    Returns:
        The runs in their order, each followed by "<setting>, averaged" if it has such metrics.
    """
    shown = {}
    for run, metrics in results.items():
        shown[run] = {x: value for x, value in metrics.items() if not x.startswith(AVERAGED)}
        averaged = {
            x.removeprefix(AVERAGED): value
            for x, value in metrics.items()
            if x.startswith(AVERAGED)
        }
        if averaged:
            shown[run._replace(setting=f"{run.setting}, averaged")] = averaged
    return shown
