"""The processes of a run: starting them, or joining those that a launcher has started.

A rank is a process's number among all of a run, a local rank its number on its machine.
"""

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    start_processes,
)
from torch.nn.parallel import DistributedDataParallel

from point_rend.engine.arguments import AUTO
from point_rend.engine.spawned import enter

GRACE_SECONDS = 30  # that processes get to end by themselves, once one of them has failed
FIRST_FREE_PORT = 20000
NUM_FREE_PORTS = 20000


class Place(NamedTuple):
    """The place of a process in a run, and where it meets the others, a URL for torch."""

    rank: int
    world_size: int
    local_rank: int
    url: str


def place_by_launcher(environ: Mapping[str, str], *, asked: int = 1) -> Place | None:
    """Read the place that a launcher has given to this process: torchrun, srun or another one.

    Args:
        environ: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``, or
            what srun sets; there the first machine of the step is the meeting point, unless the
            last two are given.
        asked: how many processes the command line asks for in all. Several overrule srun, whose
            tasks may each be there to start the processes of a machine.

    Returns:
        The place; None where the processes are still to be started, or there is only one.

    Raises:
        ValueError: if only some of the variables are there, if one is no number, or if several
            processes are asked for by the command line as well.
    """
    if "RANK" in environ and _number(environ, "WORLD_SIZE", default=1) > 1:
        if asked > 1:
            raise ValueError(
                f"the command line asks for {asked} processes, but a launcher has already started "
                f"{environ['WORLD_SIZE']} (WORLD_SIZE): leave out --num-gpus and --num-machines"
            )
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if not environ.get(name)]
        if missing:
            raise ValueError(
                f"a launcher has set RANK and WORLD_SIZE, but not {', '.join(missing)}: expected "
                f"all of {', '.join(names)}, as torchrun sets them"
            )
        rank, world_size, local_rank = (_number(environ, name) for name in names[:3])
        return Place(rank, world_size, local_rank, "env://")
    # srun sets this one; a batch script that starts one process itself has the others, too.
    if asked == 1 and _number(environ, "SLURM_STEP_NUM_TASKS", default=1) > 1:
        job = _number(environ, "SLURM_JOB_ID", default=0)
        host = environ.get("MASTER_ADDR") or _first_host(environ["SLURM_STEP_NODELIST"])
        port = environ.get("MASTER_PORT") or FIRST_FREE_PORT + job % NUM_FREE_PORTS
        return Place(
            _number(environ, "SLURM_PROCID"),
            _number(environ, "SLURM_STEP_NUM_TASKS"),
            _number(environ, "SLURM_LOCALID"),
            f"tcp://{host}:{port}",
        )
    return None


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name) or ("" if default is None else str(default))
    if not text.isdecimal():
        raise ValueError(f"environment variable {name}: expected a number, got {text!r}")
    return int(text)


def _first_host(nodes: str) -> str:
    """Return the first name of a list as SLURM writes it: ``gpu[03-07,12],big1`` → ``gpu03``."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def join(place: Place, device: str) -> None:
    """Join the other processes of the run; returns when all are there.

    Args:
        place: of this process.
        device: ``MODEL.DEVICE``; a GPU makes the processes talk over NCCL, anything else over gloo.

    Raises:
        ValueError: if the processes are not numbered machine by machine, equally many on each.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu:
        # A launcher may show each process nothing but its own GPU.
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=place.url,
        world_size=place.world_size,
        rank=place.rank,
        timeout=DEFAULT_TIMEOUT,
    )
    local_ranks = comm.all_gather(place.local_rank)
    num_local = len(local_ranks) // local_ranks.count(0) if 0 in local_ranks else 0
    if not num_local or local_ranks != [rank % num_local for rank in range(len(local_ranks))]:
        raise ValueError(
            f"the local ranks of the {place.world_size} processes are {local_ranks}: expected "
            "equally many processes on every machine, numbered machine by machine"
        )
    comm.create_local_process_group(num_local)
    comm.synchronize()


def launch(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    device: str,
    num_local: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    url: str = AUTO,
) -> None:
    """Call a function in new processes of this machine, which have joined each other.

    A single process in all is this one. If a process fails, the others are ended; SIGTERM and
    SIGINT are passed on to all.

    Args:
        function: found by its name in its module.
        args: its arguments.
        device: as for :func:`join`.
        num_local: processes on each machine; with GPUs, one for each. 0 means 1, as with
            Detectron2.
        num_machines: how many machines call this function.
        machine_rank: number of this one.
        url: where the processes meet, ``tcp://<address of machine 0>:<a free port>``; on a single
            machine "auto" will do.

    Raises:
        ValueError: if ``num_local`` is negative.
        SystemExit: with its exit code if a process has ended with one, or 128 + the number of the
            signal that ended it.
        ProcessRaisedException: with its traceback if a process has raised an error.
    """
    if num_local < 0:
        raise ValueError(f"num_local is {num_local}: expected 0 or more processes")
    num_local = max(1, num_local)
    if num_local * num_machines == 1:
        function(*args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if url == AUTO:
            url = f"file://{folder}/meeting_point"
        places = [
            Place(machine_rank * num_local + local, num_local * num_machines, local, url)
            for local in range(num_local)
        ]
        context = start_processes(
            enter, (_run, places, device, function, args), num_local, join=False
        )
        _wait(context)


def _run(
    local_rank: int,
    places: list[Place],
    device: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """What a new process does."""
    try:
        join(places[local_rank], device)
        function(*args)
    except KeyboardInterrupt as error:  # torch would take it for a success
        raise SystemExit(128 + signal.SIGINT) from error
    leave()


def leave() -> None:
    """Part from the other processes after the work is done, if there are others."""
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()


def _wait(context: ProcessContext) -> None:
    """Wait until all processes have ended."""

    def pass_on(number: int, _: FrameType | None) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    former = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not context.join(grace_period=GRACE_SECONDS):
            pass
    except ProcessExitedException as error:
        _exit_like(error)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _exit_like(error: ProcessExitedException) -> NoReturn:
    """End with the exit code of a process; one that was killed could not say anything itself."""
    if error.exit_code >= 0:
        raise SystemExit(error.exit_code) from error
    print(f"error: {error.msg}; the other processes have been ended", file=sys.stderr)
    raise SystemExit(128 - error.exit_code) from error


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model so that its gradients are the means over all processes, if there are several.

    Parameters without a part in the losses, of one rank or of all, are allowed for. To look for
    them takes 0.2 ms a step with a ResNet-50-FPN; torch remarks once that there were none.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    distributed = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=True,
    )
    # Construction has made all buffers equal, random ones among them. From here on each process
    # keeps its own averages in them, as with Detectron2.
    distributed.broadcast_buffers = False
    return distributed
