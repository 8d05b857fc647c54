"""A Ray cluster for one command: a running one, or a local one that ends with the command."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from point_rend.utils.children import guarded
from point_rend.utils.errors import shorten
from point_rend.utils.imports import not_installed
from point_rend.utils.signals import SIGNALS
from point_rend.utils.version import __version__

ADDRESS = "RAY_ADDRESS"  # environment variable of Ray
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without it, Ray warns of a change to come
}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # without clusters, Ray keeps to 127.0.0.1
    "RAY_health_check_failure_threshold": "20",  # of 3 seconds: a busy machine is not a dead one
}
ANSWER_SECONDS = 30.0  # for a cluster, and for its workers
ENDING_SECONDS = 10.0  # for the processes of a local Ray
OBJECT_STORE_BYTES = 2 << 30  # at most, of a local Ray
LONGEST_FOLDER = 40  # characters: Ray makes sockets below, whose paths may have 107

# Connects as this process is about to do, which can hang and end the process.
PROBE = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL", configure_logging=True)
"""


def import_ray() -> Any:
    """Import Ray, which reports nothing to its makers.

    Raises:
        ValueError: If it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise not_installed("ray[data]", "ray") from error
    return ray


@contextlib.contextmanager
def ray_cluster(address: str | None = None) -> Iterator[Any]:
    """Connect to a Ray cluster for the length of a block.

    A connection that this process has already is used, and stays.

    Args:
        address: HOST:PORT of the head of a running cluster to which this machine belongs, or
            "auto" for the one on this machine. By default `RAY_ADDRESS`, or else a local Ray is
            started, on the loopback interface and without a dashboard.

    Yields:
        The module `ray`.

    Raises:
        OSError: If the cluster cannot be reached.
        ValueError: If Ray is not installed, or an option does not fit.
    """
    address = address or os.environ.get(ADDRESS)
    if not address:
        for name, value in LOCAL.items():
            os.environ.setdefault(name, value)
    ray = import_ray()
    if ray.is_initialized():
        with _quiet(ray):
            yield ray
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet(ray))
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address:
            _check_address(address)
            stack.callback(ray.shutdown)
            with own_handlers():
                ray.init(address, **options)
            check_workers(ray)
        else:
            folder = stack.enter_context(_folder())
            stack.callback(_end, ray, set(_descendants()))
            with own_handlers():
                ray.init(
                    "local",
                    include_dashboard=False,
                    object_store_memory=_object_store_bytes(),
                    _temp_dir=folder,
                    **options,
                )
            stack.enter_context(guarded([x.pid for x in _descendants()], 1.0))
        yield ray


def check_workers(ray: Any) -> None:
    """Make sure that all machines of a cluster have this package.

    Raises:
        OSError: If a machine does not answer.
        ValueError: If one lacks the package, or has another version.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def version() -> str | None:  # pickled by value: the package may be missing
        try:
            from point_rend.utils.version import __version__
        except ModuleNotFoundError:
            return None
        return __version__

    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(version)
            asked[task.remote()] = node["NodeManagerHostname"]
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    if silent:
        names = shorten(", ".join(sorted({asked[x] for x in silent})))
        raise OSError(f"--engine ray: no answer of {names} within {ANSWER_SECONDS:g} seconds")
    for reference in answered:
        try:
            found = ray.get(reference)
        except ray.exceptions.RayError:  # the machine has just ended
            continue
        if found != __version__:
            has = "no point_rend" if found is None else f"point_rend {found}"
            raise ValueError(
                f"--engine ray: {asked[reference]} has {has}: expected version {__version__}, as "
                'here, on all machines of the cluster: pip install "point_rend[ray]"'
            )


def _check_address(address: str) -> None:
    """Make sure that a cluster answers, in bounded time.

    Raises:
        OSError: If it does not.
        ValueError: If the address has another form.
    """
    host, colon, port = address.rpartition(":")
    is_endpoint = bool(host and colon and port.isdecimal() and 0 < int(port) < 65536)
    if address != "auto" and ("//" in address or not is_endpoint):
        raise ValueError(
            f"--ray-address {shorten(address)}: expected HOST:PORT, as `ray start --head` prints, "
            "or auto, in a command on a machine of the cluster"
        )
    failure = f"--ray-address {shorten(address)}: there is no Ray cluster"
    if is_endpoint:
        try:
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        except (OSError, UnicodeError) as error:
            raise OSError(f"{failure}: {error}") from error
    try:
        subprocess.run(
            [sys.executable, "-P", "-c", PROBE, address],
            timeout=ANSWER_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{failure} that answers within {ANSWER_SECONDS:g} seconds") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        reason = shorten(lines[-1], 300) if lines else f"exit code {error.returncode}"
        raise OSError(f"{failure} that this machine belongs to: {reason}") from error


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Let Ray Data print nothing: errors are raised as well."""
    context = ray.data.DataContext.get_current()
    names = ("enable_progress_bars", "print_on_execution_start")
    former = {name: getattr(context, name) for name in names if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    for name in former:
        setattr(context, name, False)
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in former.items():
            setattr(context, name, value)


@contextlib.contextmanager
def own_handlers() -> Iterator[None]:
    """Keep the handlers of signals, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _folder() -> Iterator[str | None]:
    """Make a temporary folder for the logs and sockets of a local Ray."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder if len(folder) <= LONGEST_FOLDER else None  # then Ray chooses


def _object_store_bytes() -> int:
    """Return the memory for the objects of a local Ray: a quarter of what is free, but bounded."""
    import psutil

    least = 128 << 20
    return max(least, min(OBJECT_STORE_BYTES, psutil.virtual_memory().available // 4))


def _descendants() -> list[Any]:
    import psutil  # comes with Ray

    return psutil.Process().children(recursive=True)


def _end(ray: Any, before: set[Any]) -> None:
    """End a local Ray, and kill what does not end in time."""
    import psutil

    started = set(_descendants()) - before
    ray.shutdown()
    for process in survivors(started):
        with contextlib.suppress(psutil.Error):
            process.kill()


def survivors(processes: Iterable[Any], seconds: float = ENDING_SECONDS) -> set[Any]:
    """Wait for the end of some processes of psutil; return those that still run after a time."""
    import psutil

    deadline = time.monotonic() + seconds
    alive = set(processes)
    while alive:
        for process in [*alive]:
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    alive.remove(process)
            except psutil.Error:
                alive.remove(process)
        if not alive or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return alive
