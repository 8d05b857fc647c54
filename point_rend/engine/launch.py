"""The processes of a run: starting them, or joining those that a launcher started.

The rank is the number of a process within the run, the local rank its number on its machine.
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
from point_rend.utils.errors import INTERRUPTED, signal_exit_code

GRACE_SECONDS = 30  # for the other processes to end by themselves after one has failed
FIRST_FREE_PORT = 20000
NUM_FREE_PORTS = 20000


class RankInfo(NamedTuple):
    """The rank of a process in a run, and the URL of the rendezvous, as torch expects it."""

    rank: int
    world_size: int
    local_rank: int
    url: str


def rank_from_launcher(environ: Mapping[str, str], *, requested: int = 1) -> RankInfo | None:
    """Read the rank that torchrun, srun or another launcher gave to this process.

    Args:
        environ: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``, or
            the variables of srun; then the first machine of the step is the rendezvous, unless the
            last two are set.
        requested: Total number of processes that the command line requests. More than one overrides
            srun, whose tasks may each start the processes of one machine.

    Returns:
        The rank; None if the processes are not started yet, or there is only one.

    Raises:
        ValueError: If only some of the variables are set, if one is not a number, or if the command
            line requests several processes as well.
    """
    if "RANK" in environ and _number(environ, "WORLD_SIZE", default=1) > 1:
        if requested > 1:
            raise ValueError(
                f"the command line requests {requested} processes, but a launcher has already "
                f"started {environ['WORLD_SIZE']} (WORLD_SIZE): leave out --num-gpus and "
                "--num-machines"
            )
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if not environ.get(name)]
        if missing:
            raise ValueError(
                f"the launcher set RANK and WORLD_SIZE, but not {', '.join(missing)}: expected "
                f"all of {', '.join(names)}, as torchrun sets them"
            )
        rank, world_size, local_rank = (_number(environ, name) for name in names[:3])
        return RankInfo(rank, world_size, local_rank, "env://")
    # srun alone sets this one; a batch script that starts one process itself has the others too.
    if requested == 1 and _number(environ, "SLURM_STEP_NUM_TASKS", default=1) > 1:
        job = _number(environ, "SLURM_JOB_ID", default=0)
        host = environ.get("MASTER_ADDR") or _first_host(environ["SLURM_STEP_NODELIST"])
        port = environ.get("MASTER_PORT") or FIRST_FREE_PORT + job % NUM_FREE_PORTS
        return RankInfo(
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
    """Return the first name of a SLURM host list: ``gpu[03-07,12],big1`` → ``gpu03``."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def join(info: RankInfo, device: str) -> None:
    """Join the other processes of the run; returns once all have joined.

    Args:
        info: Rank of this process.
        device: ``MODEL.DEVICE``; GPUs communicate over NCCL, anything else over gloo.

    Raises:
        ValueError: If the processes are not numbered machine by machine, with equally many on each.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu:
        # A launcher may make a single GPU visible to each process.
        torch.cuda.set_device(info.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=info.url,
        world_size=info.world_size,
        rank=info.rank,
        timeout=DEFAULT_TIMEOUT,
    )
    local_ranks = comm.all_gather(info.local_rank)
    num_local = len(local_ranks) // local_ranks.count(0) if 0 in local_ranks else 0
    if not num_local or local_ranks != [rank % num_local for rank in range(len(local_ranks))]:
        raise ValueError(
            f"the local ranks of the {info.world_size} processes are {local_ranks}: expected "
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
    """Call a function in new processes of this machine, after they have joined the run.

    A run of one process stays in this process. If a process fails, the others are ended. SIGTERM
    and SIGINT are forwarded to all.

    Args:
        function: A function at the top level of a module.
        args: Its arguments.
        device: As for :func:`join`.
        num_local: Processes per machine; with GPUs, one for each. 0 means 1, as in Detectron2.
        num_machines: Number of machines; each calls this function.
        machine_rank: Number of this machine.
        url: Rendezvous of the processes, ``tcp://<address of machine 0>:<a free port>``; "auto" is
            enough for a single machine.

    Raises:
        ValueError: If ``num_local`` is negative.
        SystemExit: If a process ended with an exit code, with the same code; if a signal ended it,
            with 128 plus the number of the signal.
        ProcessRaisedException: If a process raised an error, with its traceback.
    """
    if num_local < 0:
        raise ValueError(f"num_local is {num_local}: expected 0 or more processes")
    num_local = max(1, num_local)
    if num_local * num_machines == 1:
        function(*args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if url == AUTO:
            url = f"file://{folder}/rendezvous"
        infos = [
            RankInfo(machine_rank * num_local + local, num_local * num_machines, local, url)
            for local in range(num_local)
        ]
        context = start_processes(
            enter, (_call, infos, device, function, args), num_local, join=False
        )
        _wait(context)


def _call(
    local_rank: int,
    infos: list[RankInfo],
    device: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Join the run and call the function: the body of a new process."""
    try:
        join(infos[local_rank], device)
        function(*args)
    except KeyboardInterrupt as error:  # torch would count it as a success
        raise SystemExit(INTERRUPTED) from error
    leave()


def leave() -> None:
    """Leave the run once all processes have finished their work."""
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()


def _wait(context: ProcessContext) -> None:
    """Wait until all processes have ended; forward signals to them."""

    def forward(number: int, _: FrameType | None) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    former = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not context.join(grace_period=GRACE_SECONDS):
            pass
    except ProcessExitedException as error:
        _exit_like(error)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _exit_like(error: ProcessExitedException) -> NoReturn:
    """Exit with the code of a failed process; report one that was killed, which could not."""
    if error.exit_code >= 0:
        raise SystemExit(error.exit_code) from error
    print(f"error: {error.msg}; the other processes have been ended", file=sys.stderr)
    raise SystemExit(signal_exit_code(-error.exit_code)) from error


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model so that its gradients are averaged over all processes, if there are several.

    Parameters that contribute to no loss, on one rank or on all, are allowed. Searching for them
    takes 0.2 ms a step with a ResNet-50-FPN; torch warns once if there are none.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    distributed = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=True,
    )
    # The constructor has made all buffers equal, including random ones. From here on each process
    # keeps its own running statistics in them, as in Detectron2.
    distributed.broadcast_buffers = False
    return distributed
