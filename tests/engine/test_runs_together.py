"""Trainings and evaluations in two processes on the CPU, started in different ways."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from point_rend.cli import train
from point_rend.engine import run
from tests.engine.killing import LAUNCHERS, start_two
from tests.engine.test_train_net_semantic import HEADS, SEMANTIC
from tests.runs import metrics, set_up
from tests.tiny_datasets import (
    POINTREND,
    REPOSITORY,
    TINY_MODEL,
    CocoSet,
    write_coco,
)
from tests.tiny_semantic import write_sem_seg

pytestmark = pytest.mark.usefixtures("_restored")


@pytest.fixture
def tiny(tmp_path: Path) -> CocoSet:
    return write_coco(tmp_path / "tiny", images=5)


def command(written: CocoSet, output: Path, *more: str) -> list[str]:
    flags = ["--config-file", POINTREND, "--register-coco", "tiny", *written]
    while more and more[0].startswith("--"):
        flags, more = [*flags, more[0]], more[1:]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    return [*flags, *TINY_MODEL, *names, "OUTPUT_DIR", str(output), *more]


def run_two(
    launcher: str, argv: list[str], folder: Path, *, forked: bool = False
) -> list[tuple[int, str]]:
    """Run two ranks; return their exit codes and outputs."""
    runs = start_two(launcher, argv, folder, forked=forked)
    return [(run.end(), run.output()) for run in runs]


def test_evaluation_in_two_processes_gives_the_results_of_one(
    tiny: CocoSet, tmp_path: Path
) -> None:
    one, two, weights = (tmp_path / name for name in ("one", "two", "model.pth"))
    argv = ["--eval-only", "MODEL.WEIGHTS", str(weights)]
    weights.touch()  # checked before the weights are written
    job = set_up(command(tiny, one, *argv))
    torch.manual_seed(0)
    torch.save({"model": build_model(job.cfg).state_dict()}, weights)
    results = run.run(*job)
    train.main(command(tiny, two, "--num-gpus=2", *argv))

    files = [folder / "inference/tiny/coco_instances_results.json" for folder in (one, two)]
    assert len(files[0].read_text()) > 1000
    assert files[0].read_text() == files[1].read_text()
    log = (two / "log.txt").read_text()
    assert "World size: 2" in log
    logged = [line.rpartition("copypaste: ")[2] for line in log.splitlines() if "copypaste" in line]
    for task, line in zip(("bbox", "segm"), (logged[2], logged[5]), strict=True):
        expected = [results[task][name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        assert line == ",".join(f"{value:.4f}" for value in expected)


@pytest.mark.slow
def test_label_maps_are_evaluated_in_two_processes_as_in_one(tmp_path: Path) -> None:
    config, weights = tmp_path / "semantic.yaml", tmp_path / "model.pth"
    config.write_text(yaml.safe_dump({"_BASE_": POINTREND, "MODEL": SEMANTIC}))
    argv = ["--config-file", str(config), "--eval-only", "--register-sem-seg", "tiny"]
    argv += write_sem_seg(tmp_path / "tiny", scales=(1, 1, 1.5))
    options = [*TINY_MODEL, *HEADS["PointRendSemSegHead"], "MODEL.WEIGHTS", str(weights)]
    options += ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)", "OUTPUT_DIR"]
    weights.touch()
    job = set_up([*argv, *options, str(tmp_path / "one")])
    torch.save({"model": build_model(job.cfg).state_dict()}, weights)
    results = run.run(*job)["sem_seg"]
    assert results["mIoU"] > 0
    train.main([*argv, "--num-gpus=2", *options, str(tmp_path / "two")])
    log = (tmp_path / "two" / "log.txt").read_text()
    values = [results[name] for name in ("mIoU", "fwIoU", "mACC", "pACC")]
    assert f"copypaste: {','.join(f'{value:.4f}' for value in values)}" in log


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_processes_of_a_launcher_train_and_evaluate_together(
    launcher: str, tiny: CocoSet, tmp_path: Path
) -> None:
    ended = run_two(launcher, command(tiny, tmp_path / "output"), tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    training, evaluation = metrics(tmp_path / "output")
    assert training["iteration"] == 1
    assert "segm/AP" in evaluation
    assert (tmp_path / "output" / "model_final.pth").is_file()


# Divergence

DIVERGING = ["SOLVER.BASE_LR", "1e20", "SOLVER.WARMUP_ITERS", "0", "SOLVER.MAX_ITER", "18"]


def check_divergence(output: Path, printed: str, num_ranks: int, *, batches: int = 1) -> None:
    """Check the only message, the log and the checkpoint of a training that diverged."""
    errors = re.findall(r"train_net\.py: error: .*", printed)
    assert len(errors) == 1
    pattern = r"(?:the loss|the gradient of .*) is infinite or NaN in iteration (\d)"
    match = re.search(pattern, errors[0])
    assert match is not None
    iteration = int(match[1])
    assert iteration > 0
    log = (output / "log.txt").read_text()
    for rank in range(num_ranks):
        assert re.search(rf"rank {rank}: .*; images \d \(\S*\.png\)", log) is not None

    last = (output / "last_checkpoint").read_text()
    checkpoint = torch.load(output / last, weights_only=True)
    assert checkpoint["iteration"] == iteration - 1
    assert checkpoint["trainer"]["data"]["batches"] == iteration * batches  # without the diverged
    assert all(torch.isfinite(torch.as_tensor(x)).all() for x in checkpoint["model"].values())


@pytest.mark.parametrize("batches", [1, 2])
def test_a_training_that_diverges_ends_with_its_own_exit_code_one_message_and_finite_weights(
    batches: int, tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*DIVERGING, "SOLVER.ACCUMULATION_STEPS", str(batches)]
    with pytest.raises(SystemExit) as ended:
        train.main(command(tiny, tmp_path / "output", *more))
    assert ended.value.code == 3
    check_divergence(tmp_path / "output", capsys.readouterr().err, 1, batches=batches)


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str]]]:
    """Return the output folder of two ranks under srun, their exit codes and outputs."""
    folder = tmp_path_factory.mktemp("diverged")
    scaling = ["SOLVER.REFERENCE_WORLD_SIZE", "1"]
    argv = command(write_coco(folder / "tiny"), folder / "output", *DIVERGING, *scaling)
    return folder / "output", run_two("srun", argv, folder, forked=True)


def test_processes_of_a_launcher_diverge_together(
    diverged: tuple[Path, list[tuple[int, str]]],
) -> None:
    output, ended = diverged
    assert [code for code, _ in ended] == [3, 3]
    check_divergence(output, "".join(printed for _, printed in ended), 2)


def test_the_reference_world_size_scales_batch_learning_rate_and_length(
    diverged: tuple[Path, list[tuple[int, str]]],
) -> None:
    log = (diverged[0] / "log.txt").read_text()
    assert "batch_size=4, learning_rate=2e+20, max_iter=9" in log
    assert re.search(r"rank 0: .*; images \d \(\S*\), \d \(\S*\)\n", log)  # two of the four


@pytest.mark.slow
def test_invalid_input_ends_all_processes_of_a_launcher_with_one_message(
    tiny: CocoSet, tmp_path: Path
) -> None:
    (Path(tiny.image_root) / "003.png").unlink()
    ended = run_two("torchrun", command(tiny, tmp_path / "output"), tmp_path)
    assert [code for code, _ in ended] == [2, 2]
    errors = [re.findall(r"train_net\.py: error: .*", text) for _, text in ended]
    assert len(errors[0]) == 1
    assert "003.png" in errors[0][0]
    assert errors[1] == []


def test_an_error_that_all_processes_meet_is_printed_once(tiny: CocoSet, tmp_path: Path) -> None:
    weights = tmp_path / "other.pth"
    torch.save({"model": {"layer.weight": torch.zeros(3)}}, weights)
    argv = command(tiny, tmp_path / "output", "--eval-only", "MODEL.WEIGHTS", str(weights))
    ended = run_two("torchrun", argv, tmp_path, forked=True)
    assert [code for code, _ in ended] == [2, 2]
    (error,) = re.findall(r"train_net\.py: error: .*", "".join(text for _, text in ended))
    assert str(weights) in error


@pytest.mark.slow
def test_torchrun_starts_a_training(tiny: CocoSet, tmp_path: Path) -> None:
    argv = command(tiny, tmp_path / "output", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")
    script = str(REPOSITORY / "train_net.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*torchrun, "--nproc-per-node=2", script, *argv],
        check=True,
        timeout=200,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert (tmp_path / "output" / "model_final.pth").is_file()
    assert "World size: 2" in (tmp_path / "output" / "log.txt").read_text()
