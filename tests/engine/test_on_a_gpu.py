"""Trainings and evaluations from the command line on a pretended GPU, and without enough memory."""

import contextlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.utils import comm

from point_rend import load_config
from point_rend.cli import train
from point_rend.engine import preflight, setup, trainer
from point_rend.engine.train_step import CheckedTrainer
from tests.engine.killing import start_two, tagged_iteration
from tests.engine.test_train_net_semantic import HEADS, SEMANTIC
from tests.pretended_cuda import Record
from tests.runs import instance_predictions, metrics, refusal
from tests.tiny_datasets import POINTREND, TINY_MODEL, CocoSet, write_coco
from tests.tiny_semantic import write_sem_seg

pytestmark = pytest.mark.usefixtures("_restored")
ON_THE_GPU = ("MODEL.DEVICE", "cuda")


@pytest.fixture
def tiny(tmp_path: Path) -> CocoSet:
    return write_coco(tmp_path / "tiny")


def command(written: CocoSet, output: Path, *more: str) -> list[str]:
    flags = ["--config-file", POINTREND, "--register-coco", "tiny", *written]
    while more and more[0].startswith("--"):
        flags, more = [*flags, more[0]], more[1:]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    return [*flags, *TINY_MODEL, *names, "OUTPUT_DIR", str(output), *more]


def results(output: Path) -> str:
    """Read the log of a training without its times."""
    entries = metrics(output)
    return json.dumps([{k: v for k, v in x.items() if "time" not in k} for x in entries], indent=1)


# Whole runs


def test_a_training_and_its_evaluation_give_the_results_of_the_cpu(
    tiny: CocoSet, tmp_path: Path, cuda: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU, sums of an evaluation are computed in another order.
    monkeypatch.setattr(trainer, "prepared_for_inference", contextlib.nullcontext)
    # The pretended device counts all tensors without storage, those of the trial as well.
    monkeypatch.setattr(setup, "check_model", lambda *_, **__: None)
    folders = [tmp_path / "cpu", tmp_path / "cuda"]
    train.main(command(tiny, folders[0]))
    assert cuda.num_operations == 0
    train.main(command(tiny, folders[1], *ON_THE_GPU))
    assert cuda.num_operations > 0
    assert results(folders[1]) == results(folders[0])
    assert instance_predictions(folders[0], "tiny") == instance_predictions(folders[1], "tiny")
    checkpoints = [torch.load(x / "model_final.pth", weights_only=True) for x in folders]
    for name, weight in checkpoints[0]["model"].items():
        assert torch.equal(checkpoints[1]["model"][name].cpu(), weight), name


def test_a_training_on_label_maps_gives_the_results_of_the_cpu(
    tmp_path: Path, cuda: Record
) -> None:
    config = tmp_path / "semantic.yaml"
    config.write_text(yaml.safe_dump({"_BASE_": POINTREND, "MODEL": SEMANTIC}))
    argv = ["--config-file", str(config), "--register-sem-seg", "tiny"]
    argv += [*write_sem_seg(tmp_path / "tiny"), *TINY_MODEL, *HEADS["PointRendSemSegHead"]]
    argv += ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)", "OUTPUT_DIR"]
    train.main([*argv, str(tmp_path / "cpu")])
    train.main([*argv, str(tmp_path / "cuda"), *ON_THE_GPU])
    assert cuda.num_operations > 0
    assert results(tmp_path / "cuda") == results(tmp_path / "cpu")


# Devices


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["MODEL.DEVICE", "cuda:7"],
            "is cuda:7, but this machine has 1 CUDA device: expected cuda:0",
        ),
        (
            ["--num-gpus=2", "MODEL.DEVICE", "cuda:0"],
            "is cuda:0, but the run has several processes: expe",
        ),
        (
            ["--num-gpus=2", "MODEL.DEVICE", "cuda"],
            "--num-gpus is 2, but this machine has 1 CUDA device",
        ),
        (["MODEL.DEVICE", "mps"], "is mps, but there is no MPS device on this machine"),
        (["MODEL.DEVICE", "xpu"], "is xpu, but there is no XPU device on this machine"),
        (["MODEL.DEVICE", "meta"], "is meta, but there is no META device on this machine"),
    ],
)
@pytest.mark.usefixtures("cuda")
def test_devices_that_do_not_exist_are_refused_in_one_line(
    more: list[str],
    message: str,
    tiny: CocoSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "output"
    assert message in refusal(command(tiny, output, *more), capsys)
    assert not output.exists()


def test_a_launcher_gives_every_process_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    preflight.check_device("cuda", launched=True)
    preflight.check_device("cuda:3")
    preflight.check_device("cuda", num_processes=4)
    preflight.check_device("cpu:0", num_processes=9, launched=True)
    with pytest.raises(ValueError, match="is cuda:0, but the run has several processes"):
        preflight.check_device("cuda:0", launched=True)
    with pytest.raises(
        ValueError, match=r"--device is cuda:4, but .* 4 CUDA devices: .* to cuda:3"
    ):
        preflight.check_device("cuda:4", option="--device")


def test_other_accelerators_are_used_by_one_process_where_torch_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerator = torch.accelerator
    monkeypatch.setattr(accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    monkeypatch.setattr(accelerator, "device_count", lambda: 1)
    preflight.check_device("mps")
    preflight.check_device("mps:0")
    with pytest.raises(ValueError, match="is mps, which only one process can use"):
        preflight.check_device("mps", num_processes=2)
    with pytest.raises(ValueError, match="is xpu, but there is no XPU device"):
        preflight.check_device("xpu")
    cfg = load_config(POINTREND, ["MODEL.DEVICE", "mps"])
    preflight.check_machine(cfg, 1)
    with pytest.raises(ValueError, match="is mps, which has no float64"):
        preflight.check_machine(cfg, 1, training=True)


# Memory


def run_out_of_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def failing_from(iteration: int) -> Callable[..., None]:
    def run_step(self: CheckedTrainer) -> None:
        run_out_of_memory() if self.iter == iteration else original_step(self)

    original_step = CheckedTrainer.run_step
    return run_step


def last_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line of a run without enough memory, which ends with exit code 2."""
    line = refusal(argv, capsys)
    assert "ran out of memory" in line
    return line


def test_a_step_without_enough_memory_ends_with_what_to_lower_and_the_last_checkpoint(
    tiny: CocoSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CheckedTrainer, "run_step", failing_from(2))
    output = tmp_path / "output"
    more = ["SOLVER.MAX_ITER", "9", "SOLVER.CHECKPOINT_PERIOD", "2", "DATASETS.TEST", "()"]
    line = last_line(command(tiny, output, *more), capsys)
    assert (
        "MODEL.DEVICE cpu ran out of memory in iteration 2: lower SOLVER.IMS_PER_BATCH (for which "
        "SOLVER.ACCUMULATION_STEPS makes up), INPUT.MIN_SIZE_TRAIN or "
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, or set SOLVER.AMP.ENABLED "
        f"True; the last checkpoint is {output / 'model_0000001.pth'}; resume with: "
    ) in line
    assert tagged_iteration(output) == 1
    assert "Tried to allocate 20.00 MiB" in (output / "log.txt").read_text()

    more += ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]
    line = last_line(command(tiny, output, "--overwrite", *more), capsys)
    assert "AMP" not in line.partition(";")[0]


def test_an_evaluation_without_enough_memory_saves_the_training_before_it_ends(
    tiny: CocoSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "build_evaluator", run_out_of_memory)
    output = tmp_path / "output"
    schedule = ["SOLVER.MAX_ITER", "9", "TEST.EVAL_PERIOD", "2"]
    line = last_line(command(tiny, output, *schedule), capsys)
    assert (
        "in the evaluation: lower INPUT.MIN_SIZE_TEST or TEST.DETECTIONS_PER_IMAGE, or set" in line
    )
    assert tagged_iteration(output) == 1
    weights = ["MODEL.WEIGHTS", str(output / "model_0000001.pth")]
    alone = last_line(command(tiny, tmp_path / "alone", "--eval-only", *weights), capsys)
    assert "in the evaluation: lower INPUT.MIN_SIZE_TEST" in alone


def test_a_rank_without_enough_memory_does_not_wait_for_the_others_but_says_why(
    tiny: CocoSet, tmp_path: Path
) -> None:
    def fail_on_rank_1() -> None:
        def run_step(self: CheckedTrainer) -> None:
            if comm.get_rank() == 1 and self.iter == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            original_step(self)

        original_step = CheckedTrainer.run_step
        CheckedTrainer.run_step = run_step

    argv = command(tiny, tmp_path / "output", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "9")
    main, failing = start_two("torchrun", argv, tmp_path, first=fail_on_rank_1)
    assert failing.end() == 2, failing.output()
    main.kill(signal.SIGKILL)  # as the launcher does
    main.end()
    assert " ran out of memory in iteration 1: lower SOLV" in failing.output().splitlines()[-1]
