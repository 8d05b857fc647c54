"""The wait of OpenMP threads for each other, in the processes of the commands.

PyTorch divides most operations among threads and lets each wait for the slowest. By default a
thread that waits first spins for milliseconds. On a busy machine it thereby keeps the very thread
it is waiting for from running, and small operations take many times as long.
"""

import os
import sys

# Threads that wait soon sleep: OpenMP's variable, then those of GNU's and of LLVM's library. 1000
# turns take microseconds. Without them, a thread sleeps between almost all operations, and
# on an idle machine a training takes a sixth longer.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
VARIABLES = (*PASSIVE, "KMP_LIBRARY")


def wait_passively() -> None:
    """Let OpenMP threads soon sleep while they wait, here and in processes started from here.

    The variables are read when PyTorch is loaded: afterwards, nothing is changed. If any of them is
    set already, all stay as they are.
    """
    if "torch" not in sys.modules and not wait_settings():
        os.environ.update(PASSIVE)


def wait_settings() -> dict[str, str]:
    """Return the variables that are set, of those that determine how OpenMP threads wait."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def describe_wait() -> str:
    """Describe in a few words how OpenMP threads wait."""
    settings = wait_settings()
    if settings == PASSIVE:
        return "passive wait"
    if not settings:
        return "OpenMP's default wait"
    return "wait by " + " ".join(f"{name}={value}" for name, value in settings.items())
