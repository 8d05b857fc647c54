"""Two real processes over gloo, and the ranks that launchers assign."""

import contextlib
import io
import os
import signal
import time
from typing import Any, NamedTuple

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException

from point_rend.engine.launch import RankInfo, launch, rank_from_launcher
from tests.engine.killing import PATIENCE
from tests.engine.ranks import (
    DETERMINISTIC,
    Rare,
    findings_of_rank,
    gradients,
    rare_batches,
    shares,
    stumble,
    tiny_cfg,
)

# Ranks given by launchers

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[03-04,07],big1",
}


def test_the_rank_of_torchrun_is_read() -> None:
    assert rank_from_launcher(TORCHRUN) == RankInfo(5, 8, 1, "env://")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[03-04,07],big1", "gpu03"),
        ("gpu[03,07-09]-ib", "gpu03-ib"),
        ("rack[1-2]n[5,6]", "rack1n5"),
        ("alone", "alone"),
        ("a.cluster.org,b.cluster.org", "a.cluster.org"),
    ],
)
def test_under_srun_the_processes_meet_on_the_first_machine(nodes: str, host: str) -> None:
    info = rank_from_launcher(SRUN | {"SLURM_STEP_NODELIST": nodes})
    assert info == RankInfo(5, 8, 1, f"tcp://{host}:23456")


def test_under_srun_a_given_rendezvous_is_used() -> None:
    given = {"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "1234"}
    assert rank_from_launcher(SRUN | given) == RankInfo(5, 8, 1, "tcp://10.0.0.9:1234")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script
        {"WORLD_SIZE": "2"},
    ],
)
def test_a_single_process_has_no_rank(environ: dict[str, str]) -> None:
    assert rank_from_launcher(environ) is None


def test_the_command_line_overrides_srun_and_contradicts_torchrun() -> None:
    assert rank_from_launcher(SRUN, requested=16) is None
    with pytest.raises(ValueError, match="leave out --num-gpus"):
        rank_from_launcher(TORCHRUN, requested=16)


@pytest.mark.parametrize("name", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_missing_variable_of_a_launcher_is_named(name: str) -> None:
    environ = {key: value for key, value in TORCHRUN.items() if key != name}
    with pytest.raises(ValueError, match=f"but not {name}:"):
        rank_from_launcher(environ)


def test_a_variable_that_is_not_a_number_is_named() -> None:
    with pytest.raises(ValueError, match="RANK: expected a number, got 'first'"):
        rank_from_launcher(TORCHRUN | {"RANK": "first"})


# One process


@pytest.mark.parametrize("num_local", [0, 1])
def test_a_single_process_runs_here(num_local: int) -> None:
    callers: list[int] = []
    launch(lambda: callers.append(os.getpid()), (), device="cpu", num_local=num_local)
    assert callers == [os.getpid()]


def test_a_negative_number_of_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_local is -1: expected 0 or more"):
        launch(print, (), device="cpu", num_local=-1)


# Two processes


class Findings(NamedTuple):
    """Findings of two processes, and the way they ended."""

    ranks: list[dict[str, Any]]
    exit_code: int
    stderr: str
    seconds: float


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = tmp_path_factory.mktemp("ranks")
    with contextlib.redirect_stderr(io.StringIO()) as stderr, pytest.raises(SystemExit) as ended:
        launch(findings_of_rank, (str(folder),), device="cpu", num_local=2)
    files = [folder / f"{rank}.pth" for rank in range(2)]
    seconds = time.time() - max(file.stat().st_mtime for file in files)
    ranks = [torch.load(file) for file in files]
    return Findings(ranks, ended.value.code, stderr.getvalue(), seconds)


@pytest.fixture(scope="module")
def alone() -> nn.Module:
    """Build the model of rank 0 in a single process."""
    torch.manual_seed(0)
    return build_model(tiny_cfg(*DETERMINISTIC))


def assert_equal_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item(), msg=name
        )


def test_gradients_of_equal_shares_equal_those_of_one_process_with_the_whole_batch(
    found: Findings, alone: nn.Module
) -> None:
    first, second = shares("equal")
    assert_equal_gradients(found.ranks[0]["equal"], gradients(alone, first + second))


@pytest.mark.parametrize("case", ["unequal", "empty"])
def test_gradients_of_unequal_shares_are_averaged_over_the_ranks(
    case: str, found: Findings, alone: nn.Module
) -> None:
    first, second = (gradients(alone, share) for share in shares(case))
    assert first.keys() == second.keys()  # empty images reach all parameters as well
    mean = {name: (first[name] + second[name]) / 2 for name in first}
    assert_equal_gradients(found.ranks[0][case], mean)


def test_all_ranks_get_the_same_gradients(found: Findings) -> None:
    for case in ("equal", "unequal", "empty"):
        zero, one = (rank[case] for rank in found.ranks)
        assert zero.keys() == one.keys()
        assert all(torch.equal(zero[name], one[name]) for name in zero)


@pytest.mark.parametrize("model", ["state", "implicit state"])
def test_all_ranks_start_with_the_weights_and_buffers_of_rank_0(
    model: str, found: Findings
) -> None:
    zero, one = (rank[model] for rank in found.ranks)
    assert zero.keys() == one.keys()
    assert all(torch.equal(zero[name], one[name]) for name in zero)


@pytest.mark.parametrize(
    ("case", "cause"), [("loss", "loss_toy inf"), ("proposals", "Training has diverged")]
)
def test_non_finite_values_on_one_rank_end_all_ranks_in_the_same_step(
    case: str, cause: str, found: Findings
) -> None:
    messages = [rank[case][0] for rank in found.ranks]
    assert messages[0] == messages[1]
    assert "the loss is infinite or NaN in iteration 0" in messages[0]
    lines = messages[0].splitlines()
    assert [line[:9] for line in lines[1:]] == ["  rank 0:", "  rank 1:"]
    assert cause not in lines[1]
    assert cause in lines[2]
    first = 10 if case == "loss" else 20
    assert f"images {first} ({first}.jpg)" in lines[1]
    assert f"images {first + 1} ({first + 1}.jpg)" in lines[2]
    assert all(rank[case][1] for rank in found.ranks)


def test_gradients_of_several_batches_are_the_mean_over_batches_and_ranks_exchanged_once(
    found: Findings,
) -> None:
    """Also that of a weight which only the first batch of rank 0 uses."""
    each = [gradients(Rare(), batch) for batch in rare_batches()]
    for rank in found.ranks:
        step = rank["accumulated"]
        assert step["message"] == ""
        assert step["count"] == 1
        for name in ("always", "rare"):
            used = [gradient[name] for gradient in each if name in gradient]
            assert len(used) == (6 if name == "always" else 1)
            mean = torch.stack(used).sum(dim=0) / 6
            torch.testing.assert_close(step["grads"][name], mean)
            start = getattr(Rare(), name).detach()
            torch.testing.assert_close(step["weights"][name], start - 0.1 * mean)


def test_all_ranks_have_the_same_averaged_weights(found: Findings) -> None:
    zero, one = (rank["accumulated"]["average"] for rank in found.ranks)
    assert zero["updates"] == one["updates"] == 1
    assert zero["weights"].keys() == {"always", "rare"}  # without the prefix of the wrapper
    for name, value in zero["weights"].items():
        assert torch.equal(value, one["weights"][name])
        start, end = getattr(Rare(), name), found.ranks[0]["accumulated"]["weights"][name]
        torch.testing.assert_close(value, 0.1 * start.detach() + 0.9 * end)


def test_a_value_that_is_not_finite_in_one_batch_of_one_rank_ends_the_step_of_all(
    found: Findings,
) -> None:
    steps = [rank["accumulated nan"] for rank in found.ranks]
    assert steps[0]["message"] == steps[1]["message"]
    assert steps[0]["message"].splitlines()[1:] == [
        "  rank 0: finite in all 3 batches",
        "  rank 1: batch 2 of 3; loss_rare nan; images 8 (8.jpg)",
    ]
    for step in steps:
        assert all(torch.equal(x, getattr(Rare(), n)) for n, x in step["weights"].items())


def test_all_ranks_refuse_to_resume_from_disks_that_are_not_shared(found: Findings) -> None:
    messages = [rank["resume"] for rank in found.ranks]
    assert "only 1 of 2 processes see a checkpoint to resume" in messages[0]
    assert "there is none for rank 1 in" in messages[0]
    assert "disk1': OUTPUT_DIR has to be one folder that all machines share" in messages[0]
    assert messages[1] == messages[0]


def test_naive_sync_bn_normalizes_over_all_processes_on_cpus(found: Findings) -> None:
    torch.manual_seed(3)
    joined = nn.BatchNorm2d(5)(torch.randn(4, 5, 6, 7)).detach()
    together = torch.cat([rank["normalized"] for rank in found.ranks])
    torch.testing.assert_close(together, joined, rtol=1e-4, atol=1e-5)


def test_the_death_of_one_rank_ends_the_others_and_is_named(found: Findings) -> None:
    assert found.exit_code == 128 + signal.SIGKILL
    assert "process 1 terminated with signal SIGKILL" in found.stderr
    assert found.seconds < PATIENCE


@pytest.mark.slow
def test_an_error_of_one_rank_ends_the_others_with_its_message() -> None:
    with pytest.raises(ProcessRaisedException, match="rank 1 stumbles"):
        launch(stumble, (), device="cpu", num_local=2)
