"""Processes that keep the machine busy during a measurement."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# The process computes until its input ends, which happens at the latest when its parent does,
# however that ends. Ctrl-C in a terminal reaches it, too, and is left to the parent.
LOOP = """
import select, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("busy", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(100_000):
        pass
"""


@contextmanager
def busy_processes(number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run processes that each compute without pause, with the priority of this one.

    They compute before the context is entered, and have ended when it is left.

    Args:
        number: Number of processes, one core's worth of work each.

    Raises:
        RuntimeError: If a process ended by itself.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(_busy_process()) for _ in range(number)]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield processes
        for process in processes:
            if process.poll() is not None:
                raise RuntimeError(
                    f"a busy process ended with code {process.returncode} during the measurement"
                )


@contextmanager
def _busy_process() -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-ISc", LOOP]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()
