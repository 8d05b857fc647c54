"""The processes of a run: starting them, or joining those that a launcher started.

The rank is the number of a process within the run, the local rank its number on its machine.
"""

import hashlib
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, MutableSequence
from datetime import timedelta
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from point_rend.engine.arguments import AUTO, SILENCE_SECONDS
from point_rend.engine.spawned import enter
from point_rend.engine.supervision import supervise
from point_rend.utils import progress
from point_rend.utils.errors import say_once, user_errors
from point_rend.utils.signals import end_with_parent, signals_wait

FROM_ENVIRONMENT = "env://"  # URL of the rendezvous of torchrun and the like
STORE_TIMEOUT = timedelta(seconds=5)  # of the memory that all processes share
SAME_ERROR_SECONDS = 1.0  # within which all processes of a run meet it
MAX_DIGITS = 9  # of numbers in the environment
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
    if "RANK" in environ and not environ.get("WORLD_SIZE"):
        raise ValueError(
            "the environment has RANK, but not WORLD_SIZE: a launcher sets both, and a single "
            "process needs neither"
        )
    if "RANK" in environ and _number(environ, "WORLD_SIZE") > 1:
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
        _number(environ, "MASTER_PORT")
        return _checked(
            RankInfo(rank, world_size, local_rank, FROM_ENVIRONMENT), "RANK", "WORLD_SIZE"
        )
    # srun alone sets this one; a batch script that starts one process itself has the others too.
    if requested == 1 and _number(environ, "SLURM_STEP_NUM_TASKS", default=1) > 1:
        job = _number(environ, "SLURM_JOB_ID", default=0)
        nodes = environ.get("SLURM_STEP_NODELIST", "")
        host = environ.get("MASTER_ADDR") or _first_host(nodes)
        if not host:
            raise ValueError("srun did not set SLURM_STEP_NODELIST: set MASTER_ADDR to a machine")
        port = _number(environ, "MASTER_PORT", default=FIRST_FREE_PORT + job % NUM_FREE_PORTS)
        info = RankInfo(
            _number(environ, "SLURM_PROCID"),
            _number(environ, "SLURM_STEP_NUM_TASKS"),
            _number(environ, "SLURM_LOCALID"),
            f"tcp://{host}:{port}",
        )
        return _checked(info, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    return None


def _checked(info: RankInfo, rank: str, world_size: str) -> RankInfo:
    """Return a rank from the environment if it is one of its run.

    Args:
        info: The rank.
        rank, world_size: Names of its variables.
    """
    if max(info.rank, info.local_rank) >= info.world_size:
        raise ValueError(
            f"the launcher set {rank} to {info.rank}, the local rank to {info.local_rank} and "
            f"{world_size} to {info.world_size}: expected ranks below the number of processes"
        )
    return info


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name) or ("" if default is None else str(default))
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise ValueError(f"environment variable {name}: expected a number, got {text!r:.50}")
    number = int(text)
    if name == "MASTER_PORT" and not 0 < number < 2**16:
        raise ValueError(f"environment variable {name}: expected 1 to 65535, got {number}")
    return number


def _first_host(nodes: str) -> str:
    """Return the first name of a SLURM host list: ``gpu[03-07,12],big1`` → ``gpu03``."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def join(info: RankInfo, device: str) -> None:
    """Join the other processes of the run; returns once all have joined.

    A process of torchrun gets SIGTERM from here on if torchrun ends.

    Args:
        info: Rank of this process.
        device: ``MODEL.DEVICE``; GPUs communicate over NCCL, anything else over gloo.

    Raises:
        ValueError: If the processes cannot meet, or are not numbered machine by machine, with
            equally many on each.
    """
    # A torchrun that is killed leaves its processes.
    if info.url == FROM_ENVIRONMENT and "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(os.getppid(), signal.SIGTERM)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        # A launcher may make a single GPU visible to each process.
        torch.cuda.set_device(info.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=info.url,
            world_size=info.world_size,
            rank=info.rank,
            timeout=DEFAULT_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        in_use = "EADDRINUSE" in str(error)
        advice = "another program uses the port: choose a free one" if in_use else reason
        raise ValueError(
            f"process {info.rank} of {info.world_size} cannot meet the others at "
            f"{rendezvous_of(info)}: {advice}"
        ) from error
    say_once(_is_new)
    local_ranks = comm.all_gather(info.local_rank)
    num_local = len(local_ranks) // local_ranks.count(0) if 0 in local_ranks else 0
    if not num_local or local_ranks != [rank % num_local for rank in range(len(local_ranks))]:
        raise ValueError(
            f"the local ranks of the {info.world_size} processes are {local_ranks}: expected "
            "equally many processes on every machine, numbered machine by machine"
        )
    comm.create_local_process_group(num_local)
    comm.synchronize()


def _is_new(message: str) -> bool:
    """Return whether this process is the first of its run that has an error to print."""
    name = f"error {hashlib.sha256(message.encode()).hexdigest()}"
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set_timeout(STORE_TIMEOUT)
        number = store.add(name, 1)
        asked_until = time.monotonic() + SAME_ERROR_SECONDS
        # The memory may be in this process, and the others have yet to ask.
        while comm.is_main_process() and time.monotonic() < asked_until:
            if store.add(name, 0) == comm.get_world_size():
                break
            time.sleep(0.01)
        return number == 1
    except (RuntimeError, ValueError):  # the process that keeps it is gone
        return True


def rendezvous_of(info: RankInfo) -> str:
    """Return the address at which processes meet."""
    if info.url != FROM_ENVIRONMENT:
        return info.url
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"


def launch(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    device: str,
    num_local: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    url: str = AUTO,
    silence_limit: float = SILENCE_SECONDS,
) -> None:
    """Call a function in new processes of this machine, after they have joined the run.

    A run of one process stays in this process. If a process fails, the others are ended. Signals
    are forwarded to all. A process that makes no progress is named.

    Args:
        function: A function at the top level of a module.
        args: Its arguments.
        device: As for :func:`join`.
        num_local: Processes per machine; with GPUs, one for each. 0 means 1, as in Detectron2.
        num_machines: Number of machines; each calls this function.
        machine_rank: Number of this machine.
        url: Rendezvous of the processes, ``tcp://<address of machine 0>:<a free port>``; "auto" is
            enough for a single machine.
        silence_limit: Seconds without progress after which a process is named; 0 for never.

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
        board = get_context("spawn").RawArray("d", progress.FIELDS * num_local)
        with signals_wait():
            words = (_call, infos, board, device, function, args)
            context = start_processes(enter, words, num_local, join=False)
        supervise(context, board, silence_limit=silence_limit)


def _call(
    local_rank: int,
    infos: list[RankInfo],
    board: MutableSequence[float],
    device: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Join the run and call the function: the body of a new process."""
    progress.show_on(board, local_rank)
    with user_errors():
        join(infos[local_rank], device)
    function(*args)
    leave()


def leave() -> None:
    """Leave the run once all processes have finished their work."""
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()


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
