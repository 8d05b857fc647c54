"""Table 4 of the paper: how the training points are chosen (see tools/ablate.py)."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from point_rend.config.tasks import model_outputs
from point_rend.engine.arguments import build_parser
from point_rend.engine.setup import read_config, setup
from point_rend.engine.signals import SIGNALS
from point_rend.experiments.ablation.results import (
    Figures,
    draw_panels,
    keep_cell,
    metric_of,
    origin_of,
    read_cell,
)
from point_rend.point_head import build_point_sampler

SEEDS = (1, 2, 3)
SIGNALLED = 128  # and the number of the signal: exit codes of what a signal has ended
TRAIN = (sys.executable, "-m", "point_rend", "train")
MASK_HEAD, SEMANTIC_HEAD = "PointRendMaskHead", "PointRendSemSegHead"  # that choose their points


class Setting(NamedTuple):
    """A way to choose the training points.

    Attributes:
        title: In the table.
        k: Candidates for each point.
        beta: Share of the points that are the most uncertain candidates.
        on_regular_grid: Whether they are a fixed grid instead.
    """

    title: str
    k: int = 1
    beta: float = 0.0
    on_regular_grid: bool = False

    @property
    def options(self) -> list[str]:
        """Keys and values that select it."""
        values = {
            "TRAIN_ON_REGULAR_GRID": self.on_regular_grid,
            "OVERSAMPLE_RATIO": self.k,
            "IMPORTANCE_SAMPLE_RATIO": self.beta,
        }
        return [word for key in values for word in (f"MODEL.POINT_HEAD.{key}", str(values[key]))]


SETTINGS = {
    "regular": Setting("regular grid", on_regular_grid=True),
    "uniform": Setting("uniform (k = 1, β = 0)"),
    "mild": Setting("mildly biased (k = 3, β = 0.75)", k=3, beta=0.75),
    "heavy": Setting("heavily biased (k = 10, β = 0.75)", k=10, beta=0.75),
}


class Cell(NamedTuple):
    """One training.

    Attributes:
        setting: Its name in `SETTINGS`.
        seed: Of the weights, the data's order and the points.
    """

    setting: str
    seed: int

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.setting}_seed{self.seed}"

    def words(self, options: Sequence[str], output: Path) -> list[str]:
        """Options of train_net.py, of a whole command, for this training."""
        own = ["SEED", str(self.seed), "OUTPUT_DIR", str(output / self.name)]
        return [*options, *SETTINGS[self.setting].options, *own]


def check_trainings(cells: Sequence[Cell], options: Sequence[str], output: Path) -> int:
    """Refuse before the first training what would stop or spoil one of them.

    Returns:
        The number of iterations.

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together.
    """
    parser = build_parser()
    args = parser.parse_args(cells[0].words(options, output))
    if args.eval_only or args.num_machines > 1:
        option = "--eval-only" if args.eval_only else "--num-machines"
        raise ValueError(f"{option}: expected options of a training on one machine")
    cfg = setup(args).cfg
    outputs = model_outputs(cfg)
    mask_head, semantic_head = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.SEM_SEG_HEAD
    of_boxes = mask_head.NAME == MASK_HEAD and mask_head.POINT_HEAD_ON
    of_images = semantic_head.NAME == SEMANTIC_HEAD and not semantic_head.POINT_HEAD.NAME
    if not (("instances" in outputs and of_boxes) or ("sem_seg" in outputs and of_images)):
        raise ValueError(
            f"{args.config_file}: expected a model that chooses its training points as "
            f"MODEL.POINT_HEAD says: with MODEL.ROI_MASK_HEAD.NAME {MASK_HEAD} and POINT_HEAD_ON "
            f"True, or with MODEL.SEM_SEG_HEAD.NAME {SEMANTIC_HEAD}"
        )
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: expected the data sets to measure on")
    for cell in cells:
        args = parser.parse_args(cell.words(options, output))
        build_point_sampler(read_config(args))
    return cfg.SOLVER.MAX_ITER


def run_training(options: Sequence[str]) -> None:
    """Run train_net.py; SIGTERM and SIGINT are passed on, since it saves before it ends.

    Raises:
        SystemExit: If it failed or was ended, with its exit code.
    """
    command = [*TRAIN, "--resume", *options]
    print(f"\n$ {shlex.join(command)}\n", flush=True)
    running: list[subprocess.Popen[bytes]] = []
    early: list[int] = []  # signals that came before it ran

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if running:
            running[0].send_signal(number)
        else:
            early.append(number)

    former = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        running.append(subprocess.Popen(command))
        for number in early:
            running[0].send_signal(number)
        code = running[0].wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    code = code if code >= 0 else SIGNALLED - code
    if code > SIGNALLED:
        print("The same command of ablate.py goes on where it was.", file=sys.stderr)
    if code:
        raise SystemExit(code)


def figures_after(training: Path, iterations: int) -> Figures:
    """Read what the evaluation at the end of a training has measured.

    Args:
        training: Its folder.
        iterations: That it has.

    Raises:
        ValueError: If it has not been evaluated at its end.
    """
    file = training / "metrics.json"
    last = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
    if last.pop("iteration") < iterations:
        raise ValueError(f"{file}: the last line is of no evaluation after {iterations} iterations")
    return last


def sampling(
    options: Sequence[str], output: Path, settings: Sequence[str], seeds: Sequence[int]
) -> dict[Cell, Figures]:
    """Train and evaluate a model with all settings and seeds; what is finished is kept.

    Args:
        options: Of train_net.py.
        output: Folder for the trainings and the figures.
        settings: Names in `SETTINGS`.
        seeds: Seeds.

    Returns:
        The figures of the trainings, by task and metric (with several data sets also by data set).

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together.
        SystemExit: If a training failed or was ended.
    """
    cells = [Cell(setting, seed) for seed in seeds for setting in settings]
    origin = origin_of(options, training=True)
    results = {cell: read_cell(output / f"{cell.name}.json", origin) for cell in cells}
    missing = [cell for cell in cells if results[cell] is None]
    if missing:
        iterations = check_trainings(missing, options, output)
    for cell in missing:
        keep_cell(output / f"{cell.name}.json", origin, None)
        run_training(cell.words(options, output))
        results[cell] = figures_after(output / cell.name, iterations)
        keep_cell(output / f"{cell.name}.json", origin, results[cell])
    return {cell: figures for cell, figures in results.items() if figures is not None}


def values_of(results: Mapping[Cell, Figures], setting: str, metric: str) -> list[float]:
    """Collect a metric over the seeds.

    Raises:
        ValueError: If it was not measured.
    """
    return [metric_of(results[cell], metric) for cell in results if cell.setting == setting]


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 of a single value, NaN where one is NaN."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def mean_and_spread(values: Sequence[float]) -> str:
    """Write the mean and the standard deviation of a sample, which one value has not."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {deviation(values):.2f}" if len(values) > 1 else mean


def format_sampling(
    results: Mapping[Cell, Figures], settings: Sequence[str], metrics: Sequence[str]
) -> str:
    """Lay out a Markdown table, a line for each setting: mean ± standard deviation over seeds."""
    lines = [
        f"| training points | {' | '.join(metrics)} | seeds |",
        "|---|" + "---:|" * (len(metrics) + 1),
    ]
    for setting in settings:
        columns = [values_of(results, setting, metric) for metric in metrics]
        cells = [SETTINGS[setting].title, *map(mean_and_spread, columns), str(len(columns[0]))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_sampling(
    results: Mapping[Cell, Figures], settings: Sequence[str], metrics: Sequence[str], file: Path
) -> None:
    """Draw each training as a dot, and the mean and standard deviation of a setting beside it."""

    def draw(axes: Any, metric: str) -> None:
        for place, setting in enumerate(settings):
            values = values_of(results, setting, metric)
            spread = deviation(values)
            axes.scatter([place] * len(values), values, s=16, alpha=0.6, color=f"C{place}")
            mean = np.mean(values)
            axes.errorbar(place + 0.2, mean, spread, fmt="o", capsize=4, color=f"C{place}")
        axes.set_xticks(range(len(settings)), settings)
        axes.set_xlim(-0.5, len(settings) - 0.3)

    draw_panels(metrics, draw, file, width=4.5)
